"""What ONNX files are put together from: named nodes and constants, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnjax._checks import missing_package
from rnnjax.interop._entries import read_entries

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

OPSET = 17
# The version of the file format that came with that operator set: runtimes refuse younger ones.
IR_VERSION = 8
NODES = {
    "vanilla": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "peephole_lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", {"linear_before_reset": 0}),
}
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}
Tensors = Mapping[str, tuple[Any, list]]  # dtype and axes, of names or sizes, by name


class Graph:
    """Nodes and constants in the order they are added, each under the name that was asked for."""

    def __init__(self, task: str) -> None:
        """``task`` is the function that needs ``onnx``, for the message where it is missing."""
        try:
            import onnx  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing_package(task, "onnx", "export") from error
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Adds a node; the name of its first output."""
        from onnx import helper

        self._nodes.append(helper.make_node(op_type, inputs, outputs, **attributes))
        return outputs[0]

    def serialize(self, name: str, inputs: Tensors, outputs: Tensors) -> bytes:
        """The bytes of the file, checked."""
        from onnx import checker, helper

        def described(tensors: Tensors) -> list:
            return [
                helper.make_tensor_value_info(
                    key, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), axes
                )
                for key, (dtype, axes) in tensors.items()
            ]

        graph = helper.make_graph(
            self._nodes, name, described(inputs), described(outputs), self._constants
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="rnnjax"
        )
        checker.check_model(model, full_check=True)
        return model.SerializeToString()


def as_float32(
    place: str, found: Mapping[str, Any], shapes: dict[str, str]
) -> dict[str, np.ndarray]:
    """The arrays named in ``shapes``, which must fit, in float32."""
    return {
        name: narrow(place, array) for name, array in read_entries(found, shapes, place).items()
    }


def narrow(place: str, array: np.ndarray) -> np.ndarray:
    """An array of at most 32 bits in float32."""
    if array.dtype.itemsize > 4:
        raise ValueError(f"{place} must be float32 for nodes of ONNX runtimes, got {array.dtype}")
    return array.astype(np.float32)

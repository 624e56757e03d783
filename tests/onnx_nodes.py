"""Models of ONNX that are one recurrent node, and what onnxruntime makes of them."""

import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed: its nodes are untested")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

INPUTS = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]


def one_node(op_type, attributes, feeds):
    """A model of one node, whose inputs are those named in ``feeds``."""
    is_lstm = op_type == "LSTM"
    inputs = [name if name in feeds else "" for name in (INPUTS if is_lstm else INPUTS[:6])]
    outputs = ["Y", "Y_h", "Y_c"] if is_lstm else ["Y", "Y_h"]
    node = onnx.helper.make_node(op_type, inputs, outputs, **attributes)

    def value(name):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(feeds.get(name, feeds["X"]).dtype)
        shape = feeds[name].shape if name in feeds else None
        return onnx.helper.make_tensor_value_info(name, dtype, shape)

    graph = onnx.helper.make_graph([node], "one", [*map(value, feeds)], [*map(value, outputs)])
    opset = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)


def run_one_node(op_type, attributes, feeds):
    """Y, Y_h, and Y_c of an LSTM, by onnxruntime."""
    session = onnxruntime.InferenceSession(
        one_node(op_type, attributes, feeds).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    return session.run(None, feeds)

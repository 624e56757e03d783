"""One step of a language model as an ONNX graph, the carry among its inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnjax._checks import check_params
from rnnjax.base import Cell
from rnnjax.interop import onnx as onnx_layers
from rnnjax.interop._onnx_file import ACTIVATIONS, NODES, Graph, as_float32, narrow
from rnnjax.interop._onnx_parts import arguments_of, cells_of, kind_of
from rnnjax.interop.classifiers import layers_of
from rnnjax.models.language_model import LanguageModel, LanguageModelParams, language_model


def export_step(model: LanguageModel, params: LanguageModelParams) -> bytes:
    """The ONNX model of one step of a language model: a token in, the logits of the next one out.

    Inputs are ``token`` int32 [batch], at least one row, and the carry: ``layer0.h`` float32
    [batch, H] and, for an LSTM, ``layer0.c``, then those of ``layer1`` and so on. Outputs are
    ``logits`` float32 [batch, V] and the carry after the step, under the same names behind
    ``next.``. Before the first token the carry is zeros. A text is written by a loop in which what
    came out goes in again, in any language that has an ONNX runtime.

    The package ``onnx`` must be installed; the extra ``export`` brings it.

    Args:
        model: a language model of ``embedding``, of ``lstm``, ``peephole_lstm``, ``gru`` or
            ``vanilla`` (with tanh, relu or sigmoid), alone or in a ``stack``, and of a linear head,
            tied or not.
        params: its parameters, at most 32 bits wide.

    Returns:
        The bytes of an ``.onnx`` file of operator set 17.

    Raises:
        ValueError: a part of the model has no node in ONNX, or is not known: it was made by hand,
            or changed.
        ModuleNotFoundError: the package ``onnx`` is not installed.

    Example:
        >>> import jax, rnnjax
        >>> model = rnnjax.language_model(rnnjax.embedding(9, 4), rnnjax.lstm(3))
        >>> import onnx
        >>> graph = onnx.load_from_string(export_step(model, model.init(jax.random.key(0)))).graph
        >>> [value.name for value in graph.output]
        ['logits', 'next.layer0.h', 'next.layer0.c']

    References:
        "ONNX Operators", onnx.ai, operators RNN, LSTM and GRU since version 14.
    """
    cells, tied = _parts_of(model)
    params = check_params(params, LanguageModelParams)
    kinds = [kind_of(cell) for cell in cells]
    layers = layers_of(params.layer)
    if len(layers) != len(cells):
        raise ValueError(f"params.layer must be of {len(cells)} layers, got {len(layers)}")
    graph = Graph("export_step")
    table = as_float32("embedding", params.embedding._asdict(), {"vectors": "V E"})
    graph.constant("first_axis", np.array([0]))
    graph.constant("embedding.vectors", table["vectors"])
    graph.node("Gather", ["embedding.vectors", "token"], "embedded")
    xs = graph.node("Unsqueeze", ["embedded", "first_axis"], "xs")
    inputs: dict[str, Any] = {"token": (np.int32, ["batch"])}
    carry: dict[str, Any] = {}
    for index, (kind, layer) in enumerate(zip(kinds, layers, strict=True)):
        xs, sizes = _layer(graph, f"layer{index}", *kind, layer, xs)
        carry |= {name: (np.float32, ["batch", size]) for name, size in sizes.items()}
    _head(graph, params, f"next.layer{len(cells) - 1}.h", tied)
    outputs = {"logits": (np.float32, ["batch", model.vocab_size])}
    outputs |= {f"next.{name}": tensor for name, tensor in carry.items()}
    return graph.serialize("step", inputs | carry, outputs)


def _parts_of(model: Any) -> tuple[list[Cell], bool]:
    """The cells of a language model, the lowest first, and whether its head is tied."""
    given = arguments_of(model, language_model)
    if given["softmax"] is not None:
        raise ValueError(f"model must have a linear head to become ONNX nodes, got {model!r}")
    # A language model has no layer of two directions.
    return [cell for (cell,) in cells_of(given["layer"])], given["tie"]


def _layer(
    graph: Graph, name: str, kind: str, activation: str, layer: Any, xs: str
) -> tuple[str, dict[str, int]]:
    """One recurrent node of one step: its outputs [1, B, H], and the sizes of its carry by name."""
    arrays = onnx_layers.export_weights(kind, layer)
    weights = {key: graph.constant(f"{name}.{key}", narrow(name, a)) for key, a in arrays.items()}
    size = arrays["R"].shape[-1]
    op_type, attributes = NODES[kind]
    if kind == "vanilla":
        attributes = {"activations": [ACTIVATIONS[activation]]}
    fields = ("h", "c") if op_type == "LSTM" else ("h",)
    given = [
        graph.node("Unsqueeze", [f"{name}.{f}", "first_axis"], f"{name}.before.{f}") for f in fields
    ]
    graph.node(
        op_type,
        [xs, weights["W"], weights["R"], weights["B"], "", *given]
        + ([weights["P"]] if "P" in weights else []),
        "",
        *(f"{name}.after.{f}" for f in fields),
        name=name,
        hidden_size=size,
        **attributes,
    )
    for field in fields:
        graph.node("Squeeze", [f"{name}.after.{field}", "first_axis"], f"next.{name}.{field}")
    return f"{name}.after.h", {f"{name}.{field}": size for field in fields}


def _head(graph: Graph, params: Any, hs: str, tied: bool) -> None:
    weights = {"bias": params.head.bias} if tied else params.head._asdict()
    head = as_float32("head", weights, {"bias": "V"} if tied else {"w": "H V", "bias": "V"})
    bias = graph.constant("head.bias", head["bias"])
    w = "embedding.vectors" if tied else graph.constant("head.w", head["w"])
    graph.node("Gemm", [hs, w, bias], "logits", transB=int(tied))

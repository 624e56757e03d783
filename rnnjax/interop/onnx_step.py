"""One step of a language model as an ONNX graph, the carry among its inputs and outputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax.base import Cell
from rnnjax.cells.gru import gru
from rnnjax.cells.lstm import lstm
from rnnjax.cells.peephole_lstm import peephole_lstm
from rnnjax.cells.vanilla import vanilla
from rnnjax.interop import onnx as onnx_layers
from rnnjax.interop._onnx_file import ACTIVATIONS, NODES, Graph, as_float32, narrow
from rnnjax.layers.recurrent import as_layer, recurrent
from rnnjax.layers.stack import stack
from rnnjax.models.embedding import embedding
from rnnjax.models.language_model import LanguageModel, LanguageModelParams, language_model

_FUNCTIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


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
    kinds = [_kind_of(cell) for cell in cells]
    layers = params.layer if type(params.layer) is tuple else (params.layer,)
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
    recipe = getattr(model, "_recipe", None)
    if recipe is None or recipe.make is not language_model:
        raise ValueError(f"model must be made by rnnjax.language_model, got {model!r}")
    given = recipe.arguments
    made = given["embedding"]._recipe
    if made is None or made.make is not embedding or given["softmax"] is not None:
        raise ValueError(
            "model must have a rnnjax.embedding and a linear head to become ONNX nodes, "
            f"got {model!r}"
        )
    return _cells_of(as_layer(given["layer"])), given["tie"]


def _cells_of(layer: Any) -> list[Cell]:
    recipe = layer._recipe
    if recipe is not None and recipe.arguments.get("policy") is None:
        if recipe.make is recurrent:
            return [recipe.arguments["cell"]]
        if recipe.make is stack:
            return [c for part in recipe.arguments["layers"] for c in _cells_of(as_layer(part))]
    raise ValueError(
        "layer must be a recurrent cell or a stack of them, without a policy, to become ONNX "
        f"nodes, got {layer!r}"
    )


def _kind_of(cell: Cell) -> tuple[str, str]:
    """The kind of a cell, and its activation."""
    recipe = cell._recipe
    make, given = (None, {}) if recipe is None else (recipe.make, recipe.arguments)
    if make is lstm:
        return "lstm", "tanh"
    if make is peephole_lstm:
        return "peephole_lstm", "tanh"
    if make is gru:
        return "gru" if given["reset_after"] else "gru_reset_before", "tanh"
    if make is vanilla:
        for name, function in _FUNCTIONS.items():
            if given["activation"] is function:
                return "vanilla", name
    raise ValueError(
        "cell must be an lstm, peephole_lstm, gru, or vanilla with one of "
        f"{list(_FUNCTIONS)}, to become an ONNX node, got {cell!r}; "
        "rnnjax.exporting.export_step takes every cell"
    )


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

"""A whole classifier as an ONNX graph with the native nodes ``RNN``, ``LSTM`` and ``GRU``."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnjax.interop import onnx as onnx_layers
from rnnjax.interop._onnx_file import ACTIVATIONS, NODES, Graph, as_float32, narrow
from rnnjax.interop._onnx_parts import arguments_of, cells_of, kind_of
from rnnjax.interop.classifiers import describe, layers_of, table_of
from rnnjax.layers.bidirectional import Directions
from rnnjax.models.classifier import ClassifierParams, Model, classifier


def export_classifier(model: Model, params: ClassifierParams) -> bytes:
    """The ONNX model of a classifier: one native node a recurrent layer, both directions in one.

    Inputs are ``tokens`` int32 [batch, time] and ``lengths`` int32 [batch], which every recurrent
    node takes as ``sequence_lens``; the output is ``logits`` float32 [batch, C]. Batch and time
    are symbolic, and may be 0. As everywhere here padding is never read, and a length of 0 pools
    to zeros.
    Token ids outside [-V, V) and lengths outside [0, time] are for the runtime to refuse.

    The package ``onnx`` must be installed; the extra ``export`` brings it.

    Args:
        model: a classifier of ``embedding``, of ``lstm``, ``peephole_lstm``, ``gru`` or ``vanilla``
            (with tanh, relu or sigmoid), one of them in all layers, forward or ``bidirectional``,
            alone or in a ``stack``.
        params: its parameters, at most 32 bits wide.

    Returns:
        The bytes of an ``.onnx`` file of operator set 17.

    Raises:
        ValueError: a part of the model has no node in ONNX, or is not known: it was made by hand,
            or changed; or the parameters are those of another model, or wider than float32.
        ModuleNotFoundError: the package ``onnx`` is not installed.

    Example:
        >>> import jax, rnnjax
        >>> model = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.lstm(3), num_classes=2)
        >>> import onnx
        >>> graph = onnx.load_from_string(export_classifier(model, model.init(jax.random.key(0))))
        >>> [node.op_type for node in graph.graph.node if node.op_type == "LSTM"]
        ['LSTM']

    References:
        "ONNX Operators", onnx.ai, operators RNN, LSTM and GRU since version 14.
    """
    kind, activation, pooling, directions = _parts_of(model)
    found = describe(kind, params, pooling=pooling, activation=activation)
    if [1 + size.bidirectional for size in found.layers] != directions:
        raise ValueError(
            f"params must be of a model with {directions} directions in its layers, got "
            f"{[1 + size.bidirectional for size in found.layers]}"
        )
    graph = Graph("export_classifier")
    _at_least_one_step(graph)
    _valid_steps(graph)
    xs = _embed(graph, as_float32("embedding", {"vectors": table_of(params)}, {"vectors": "V E"}))
    layers = layers_of(params.encoder)
    for index, layer in enumerate(layers):
        name, final = f"layer{index}", pooling == "last" and index == len(layers) - 1
        xs = _layer(graph, name, kind, layer, ACTIVATIONS[activation], xs, final=final)
    pooled = xs if pooling == "last" else _pool(graph, xs, pooling)
    head = as_float32("head", params.head._asdict(), {"w": "O C", "bias": "C"})
    weights = [graph.constant(f"head.{name}", array) for name, array in head.items()]
    graph.node("Gemm", [pooled, *weights], "logits_of_all_rows")
    graph.node("Slice", ["logits_of_all_rows", "first", "rows", "first"], "logits")
    inputs = {"tokens": (np.int32, ["batch", "time"]), "lengths": (np.int32, ["batch"])}
    outputs = {"logits": (np.float32, ["batch", head["bias"].size])}
    return graph.serialize("classifier", inputs, outputs)


def _parts_of(model: Any) -> tuple[str, str, str, list[int]]:
    """Kind of cell, activation and pooling of a classifier, and the directions of each layer."""
    given = arguments_of(model, classifier)
    if given["policy"] is not None:
        raise ValueError(f"model must have no policy to become ONNX nodes, got {model!r}")
    layers = cells_of(given["encoder"])
    kinds = {kind_of(cell) for cells in layers for cell in cells}
    if len(kinds) > 1:
        raise ValueError(f"model must have one kind of cell in all layers, got {sorted(kinds)}")
    return *kinds.pop(), given["pooling"], [len(cells) for cells in layers]


def _at_least_one_step(graph: Graph) -> None:
    """``some_tokens`` [B, T] and ``some_lengths`` [B] with B and T of 1 where they are 0.

    onnxruntime (1.32) aborts the process where a recurrent node has no row or no step. A row and a
    step of padding change no other row, and the row is cut off behind the head. Where there is a
    row and a step already nothing is added.
    """
    graph.constant("first", np.array([0]))
    graph.constant("second", np.array([1]))
    graph.constant("one_each", np.array([1, 1]))
    graph.node("Shape", ["tokens"], "given")
    graph.node("Slice", ["given", "first", "second"], "rows")
    graph.node("Sub", ["one_each", "given"], "short_of_one")
    graph.node("Max", ["short_of_one", "first"], "missing")
    graph.node("Concat", ["first", "first", "missing"], "pads", axis=0)
    graph.node("Pad", ["tokens", "pads"], "some_tokens")
    graph.node("Slice", ["missing", "first", "second"], "missing_rows")
    graph.node("Concat", ["first", "missing_rows"], "row_pads", axis=0)
    graph.node("Pad", ["lengths", "row_pads"], "some_lengths")


def _valid_steps(graph: Graph) -> None:
    """``valid`` [B, T], which steps are real, and the constants that others need too."""
    for name, value in {
        "zero": np.int32(0),
        "one": np.int32(1),
        "last_axis": np.array([-1]),
    }.items():
        graph.constant(name, value)
    graph.node("Shape", ["some_tokens"], "shape", start=1)
    graph.node("Squeeze", ["shape"], "time64")
    graph.node("CastLike", ["time64", "zero"], "time")
    graph.node("Range", ["zero", "time", "one"], "steps")
    graph.node("Unsqueeze", ["some_lengths", "last_axis"], "ends")
    graph.node("Less", ["steps", "ends"], "valid")


def _embed(graph: Graph, table: dict[str, np.ndarray]) -> str:
    """Vectors [T, B, E]. Padding may hold any number, so it is not looked up."""
    graph.constant("embedding.vectors", table["vectors"])
    graph.node("Where", ["valid", "some_tokens", "zero"], "real_tokens")
    graph.node("Gather", ["embedding.vectors", "real_tokens"], "embedded")
    return graph.node("Transpose", ["embedded"], "xs", perm=[1, 0, 2])


def _layer(
    graph: Graph, name: str, kind: str, layer: Any, activation: str, xs: str, *, final: bool
) -> str:
    """One recurrent node; its outputs [T, B, directions * H], or where final the last [B, ...]."""
    arrays = onnx_layers.export_weights(kind, layer)
    weights = {key: graph.constant(f"{name}.{key}", narrow(name, a)) for key, a in arrays.items()}
    directions = 2 if isinstance(layer, Directions) else 1
    op_type, attributes = NODES[kind]
    if kind == "vanilla":
        attributes = {"activations": [activation] * directions}
    graph.node(
        op_type,
        [xs, weights["W"], weights["R"], weights["B"], "some_lengths"]
        + (["", "", weights["P"]] if "P" in weights else []),
        *(["", f"{name}.Y_h"] if final else [f"{name}.Y"]),
        name=name,
        direction="bidirectional" if directions == 2 else "forward",
        hidden_size=arrays["R"].shape[-1],
        **attributes,
    )
    given, perm = (f"{name}.Y_h", [1, 0, 2]) if final else (f"{name}.Y", [0, 2, 1, 3])
    width = directions * arrays["R"].shape[-1]
    shape = graph.constant(f"{name}.shape", np.array([0] * (len(perm) - 2) + [width]))
    graph.node("Transpose", [given], f"{name}.side_by_side", perm=perm)
    return graph.node("Reshape", [f"{name}.side_by_side", shape], f"{name}.ys")


def _pool(graph: Graph, ys: str, pooling: str) -> str:
    """The mean or maximum [B, O] over the real steps of ``ys`` [T, B, O]; zero without one."""
    nothing = graph.constant("nothing", np.float32(0))
    lowest = graph.constant("lowest", np.float32(-np.inf if pooling == "max" else 0))
    graph.node("Transpose", ["valid"], "valid_first", perm=[1, 0])
    graph.node("Unsqueeze", ["valid_first", "last_axis"], "valid_steps")
    graph.node("Where", ["valid_steps", ys, lowest], "real_ys")
    if pooling == "max":
        graph.node("ReduceMax", ["real_ys"], "highest", axes=[0], keepdims=0)
        graph.node("Greater", ["ends", "zero"], "any_real")
        return graph.node("Where", ["any_real", "highest", nothing], "pooled")
    graph.constant("time_axis", np.array([0]))
    graph.node("ReduceSum", ["real_ys", "time_axis"], "total", keepdims=0)
    graph.node("Max", ["ends", "one"], "at_least_one")
    graph.node("CastLike", ["at_least_one", "nothing"], "count")
    return graph.node("Div", ["total", "count"], "pooled")

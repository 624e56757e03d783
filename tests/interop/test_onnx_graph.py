"""ONNX graphs of whole classifiers, run by onnxruntime on ragged batches beside the model."""

import re

import jax
import numpy as np
import pytest

import rnnjax
from rnnjax.cells.peephole_lstm import peephole_lstm
from rnnjax.interop.classifiers import Architecture, LayerSize, build
from rnnjax.interop.onnx_graph import export_classifier

onnx = pytest.importorskip("onnx")

VOCAB, CLASSES = 11, 3
LAYERS = {
    "forward": (LayerSize(4, False),),
    "bidirectional": (LayerSize(4, True),),
    "stacked": (LayerSize(3, True), LayerSize(5, False), LayerSize(4, True)),
}


def make(kind, layers="stacked", pooling="last", activation="tanh", seed=0):
    model = build(Architecture(kind, VOCAB, 5, LAYERS[layers], CLASSES, pooling, activation))
    params = model.init(jax.random.key(seed))
    # Biases start at zero, where a wrong one would not show.
    random = np.random.default_rng(seed)
    return model, jax.tree.map(lambda a: a + random.normal(0, 0.3, a.shape).astype(a.dtype), params)


def run(data, tokens, lengths):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"tokens": tokens, "lengths": lengths})
    return logits


def ragged(batch, time, lengths, seed=0):
    """Padding is filled with ids that no table has: it must not be looked up."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (batch, time)).astype(np.int32)
    lengths = np.array(lengths, np.int32)
    tokens[np.arange(time) >= lengths[:, None]] = 12345
    return tokens, lengths


def assert_runtime_agrees(model, params, data, batch=ragged(5, 6, [6, 1, 0, 3, 6])):  # noqa: B008
    tokens, lengths = batch
    known = np.where(tokens < VOCAB, tokens, 0)
    expected = jax.jit(model.apply)(params, known, lengths)
    np.testing.assert_allclose(run(data, tokens, lengths), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", ["vanilla", "lstm", "gru", "gru_reset_before"])
def test_onnxruntime_gives_the_logits_of_every_cell_and_direction(kind, layers):
    model, params = make(kind, layers)
    assert_runtime_agrees(model, params, export_classifier(model, params))


def test_a_stack_inside_a_stack_is_one_node_a_layer():
    inner = rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(3)), rnnjax.lstm(5))
    encoder = rnnjax.stack(rnnjax.stack(inner), rnnjax.lstm(4))
    model = rnnjax.classifier(rnnjax.embedding(VOCAB, 5), encoder, CLASSES)
    params = model.init(jax.random.key(0))
    assert_runtime_agrees(model, params, export_classifier(model, params))


@pytest.mark.parametrize("batch", [ragged(1, 9, [7]), ragged(2, 3, [0, 0])])
def test_one_graph_runs_for_every_batch_and_time(batch):
    model, params = make("gru", "bidirectional")
    assert_runtime_agrees(model, params, export_classifier(model, params), batch)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("lstm", "forward"),
        ("gru", "stacked"),
        ("gru_reset_before", "forward"),
        ("vanilla", "stacked"),
    ],
)
def test_a_batch_without_rows_or_steps_has_the_logits_of_empty_rows(kind, layers, pooling, shape):
    model, params = make(kind, layers, pooling)
    batch, time = shape
    tokens, lengths = np.ones(shape, np.int32), np.full(batch, time, np.int32)
    data = export_classifier(model, params)
    found = run(data, tokens, lengths)
    assert found.shape == (batch, CLASSES)
    if time == 0:
        empty = np.tile(params.head.bias, (batch, 1))  # of a pool that is zero
        np.testing.assert_allclose(found, empty, rtol=1e-6)
    expected = jax.jit(model.apply)(params, tokens, lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [([[1, 2]], [3], "sequence_lens"), ([[1, VOCAB]], [2], "out of (data )?bounds")],
)
def test_the_runtime_refuses_what_does_not_exist(tokens, lengths, message):
    model, params = make("lstm", "forward")
    with pytest.raises(Exception, match=message):
        run(export_classifier(model, params), np.int32(tokens), np.int32(lengths))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_over_the_real_steps(pooling):
    model, params = make("gru", pooling=pooling)
    assert_runtime_agrees(model, params, export_classifier(model, params))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_the_activation_of_a_simple_cell_is_written_for_both_directions(activation):
    model, params = make("vanilla", "bidirectional", activation=activation)
    data = export_classifier(model, params)
    assert_runtime_agrees(model, params, data)


def test_peepholes_are_an_input_of_the_node():
    encoder = rnnjax.bidirectional(peephole_lstm(4))
    model = rnnjax.classifier(rnnjax.embedding(VOCAB, 5), encoder, CLASSES)
    params = jax.tree.map(lambda a: a + 0.3, model.init(jax.random.key(0)))
    assert_runtime_agrees(model, params, export_classifier(model, params))


def test_half_precision_weights_are_widened_exactly():
    model, params = make("lstm", "forward")
    half = jax.tree.map(lambda a: a.astype("bfloat16"), params)
    same = jax.tree.map(lambda a: a.astype("float32"), half)
    assert export_classifier(model, half) == export_classifier(model, same)


def test_each_layer_is_one_native_node_that_takes_the_lengths():
    model, params = make("gru", "stacked")
    graph = onnx.load_from_string(export_classifier(model, params)).graph
    nodes = [node for node in graph.node if node.op_type == "GRU"]
    attributes = [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes
    ]
    assert [a["direction"] for a in attributes] == [b"bidirectional", b"forward", b"bidirectional"]
    assert [a["hidden_size"] for a in attributes] == [3, 5, 4]
    assert {a["linear_before_reset"] for a in attributes} == {1}
    assert {node.input[4] for node in nodes} == {"some_lengths"}
    assert not {"Loop", "Scan", "If"} & {node.op_type for node in graph.node}


def test_batch_and_time_are_symbolic_and_the_inputs_are_int32():
    model, params = make("lstm", "forward")
    file = onnx.load_from_string(export_classifier(model, params))
    # Runtimes refuse a version of the format that is younger than they are.
    assert file.ir_version == onnx.helper.find_min_ir_version_for(list(file.opset_import))
    graph = file.graph
    kinds = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*graph.input, *graph.output]
    }
    assert kinds == {
        "tokens": (onnx.TensorProto.INT32, ["batch", "time"]),
        "lengths": (onnx.TensorProto.INT32, ["batch"]),
        "logits": (onnx.TensorProto.FLOAT, ["batch", CLASSES]),
    }


def classifier(encoder, **options):
    model = rnnjax.classifier(rnnjax.embedding(VOCAB, 4), encoder, CLASSES, **options)
    return model, model.init(jax.random.key(0))


def of_another(model, params):
    return classifier(model)[0], classifier(params)[1]


BFLOAT16 = rnnjax.Policy(compute="bfloat16")
BAD = {
    "a cell without a node": (lambda: classifier(rnnjax.lru(4)), "cell must be an lstm"),
    "an activation without a node": (
        lambda: classifier(rnnjax.vanilla(4, jax.numpy.cos)),
        "['tanh', 'relu', 'sigmoid']",
    ),
    "a layer that adds its input": (
        lambda: classifier(rnnjax.stack(rnnjax.residual(rnnjax.gru(4)))),
        "layer must be a recurrent cell",
    ),
    "a layer that runs in reverse": (
        lambda: classifier(rnnjax.recurrent(rnnjax.gru(4), reverse=True)),
        "layer must be a recurrent cell",
    ),
    "a direction of two layers": (
        lambda: classifier(
            rnnjax.bidirectional(rnnjax.stack(rnnjax.gru(4), rnnjax.gru(4)), rnnjax.gru(4))
        ),
        "layer must be a recurrent cell",
    ),
    "two kinds of cells": (
        lambda: classifier(rnnjax.bidirectional(rnnjax.gru(4), rnnjax.gru(4, reset_after=False))),
        "one kind of cell in all layers",
    ),
    "a policy": (lambda: classifier(rnnjax.gru(4), policy=BFLOAT16), "no policy"),
    "a policy of a layer": (
        lambda: classifier(rnnjax.bidirectional(rnnjax.gru(4), policy=BFLOAT16)),
        "without a policy",
    ),
    "a policy of a direction": (
        lambda: classifier(
            rnnjax.bidirectional(rnnjax.recurrent(rnnjax.gru(4), policy=BFLOAT16), rnnjax.gru(4))
        ),
        "without a policy",
    ),
    "a model made by hand": (
        lambda: (classifier(rnnjax.gru(4))[0]._replace(init=None), None),
        "model must be made by rnnjax.classifier",
    ),
    "a model of another kind": (
        lambda: (rnnjax.language_model(rnnjax.embedding(VOCAB, 4), rnnjax.gru(4)), None),
        "model must be made by rnnjax.classifier",
    ),
    "arguments in the wrong order": (
        lambda: classifier(rnnjax.gru(4))[::-1],
        "got ClassifierParams(embedding=EmbeddingParams(vectors), ",
    ),
    "parameters of another cell": (
        lambda: of_another(rnnjax.gru(4), rnnjax.lstm(4)),
        "must be GRUParams for kind 'gru', got LSTMParams",
    ),
    "parameters of two directions": (
        lambda: of_another(rnnjax.gru(4), rnnjax.bidirectional(rnnjax.gru(4))),
        "params must be of a model with [1] directions in its layers, got [2]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_nodes_is_refused(case):
    given, words = BAD[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        export_classifier(*given())


def test_weights_wider_than_the_nodes_are_refused():
    model, params = make("lstm")
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    with pytest.raises(ValueError, match=r"embedding must be float32 .*, got float64"):
        export_classifier(model, wide)


def test_an_embedding_without_a_table_is_refused():
    model = rnnjax.classifier(rnnjax.one_hot(VOCAB), rnnjax.lstm(3), CLASSES)
    with pytest.raises(ValueError, match=r"model must have a rnnjax\.embedding"):
        export_classifier(model, model.init(jax.random.key(0)))

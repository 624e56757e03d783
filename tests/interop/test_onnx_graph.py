"""ONNX graphs of whole classifiers, run by onnxruntime on ragged batches beside the model."""

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
    assert_runtime_agrees(model, params, export_classifier(kind, params))


@pytest.mark.parametrize("batch", [ragged(1, 9, [7]), ragged(2, 3, [0, 0])])
def test_one_graph_runs_for_every_batch_and_time(batch):
    model, params = make("gru", "bidirectional")
    assert_runtime_agrees(model, params, export_classifier("gru", params), batch)


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
    data = export_classifier(kind, params, pooling=pooling)
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
    _, params = make("lstm", "forward")
    with pytest.raises(Exception, match=message):
        run(export_classifier("lstm", params), np.int32(tokens), np.int32(lengths))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_over_the_real_steps(pooling):
    model, params = make("gru", pooling=pooling)
    assert_runtime_agrees(model, params, export_classifier("gru", params, pooling=pooling))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_the_activation_of_a_simple_cell_is_written_for_both_directions(activation):
    model, params = make("vanilla", "bidirectional", activation=activation)
    data = export_classifier("vanilla", params, activation=activation)
    assert_runtime_agrees(model, params, data)


def test_peepholes_are_an_input_of_the_node():
    encoder = rnnjax.bidirectional(peephole_lstm(4))
    model = rnnjax.classifier(rnnjax.embedding(VOCAB, 5), encoder, CLASSES)
    params = jax.tree.map(lambda a: a + 0.3, model.init(jax.random.key(0)))
    assert_runtime_agrees(model, params, export_classifier("peephole_lstm", params))


def test_half_precision_weights_are_widened_exactly():
    _, params = make("lstm", "forward")
    half = jax.tree.map(lambda a: a.astype("bfloat16"), params)
    same = jax.tree.map(lambda a: a.astype("float32"), half)
    assert export_classifier("lstm", half) == export_classifier("lstm", same)


def test_each_layer_is_one_native_node_that_takes_the_lengths():
    _, params = make("gru", "stacked")
    graph = onnx.load_from_string(export_classifier("gru", params)).graph
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
    _, params = make("lstm", "forward")
    graph = onnx.load_from_string(export_classifier("lstm", params)).graph
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


def test_a_cell_without_a_node_is_refused_with_the_reason():
    _, params = make("lstm")
    with pytest.raises(ValueError, match=r"to become ONNX nodes, got 'lru'; .*export_program"):
        export_classifier("lru", params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gru"}, "must be GRUParams for kind 'gru', got LSTMParams"),
        ({"pooling": "first"}, r"pooling must be one of \['last', 'mean', 'max'\], got 'first'"),
        ({"activation": "relu"}, "'tanh' for the others, got 'relu' for 'lstm'"),
        ({"activation": "cos"}, r"activation must be one of \['tanh', 'relu', 'sigmoid'\]"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    _, params = make("lstm")
    with pytest.raises(ValueError, match=message):
        export_classifier(**{"kind": "lstm", "params": params} | arguments)


def test_weights_wider_than_the_nodes_are_refused():
    _, params = make("lstm")
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    with pytest.raises(ValueError, match=r"embedding must be float32 .*, got float64"):
        export_classifier("lstm", wide)


def test_an_embedding_without_a_table_is_refused():
    model = rnnjax.classifier(rnnjax.one_hot(VOCAB), rnnjax.lstm(3), CLASSES)
    with pytest.raises(ValueError, match="embedding must have a table of vectors"):
        export_classifier("lstm", model.init(jax.random.key(0)))

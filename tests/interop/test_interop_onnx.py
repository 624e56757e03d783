"""Weights of ONNX nodes: values against onnxruntime, and gradients against ONNX's own reference.

onnxruntime runs these operators in float32 only and has no gradients. The reference evaluator of
the onnx package runs them in float64, without lengths: its central differences check gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from interop_cases import (
    CELLS,
    LENGTHS,
    B,
    D,
    H,
    T,
    assert_equal,
    draw_like,
    make_layer,
    normal,
    random_params,
    run,
    states,
)

import rnnjax
from rnnjax.interop import onnx as interop

pytestmark = pytest.mark.usefixtures("quick_compile")

onnx = pytest.importorskip("onnx", reason="onnx is not installed: its weights are untested")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx_nodes import one_node, run_one_node  # noqa: E402

CASES = {
    "vanilla": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "peephole_lstm": ("LSTM", {}),
    "coupled_lstm": ("LSTM", {"input_forget": 1}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", {}),
}
DIRECTIONS = ["forward", "reverse", "bidirectional"]
TOLERANCE = 2e-6  # float32, in another order of sums


def node_of(kind, direction):
    """The operator of a kind, and its attributes."""
    op_type, attributes = CASES[kind]
    return op_type, {**attributes, "hidden_size": H, "direction": direction}


def batch_first(outputs):
    """``(ys [B, T, directions * H], final states)`` from Y [T, directions, B, H] and the rest."""
    y, *final = outputs
    return np.moveaxis(y, 2, 0).reshape(B, T, -1), final


def run_node(kind, direction, weights, xs):
    feeds = {"X": np.swapaxes(xs, 0, 1).copy(), "sequence_lens": LENGTHS, **weights}
    return batch_first(run_one_node(*node_of(kind, direction), feeds))


def our_layer(kind, direction):
    if direction == "reverse":
        return rnnjax.recurrent(CELLS[kind], reverse=True)
    return make_layer(CELLS[kind], 1, direction == "bidirectional")


def as_onnx(carry):
    """Our carry as ``[Y_h, Y_c]`` or ``[Y_h]``, each [directions, B, H]."""
    rows = carry if isinstance(carry, rnnjax.Directions) else [carry]
    return [np.stack(kind) for kind in zip(*map(states, rows), strict=True)]


def random_weights(kind, direction, dtype=np.float32):
    """Weights of a node, none of them zero, both halves of its bias included."""
    shapes = interop.export_weights(kind, random_params(our_layer(kind, direction), 0, dtype))
    return draw_like(shapes, seed=1, scale=0.5)


def assert_near(got, expected, tolerance=TOLERANCE):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", CASES)
def test_imported_weights_give_the_values_of_onnxruntime(kind, direction):
    weights = random_weights(kind, direction)
    xs = normal(2, B, T, D).astype(np.float32)
    params = interop.import_weights(kind, weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    carry, ys = our_layer(kind, direction).apply(params, jnp.asarray(xs), LENGTHS)
    expected_ys, final = run_node(kind, direction, weights, xs)
    assert_near((ys, as_onnx(carry)), (expected_ys, final))
    exported = interop.export_weights(kind, params)
    assert_near(run_node(kind, direction, exported, xs), (expected_ys, final))


def reference_weights(kind, weights):
    """The reference does not know ``input_forget``: there f is the input gate, sign turned."""
    if kind != "coupled_lstm":
        return weights

    def couple(array, axis):
        i, o, _, g = np.split(array, 4, axis)
        return np.concatenate([i, o, -i, g], axis)

    both = np.split(weights["B"], 2, axis=1)
    bias = np.concatenate([couple(half, 1) for half in both], axis=1)
    return {"W": couple(weights["W"], 1), "R": couple(weights["R"], 1), "B": bias}


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", CASES)
def test_gradients_are_the_differences_of_the_onnx_reference(kind, direction):
    layer = our_layer(kind, direction)
    params, xs = random_params(layer), normal(2, B, T, D)

    def reference(params, xs):
        weights = reference_weights(kind, interop.export_weights(kind, params))
        feeds = {"X": np.swapaxes(xs, 0, 1).copy(), **weights}
        model = one_node(*node_of(kind, direction), feeds)
        return batch_first(ReferenceEvaluator(model).run(None, feeds))

    with jax.enable_x64(True):
        (carry, ys), pullback = run(layer, params, xs)
        assert_near((ys, as_onnx(carry)), reference(params, xs), 1e-12)
        cotangents = draw_like((carry, ys), seed=3)
        gradients = pullback(cotangents)
    weighing = cotangents[1], as_onnx(cotangents[0])

    def loss(step, direction):
        moved = jax.tree.map(lambda a, b: a + step * b, (params, xs), direction)
        outputs = reference(*moved)
        return sum(np.vdot(a, b) for a, b in zip(states(weighing), states(outputs), strict=True))

    step, (flat, treedef) = 1e-5, jax.tree.flatten((params, xs))
    for number in range(len(flat)):  # along one leaf at a time, in a direction drawn at random
        directions = [np.zeros_like(leaf) for leaf in flat]
        directions[number] = normal(number, *flat[number].shape)
        along = jax.tree.unflatten(treedef, directions)
        difference = (loss(step, along) - loss(-step, along)) / (2 * step)
        slope = np.vdot(jax.tree.leaves(gradients)[number], directions[number])
        np.testing.assert_allclose(slope, difference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", CASES)
def test_exported_weights_come_back_from_a_file(kind):
    """Arrays of another order in memory come back from safetensors 0.8 as other numbers."""
    exported = interop.export_weights(kind, random_params(our_layer(kind, "bidirectional")))
    assert_equal(safetensors.numpy.load(safetensors.numpy.save(exported)), exported)


def test_a_gate_that_is_not_read_is_exported_as_zeros():
    node = interop.export_weights(
        "coupled_lstm", random_params(our_layer("coupled_lstm", "forward"))
    )
    for name in "WR":
        assert_equal(np.any(node[name].reshape(4, -1), 1), np.array([True, True, False, True]))


@pytest.mark.parametrize("kind", CASES)
def test_a_stack_is_a_list_of_nodes(kind):
    layer = make_layer(CELLS[kind], 2, bidirectional=True)
    params = random_params(layer, dtype=np.float32)
    nodes = interop.export_weights(kind, params)
    assert_equal(interop.import_weights(kind, nodes), params)
    xs = normal(2, B, T, D).astype(np.float32)
    _, ys = layer.apply(params, jnp.asarray(xs), LENGTHS)
    for node in nodes:
        xs, _ = run_node(kind, "bidirectional", node, xs)
    assert_near(ys, xs)


def test_a_node_without_bias_has_zeros():
    weights = random_weights("lstm", "bidirectional")
    del weights["B"]
    params = interop.import_weights("lstm", weights)
    assert_equal(params.backward.bias, np.zeros(4 * H, np.float32))
    xs = normal(2, B, T, D).astype(np.float32)
    carry, ys = our_layer("lstm", "bidirectional").apply(params, jnp.asarray(xs), LENGTHS)
    assert_near((ys, as_onnx(carry)), run_node("lstm", "bidirectional", weights, xs))


@pytest.mark.parametrize("kind", CASES)
def test_the_kind_is_told_from_the_node(kind):
    weights = random_weights(kind, "forward")
    feeds = {"X": np.zeros((T, B, D), np.float32), **weights}
    node = one_node(*node_of(kind, "forward"), feeds).graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert interop.kind_of(node.op_type, attributes, "P" in node.input) == kind

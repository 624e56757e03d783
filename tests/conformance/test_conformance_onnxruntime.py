"""Nodes of ONNX run by rnnjax, beside onnxruntime and by the cases of ONNX itself.

onnxruntime is the reference with ragged lengths, zeros among them, in both directions. ONNX's own
node cases bring their expected outputs with them, made in NumPy.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnjax
from rnnjax.cells.coupled_lstm import coupled_lstm
from rnnjax.cells.peephole_lstm import peephole_lstm
from rnnjax.interop import onnx as interop
from rnnjax.interop.torch import export_carry, import_carry

pytestmark = pytest.mark.usefixtures("quick_compile")

onnx = pytest.importorskip("onnx", reason="onnx is not installed: its cases are not run")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx_nodes import INPUTS, run_one_node  # noqa: E402

B, T, D, H = 4, 5, 2, 3
NODES = {
    "vanilla": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "peephole_lstm": ("LSTM", {}),
    "coupled_lstm": ("LSTM", {"input_forget": 1}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", {"linear_before_reset": 0}),
}
CELLS = {
    "vanilla": rnnjax.vanilla,
    "lstm": rnnjax.lstm,
    "peephole_lstm": peephole_lstm,
    "coupled_lstm": coupled_lstm,
    "gru": rnnjax.gru,
    "gru_reset_before": functools.partial(rnnjax.gru, reset_after=False),
}
WEIGHTS = ["W", "R", "B", "P"]
DIRECTIONS = ["forward", "reverse", "bidirectional"]
TOLERANCE = 2e-6  # float32, in another order of sums


@functools.cache
def make_layer(kind, hidden_size, direction):
    cell = CELLS[kind](hidden_size)
    if direction == "bidirectional":
        return rnnjax.bidirectional(cell)
    return rnnjax.recurrent(cell, reverse=direction == "reverse")


@functools.partial(jax.jit, static_argnums=0)
def apply(layer, params, xs, lengths, carry):
    return layer.apply(params, xs, lengths, initial_carry=carry)


def initial_carry(kind, feeds, bidirectional):
    """Our carry from ``initial_h`` and ``initial_c`` [directions, B, H]; None without them."""
    if "initial_h" not in feeds:
        return None
    carry_kind = "lstm" if "lstm" in kind else "gru"
    state = feeds["initial_h"]
    if carry_kind == "lstm":
        state = state, feeds.get("initial_c", np.zeros_like(state))
    return import_carry(carry_kind, state, bidirectional=bidirectional)


def run_rnnjax(op_type, attributes, feeds):
    """Y, Y_h, and Y_c of an LSTM, in the layout of the node."""
    kind = interop.kind_of(op_type, attributes, "P" in feeds)
    direction = attributes.get("direction", "forward")
    batch_first = attributes.get("layout", 0) == 1
    layer = make_layer(kind, attributes["hidden_size"], direction)
    params = interop.import_weights(kind, {name: feeds[name] for name in WEIGHTS if name in feeds})
    xs = feeds["X"] if batch_first else np.swapaxes(feeds["X"], 0, 1)
    carry = initial_carry(kind, feeds, direction == "bidirectional")
    final, ys = apply(layer, params, jnp.asarray(xs), feeds.get("sequence_lens"), carry)
    states = export_carry("lstm" if "lstm" in kind else "gru", final)
    states = states if isinstance(states, tuple) else (states,)
    y = np.reshape(ys, (*ys.shape[:2], len(states[0]), -1))  # [B, T, directions, H]
    if batch_first:
        return [y, *(np.swapaxes(state, 0, 1) for state in states)]
    return [y.transpose(1, 2, 0, 3), *states]


def draw_feeds(kind, direction, lengths, initial, sizes=(T, D, H), seed=0):
    """Inputs of a node drawn from a normal distribution."""
    time, inputs, hidden = sizes
    directions = 2 if direction == "bidirectional" else 1
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[NODES[kind][0]]
    shapes = {
        "X": (time, len(lengths), inputs),
        "W": (directions, gates * hidden, inputs),
        "R": (directions, gates * hidden, hidden),
        "B": (directions, 2 * gates * hidden),
    }
    if kind == "peephole_lstm":
        shapes["P"] = (directions, 3 * hidden)
    if initial:
        shapes["initial_h"] = (directions, len(lengths), hidden)
        if NODES[kind][0] == "LSTM":
            shapes["initial_c"] = shapes["initial_h"]
    rng = np.random.default_rng(seed)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return feeds | {"sequence_lens": np.array(lengths, np.int32)}


def with_initial_states(feeds, outputs):
    """What onnxruntime answers, with initial states as the final ones of empty sequences.

    There onnxruntime answers zeros, whatever the initial state. ONNX does not ask for that, as its
    text does not speak of empty sequences, and no recurrence is there: after no step it is where
    it was. Asserted here, so that the exception ends with its reason.
    """
    y, *states = outputs
    empty = feeds["sequence_lens"] == 0
    for name, state in zip(("initial_h", "initial_c"), states, strict=False):
        np.testing.assert_array_equal(state[:, empty], 0)
        if name in feeds:
            state[:, empty] = feeds[name][:, empty]
    return [y, *states]


def with_nan_as_padding(feeds):
    padding = np.arange(len(feeds["X"]))[:, None] >= feeds["sequence_lens"]
    return feeds | {"X": np.where(padding[:, :, None], np.float32(np.nan), feeds["X"])}


def assert_onnxruntime_agrees(kind, direction, feeds):
    """With its padding shown to onnxruntime as numbers, and to us as NaN."""
    op_type, attributes = NODES[kind]
    attributes = {"direction": direction, "hidden_size": feeds["R"].shape[-1], **attributes}
    expected = with_initial_states(feeds, run_one_node(op_type, attributes, feeds))
    got = run_rnnjax(op_type, attributes, with_nan_as_padding(feeds))
    assert_near(got, expected)


def assert_near(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, strict=True)


@pytest.mark.parametrize("initial", [False, True], ids=["fresh", "initial"])
@pytest.mark.parametrize("lengths", [[5, 5, 5, 5], [5, 3, 1, 2], [5, 0, 2, 0]], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", NODES)
def test_a_node_has_the_values_of_onnxruntime(kind, direction, lengths, initial):
    assert_onnxruntime_agrees(kind, direction, draw_feeds(kind, direction, lengths, initial))


@settings(max_examples=20)
@given(st.data())
def test_a_node_of_any_size_and_lengths_has_the_values_of_onnxruntime(data):
    kind = data.draw(st.sampled_from(list(NODES)), "kind")
    direction = data.draw(st.sampled_from(DIRECTIONS), "direction")
    sizes = [data.draw(st.integers(1, 4), name) for name in ("time", "inputs", "hidden")]
    lengths = data.draw(st.lists(st.integers(0, sizes[0]), min_size=1, max_size=4), "lengths")
    initial, seed = data.draw(st.booleans(), "initial"), data.draw(st.integers(0, 99), "seed")
    feeds = draw_feeds(kind, direction, lengths, initial, sizes, seed)
    assert_onnxruntime_agrees(kind, direction, feeds)


def test_of_empty_sequences_alone_all_is_initial():
    for kind in NODES:
        feeds = draw_feeds(kind, "bidirectional", [0] * B, initial=True)
        assert_onnxruntime_agrees(kind, "bidirectional", feeds)


# What the operators of ONNX can be told beside that, and no cell here is.
LISTED = {
    "clip": ("LSTM", {"clip": 3.0}, False, "must have attributes that a cell here has, got clip"),
    "input_forget with peepholes": (
        "LSTM",
        {"input_forget": 1},
        True,
        "must have attributes that a cell here has, got input_forget with peepholes",
    ),
    "other activations of gates": (
        "GRU",
        {"activations": ["HardSigmoid", "Tanh"]},
        False,
        r"must have the activations \['sigmoid', 'tanh'\]",
    ),
}


@pytest.mark.parametrize("case", LISTED)
def test_what_is_not_run_is_refused_with_the_reason(case):
    op_type, attributes, peepholes, message = LISTED[case]
    with pytest.raises(ValueError, match=message):
        interop.kind_of(op_type, attributes, peepholes)


def node_cases():
    """ONNX's own cases of the three operators, by name."""
    package = "onnx.backend.test.case.node"
    # On import each adds its own to the list of the package, computed in NumPy; on some processors
    # a matrix product of NumPy's leaves a flag of an invalid number behind, whatever its values.
    with np.errstate(invalid="ignore"):
        for name in ("rnn", "lstm", "gru"):
            importlib.import_module(f"{package}.{name}")
    return {
        case.name: case
        for case in importlib.import_module(package)._NodeTestCases
        if case.model.graph.node[0].op_type in ("RNN", "LSTM", "GRU")
    }


NODE_CASES = node_cases()


def test_all_node_cases_of_onnx_are_there():
    assert len(NODE_CASES) >= 18


@pytest.mark.parametrize("name", NODE_CASES)
def test_a_node_case_of_onnx_has_its_outputs(name):
    case = NODE_CASES[name]
    node = case.model.graph.node[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    attributes = {
        key: value.decode() if isinstance(value, bytes) else value
        for key, value in attributes.items()
    }
    for inputs, outputs in case.data_sets:
        given = [place for place, name in zip(INPUTS, node.input, strict=False) if name]
        got = run_rnnjax(node.op_type, attributes, dict(zip(given, inputs, strict=True)))
        asked = [a for a, name in zip(got, node.output, strict=False) if name]
        assert len(asked) == len(outputs) > 0
        for a, b in zip(asked, outputs, strict=True):
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, strict=True)

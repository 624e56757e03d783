"""A language model that onnxruntime writes with, one step of the graph after the other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.interop.onnx_step import export_step

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("quick_compile")

V, E = 11, 4
PROMPT = np.array([[5, 7, 2], [3, 3, 8]])
LAYERS = {
    "lstm": rnnjax.lstm(5),
    "stack": rnnjax.stack(rnnjax.gru(5), rnnjax.peephole_lstm(3), rnnjax.vanilla(E, jax.nn.relu)),
    "nested": rnnjax.stack(rnnjax.stack(rnnjax.gru(5)), rnnjax.stack(rnnjax.lstm(3))),
    "reset before": rnnjax.stack(rnnjax.gru(5, reset_after=False), dropout=0.5),
}


def make(layer, **options):
    model = rnnjax.language_model(rnnjax.embedding(V, E), layer, **options)
    # Biases start at zero, where a wrong one would not show.
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + random.normal(0, 0.5, a.shape).astype(a.dtype), model.init(jax.random.key(0))
    )
    return model, params


def write(data, prompt, count):
    """The likeliest text behind prompts [B, T], by nothing but NumPy and onnxruntime."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    sizes = {i.name: i.shape[1] for i in session.get_inputs() if i.name != "token"}
    carry = {name: np.zeros((len(prompt), n), np.float32) for name, n in sizes.items()}
    names = ["logits", *(f"next.{name}" for name in carry)]
    text = list(prompt.T)
    for place in range(prompt.shape[1] + count - 1):
        logits, *after = session.run(names, {"token": text[place].astype(np.int32), **carry})
        carry = dict(zip(carry, after, strict=True))
        if place + 1 >= prompt.shape[1]:
            text.append(logits.argmax(-1))
    return np.stack(text[prompt.shape[1] :], axis=1), logits


@pytest.mark.parametrize(
    ("layer", "tie"),
    [("lstm", False), ("stack", True), ("nested", False), ("reset before", False)],
)
def test_onnxruntime_writes_the_text_that_generate_writes(layer, tie):
    model, params = make(LAYERS[layer], tie=tie)
    out = rnnjax.generate(
        model, params, jnp.asarray(PROMPT), max_new_tokens=7, sampling=rnnjax.greedy()
    )
    text, logits = write(export_step(model, params), PROMPT, 7)
    np.testing.assert_array_equal(text, out.tokens)
    whole = np.concatenate([PROMPT, text[:, :-1]], axis=1)
    _, expected = model.apply(params, jnp.asarray(whole))
    np.testing.assert_allclose(logits, expected[:, -1], rtol=1e-5, atol=1e-5)


def test_the_batch_is_symbolic_and_each_layer_one_native_node():
    graph = onnx.load_from_string(export_step(*make(LAYERS["stack"], tie=True))).graph
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    sizes = {"layer0.h": 5, "layer1.h": 3, "layer1.c": 3, "layer2.h": E}
    expected = {"token": ["batch"], "logits": ["batch", V]}
    for name, size in sizes.items():
        expected |= {name: ["batch", size], f"next.{name}": ["batch", size]}
    assert axes == expected
    native = [node.op_type for node in graph.node if node.op_type in ("RNN", "GRU", "LSTM")]
    assert native == ["GRU", "LSTM", "RNN"]


BAD = {
    "a cell without a node": (
        lambda: make(rnnjax.indrnn(4)),
        "cell must be an lstm, peephole_lstm, gru, or vanilla with one of",
    ),
    "an activation without a node": (
        lambda: make(rnnjax.vanilla(4, jnp.sin)),
        "vanilla with one of ['tanh', 'relu', 'sigmoid']",
    ),
    "a layer that adds its input": (
        lambda: make(rnnjax.residual(rnnjax.gru(4))),
        "layer must be a recurrent cell, forward or in both directions, or a stack",
    ),
    "a policy": (
        lambda: make(rnnjax.recurrent(rnnjax.gru(4), policy=rnnjax.Policy(compute="bfloat16"))),
        "without a policy",
    ),
    "a start that was learned": (
        lambda: make(rnnjax.learn_initial_carry(rnnjax.gru(4))),
        "cell must be an lstm, peephole_lstm, gru, or vanilla with one of",
    ),
    "a model made by hand": (
        lambda: (make(rnnjax.gru(4))[0]._replace(vocab_size=12), None),
        "model must be made by rnnjax.language_model",
    ),
    "a head of many words": (
        lambda: make(rnnjax.gru(4), softmax=rnnjax.adaptive_softmax(4, V, (4,))),
        "model must have a linear head to become ONNX nodes",
    ),
    "no parameters": (
        lambda: (make(rnnjax.gru(4))[0], None),
        "params must be LanguageModelParams(embedding, layer, head), got None",
    ),
    "parameters of another model": (
        lambda: (make(rnnjax.gru(4))[0], make(rnnjax.lstm(4))[1]),
        "GRUParams",
    ),
    "parameters of two layers": (
        lambda: (make(rnnjax.gru(4))[0], make(rnnjax.stack(rnnjax.gru(4), rnnjax.gru(4)))[1]),
        "params.layer must be of 1 layers, got 2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_nodes_is_refused(case):
    given, words = BAD[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        export_step(*given())

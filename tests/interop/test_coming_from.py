"""The pages for those who come from another library: both sides run, and agree.

A block fenced ``py NAME`` is of that library, and the ``python`` block after it is ours. Given the
weights of the first, the model of the second must say the same. Of every table "you write, here you
write" each row runs, both sides of it, and so do the calls in the answers of the guide.
"""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from rnnjax.interop import classifiers, haiku, linen
from rnnjax.metrics import cross_entropy

PACKAGE = Path(__file__).parents[2] / "rnnjax"
README = (PACKAGE / "interop" / "README.md").read_text("utf-8")
GUIDE = (PACKAGE / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w[^\n]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PAIRS = {
    kind.removeprefix("py "): (before, after)
    for (kind, before), (ours, after) in itertools.pairwise(BLOCKS)
    if kind.startswith("py ") and not kind.startswith("py export") and ours == "python"
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# Keras reads its own variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(block):
    found = {}
    with jax.numpy_rank_promotion("allow"):  # Keras and Haiku add their biases so
        exec(compile(block, "README.md", "exec"), found)
    return found


def both(library, module):
    pytest.importorskip(module)
    before, after = PAIRS[library]
    return run(before), run(after)


def assert_fit(params, own):
    """Weights that came in have the place and the shape of those that were drawn here."""
    assert jax.tree.structure(params) == jax.tree.structure(own)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, own)


def test_there_is_a_page_for_each_library():
    assert list(PAIRS) == ["torch", "keras", "flax", "haiku"]


def test_pytorch():
    before, after = both("torch", "torch")
    params = classifiers.import_torch("lstm", before["model"].state_dict())
    assert_fit(params, after["params"])
    np.testing.assert_array_equal(after["tokens"], before["tokens"].numpy())
    logits = after["model"].apply(params, after["tokens"], after["lengths"])
    np.testing.assert_allclose(logits, before["logits"].detach().numpy(), **CLOSE)


def test_keras():
    before, after = both("keras", "keras")
    params = classifiers.import_keras("lstm", before["model"].get_weights())
    assert_fit(params, after["params"])
    tokens = after["tokens"]
    np.testing.assert_array_equal(tokens, before["tokens"])
    logits = after["model"].apply(params, tokens, mask=tokens != 0)
    np.testing.assert_allclose(logits, before["logits"], **CLOSE)


@pytest.mark.full
def test_flax():
    before, after = both("flax", "flax")
    params = linen.import_weights("lstm", before["params"])
    assert_fit(params, after["params"])
    lengths = np.array([5, 2])
    carry, ys = after["layer"].apply(params, before["xs"], lengths)
    for direction, (c, h) in zip(carry, before["carry"], strict=True):
        np.testing.assert_allclose(direction.c, c, **CLOSE)
        np.testing.assert_allclose(direction.h, h, **CLOSE)
    valid = np.arange(5) < lengths[:, None]
    np.testing.assert_allclose(ys[valid], np.asarray(before["ys"])[valid], **CLOSE)


def test_haiku():
    before, after = both("haiku", "haiku")
    params = haiku.import_weights("lstm", before["params"], "lstm")
    assert_fit(params, after["params"])
    carry, ys = after["layer"].apply(params, before["xs"])
    np.testing.assert_allclose(carry.h, before["carry"].hidden, **CLOSE)
    np.testing.assert_allclose(carry.c, before["carry"].cell, **CLOSE)
    np.testing.assert_allclose(ys, before["ys"], **CLOSE)


def test_the_exports_of_the_readme_run():
    for module in ("flatbuffers", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    found = run(dict(BLOCKS)["py export"])
    np.testing.assert_allclose(found["same"], found["logits"], **CLOSE)
    assert len(run(dict(BLOCKS)["py export step"])["text"]) == 20


# What the code in the tables may name, on either side.
SIZES = "B, T, D, H, P, V, E, O, C = 2, 5, 3, 4, 2, 10, 6, 2, 3"
OURS = f"""
import jax, jax.numpy as jnp, optax, rnnjax
from rnnjax import *
from rnnjax.metrics import Mean, cross_entropy, squared_error
from rnnjax.weights import save_weights
{SIZES}
key, cell, optimizer = jax.random.key(0), lstm(H), optax.sgd(0.1)
layer = recurrent(cell)
params = layer.init(key, D)
xs, tokens, lengths = jnp.ones((B, T, D)), jnp.ones((B, T), int), jnp.array([5, 2])
x, resets, h0, c0 = xs[:, 0], jnp.zeros((B, T), bool), jnp.zeros((B, H)), jnp.zeros((B, H))
logits, weights = jnp.arange(12.0).reshape(4, C) ** 0.5, jnp.array([0.5, 1.0, 3.0])
labels, targets = jnp.array([0, -100, 1, 2]), jnp.array([0, 2, 2, 1])
carry, ys = layer.apply(params, xs)
loss_fn = lambda ys, targets, mask: (ys.mean(), {{}})
state, batch, step = None, None, lambda state, batch: (state, {{}})
"""
# What the answers of the guide may name beside it.
ASKED = f"""{OURS}
from types import SimpleNamespace
import sklearn.metrics
size, steps, table, ids, metrics = H, 7, embedding(V, E), tokens, {{"loss": squared_error(x, x)}}
vectors, outputs, flags = table.init(key), logits[:, :1], logits > 0
labels, weights = jnp.array([0, 1, 1, 0]), jnp.array([0.5, 1.0, 3.0, 0.0])
batch = SimpleNamespace(labels=flags.astype(int), weights=weights)
frames, cnn = jnp.ones((B, T, 8, 8)), lambda frame: frame[0, :D]
W, features = 6, jnp.ones((B, 6, 2, 3))
futures, mask = jnp.ones((B, T, steps)), jnp.ones((B, T), bool)
averaging = optax.chain(optax.sgd(0.1), rnnjax.average_parameters(0.9))
state = rnnjax.init_train_state(key, params, averaging)
"""
# The same for the answers that name a part of a model's parameters.
ASKED_OF_PARTS = f"""{ASKED}
from rnnjax.weights import load_weights
encoder, path, params = layer, "model.safetensors", {{"embedding": vectors, "encoder": params}}
save_weights(path, params)
"""
THEIRS = {
    "PyTorch": f"""
import torch
from torch.nn import *
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
{SIZES}
xs, lengths, rnn = torch.ones(B, T, D), torch.tensor([5, 2]), LSTM(D, H, batch_first=True)
x, h0, c0, h = xs[:, 0], torch.zeros(B, H), torch.zeros(B, H), torch.zeros(2, B, H)
packed = pack_padded_sequence(xs, lengths, batch_first=True)
logits, weights = torch.arange(12.0).reshape(4, C) ** 0.5, torch.tensor([0.5, 1.0, 3.0])
labels, targets = torch.tensor([0, -100, 1, 2]), torch.tensor([0, 2, 2, 1])
""",
    "Keras": f"""
import numpy as np
from keras import Sequential
from keras.callbacks import EarlyStopping
from keras.layers import *
{SIZES}
xs, labels, built = np.ones((B, D)), np.zeros((B, 1)), LSTM(H)
built.build((B, T, D))
kernel, recurrent_kernel = built.cell.kernel, built.cell.recurrent_kernel
model = Sequential([Dense(1)])
model.compile("sgd", "mse")
model.build((B, D))
""",
    "Flax": f"""
import jax, jax.numpy as jnp, optax
from flax.linen import *
from flax.training.train_state import TrainState
{SIZES}
key, xs, lengths, rnn = jax.random.key(0), jnp.ones((B, T, D)), jnp.array([5, 2]), RNN(LSTMCell(H))
variables, optimizer = rnn.init(key, xs), optax.sgd(0.1)
x, h0, c0 = xs[:, 0], jnp.zeros((B, H)), jnp.zeros((B, H))
""",
    "Haiku": f"""
import haiku as hk, jax.numpy as jnp
{SIZES}
xs, resets, core = jnp.ones((B, T, D)), jnp.zeros((B, T), bool), hk.LSTM(H)
x, state = xs[:, 0], core.initial_state(B)
""",
}


def rows(library):
    return rows_below(README, f"## From {library}\n")


def rows_below(text, heading):
    """Both sides of a table's rows, each as the pieces of code that stand in it."""
    page = text.split(heading)[1].split("\n## ")[0]
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [[re.findall(r"`([^`]+)`", side) for side in row] for row in table[1:]]


def run_each(prelude, rows_of_code):
    for pieces in rows_of_code:
        found = {}
        exec(prelude, found)
        for code in pieces:
            exec(code, found)


def test_the_losses_of_pytorch_are_those_beside_them():
    pytest.importorskip("torch")
    losses = [row for row in rows("PyTorch") if any("EntropyLoss" in code for code in row[0])]
    assert len(losses) == 2
    theirs, ours = {}, {}
    exec(THEIRS["PyTorch"], theirs)
    exec(OURS, ours)
    for (there,), (here,) in losses:
        np.testing.assert_allclose(eval(here, ours), eval(there, theirs), rtol=1e-6)


@pytest.mark.parametrize("library", THEIRS)
def test_what_you_write_here_runs(library, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = rows(library)
    assert len(table) >= 9
    assert all(len(row) == 2 for row in table)
    run_each(OURS, [ours for _, ours in table])


def test_what_the_guide_answers_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    calls = [
        [code for code in answer if "(" in code or " = " in code]
        for _, answer in rows_below(GUIDE, "\n## Questions\n")
    ]
    assert sum(map(len, calls)) >= 8
    of_parts = [row for row in calls if any('"encoder"' in code for code in row)]
    assert len(of_parts) == 2
    run_each(ASKED_OF_PARTS, of_parts)
    run_each(ASKED, [row for row in calls if row not in of_parts])


def test_one_sigmoid_unit_of_the_guide_is_two_classes():
    answer = next(a for q, a in rows_below(GUIDE, "\n## Questions\n") if "num_classes=2" in a)
    found = {}
    exec(ASKED, found)
    exec(next(code for code in answer if code.startswith("z =")), found)
    losses = [eval(code, found) for code in answer if code.startswith("Mean.of(")]
    classes = [eval(code, found) for code in answer if code.startswith("jnp.stack(")]
    assert len(losses) == len(classes) == 1
    of_two = cross_entropy(classes[0], found["labels"], found["weights"])
    np.testing.assert_allclose(losses[0], of_two, rtol=1e-6)


@pytest.mark.parametrize(
    ("library", "module"),
    [("PyTorch", "torch"), ("Keras", "keras"), ("Flax", "flax"), ("Haiku", "haiku")],
)
def test_what_you_write_there_runs(library, module, monkeypatch, tmp_path):
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)

    def run_table():
        run_each(THEIRS[library], [theirs for theirs, _ in rows(library)])

    with jax.numpy_rank_promotion("allow"):
        if module == "haiku":
            import haiku as hk

            hk.transform(run_table).init(jax.random.key(0))
        else:
            run_table()

"""The pages for those who come from another library: both sides run, and agree.

A block fenced ``py NAME`` is of that library, and the ``python`` block after it is ours. Given the
weights of the first, the model of the second must say the same.
"""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from rnnjax.interop import classifiers, haiku, linen

README = (Path(__file__).parents[2] / "rnnjax" / "interop" / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w[^\n]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PAIRS = {
    kind.removeprefix("py "): (before, after)
    for (kind, before), (ours, after) in itertools.pairwise(BLOCKS)
    if kind.startswith("py ") and kind != "py export" and ours == "python"
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

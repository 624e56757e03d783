"""The pure functions inside Haiku and Equinox, with no adapter: the two examples of the document.

Each is run as it stands there, with ``xs`` and ``lengths`` given, and compared with the library's
own LSTM on the same weights, every sequence alone.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

HAIKU = """\
import haiku as hk, jax.numpy as jnp, rnnjax

cell = rnnjax.lstm(8)


def forward(xs, lengths):
    w_ih = hk.get_parameter("w_ih", (xs.shape[-1], 32), init=hk.initializers.VarianceScaling())
    w_hh = hk.get_parameter("w_hh", (8, 32), init=hk.initializers.Orthogonal())
    bias = hk.get_parameter("bias", (32,), init=jnp.zeros)
    carry, ys = rnnjax.unroll(cell, rnnjax.LSTMParams(w_ih, w_hh, bias), xs, lengths)
    return hk.Linear(2)(carry.h)


model = hk.without_apply_rng(hk.transform(forward))
"""

EQUINOX = """\
import equinox as eqx, jax, rnnjax

cell = rnnjax.lstm(8)


class Classifier(eqx.Module):
    encoder: rnnjax.LSTMParams
    head: eqx.nn.Linear

    def __call__(self, xs, length):
        carry, ys = rnnjax.unroll(cell, self.encoder, xs, length)
        return self.head(carry.h)


one, two = jax.random.split(jax.random.key(0))
model = Classifier(cell.init(one, 3), eqx.nn.Linear(8, 2, key=two))
"""

LENGTHS = np.array([2, 4, 0])
XS = jax.random.normal(jax.random.key(9), (3, 4, 3))
POISONED = jnp.where((np.arange(4) < LENGTHS[:, None])[..., None], XS, jnp.nan)
LABELS = jnp.array([0, 1, 1])


def run(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def descend(loss, params):
    """Losses along gradient descent."""
    losses = []
    for _ in range(20):
        value, gradient = loss(params)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
        losses.append(float(value))
    return losses


@pytest.mark.parametrize("code", [HAIKU, EQUINOX], ids=["haiku", "equinox"])
def test_an_example_has_about_ten_lines(code):
    assert len([line for line in code.splitlines() if line.strip()]) <= 11


@jax.numpy_rank_promotion("allow")  # Haiku's orthogonal initializer promotes ranks
def test_inside_haiku():
    hk = pytest.importorskip("haiku")
    model = run(HAIKU)["model"]
    params = model.init(jax.random.key(0), XS, LENGTHS)
    params["~"]["bias"] = 0.1 * jnp.arange(32.0)
    logits = model.apply(params, POISONED, LENGTHS)

    def own(xs):
        core = hk.LSTM(8)
        start = core.initial_state(None)
        _, state = hk.dynamic_unroll(core, xs, start) if len(xs) else (None, start)
        return hk.Linear(2)(state.hidden)

    def reordered(packed):  # Haiku packs i, g, f, o
        i, f, g, o = jnp.split(packed, 4, axis=-1)
        return jnp.concatenate([i, g, f, o], axis=-1)

    held = params["~"]
    bias = held["bias"].at[8:16].add(-1.0)  # Haiku adds 1 to the forget gate when it computes
    own_params = {
        "lstm/linear": {
            "w": reordered(jnp.concatenate([held["w_ih"], held["w_hh"]])),
            "b": reordered(bias),
        },
        "linear": params["linear"],
    }
    alone = hk.without_apply_rng(hk.transform(own))
    expected = [alone.apply(own_params, x[:n]) for x, n in zip(XS, LENGTHS, strict=True)]
    np.testing.assert_allclose(logits, jnp.stack(expected), rtol=1e-5, atol=1e-6)

    loss = jax.jit(
        jax.value_and_grad(lambda params: cross_entropy(model.apply(params, POISONED, LENGTHS)))
    )
    losses = descend(loss, params)
    assert losses[-1] < 0.9 * losses[0]


def test_inside_equinox():
    eqx = pytest.importorskip("equinox")
    model = run(EQUINOX)["model"]
    logits = jax.vmap(model)(POISONED, LENGTHS)

    own = eqx.nn.LSTMCell(3, 8, key=jax.random.key(0))
    own = eqx.tree_at(
        lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias),
        own,
        (model.encoder.w_ih.T, model.encoder.w_hh.T, model.encoder.bias),
    )
    for row, length in enumerate(LENGTHS):
        state = (jnp.zeros(8), jnp.zeros(8))
        for t in range(length):
            state = own(XS[row, t], state)
        np.testing.assert_allclose(logits[row], model.head(state[0]), rtol=1e-5, atol=1e-6)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        return cross_entropy(jax.vmap(model)(POISONED, LENGTHS))

    losses = descend(loss, model)
    assert losses[-1] < 0.9 * losses[0]


def test_the_readme_shows_these_examples():
    readme = (Path(__file__).parents[2] / "rnnjax" / "interop" / "README.md").read_text("utf-8")
    assert f"```py\n{HAIKU}```" in readme
    assert f"```py\n{EQUINOX}```" in readme

"""Layer normalisation inside the gates: its equation, its invariances, and the law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS as PLAIN
from cases import B, D, H, One, T, batch_alone, ragged
from cases import init as init_row
from jax.flatten_util import ravel_pytree
from trees import EXACT, assert_trees_equal

import rnnjax
from rnnjax.cells.min_gru import min_gru
from rnnjax.transforms import layer_norm

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

CELLS = {
    "vanilla": layer_norm(rnnjax.vanilla(H)),
    "gru": layer_norm(rnnjax.gru(H)),
    "users_own": layer_norm(PLAIN["users_own"]),
    "min_gru": layer_norm(min_gru(H)),
    "twice": layer_norm(layer_norm(rnnjax.vanilla(H))),
}


def weigh(tree):
    """A loss that feels every element differently."""
    flat = ravel_pytree(tree)[0]
    return flat @ jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))


def init(cell, seed=1):
    return init_row(One(cell), seed)


def normalised(rows, gain, count):
    """Each of the ``count`` gates by itself, in NumPy."""
    gates = rows.reshape(count, -1)
    deviation = np.sqrt(gates.var(axis=1, keepdims=True) + 1e-5)
    return (gates - gates.mean(axis=1, keepdims=True)) / deviation * gain.reshape(count, -1)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def as_numpy(params):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), params)


def lstm_in_numpy(p, xs, recurrent):
    """Final h and c of the LSTM with ``recurrent`` as its recurrent matrix."""
    h, c = np.zeros(H), np.zeros(H)
    for x in np.asarray(xs):
        sums = normalised(x @ p.cell.w_ih, p.input_gain, 4) + p.cell.bias.reshape(4, H)
        i, f, g, o = sums + normalised(h @ recurrent, p.hidden_gain, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h, c


def test_the_lstm_is_its_equation():
    cell = layer_norm(rnnjax.lstm(H))
    params, xs = init(cell), ragged("plain").xs[0]
    p = as_numpy(params)
    h, c = lstm_in_numpy(p, xs, p.cell.w_hh)
    carry, ys = rnnjax.unroll(cell, params, xs)
    np.testing.assert_allclose([carry.h, carry.c, ys[-1]], [h, c, h], **EXACT)


def test_recurrent_weights_in_blocks_are_the_dense_matrix_with_zeros_in_it():
    plain, heads = rnnjax.lstm(H), 2
    part = H // heads

    def in_blocks(key, size):
        blocks = jnp.ones((heads, part, 4 * part), jnp.float32)
        return plain.init(key, size)._replace(w_hh=blocks)

    cell = layer_norm(plain._replace(init=in_blocks))
    params, xs = init(cell), ragged("plain").xs[0]
    p, dense = as_numpy(params), np.zeros((heads, part, 4, heads, part))
    for head in range(heads):
        dense[head, :, :, head] = p.cell.w_hh[head].reshape(part, 4, part)
    h, c = lstm_in_numpy(p, xs, dense.reshape(H, 4 * H))
    carry, _ = rnnjax.unroll(cell, params, xs)
    np.testing.assert_allclose([carry.h, carry.c], [h, c], **EXACT)


def test_the_gru_is_its_equation():
    cell = layer_norm(rnnjax.gru(H))
    params, xs = init(cell), ragged("plain").xs[0]
    p, h = as_numpy(params), np.zeros(H)
    for x in np.asarray(xs):
        xr, xz, xn = normalised(x @ p.cell.w_ih, p.input_gain, 3) + p.cell.bias.reshape(3, H)
        hr, hz, hn = normalised(h @ p.cell.w_hh, p.hidden_gain, 3)
        z = sigmoid(xz + hz)
        n = np.tanh(xn + sigmoid(xr + hr) * (hn + p.cell.hidden_bias))
        h = (1 - z) * n + z * h
    np.testing.assert_allclose(rnnjax.unroll(cell, params, xs)[0], h, **EXACT)


@pytest.mark.parametrize("name", CELLS)
def test_the_law_holds_in_value_and_gradient(name):
    spec, batch = One(CELLS[name], reverse=name == "gru"), ragged("all")
    params = init_row(spec)
    start = jax.tree.map(
        lambda a: jnp.full((B, *a.shape), 0.3, a.dtype), spec.cell.initial_carry(params)
    )

    def engine(params, xs):
        options = {**batch.options, "initial_carry": start, "reverse": spec.reverse}
        return rnnjax.unroll(spec.cell, params, xs, **options)

    def oracle(params, xs):
        return batch_alone(spec, params, batch, start, xs)

    def everything(run, xs):
        loss = lambda *args: (weigh(results := run(*args)), results)  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    padded = jnp.where(batch.valid[..., None], batch.xs, jnp.nan)
    assert_trees_equal(everything(engine, padded), everything(oracle, batch.xs))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_scaling_the_weights_changes_nothing(name):
    inner = {"gru": rnnjax.gru, "lstm": rnnjax.lstm}[name](H)
    cell, xs = layer_norm(inner, epsilon=1e-12), ragged("plain").xs
    params = init(cell)
    scaled = params.cell._replace(w_ih=3 * params.cell.w_ih, w_hh=0.2 * params.cell.w_hh)
    start = jax.tree.map(lambda a: jnp.full((B, H), 0.3), cell.initial_carry(params))
    one, other = (
        rnnjax.unroll(cell, params._replace(cell=p), xs, initial_carry=start)
        for p in (params.cell, scaled)
    )
    assert_trees_equal(other, one, rtol=1e-7, atol=1e-8)


def test_the_bias_of_the_cell_stays_outside():
    cell = layer_norm(rnnjax.lstm(H))
    params = cell.init(jax.random.key(0), D)
    carry = cell.initial_carry(params)
    _, (_, gates) = rnnjax.unroll(rnnjax.trace_gates(cell), params, jnp.zeros((T, D)))
    np.testing.assert_allclose(gates.f[0], sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(gates.i[0], 0.5, rtol=1e-6)
    assert carry.c.shape == (H,)


def test_a_linear_cell_stays_linear():
    cell, batch = CELLS["min_gru"], ragged("all")
    params = init(cell)
    assert params.hidden_gain is None
    assert params.input_gain.shape == (2 * H,)
    both = (
        rnnjax.unroll(cell, params, batch.xs, **batch.options, implementation=name)
        for name in ("associative", "scan")
    )
    assert_trees_equal(*both)


def test_gains_and_parameters_train_in_any_layer():
    layer = rnnjax.stack(
        rnnjax.bidirectional(layer_norm(rnnjax.gru(H))), layer_norm(rnnjax.lstm(H))
    )
    params, xs = layer.init(jax.random.key(0), D), ragged("plain").xs
    grads = jax.grad(lambda p: weigh(layer.apply(p, xs, [4, 2, 0])))(params)
    assert grads[0].forward.input_gain.shape == (3 * H,)
    flat = [np.abs(a).max() for a in jax.tree.leaves(grads)]
    assert np.all(np.isfinite(flat))
    assert np.all(np.array(flat) > 0)


def complex_gates():
    return min_gru(H)._replace(project=lambda params, x: ((x[:H] * 1j),), linear=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer_norm(rnnjax.gru(H, reset_after=False)), "this one is a plain step"),
        (
            lambda: layer_norm(rnnjax.lstm),
            "cell must be a rnnjax.Cell, got function: call it first",
        ),
        (
            lambda: layer_norm(rnnjax.lstm(H), epsilon=0.0),
            r"epsilon must be a number in \[1e-25, 1e38\], got 0.0",
        ),
        (lambda: layer_norm(rnnjax.lstm(H), 1e-26), r"epsilon must be .*, got 1e-26"),
        (lambda: layer_norm(rnnjax.lstm(H), 1e39), r"epsilon must be .*, got 1e\+39"),
        (lambda: rnnjax.rms_norm(rnnjax.lstm(H), epsilon=1e-40), r"epsilon must be .*, got 1e-40"),
        (lambda: layer_norm(complex_gates()).init(jax.random.key(0), H), "real gates.*piece 0"),
    ],
)
def test_what_cannot_be_normalised_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("epsilon", [1e-25, 1e38])
@pytest.mark.parametrize("norm", [layer_norm, rnnjax.rms_norm])
def test_gradients_are_finite_at_both_ends_of_epsilon(norm, epsilon):
    """Of a first step, whose state is zeros, and of inputs that are zeros."""
    layer = rnnjax.stack(norm(rnnjax.lstm(H), epsilon=epsilon))
    params = layer.init(jax.random.key(0), D)
    xs = jnp.zeros((2, 3, D), jnp.float32).at[0, 1].set(1.0)

    def total(params, xs):
        ys = layer.apply(params, xs)[1]
        assert ys.dtype == jnp.float32
        return jnp.sum(ys)

    for gradient in jax.tree.leaves(jax.grad(total, (0, 1))(params, xs)):
        assert jnp.all(jnp.isfinite(gradient))


def test_a_cell_with_recurrent_weights_needs_its_gain():
    cell = layer_norm(rnnjax.lstm(H))
    params = cell.init(jax.random.key(0), D)._replace(hidden_gain=None)
    with pytest.raises(ValueError, match=r"params must have the structure .*hidden_gain\), as"):
        rnnjax.unroll(cell, params, jnp.ones((2, 3, D)))

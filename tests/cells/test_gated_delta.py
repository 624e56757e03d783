"""The Gated DeltaNet: its equations in NumPy, many steps at once as one by one, its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import D, One, init
from chunks import chunked_and_alone, lowered_gradient
from trees import EXACT, assert_trees_equal

import rnnjax

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

H, HEADS, WIDTH = 6, 2, 3
CELL = rnnjax.gated_delta(H, num_heads=HEADS)
SIGNED = rnnjax.gated_delta(H, num_heads=HEADS, negative_eigenvalues=True)
LEARNED = rnnjax.learn_initial_carry(SIGNED)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["scan", "chunked"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_loop(p, xs, most):
    """The equations as they stand, with the matrix I - beta k k^T written out."""
    memory, ys = np.zeros((HEADS, WIDTH, WIDTH)), []
    for x in xs:
        z = (x @ p.w_ih + p.bias).reshape(3, HEADS, WIDTH)
        q, k, v = z * sigmoid(z)
        q, k = (a / np.sqrt(np.sum(a**2, axis=-1, keepdims=True) + 1e-6) for a in (q, k))
        b, a = (x @ p.w_gates + p.gate_bias).reshape(2, HEADS)
        alpha = np.exp(-np.exp(p.decay_log) * np.log1p(np.exp(a)))
        y = []
        for n, beta in enumerate(most * sigmoid(b)):
            turn = np.eye(WIDTH) - beta * np.outer(k[n], k[n])
            memory[n] = alpha[n] * turn @ memory[n] + beta * np.outer(k[n], v[n])
            y.append(memory[n].T @ q[n] / np.sqrt(WIDTH))
        ys.append(np.concatenate(y))
    return memory, np.stack(ys)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("cell", "most"), [(CELL, 1), (SIGNED, 2)])
def test_values_are_those_of_the_equations(cell, most, implementation):
    params = jax.tree.map(np.asarray, init(One(cell)))
    xs = 2 * np.random.default_rng(0).normal(size=(9, D))
    memory, expected = numpy_loop(params, xs, most)
    options = {"remat": 4} if implementation == "chunked" else {}
    carry, ys = rnnjax.unroll(cell, params, xs, implementation=implementation, **options)
    np.testing.assert_allclose(ys, expected, **EXACT)
    np.testing.assert_allclose(carry, memory, **EXACT)


@pytest.mark.parametrize(
    ("cell", "reverse", "options", "remat"),
    [
        (LEARNED, False, "all", 2),
        (LEARNED, True, "all", 3),
        (LEARNED, True, "all", None),
        (CELL, False, "mask", "never"),
        (SIGNED, True, "resets", 2),
    ],
)
def test_chunks_of_any_length_are_each_sequence_alone(cell, reverse, options, remat):
    assert_trees_equal(*chunked_and_alone(cell, reverse, options, remat))


@IMPLEMENTATIONS
def test_what_is_written_is_read_until_the_key_is_written_again(implementation):
    """Keys along one axis each, beta 1 and nothing forgotten: a table of values."""
    cell = rnnjax.gated_delta(WIDTH)
    # Inputs are a key and a value; silu(40) is 40, and length 1 is what becomes of it.
    w_ih = np.zeros((2 * WIDTH, 3 * WIDTH))
    w_ih[:WIDTH, :WIDTH] = w_ih[:WIDTH, WIDTH : 2 * WIDTH] = 40 * np.eye(WIDTH)
    w_ih[WIDTH:, 2 * WIDTH :] = np.eye(WIDTH)
    params = rnnjax.GatedDeltaParams(
        w_ih, np.zeros(3 * WIDTH), np.zeros((2 * WIDTH, 2)), np.array([40.0, -40.0]), np.zeros(1)
    )
    keys = np.array([0, 1, 2, 0, 1, 2, 0, 0])
    values = np.random.default_rng(1).uniform(30, 50, size=(len(keys), WIDTH))
    xs = np.concatenate([np.eye(WIDTH)[keys], values], axis=1)
    memory, ys = rnnjax.unroll(cell, params, xs, implementation=implementation)
    np.testing.assert_allclose(ys * np.sqrt(WIDTH), values, rtol=1e-8)
    np.testing.assert_allclose(memory, values[None, [7, 4, 5]], rtol=1e-8)


@IMPLEMENTATIONS
def test_with_negative_eigenvalues_it_counts_by_twos(implementation):
    """Where the input is 1, beta is 2 and the memory changes its sign, else beta is 0."""
    cell = rnnjax.gated_delta(1, negative_eigenvalues=True)
    params = rnnjax.GatedDeltaParams(
        w_ih=np.array([[0.0, 0.0, 0.0]]),
        bias=np.array([40.0, 40.0, 0.0]),
        w_gates=np.array([[100.0, 0.0]]),
        gate_bias=np.array([-50.0, -60.0]),
        decay_log=np.zeros(1),
    )
    bits = np.random.default_rng(2).integers(0, 2, size=(4, 300))
    start = np.ones((4, 1, 1, 1))
    xs = bits[..., None].astype(float)
    _, ys = rnnjax.unroll(cell, params, xs, initial_carry=start, implementation=implementation)
    np.testing.assert_allclose(ys[..., 0], 1 - 2 * (np.cumsum(bits, axis=1) % 2), rtol=1e-5)


@IMPLEMENTATIONS
@pytest.mark.parametrize("a", [-1e30, 1e30])
@pytest.mark.parametrize("b", [-1e30, 1e30])
@pytest.mark.parametrize("decay_log", [-1e30, 1e30])
def test_gates_at_their_ends_stay_finite_and_right(implementation, a, b, decay_log):
    """In float32: nothing is written, or all is; all is forgotten, or nothing is."""
    with jax.enable_x64(False):
        steps, cell = 5, rnnjax.gated_delta(H, num_heads=HEADS)
        params = cell.init(jax.random.key(0), D)
        gate_bias = jnp.repeat(jnp.array([b, a], jnp.float32), HEADS)
        decay = jnp.full(HEADS, decay_log, jnp.float32)
        params = params._replace(gate_bias=gate_bias, decay_log=decay)
        xs = jax.random.normal(jax.random.key(1), (steps, D))
        start = jax.random.normal(jax.random.key(2), (HEADS, WIDTH, WIDTH))

        def loss(params, xs):
            options = {"initial_carry": start, "implementation": implementation}
            carry, ys = rnnjax.unroll(cell, params, xs, **options)
            return jnp.sum(ys**2) + jnp.sum(carry**2), (carry, ys)

        grads, (carry, ys) = jax.grad(loss, (0, 1), has_aux=True)(params, xs)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((carry, ys, grads)))
    forgets = a > 0 and decay_log > 0
    if b < 0:
        np.testing.assert_array_equal(carry, 0 * start if forgets else start)
    elif forgets:
        z = np.asarray(xs, float)[-1] @ np.asarray(params.w_ih, float) + np.asarray(params.bias)
        _, k, v = (z * sigmoid(z)).reshape(3, HEADS, WIDTH)
        k = k / np.sqrt(np.sum(k**2, axis=-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(carry, k[:, :, None] * v[:, None], rtol=1e-4, atol=1e-6)


def test_keys_of_zeros_write_nothing_and_have_gradients():
    params = init(One(CELL))
    params = params._replace(w_ih=0 * params.w_ih, bias=0 * params.bias)

    def total(params):
        carry, ys = rnnjax.unroll(CELL, params, jnp.ones((5, D)))
        return jnp.sum(carry) + jnp.sum(ys)

    value, grads = jax.value_and_grad(total)(params)
    assert value == 0
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grads))


def test_a_training_step_keeps_the_memory_between_chunks_alone():
    compiled, memory = lowered_gradient(CELL), f"2x{HEADS}x{WIDTH}x{WIDTH}x"
    assert f"tensor<256x{memory}" not in compiled
    assert f"tensor<8x{memory}" in compiled
    assert "32 steps at once" in rnnjax.explain(CELL, init(One(CELL)), (2, 256, D))


@pytest.mark.parametrize("steps", [1, 2, 33])
def test_a_chunk_of_one_step_runs_inside_shard_map(steps):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    params, xs = init(One(CELL)), jax.random.normal(jax.random.key(3), (2, steps, D))

    def outputs(params, xs):
        return rnnjax.unroll(CELL, params, xs)[1]

    rows = jax.sharding.PartitionSpec("rows")
    specs = (jax.sharding.PartitionSpec(), rows)
    mapped = jax.shard_map(outputs, mesh=mesh, in_specs=specs, out_specs=rows)(params, xs)
    alone = rnnjax.unroll(CELL, params, xs, implementation="scan")[1]
    np.testing.assert_allclose(mapped, alone, atol=1e-12)


def test_first_weights_forget_at_many_speeds():
    """exp(decay_log) uniform up to 16, the softplus from 0.001 to 0.1, its logarithm uniform."""
    params = rnnjax.gated_delta(2000, num_heads=2000).init(jax.random.key(0), D)
    beta, step = np.split(np.asarray(params.gate_bias, float), 2)
    rates, steps = np.exp(np.asarray(params.decay_log, float)), np.log1p(np.exp(step))
    np.testing.assert_array_equal(beta, 0)
    for shares in (rates / 16, np.log(steps / 0.001) / np.log(100)):
        assert 0 <= shares.min() < 0.01
        assert 0.99 < shares.max() <= 1 + 1e-4
        np.testing.assert_allclose([shares.mean(), shares.std()], [1 / 2, 12**-0.5], atol=0.02)
    assert np.abs(np.corrcoef(rates, steps)[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "num_heads must divide hidden_size 6, got 4"),
        ({"negative_eigenvalues": 1}, "negative_eigenvalues must be True or False, got 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rnnjax.gated_delta(H, **options)

"""The parts of today's recurrent blocks beside their equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OPTIONS, B, T, ragged

import rnnjax

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

EXACT = {"rtol": 1e-11, "atol": 1e-12}
SIZE, WIDE, STATES, RANK = 3, 6, 4, 2


def drawn(layer, size, seed=0):
    """Parameters of a layer, all of them random, in float64."""
    params = layer.init(jax.random.key(seed), size)
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.normal(size=a.shape) * 0.5 for a in leaves])


def silu(x):
    return x / (1 + np.exp(-x))


def mamba_block(params, xs):
    """One sequence [T, D] by the equations of the authors' reference: projections, convolution,
    selective scan and gate."""
    inner, (convolution, scan) = params, params.layer
    x, z = xs @ inner.w_in, xs @ inner.w_gate
    padded = np.concatenate([np.zeros((3, WIDE)), x])
    # Their weights have the newest step last.
    x = silu(
        np.stack([(padded[t : t + 4] * convolution.w[::-1]).sum(0) for t in range(len(xs))])
        + convolution.bias
    )
    delta = np.log1p(np.exp(x @ scan.w_down @ scan.w_step + scan.step_bias))
    b, c, a = x @ scan.w_in, x @ scan.w_out, -np.exp(scan.decay_log)
    delta_a = np.exp(np.einsum("ld,dn->ldn", delta, a))
    delta_b_u = np.einsum("ld,ln,ld->ldn", delta, b, x)
    state, ys = np.zeros((WIDE, STATES)), []
    for t in range(len(xs)):
        state = delta_a[t] * state + delta_b_u[t]
        ys.append(np.einsum("dn,n->d", state, c[t]))
    y = np.array(ys).reshape(len(xs), WIDE) + x * scan.d
    return (y * silu(z)) @ inner.w_out


@pytest.mark.parametrize("implementation", ["scan", "associative"])
def test_the_block_of_mamba_is_that_of_its_equations(implementation):
    scan = rnnjax.recurrent(rnnjax.s6(WIDE, STATES, step_rank=RANK), implementation=implementation)
    inner = rnnjax.stack(rnnjax.causal_convolution(WIDE, 4, jax.nn.silu), scan)
    layer = rnnjax.gated(inner, SIZE)
    params, xs = drawn(layer, SIZE), np.random.default_rng(1).normal(size=(2, 7, SIZE))
    lengths = [7, 4]
    _, ys = layer.apply(
        params, np.where((np.arange(7) < [[7], [4]])[..., None], xs, np.nan), lengths
    )
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(ys[row, :length], mamba_block(params, xs[row, :length]), **EXACT)
        assert np.all(ys[row, length:] == 0)


@pytest.mark.parametrize("window", [1, 2, 6])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_causal_convolution_sees_the_real_steps_of_its_own_segment(options, window):
    """Also where the window is longer than a sequence, and where it is a step alone."""
    layer = rnnjax.causal_convolution(SIZE, window)
    params, batch = drawn(layer, SIZE), ragged(options)
    start = np.random.default_rng(2).normal(size=(B, window - 1, SIZE))
    xs = np.where(batch.valid[..., None], batch.xs, np.nan)
    with jax.numpy_dtype_promotion("strict"):  # places of 32 bits among those of x64
        carry, ys = layer.apply(params, xs, **batch.options, initial_carry=start)
    for b in range(B):
        seen = [*start[b]]
        for t in range(T):
            if not batch.valid[b, t]:
                assert np.all(ys[b, t] == 0)
                continue
            seen = [np.zeros(SIZE)] * (window - 1) if batch.starts[b, t] else seen
            seen.append(np.asarray(batch.xs[b, t]))
            expected = params.bias + sum(w * seen[-1 - k] for k, w in enumerate(params.w))
            np.testing.assert_allclose(ys[b, t], expected, **EXACT)
        last = seen[len(seen) - window + 1 :]
        np.testing.assert_allclose(carry[b], np.array(last).reshape(window - 1, SIZE), **EXACT)


def test_no_steps_leave_the_carry_as_it_was():
    layer = rnnjax.causal_convolution(SIZE, 3)
    params, start = drawn(layer, SIZE), np.ones((2, 2, SIZE))
    for steps in ({}, {"mask": np.ones((2, 0), bool)}, {"resets": np.ones((2, 0), bool)}):
        carry, ys = layer.apply(params, np.zeros((2, 0, SIZE)), **steps, initial_carry=start)
        np.testing.assert_array_equal(carry, start)
        assert ys.shape == (2, 0, SIZE)


def test_the_steps_of_a_block_are_those_of_the_sequence():
    inner = rnnjax.stack(rnnjax.causal_convolution(WIDE, 3, jnp.tanh), rnnjax.rg_lru(WIDE))
    layer = rnnjax.stack(
        rnnjax.residual(rnnjax.rms_norm(rnnjax.gated(inner, SIZE, activation=jax.nn.gelu))),
        rnnjax.residual(rnnjax.rms_norm(rnnjax.gated(None, SIZE, hidden_size=5))),
    )
    params = drawn(layer, SIZE)
    xs = np.random.default_rng(1).normal(size=(B, T, SIZE))
    resets = np.array([[False, False, True, False]] * B)
    whole, expected = layer.apply(params, xs, resets=resets)
    carry, step = None, jax.jit(layer.step)
    for t in range(T):
        carry, y = step(params, carry, xs[:, t], resets=resets[:, t])
        np.testing.assert_allclose(y, expected[:, t], **EXACT)
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)
    assert layer.causal


def test_a_gated_map_is_its_equation_and_a_norm_that_of_its_input():
    layer = rnnjax.rms_norm(rnnjax.gated(None, 2, hidden_size=5), epsilon=0.1)
    params = drawn(layer, SIZE)
    xs = np.random.default_rng(1).normal(size=(B, T, SIZE))
    normed = params.scale * xs / np.sqrt((xs**2).mean(-1, keepdims=True) + 0.1)
    gate = silu(normed @ params.layer.w_gate)
    carry, ys = layer.apply(params, xs)
    np.testing.assert_allclose(
        ys, (normed @ params.layer.w_in * gate) @ params.layer.w_out, **EXACT
    )
    assert carry == ()


@pytest.mark.parametrize(
    "layer",
    [
        rnnjax.gated(None, 2, hidden_size=4),
        rnnjax.rms_norm(rnnjax.gru(2)),
        rnnjax.causal_convolution(SIZE, 2),
    ],
    ids=repr,
)
def test_nan_in_the_padding_spoils_no_gradient(layer):
    params, xs = drawn(layer, SIZE), np.random.default_rng(1).normal(size=(B, T, SIZE))
    real = np.arange(T) < np.array([4, 2, 0])[:, None]

    def loss(params, xs):
        return jnp.sum(jnp.sin(layer.apply(params, xs, [4, 2, 0])[1]))

    run = jax.jit(jax.grad(loss, argnums=(0, 1)))
    clean, spoilt = (run(params, np.where(real[..., None], xs, dirt)) for dirt in (0.0, np.nan))
    for a, b in zip(jax.tree.leaves(spoilt), jax.tree.leaves(clean), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)
    assert not np.any(spoilt[1][~real])


def unit(ys):
    """Vectors of length 1; of one of zeros, neither value nor slope are numbers."""
    return ys / jnp.linalg.norm(ys, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "layer",
    [
        rnnjax.gated(None, 2, hidden_size=4, activation=unit),
        rnnjax.causal_convolution(SIZE, 2, unit),
        rnnjax.output_head(rnnjax.gru(2), 2, unit),
    ],
    ids=["gated", "causal_convolution", "output_head"],
)
def test_an_activation_without_a_value_at_zero_gets_none_from_the_padding(layer):
    params = layer.init(jax.random.key(0), SIZE)  # biases are zeros, and so is the padding
    xs = np.random.default_rng(1).normal(size=(B, T, SIZE))

    def padded(params):
        return jnp.sum(layer.apply(params, xs, [2, 2, 0])[1][..., 0])

    def alone(params):
        return jnp.sum(layer.apply(params, xs[:2, :2])[1][..., 0])

    found, expected = (jax.jit(jax.grad(run))(params) for run in (padded, alone))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


def test_a_policy_reaches_every_part_of_a_block():
    def make(policy=None):
        inner = rnnjax.stack(rnnjax.causal_convolution(WIDE), rnnjax.s6(WIDE, 2))
        return rnnjax.rms_norm(rnnjax.gated(inner, SIZE, policy=None), policy=policy)

    policy = rnnjax.Policy("bfloat16", "bfloat16", "float32")
    layer = rnnjax.with_policy(make(), policy)
    params = layer.init(jax.random.key(0), SIZE)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    xs = jax.random.normal(jax.random.key(1), (B, T, SIZE), jnp.float32)
    carry, ys = layer.apply(params, xs)
    assert {a.dtype for a in jax.tree.leaves((carry, ys))} == {jnp.dtype("float32")}
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    _, expected = make().apply(wide, xs)
    np.testing.assert_allclose(ys, expected, atol=0.05)


CONVOLUTION = rnnjax.causal_convolution(SIZE)
BAD = {
    "window must be a positive integer, got 0": lambda: rnnjax.causal_convolution(3, 0),
    "input_size must be size, 3, got 4": lambda: CONVOLUTION.init(jax.random.key(0), 4),
    r"xs must have shape \[\.\.\., T, 3\], got shape \(2, 4\)": lambda: CONVOLUTION.apply(
        drawn(CONVOLUTION, SIZE), np.zeros((2, 4))
    ),
    r"params.w must have shape \(4, 3\), got shape \(4, 1\)": lambda: CONVOLUTION.apply(
        CONVOLUTION.init(jax.random.key(0), 3)._replace(w=np.ones((4, 1))), np.zeros((2, 4, 3))
    ),
    "context must be None for causal_convolution": lambda: CONVOLUTION.apply(
        drawn(CONVOLUTION, SIZE), np.zeros((2, 4, 3)), context=np.zeros(2)
    ),
    r"initial_carry must have shape \(2, 3, 3\), got shape \(2, 3\)": lambda: CONVOLUTION.apply(
        drawn(CONVOLUTION, SIZE), np.zeros((2, 4, 3)), initial_carry=np.zeros((2, 3))
    ),
    "hidden_size must be a positive integer, got None": lambda: rnnjax.gated(None, 3),
    "hidden_size must be None beside a layer, got 4": lambda: rnnjax.gated(
        rnnjax.gru(3), 3, hidden_size=4
    ),
    r"params.w_out must have shape \(8, 4\), got shape \(8, 2\)": lambda: rnnjax.gated(
        None, 4, hidden_size=8
    ).apply(drawn(rnnjax.gated(None, 2, hidden_size=8), SIZE), np.zeros((2, 4, SIZE))),
    r"params.w_in must have shape \(3, 8\), got shape \(3, 1\)": lambda: rnnjax.gated(
        None, 4, hidden_size=8
    ).apply(drawn(rnnjax.gated(None, 4, hidden_size=1), SIZE), np.zeros((2, 4, SIZE))),
    r"epsilon must be a number in \[1e-25, 1e38\], got 0": lambda: rnnjax.rms_norm(
        rnnjax.gru(3), epsilon=0
    ),
    r"xs must have shape \[\.\.\., T, 3\], got shape \(2, 4, 2\)": lambda: rnnjax.rms_norm(
        CONVOLUTION
    ).apply(drawn(rnnjax.rms_norm(CONVOLUTION), SIZE), np.zeros((2, 4, 2))),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize("options", [{}, {"resets": np.zeros((1, 1000), bool)}])
def test_a_convolution_with_a_state_of_16_bits_sums_in_32(options):
    """A thousand ones, whose sum in bfloat16 stays at 256."""
    layer = rnnjax.causal_convolution(1, 1000, policy=rnnjax.Policy(state="bfloat16"))
    params = layer.init(jax.random.key(0), 1)._replace(w=jnp.ones((1000, 1)), bias=jnp.zeros(1))
    carry, ys = layer.apply(params, jnp.ones((1, 1000, 1)), **options)
    assert float(ys[0, -1, 0]) == 1000
    assert {str(a.dtype) for a in (ys, *jax.tree.leaves(carry))} == {"bfloat16"}

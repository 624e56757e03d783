"""The sliding window beside a plain loop in NumPy and float64, and what it never reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.base import NoiseShape

pytestmark = pytest.mark.usefixtures("quick_compile")

H, D, M, K, T, S, B = 4, 3, 5, 2, 4, 4, 3
LENGTHS, PLACES = np.array([4, 2, 3]), np.array([4, 2, 0])


def problem(cell=None):
    whole = rnnjax.window_cell(cell or rnnjax.lstm(H), M, K, speed=0.5)
    params = whole.init(jax.random.key(0), D)
    # Weights of the window larger than they start, so that its bumps differ.
    params = params._replace(w=4 * params.w)
    xs = jax.random.normal(jax.random.key(1), (B, T, D))
    states = jax.random.normal(jax.random.key(2), (B, S, M))
    return whole, params, xs, states


def memory_of(states, places=PLACES):
    return rnnjax.Memory(states, rnnjax.lengths_to_mask(places, states.shape[-2]))


def loop(params, xs, states, np=np):
    """One row by the equations, on what it has and nothing else."""
    h, c, kappa = np.zeros(H), np.zeros(H), np.zeros(K)
    ys, weights, places, gates = [], [], [], []
    for x in xs:
        alpha, beta, step = np.split(np.exp(np.minimum(h @ params.w + params.bias, 20.0)), 3)
        kappa = kappa + step
        phi = [np.sum(alpha * np.exp(-beta * (kappa - u) ** 2)) for u in range(len(states))]
        seen = sum((p * m for p, m in zip(phi, states, strict=True)), np.zeros(M))
        cell = params.cell
        z = x @ cell.w_ih + h @ cell.w_hh + seen @ params.context + cell.bias
        i, f, g, o = np.split(z, 4)
        i, f, o = ((1 + np.tanh(a / 2)) / 2 for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        ys.append(np.concatenate([h, seen]))
        weights.append(phi)
        places.append(kappa)
        gates.append((i, f, np.tanh(g), o))
    return ys, weights, places, gates


def test_it_is_a_numpy_loop_in_float64_and_so_is_its_path(float64):
    whole, params, xs, states = jax.tree.map(
        lambda a: a.astype("float64") if isinstance(a, jax.Array) else a, problem()
    )
    _, (ys, carries) = rnnjax.unroll(
        whole, params, xs, LENGTHS, context=memory_of(states), all_carries=True
    )
    weights = rnnjax.window_weights(carries.window, S)
    plain = jax.tree.map(np.asarray, params)
    for b, (steps, places) in enumerate(zip(LENGTHS, PLACES, strict=True)):
        expected = loop(plain, np.asarray(xs[b, :steps]), np.asarray(states[b, :places]))
        np.testing.assert_allclose(ys[b, :steps], expected[0], rtol=1e-10)
        assert not np.any(ys[b, steps:])
        found = np.asarray(weights[b, :steps, :places])
        np.testing.assert_allclose(found, np.reshape(expected[1], found.shape), rtol=1e-10)
        np.testing.assert_allclose(carries.window.place[b, :steps], expected[2], rtol=1e-10)
        assert np.all(np.diff(carries.window.place[b, :steps], axis=0) > 0)


def test_its_gates_are_those_of_the_cell_that_has_seen_the_memory(float64):
    whole, params, xs, states = jax.tree.map(
        lambda a: a.astype("float64") if isinstance(a, jax.Array) else a, problem()
    )
    context = rnnjax.Memory(states[0], jnp.ones(S, bool))
    _, (_, gates) = rnnjax.unroll(rnnjax.trace_gates(whole), params, xs[0], context=context)
    expected = loop(jax.tree.map(np.asarray, params), np.asarray(xs[0]), np.asarray(states[0]))
    np.testing.assert_allclose(np.stack(gates, axis=1), expected[3], rtol=1e-10)


def test_at_first_all_bumps_are_one_high_and_move_by_the_speed():
    whole, params, xs, states = problem()
    still = params._replace(w=0 * params.w)
    _, (_, carries) = rnnjax.unroll(
        whole, still, xs[0], context=rnnjax.Memory(states[0], jnp.ones(S, bool)), all_carries=True
    )
    window = carries.window
    np.testing.assert_allclose(np.sum(window.height, axis=-1), np.ones(T), rtol=1e-6)
    np.testing.assert_allclose(window.sharpness, np.ones((T, K)), rtol=1e-6)
    expected = np.repeat(0.5 * np.arange(1, T + 1)[:, None], K, axis=1)
    np.testing.assert_allclose(window.place, expected, rtol=1e-6)


@pytest.mark.full
def test_its_gradients_are_those_of_the_loop(float64):
    whole, params, xs, states = jax.tree.map(
        lambda a: a.astype("float64") if isinstance(a, jax.Array) else a, problem()
    )

    def run(params, xs, states):
        return jnp.sum(rnnjax.unroll(whole, params, xs, LENGTHS, context=memory_of(states))[1] ** 3)

    def of_rows(params, xs, states):
        rows = zip(xs, states, LENGTHS, PLACES, strict=True)
        return sum(
            jnp.sum(jnp.stack(loop(params, x[:steps], m[:places], jnp)[0]) ** 3)
            for x, m, steps, places in rows
        )

    found, expected = (jax.jit(jax.grad(f, (0, 1, 2)))(params, xs, states) for f in (run, of_rows))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected
    )


@pytest.mark.parametrize("extreme", [100.0, -100.0, 1e4])
@pytest.mark.parametrize("part", range(3), ids=["height", "sharpness", "step"])
def test_whatever_a_window_asks_for_its_values_and_gradients_are_finite(part, extreme):
    """e^100 is infinite in float32, and infinity times 0 is NaN."""
    whole, params, xs, states = problem()
    bias = params.bias.at[part * K : (part + 1) * K].set(extreme)
    params = params._replace(bias=bias)

    def run(params, xs, states):
        _, ys = rnnjax.unroll(whole, params, xs, LENGTHS, context=memory_of(states))
        return jnp.sum(jnp.sin(ys)), ys

    grads, ys = jax.grad(run, (0, 1, 2), has_aux=True)(params, xs, states)
    assert all(np.all(np.isfinite(a)) for a in (ys, *jax.tree.leaves(grads)))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype("float64"), (params, xs, states))
        _, ys = run(*wide)
    params, xs, states = jax.tree.map(np.asarray, wide)
    for b, (steps, places) in enumerate(zip(LENGTHS, PLACES, strict=True)):
        expected = loop(params, xs[b, :steps], states[b, :places])[0]
        np.testing.assert_allclose(ys[b, :steps], expected, rtol=1e-9, atol=1e-12)


def test_what_is_masked_is_never_read_and_a_row_without_text_is_finite():
    whole, params, xs, states = problem(rnnjax.gru(H))
    behind = np.arange(S) >= PLACES[:, None]

    @jax.jit
    def results(params, states):
        def loss(params, states):
            _, ys = rnnjax.unroll(whole, params, xs, context=memory_of(states))
            return jnp.sum(ys**2), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, states)

    clean = results(params, states)
    dirty = results(params, jnp.where(behind[..., None], jnp.nan, states))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (_, ys), (of_params, of_states) = dirty
    assert not np.any(np.asarray(of_states)[behind])
    assert not np.any(ys[2, :, H:])
    assert all(np.all(np.isfinite(a)) for a in (ys, *jax.tree.leaves(of_params)))


def test_noise_of_the_recurrent_weights_leaves_the_window_alone():
    dropped = rnnjax.weight_drop(rnnjax.gru(H), 0.5)
    whole, params, xs, states = problem(dropped)
    plain = rnnjax.window_cell(rnnjax.gru(H), M, K)
    key = jax.random.key(5)
    mask = dropped.noise(key, params.cell, NoiseShape(B, T, D)).recurrent
    thinned = params._replace(cell=params.cell._replace(w_hh=params.cell.w_hh * mask))
    expected = rnnjax.unroll(plain, thinned, xs, context=memory_of(states))
    found = rnnjax.unroll(whole, params, xs, context=memory_of(states), key=key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )
    assert 0 < np.mean(mask == 0) < 1


def run_with(memory):
    whole, params, xs, _ = problem()
    return rnnjax.unroll(whole, params, xs, context=memory)


BAD = {
    "a cell without gates": (
        lambda: rnnjax.window_cell(rnnjax.gru(4, reset_after=False), M),
        "cell must be one that gives recurrent weights",
    ),
    "a window in a window": (
        lambda: rnnjax.window_cell(rnnjax.window_cell(rnnjax.gru(4), M), M),
        "no context of its own",
    ),
    "no bumps": (lambda: rnnjax.window_cell(rnnjax.gru(4), M, 0), "components must be"),
    "a window that stands": (
        lambda: rnnjax.window_cell(rnnjax.gru(4), M, speed=0.0),
        "speed must be positive",
    ),
    "no memory": (lambda: run_with(jnp.ones((B, S, M))), r"rnnjax.Memory\(states, mask\)"),
    "a memory of another size": (
        lambda: run_with(memory_of(jnp.ones((B, S, M + 1)))),
        r"context.states must have shape \[..., S, 5\], got size 6",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()


def test_a_text_without_places_is_nothing_to_read():
    whole, params, xs, states = problem()
    memory = rnnjax.Memory(states[:, :0], jnp.ones((B, 0), bool))
    masked = rnnjax.Memory(states[:, :1], jnp.zeros((B, 1), bool))
    found, expected = (rnnjax.unroll(whole, params, xs, context=m)[1] for m in (memory, masked))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_a_window_of_16_bits_are_those_of_its_numbers(dtype):
    """In 16 bits themselves, places from 256 on would be one and the same."""
    window = rnnjax.Window(*(jnp.array([number], dtype) for number in (1.0, 1.0, 300.0)))
    height, sharpness, place = (float(part[0]) for part in window)
    expected = height * np.exp(-sharpness * (place - np.arange(400.0)) ** 2)
    np.testing.assert_allclose(rnnjax.window_weights(window, 400), expected, rtol=1e-6, atol=1e-30)

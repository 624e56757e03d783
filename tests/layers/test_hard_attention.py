"""A selector, places that are drawn, and the gradient of the draws against all paths in turn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import EXACT, assert_trees_equal

import rnnjax
from rnnjax.base import Noise
from rnnjax.layers._asking_before import Draw, drawn_places

pytestmark = pytest.mark.usefixtures("quick_compile")

H, D, M, T, S, B = 3, 2, 4, 3, 4, 3
PLACES = np.array([4, 2, 0])
CELL, ATTENTION = rnnjax.gru(H), rnnjax.attention("additive")


def made(kind=ATTENTION, size=M, batch=B, steps=T, places=S, **options):
    whole = rnnjax.attention_cell(CELL, size, kind, **options)
    params = whole.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (batch, steps, D))
    states = jax.random.normal(jax.random.key(2), (batch, places, size))
    wide = jax.tree.map(lambda a: a.astype(jnp.result_type(float)), (params, xs, states))
    return whole, *wide


def memory_of(states, places=PLACES):
    return rnnjax.Memory(states, rnnjax.lengths_to_mask(places, states.shape[-2]))


def loop(params, xs, states, take, kind=ATTENTION):
    """One row on what it has: outputs, weights, and how much of each place was read."""
    h, found = CELL.initial_carry(params.cell), []
    w_ih = jnp.concatenate([params.cell.w_ih, params.context])
    of_both = params.cell._replace(w_ih=w_ih)
    for t, x in enumerate(xs):
        weights = kind.apply(params.attention, h[None], states)[1][0]
        shares = take(t, weights)
        if params.selector is not None:
            shares = shares / (1 + jnp.exp(-(h @ params.selector.w + params.selector.bias)))
        x_proj = CELL.project(of_both, jnp.concatenate([x, shares @ states]))
        h_proj = jnp.split(h @ CELL.recurrent(of_both), 3)
        h, y = CELL.update(of_both, h, x_proj, h_proj)
        found.append((y, weights, shares))
    return [jnp.stack(part) for part in zip(*found, strict=True)]


def largest(_, weights):
    return jax.nn.one_hot(jnp.argmax(weights), len(weights), dtype=weights.dtype)


@pytest.mark.parametrize("kind", ["additive", pytest.param("scaled", marks=pytest.mark.full)])
@pytest.mark.parametrize("hard", [False, True])
def test_a_selector_is_a_plain_loop_in_values_and_gradients(kind, hard, float64):
    kind = rnnjax.attention(kind)
    whole, params, xs, states = made(kind, H, selector=True, hard=hard)
    take = largest if hard else lambda _, weights: weights

    def found(params, xs, states):
        _, ys = rnnjax.unroll(whole, params, xs, context=memory_of(states))
        assert (ys.drawn is None) is not hard
        return ys.output[:2], ys.weights[:2], ys.shares[:2]

    def expected(params, xs, states):
        rows = []
        for b in range(2):
            y, *others = loop(params, xs[b], states[b, : PLACES[b]], take, kind)
            short = ((0, 0), (0, S - PLACES[b]))
            rows.append([y, *(jnp.pad(a, short) for a in others)])
        return tuple(jnp.stack(part) for part in zip(*rows, strict=True))

    def with_gradients(run):
        def total(*given):
            parts = run(*given)
            return sum(jnp.sum(jnp.sin(k + part)) for k, part in enumerate(parts)), parts

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(params, xs, states)

    assert_trees_equal(with_gradients(found), with_gradients(expected))


@pytest.mark.parametrize("total", [1.0, 0.3])  # of a local attention they are less than 1
def test_a_number_lies_in_the_part_of_one_place(total):
    weights = total * np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    place = {0.0: 1, 0.2: 1, 0.25: 3, 0.7: 3, 0.75: 4, 0.99: 4}
    for number, expected in place.items():
        found = drawn_places(jnp.asarray(weights), Draw(jnp.asarray(number)))
        np.testing.assert_array_equal(found, np.arange(6) == expected)
    assert not np.any(drawn_places(jnp.asarray(weights), Draw(jnp.asarray(-1.0))))
    np.testing.assert_array_equal(drawn_places(jnp.asarray(weights), None), np.arange(6) == 3)
    for draw in (None, Draw(jnp.asarray(0.5))):
        assert not np.any(drawn_places(jnp.zeros(6), draw))


def test_draws_are_places_of_the_weights_and_nothing_masked_is_read():
    whole, params, xs, states = made(hard=True, mean_rate=0.0, steps=40)
    behind = np.arange(S) >= PLACES[:, None]
    dirty = jnp.where(behind[..., None], jnp.nan, states)

    @jax.jit
    def run(states):
        return rnnjax.unroll(whole, params, xs, context=memory_of(states), key=jax.random.key(3))[1]

    ys = run(dirty)
    jax.tree.map(np.testing.assert_array_equal, ys, run(states))
    drawn = np.asarray(ys.drawn)
    np.testing.assert_array_equal(drawn.sum(-1), np.broadcast_to([[1], [1], [0]], (B, 40)))
    assert not drawn[np.broadcast_to(behind[:, None], drawn.shape)].any()
    assert (drawn[0].sum(0) > 0).all()
    np.testing.assert_array_equal(ys.read, drawn)


def test_draws_follow_the_weights():
    whole, params, xs, states = made(hard=True, mean_rate=0.25, batch=2000, steps=1)
    one = jnp.broadcast_to(states[:1], states.shape)
    full = np.full(2000, S)
    _, ys = rnnjax.unroll(whole, params, xs, context=memory_of(one, full), key=jax.random.key(4))
    drawn = np.asarray(ys.drawn)[:, 0]
    means = drawn.sum(-1) == 0
    # Five standard deviations of a share of 2,000, and of 1,500, rows.
    assert abs(means.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    np.testing.assert_array_equal(ys.read[means, 0], ys.weights[means, 0])
    weights = np.asarray(ys.weights)[0, 0]
    error = np.abs(drawn[~means].mean(0) - weights)
    assert np.all(error < 5 * np.sqrt(weights * (1 - weights) / (~means).sum()))


def test_more_rows_and_steps_leave_the_draws_as_they_were():
    whole, params, xs, states = made(hard=True)
    options = {"key": jax.random.key(5)}
    _, many = rnnjax.unroll(whole, params, xs, context=memory_of(states), **options)
    few = memory_of(states[:2], PLACES[:2])
    _, one = rnnjax.unroll(whole, params, xs[:2, :2], context=few, **options)
    np.testing.assert_array_equal(one.drawn, many.drawn[:2, :2])
    with jax.enable_x64(True):
        _, wide = rnnjax.unroll(whole, params, xs, context=memory_of(states), **options)
    np.testing.assert_array_equal(wide.drawn, many.drawn)


def test_the_score_function_gives_the_gradient_of_the_expected_cost(float64):
    """Two rows, two steps, two places: all 16 ways to draw, each as often as it comes."""
    steps, places, rows = 2, 2, 2
    whole, params, xs, states = made(
        batch=rows, steps=steps, places=places, hard=True, selector=True, mean_rate=0.0
    )
    paths = np.array(list(itertools.product(range(places), repeat=steps)))
    ways = np.array(list(itertools.product(range(len(paths)), repeat=rows)))

    def cost(y):
        return jnp.sum(jnp.sin(3 * y), axis=-1)

    def one_way(params, xs, states, path):
        """The chance of a path, the numbers that draw it, and its cost."""
        hot = jax.nn.one_hot(path, places, dtype=jnp.float64)
        y, weights, _ = loop(params, xs, states, lambda t, _: hot[t])
        chance = jnp.prod(jnp.sum(weights * hot, axis=-1))
        middle = jnp.sum((jnp.cumsum(weights, axis=-1) - weights / 2) * hot, axis=-1)
        return chance, middle, jnp.sum(cost(y))

    of_paths = jax.vmap(one_way, (None, None, None, 0))
    of_rows = jax.vmap(of_paths, (None, 0, 0, None))

    def expected(params):
        chances, middles, costs = of_rows(params, xs, states, paths)
        return jnp.sum(chances * costs), (chances, middles)

    run = jax.jit(jax.value_and_grad(expected, has_aux=True))
    (value, (chances, middles)), gradient = run(params)
    of_way = np.prod([chances[row, ways[:, row]] for row in range(rows)], axis=0)
    numbers = np.stack([middles[row, ways[:, row]] for row in range(rows)], axis=1)
    forced = Noise(steps=(Draw(jnp.asarray(numbers.reshape(-1, steps).T)),))
    cell = whole._replace(noise=lambda *_: forced)

    def estimated(params, baseline):
        repeated = [jnp.broadcast_to(a, (len(ways), *a.shape)) for a in (xs, states)]
        memory = memory_of(repeated[1], np.full((len(ways), rows), places))
        _, ys = rnnjax.unroll(cell, params, repeated[0], context=memory, key=jax.random.key(0))
        costs = cost(ys.output)
        more = jax.vmap(lambda *a: rnnjax.score_function(*a, baseline=baseline))(
            costs, ys.weights, ys.drawn
        )
        total = jnp.sum(of_way * jnp.sum(jnp.sum(costs, axis=-1) + more, axis=-1))
        return total, jnp.argmax(ys.drawn, axis=-1)

    for baseline in (0.0, np.array([0.3, -1.7]), None):
        run = jax.jit(jax.value_and_grad(lambda p: estimated(p, baseline), has_aux=True))  # noqa: B023
        (found, drawn), estimate = run(params)
        np.testing.assert_array_equal(drawn, paths[ways])
        np.testing.assert_allclose(found, value, **EXACT)
        assert_trees_equal(estimate, gradient)


def test_the_score_function_of_local_attention_is_without_bias():
    """Its weights do not add up to 1, and places are drawn by their shares of the sum."""
    costs, angles = np.array([3.0, 1.0, -2.0, 5.0]), np.array([0.3, -1.0, 0.8, 0.1])
    near = np.array([0.2, 0.9, 0.4, 0.0])

    def weights(angles):
        return jax.nn.softmax(angles) * near

    def expected(angles):
        shares = weights(angles) / jnp.sum(weights(angles))
        return shares @ costs

    def estimated(angles, baseline):
        drawn = jnp.eye(4)[:3, None]  # the last, of weight 0, is never drawn
        many = jnp.broadcast_to(weights(angles), (3, 1, 4))
        term = rnnjax.score_function(costs[:3, None], many, drawn, baseline=baseline)
        shares = jax.lax.stop_gradient(weights(angles) / jnp.sum(weights(angles)))
        return shares[:3] @ term

    for baseline in (0.0, 2.0):
        np.testing.assert_allclose(
            jax.grad(estimated)(angles, baseline), jax.grad(expected)(angles), rtol=1e-5, atol=1e-6
        )


def test_the_penalty_is_that_of_numpy_over_real_places_alone(float64):
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(S), (B, T))
    counts = np.array([4, 2, 0])
    found = rnnjax.doubly_stochastic_penalty(weights, counts)
    expected = [((1 - weights[b, :, : counts[b]].sum(0)) ** 2).sum() for b in range(B)]
    np.testing.assert_allclose(found, expected, **EXACT)
    whole = rnnjax.doubly_stochastic_penalty(weights)
    np.testing.assert_allclose(whole, ((1 - weights.sum(1)) ** 2).sum(-1), **EXACT)
    gradient = jax.grad(lambda w: rnnjax.doubly_stochastic_penalty(w, counts).sum())(weights)
    real = np.arange(S) < counts[:, None]
    of_places = np.where(real, -2 * (1 - weights.sum(1)), 0)
    np.testing.assert_allclose(
        gradient, np.broadcast_to(of_places[:, None], weights.shape), **EXACT
    )


def test_the_penalty_of_16_bits_is_summed_in_32():
    """600 weights of about 1/600, exact in float64; in bfloat16 their sum is 3 times as far off."""
    weights = jnp.full((1, 600, 2), 1 / 600, jnp.bfloat16)
    expected = 2 * (1 - 600 * float(weights[0, 0, 0])) ** 2
    np.testing.assert_allclose(rnnjax.doubly_stochastic_penalty(weights)[0], expected, rtol=1e-2)


def test_costs_of_16_bits_are_summed_in_32():
    """600 of 1, whose sum in bfloat16 would stand still at 256."""
    weights, drawn = jnp.full((1, 600, 2), 0.5), jnp.zeros((1, 600, 2)).at[..., 0].set(1.0)

    def loss(weights):
        costs = jnp.ones((1, 600), jnp.bfloat16)
        return jnp.sum(rnnjax.score_function(costs, weights, drawn, baseline=0.0))

    # What is to come, times the slope of the logarithm of the share, 1 / 0.5 - 1 / (0.5 + 0.5).
    expected = 1.0 * np.arange(600, 0, -1)
    np.testing.assert_allclose(jax.grad(loss)(weights)[0, :, 0], expected, rtol=1e-6)


BAD = {
    "hard input feeding": (
        lambda: rnnjax.attention_cell(CELL, M, input_feeding=True, hard=True),
        "selector and hard must be False",
    ),
    "a rate above 1": (
        lambda: rnnjax.attention_cell(CELL, M, hard=True, mean_rate=1.5),
        "mean_rate must be a rate in",
    ),
    "a rate of soft attention": (
        lambda: rnnjax.attention_cell(CELL, M, mean_rate=0.5),
        "mean_rate must be None without hard, got 0.5",
    ),
    "weights without places": (
        lambda: rnnjax.doubly_stochastic_penalty(jnp.ones(3)),
        "weights must be floats",
    ),
    "costs of another shape": (
        lambda: rnnjax.score_function(jnp.ones((2, 3)), jnp.ones((2, 4, 5)), jnp.ones((2, 4, 5))),
        "costs, weights and drawn must have shapes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()


@pytest.mark.parametrize("key", [None, jax.random.key(5)])
def test_a_memory_without_places_leaves_the_cell_as_it_is(key):
    whole, params, xs, states = made(places=0, hard=True, selector=True)
    _, ys = rnnjax.unroll(whole, params, xs, context=memory_of(states, PLACES * 0), key=key)
    assert ys.weights.shape == ys.read.shape == ys.drawn.shape == (B, T, 0)
    _, alone = rnnjax.unroll(CELL, params.cell, xs)
    np.testing.assert_allclose(ys.output, alone, rtol=1e-6)


def test_who_reads_the_mean_is_drawn_apart_from_the_noise_of_the_cell():
    cells = {
        "zoneout": rnnjax.zoneout(rnnjax.lstm(H), 0.5),
        "dropout": rnnjax.variational_dropout(
            rnnjax.recurrent_dropout(rnnjax.lstm(H), 0.5), inputs=0.5
        ),
    }
    for cell in cells.values():
        whole = rnnjax.attention_cell(cell, H, hard=True, mean_rate=0.5)
        shape = rnnjax.NoiseShape(2000, 2, D)
        params, key = whole.init(jax.random.key(0), D), jax.random.key(1)
        noise = whole.noise(key, params, shape)
        own = cell.noise(key, params.cell, shape)
        assert_trees_equal(noise._replace(steps=noise.steps[:-1]), own)  # as without attention
        means = np.asarray(noise.steps[-1].number[0] < 0)[:, None]
        for leaf in jax.tree.leaves(own):
            zeros = np.asarray(leaf == 0).reshape(-1, *leaf.shape[-2:])
            # Six standard deviations of a share of 2,000 rows.
            assert np.all(abs((zeros == means).mean(1) - 0.5) < 6 * 0.5 / np.sqrt(2000))

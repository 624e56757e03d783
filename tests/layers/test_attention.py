"""Attention beside loops in NumPy float64, and what it never reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import rnnjax

H, D, T, S, B = 4, 6, 3, 5, 3
KINDS = ("dot", "scaled", "general", "additive", "local")
LENGTHS = np.array([5, 2, 0])


def make(kind, window=10):
    width = H if kind in ("dot", "scaled") else D
    attend = rnnjax.attention(kind, window=window if kind == "local" else None)
    params = attend.init(jax.random.key(0), H, width)
    queries = jax.random.normal(jax.random.key(1), (B, T, H))
    memory = jax.random.normal(jax.random.key(2), (B, S, width))
    return attend, params, queries, memory


def loop(kind, params, queries, memory, lengths, window=10):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    queries, memory = np.asarray(queries, np.float64), np.asarray(memory, np.float64)
    contexts = np.zeros((B, T, memory.shape[-1]))
    weights = np.zeros((B, T, S))
    for b, length in enumerate(lengths):
        for t in range(T):
            h = queries[b, t]
            scores = []
            for s in range(length):
                m = memory[b, s]
                if kind == "additive":
                    bias = 0 if p.bias is None else p.bias
                    scores.append(p.v @ np.tanh(h @ p.query + m @ p.key + bias))
                else:
                    asked = h @ p.w if kind in ("general", "local") else h
                    scores.append(asked @ m / (np.sqrt(H) if kind == "scaled" else 1))
            if not length:
                continue
            e = np.exp(np.array(scores) - max(scores))
            a = e / e.sum()
            if kind == "local":
                place = length / (1 + np.exp(-p.v @ np.tanh(h @ p.place)))
                a = a * np.exp(-((np.arange(length) - place) ** 2) / (2 * (window / 2) ** 2))
            weights[b, t, :length] = a
            contexts[b, t] = a @ memory[b, :length]
    return contexts, weights


@pytest.mark.parametrize("kind", [*KINDS, "additive with a bias"])
def test_contexts_and_weights_are_those_of_a_loop_in_numpy(kind):
    kind, _, more = kind.partition(" ")
    attend, params, queries, memory = make(kind)
    if more:
        params = params._replace(bias=jnp.linspace(-1.0, 1.0, len(params.v)))
    found = attend.apply(params, queries, memory, LENGTHS)
    expected = loop(kind, params, queries, memory, LENGTHS)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not np.any(found[1][1, :, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read_not_even_by_a_gradient(kind):
    attend, params, queries, memory = make(kind)
    behind = np.arange(S) >= LENGTHS[:, None]
    spoiled = jnp.where(behind[..., None], jnp.nan, memory)

    def loss(params, queries, memory):
        contexts, weights = attend.apply(params, queries, memory, LENGTHS)
        return jnp.sum(contexts**2) + jnp.sum(weights**3)

    clean = jax.value_and_grad(loss, (0, 1, 2))(params, queries, memory)
    dirty = jax.value_and_grad(loss, (0, 1, 2))(params, queries, spoiled)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.any(np.asarray(dirty[1][2])[behind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_row_in_a_batch(kind):
    attend, params, queries, memory = make(kind)
    contexts, weights = attend.apply(params, queries, memory, LENGTHS)
    for b, length in enumerate(LENGTHS):
        alone = attend.apply(params, queries[b], memory[b, :length])
        np.testing.assert_allclose(alone[0], contexts[b], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone[1], weights[b, :, :length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["local", "additive"])
def test_a_memory_with_holes_is_the_memory_without_them(kind):
    attend, params, queries, memory = make(kind, window=2)
    mask = np.array([[0, 0, 1, 1, 0], [0, 1, 0, 0, 1], [1, 0, 0, 1, 0]], bool)
    spoiled = np.where(mask[..., None], memory, np.nan)
    apply = jax.jit(attend.apply)
    contexts, weights = apply(params, queries, spoiled, mask=mask)
    for b, real in enumerate(mask):
        alone = apply(params, queries[b], np.asarray(memory)[b, real])
        np.testing.assert_allclose(contexts[b], alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights[b][:, real], alone[1], rtol=1e-5, atol=1e-6)
        assert not np.any(weights[b][:, ~real])


@pytest.mark.parametrize("kind", ["dot", "scaled", "general", "additive"])
def test_places_in_another_order_have_their_weights_in_that_order(kind):
    attend, params, queries, memory = make(kind)
    order = np.array([3, 0, 4, 1, 2])
    contexts, weights = attend.apply(params, queries, memory)
    moved = attend.apply(params, queries, memory[:, order])
    np.testing.assert_allclose(moved[0], contexts, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved[1], weights[..., order], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.sum(weights, -1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.kept
def test_gradients_are_those_of_finite_differences(kind, float64):
    attend, params, queries, memory = make(kind, window=3)
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, queries, memory))
    run = lambda *args: attend.apply(*args, LENGTHS)[0]  # noqa: E731
    check_grads(run, wide, order=1, modes=("fwd", "rev"))


def test_scores_and_contexts_of_16_bits_are_summed_in_32():
    """257 is no bfloat16: the two places would be as near."""
    queries, memory = jnp.ones((1, 257), jnp.bfloat16), jnp.ones((2, 257), jnp.bfloat16)
    memory = memory.at[1, 0].set(0)
    contexts, weights = rnnjax.attention("dot").apply((), queries, memory)
    assert contexts.dtype == weights.dtype == jnp.float32
    expected = 1 / (1 + np.exp(-np.array([[1.0, -1.0]])))
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    narrow = expected.astype(jnp.bfloat16).astype(float)  # as they meet the memory
    np.testing.assert_allclose(contexts, narrow @ memory.astype(float), rtol=1e-6)


def test_large_scores_are_finite():
    attend, params, queries, memory = make("dot")
    contexts, weights = attend.apply(params, queries * 1e4, memory * 1e4, LENGTHS)
    assert np.all(np.isfinite(contexts))
    np.testing.assert_allclose(np.sum(weights, -1)[:2], 1.0, rtol=1e-6)


BAD = {
    "a size without a tanh": (
        lambda: rnnjax.attention("dot", size=3),
        "size must be None for kind",
    ),
    "a window of all places": (
        lambda: rnnjax.attention("additive", window=3),
        "window must be None for kind='additive', which is not local, got 3",
    ),
    "an unknown kind": (lambda: rnnjax.attention("cosine"), "kind must be one of dot"),
    "sizes that differ": (
        lambda: rnnjax.attention("dot").init(jax.random.key(0), 4, 5),
        "needs queries as wide as the memory, 5, got 4",
    ),
    "another batch": (
        lambda: rnnjax.attention("dot").apply((), jnp.ones((2, 3, 4)), jnp.ones((3, 5, 4))),
        r"batch axes of memory, \(3,\)",
    ),
    "parameters of no kind": (
        lambda: rnnjax.attention().apply((), jnp.ones((3, 4)), jnp.ones((5, 4))),
        r"params must be GeneralParams\(w\), got a tuple of 0",
    ),
    "parameters of another kind": (
        lambda: rnnjax.attention("additive").apply(
            rnnjax.attention().init(jax.random.key(0), 4, 4), jnp.ones((3, 4)), jnp.ones((5, 4))
        ),
        r"params must be AdditiveParams\(query, key, v, bias\), got GeneralParams\(w\)",
    ),
    "lengths too long": (
        lambda: rnnjax.attention("dot").apply((), jnp.ones((3, 4)), jnp.ones((5, 4)), 6),
        "lengths",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()


def test_lists_are_taken_and_what_is_no_array_of_floats_is_named():
    attend = rnnjax.attention("additive")
    params = attend.init(jax.random.key(0), 3, 4)
    queries, memory = np.ones((1, 2, 3)), np.ones((1, 5, 4))
    found = attend.apply(params, queries.tolist(), memory.tolist(), [2])
    np.testing.assert_array_equal(found[0], attend.apply(params, queries, memory, [2])[0])
    for arguments, message in (
        (("a", memory), "queries must be an array of numbers"),
        ((queries, memory.astype(int)), "memory must be of floating dtype"),
        ((queries, memory[0, 0]), r"memory must have shape \[..., T, D\], got shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attend.apply(params, *arguments)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ((np.ones((2, 5, 6)), np.ones((2, 5), bool)), r"must be a rnnjax\.Memory\(states, mask\)"),
        (rnnjax.Memory(np.ones((2, 5, 6)), None), r"a bool mask \[..., S\], got shapes"),
        (rnnjax.Memory(np.ones((2, 5, 6)), [5, 2]), r"got shapes \(2, 5, 6\) and \(2,\)"),
        (rnnjax.Memory("ab", np.ones((2, 5), bool)), "memory.states must be an array of numbers"),
    ],
)
def test_a_memory_that_is_none_is_named_before_it_is_prepared(memory, message):
    cell = rnnjax.attention_cell(rnnjax.gru(4), 6)
    with pytest.raises(ValueError, match=message):
        rnnjax.prepare_memory(cell, cell.init(jax.random.key(0), 3), memory)

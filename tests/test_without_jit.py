"""With ``jax.disable_jit`` all gives what its compiled program gives, operation by operation."""

import jax
import numpy as np
import pytest

import rnnjax

B, T, D, V = 2, 3, 3, 6
KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (B, T, D))
TOKENS, LENGTHS = np.array([[1, 2, 3], [4, 0, 0]]), np.array([3, 1])


def assert_same_without_jit(run):
    expected = run()
    with jax.disable_jit():
        found = run()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Each operation is a program of its own here, so these are few: what engine/test_transformations,
# layers/test_streaming and training do not have already.


@pytest.mark.full
def test_a_grid():
    layer = rnnjax.grid_lstm(2, 2)
    params = layer.init(KEY, D)

    def loss(params):
        carry, ys = layer.apply(params, XS, LENGTHS)
        return sum((leaf**2).sum() for leaf in (*carry, ys))

    assert_same_without_jit(lambda: jax.value_and_grad(loss)(params))


@pytest.mark.full
def test_attention_inside_the_loop():
    cell = rnnjax.attention_cell(rnnjax.gru(2), 3)
    params, memory = cell.init(KEY, D), rnnjax.Memory(XS, np.arange(T) < LENGTHS[:, None])

    def loss(params):
        _, ys = rnnjax.unroll(cell, params, XS, LENGTHS, context=memory)
        return (ys.output**2).sum() + (ys.weights**2).sum()

    assert_same_without_jit(lambda: jax.value_and_grad(loss)(params))


@pytest.mark.full
def test_a_beam():
    model = rnnjax.sequence_to_sequence(
        rnnjax.embedding(V, 2), rnnjax.gru(2), rnnjax.embedding(V, 2), rnnjax.gru(2), start=1
    )
    params = model.init(KEY)
    carry, _ = model.encode(params, TOKENS, LENGTHS)
    assert_same_without_jit(
        lambda: rnnjax.beam_search(
            model.step, params, carry, [1, 1], stop=2, beam_size=2, max_length=2
        )
    )


@pytest.mark.full
def test_texts():
    model = rnnjax.language_model(rnnjax.embedding(V, 2), rnnjax.gru(2))
    params = model.init(KEY)
    assert_same_without_jit(
        lambda: rnnjax.generate(
            model, params, TOKENS, LENGTHS, max_new_tokens=2, key=KEY, stop=2
        )._replace(keys=None)
    )

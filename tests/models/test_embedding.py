"""The gradient of a table of 16 bits, beside sums in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

V, E = 5, 3
TABLE = rnnjax.embedding(V, E)
TOKENS = np.random.default_rng(0).integers(0, V, (4, 500))
COTANGENT = np.random.default_rng(1).uniform(1, 2, (4, 500, E))


def parameters(dtype):
    return jax.tree.map(lambda a: a.astype(dtype), TABLE.init(jax.random.key(0)))


def summed(tokens, cotangent, dtype):
    """In float64 what each row of the table is given, of cotangents rounded to ``dtype``."""
    rounded = np.asarray(jnp.asarray(cotangent, dtype), np.float64)
    total = np.zeros((V, E))
    np.add.at(total, tokens, rounded)
    return total


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_a_table_of_16_bits_is_summed_in_32(compiled, dtype):
    def gradient(params, tokens, cotangent):
        _, pull = jax.vjp(lambda params: TABLE.apply(params, tokens), params)
        return pull(cotangent)[0].vectors

    run = jax.jit(gradient) if compiled else gradient
    params, cotangent = parameters(dtype), jnp.asarray(COTANGENT, dtype)
    found = run(params, TOKENS, cotangent)
    assert found.dtype == dtype
    expected, tolerance = summed(TOKENS, COTANGENT, dtype), float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=tolerance)
    # Each row of a batch with a table of its own, and all with one.
    tables = jax.tree.map(lambda a: jnp.stack([a] * len(TOKENS)), params)
    for given, axis in ((tables, 0), (params, None)):
        each = jax.vmap(gradient, (axis, 0, 0))(given, jnp.asarray(TOKENS), cotangent)
        for one, tokens, of_row in zip(each, TOKENS, COTANGENT, strict=True):
            expected = summed(tokens, of_row, dtype)
            np.testing.assert_allclose(np.asarray(one, float), expected, rtol=tolerance)


def test_a_table_of_16_bits_has_derivatives_in_forward_mode_and_of_second_order():
    params, tokens = parameters(jnp.bfloat16), TOKENS[:, :7]
    change = jax.tree.map(lambda a: jnp.arange(a.size, dtype=a.dtype).reshape(a.shape), params)
    xs, moved = jax.jvp(lambda params: TABLE.apply(params, tokens), (params,), (change,))
    np.testing.assert_array_equal(xs, params.vectors[tokens])
    np.testing.assert_array_equal(moved, change.vectors[tokens])

    def cost(vectors):
        return jnp.sum(TABLE.apply(params._replace(vectors=vectors), tokens) ** 2 / 2)

    counts = np.bincount(tokens.ravel(), minlength=V)
    hessian = jax.hessian(cost)(params.vectors).reshape(V * E, V * E)
    np.testing.assert_array_equal(np.asarray(hessian, float), np.diag(np.repeat(counts, E)))


def test_a_classifier_of_16_bits_learns_from_a_word_that_is_everywhere():
    """The gradient beside that of the same numbers in float32."""
    model = rnnjax.classifier(TABLE, rnnjax.gru(4), 2, policy=rnnjax.Policy(parameter="bfloat16"))
    params, tokens = model.init(jax.random.key(0)), jnp.ones((64, 20), int)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.sum(model.apply(p, tokens)[:, 0]))(params).embedding.vectors

    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    expected = gradient(wide)
    error = gradient(params).astype(jnp.float32) - expected
    assert jnp.linalg.norm(error) < 0.02 * jnp.linalg.norm(expected)

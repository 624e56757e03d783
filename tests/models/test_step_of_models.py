"""A step of a model by itself: one compiled program, which equal models share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

TOKENS = jnp.array([3, 1])


def language():
    model = rnnjax.language_model(rnnjax.embedding(5, 3), rnnjax.gru(4))
    params = model.init(jax.random.key(0))
    return model, params, model.initial_carry(params, (2,)), (TOKENS,)


def series():
    model = rnnjax.series_model(rnnjax.lstm(4), rnnjax.gaussian_mixture_head(3, 2))
    params = model.init(jax.random.key(0))
    return model, params, model.initial_carry(params, (2,)), (jnp.ones((2, 2)),)


def translating():
    model = rnnjax.sequence_to_sequence(
        rnnjax.embedding(6, 3),
        rnnjax.gru(4),
        rnnjax.embedding(5, 3),
        rnnjax.gru(4),
        start=0,
        attention=rnnjax.attention("dot"),
    )
    params = model.init(jax.random.key(0))
    carry, memory = model.encode(params, jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([3, 2]))
    return model, params, carry, (TOKENS, memory)


@pytest.mark.parametrize("make", [language, series, translating])
def test_a_step_by_itself_is_one_program_and_equal_models_share_it(make):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    model, params, carry, given = make()
    compiled.clear()
    carry, *_ = model.step(params, carry, *given)
    assert len(compiled) == 1
    again = make()[0]
    compiled.clear()
    found = again.step(params, carry, *given)
    model.step(params, found[0], *given)
    assert compiled == []
    expected = jax.jit(model.step)(params, carry, *given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("make", [language, translating])
def test_ids_are_looked_at_before_every_step(make):
    model, params, carry, (_, *rest) = make()
    model.step(params, carry, TOKENS, *rest)
    for token in (jnp.array([3, 5]), np.array([3, -1])):
        with pytest.raises(ValueError, match=r"must lie in \[0, 5\), got (5|-1) at index"):
            model.step(params, carry, token, *rest)
    with pytest.raises(ValueError, match="carry must be an array of numbers, got str"):
        model.step(params, "carry", TOKENS, *rest)

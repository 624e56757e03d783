"""The largest numbers by blocks are those of a full sort, equal ones in the same order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnjax.decoding._largest import largest


@pytest.mark.parametrize(("size", "count"), [(3001, 10), (3000, 2), (640, 10), (1000, 1), (7, 7)])
@pytest.mark.parametrize("kind", ["distinct", "ties", "mostly -inf", "all -inf"])
def test_values_and_places_are_those_of_a_stable_sort(size: int, count: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    numbers = rng.normal(size=(4, size)).astype(np.float32)
    if kind == "ties":
        numbers = np.round(numbers) + np.float32(0)  # no -0, which top_k puts behind 0
    elif kind != "distinct":
        numbers[rng.random(numbers.shape) < (0.995 if kind == "mostly -inf" else 2)] = -np.inf
    places = np.argsort(-numbers, axis=-1, kind="stable")[:, :count]
    values, found = jax.jit(largest, static_argnums=1)(jnp.asarray(numbers), count)
    np.testing.assert_array_equal(found, places)
    np.testing.assert_array_equal(values, np.take_along_axis(numbers, places, axis=-1))


def test_a_batch_of_no_rows() -> None:
    values, places = largest(jnp.zeros((0, 3000)), 4)
    assert values.shape == places.shape == (0, 4)

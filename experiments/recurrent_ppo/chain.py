"""The environment that needs no package: name at the end what was shown at the beginning."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class ChainState(NamedTuple):
    """An episode under way."""

    cue: Array  # the first symbol, 0 or 1
    left: Array  # steps to the end, this one included


class Chain:
    """Every step shows a symbol, -1 or 1; at the end the first one is to be named.

    An episode lasts from 2 to ``longest`` steps, each number equally likely, and nothing in an
    observation says where it begins or ends. The last action is worth 1 if it names the first
    symbol, else -1; no other action is worth anything. Without a memory the mean return is 0.

    The interface is that of gymnax: an episode that ends makes room for the next at once, and its
    last observation is in ``info``. An environment of your own may look like this one.
    """

    num_actions = 2

    def __init__(self, longest: int = 6) -> None:
        self.longest = longest

    def reset(self, key: Array, params: Any = None) -> tuple[Array, ChainState]:
        """The first observation [1] and the state of an episode."""
        first, second = jax.random.split(key)
        cue = jax.random.bernoulli(first).astype(jnp.int32)
        left = jax.random.randint(second, (), 2, self.longest + 1)
        return _shown(cue), ChainState(cue, left)

    def step(
        self, key: Array, state: ChainState, action: Array, params: Any = None
    ) -> tuple[Array, ChainState, Array, Array, Array, dict[str, Any]]:
        """Observation, state, reward, terminated, truncated, and the last observation of an end."""
        again, shown = jax.random.split(key)
        terminated = state.left == 1
        reward = jnp.where(terminated, jnp.where(action == state.cue, 1.0, -1.0), 0.0)
        symbol = _shown(jax.random.bernoulli(shown).astype(jnp.int32))
        same = symbol, ChainState(state.cue, state.left - 1)
        begun = self.reset(again, params)
        observation, state = jax.tree.map(lambda a, b: jnp.where(terminated, a, b), begun, same)
        truncated = jnp.zeros((), bool)
        return observation, state, reward, terminated, truncated, {"final_observation": symbol}


def _shown(symbol: Array) -> Array:
    return (2.0 * symbol - 1.0)[None]

"""Acting: environments side by side, and what is kept of it to learn from.

An environment that is done shows the first observation of its next episode beside the done. So the
memory is to be wiped before the step that follows a done: ``rnnjax.resets_from_dones`` with
``auto_reset="same_step"``, both while acting and while learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.recurrent_ppo.agent import Agent
from experiments.recurrent_ppo.environments import Task
from rnnjax.segments import resets_from_dones

# What an agent takes the environment to do when it is done. Only the first is true.
CONVENTIONS: dict[str, Any] = {
    "right": {"auto_reset": "same_step"},
    "late": {"auto_reset": "next_step"},
    "none": {"auto_reset": "none"},
}


class Actor(NamedTuple):
    """What goes on from rollout to rollout, for B environments."""

    world: Any  # states of the environments
    observation: Array  # [B, D]
    carry: Any  # leaves [B, ...]
    recent: Array  # bool [B, 2], the dones of the last two steps
    returned: Array  # [B], rewards of the episode so far


class Rollout(NamedTuple):
    """What is learnt from: the steps [B, T] and what came before the first."""

    observations: Array  # [B, T, D]
    actions: Array
    log_probs: Array  # of the actions, when they were taken
    values: Array
    rewards: Array
    terminated: Array
    dones: Array  # terminated or truncated
    next_values: Array  # of what each action led to in its own episode
    returns: Array  # of the episode, where it is done
    start: Any  # the carry before the first step, leaves [B, ...]
    recent: Array  # bool [B, 2], the dones of the two steps before the first

    def resets(self, mode: str) -> Array:
        """Where the memory was wiped while acting."""
        return resets_from_dones(self.dones, self.recent, **CONVENTIONS[mode])


def first_actor(task: Task, agent: Agent, params: Any, key: Array, count: int) -> Actor:
    """Episodes begin in so many environments."""
    observation, world = jax.vmap(task.reset)(jax.random.split(key, count))
    carry = agent.initial_carry(params, count)
    recent, returned = jnp.zeros((count, 2), bool), jnp.zeros(count)
    return Actor(world, observation, carry, recent, returned)


def act(
    task: Task,
    agent: Agent,
    mode: str,
    steps: int,
    params: Any,
    actor: Actor,
    key: Array,
    choose: Callable[[Array, Array], Array] = jax.random.categorical,
) -> tuple[Actor, Rollout]:
    """So many steps in every environment.

    Args:
        task: the environment.
        agent: the agent.
        mode: "right", "late" or "none".
        steps: T.
        params: weights of the agent.
        actor: where to go on.
        key: of actions and environments.
        choose: ``(key, log-probabilities [B, A]) -> actions [B]``.
    """
    count = actor.observation.shape[0]

    def resets(recent: Array) -> Array:
        unknown = jnp.zeros((count, 1), bool)
        return resets_from_dones(unknown, recent, **CONVENTIONS[mode])[:, 0]

    def step(actor: Actor, key: Array) -> tuple[Actor, tuple]:
        choose_key, move_key = jax.random.split(key)
        wiped = resets(actor.recent)
        carry, (log_probs, value) = agent.step(params, actor.carry, actor.observation, wiped)
        action = choose(choose_key, log_probs)
        keys = jax.random.split(move_key, count)
        found = jax.vmap(task.step)(keys, actor.world, action)
        done = found.terminated | found.truncated
        # The value of what came next, with the memory not wiped: where the episode goes on, that is
        # the value of the next step.
        going_on = jnp.concatenate([actor.recent[:, 1:], jnp.zeros((count, 1), bool)], axis=1)
        _, (_, next_value) = agent.step(params, carry, found.final, resets(going_on))
        returned = actor.returned + found.reward
        after = Actor(
            found.state,
            found.observation,
            carry,
            jnp.concatenate([actor.recent[:, 1:], done[:, None]], axis=1),
            jnp.where(done, 0.0, returned),
        )
        taken = jnp.take_along_axis(log_probs, action[:, None], axis=1)[:, 0]
        kept = (actor.observation, action, taken, value, found.reward, found.terminated, done)
        return after, (*kept, next_value, returned)

    after, kept = jax.lax.scan(step, actor, jax.random.split(key, steps))
    by_row = (jnp.swapaxes(leaf, 0, 1) for leaf in kept)
    return after, Rollout._make([*by_row, actor.carry, actor.recent])

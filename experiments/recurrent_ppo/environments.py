"""Environments by name, of one interface, and the check that one of a user's own has it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from experiments.recurrent_ppo.chain import Chain
from experiments.running.packages import is_installed
from rnnjax.data import DataError

_LENGTHS = {"MemoryChain-bsuite": "memory_length", "UmbrellaChain-bsuite": "chain_length"}


class Stepped(NamedTuple):
    """What one action led to."""

    observation: Array  # [D], of the next episode where this one is done
    state: Any
    reward: Array
    terminated: Array
    truncated: Array
    final: Array  # [D], the observation that the action led to, of this episode


class Task(NamedTuple):
    """One environment as pure functions of one episode.

    Attributes:
        observation_size: D.
        num_actions: A; actions are 0 to A - 1.
        reset: ``(key) -> (observation [D], state)``.
        step: ``(key, state, action) -> Stepped``; an episode that ends is followed by the next.
    """

    observation_size: int
    num_actions: int
    reset: Callable[[Array], tuple[Array, Any]]
    step: Callable[[Array, Any, Array], Stepped]


def find_task(name: str, see: str | None = None, length: int | None = None) -> Task:
    """The environment of a name; see the settings for what these are.

    Raises:
        DataError: there is none of that name, it has not the interface, or an argument does not
            fit it.

    Example:
        >>> find_task("chain")[:2]
        (1, 2)
    """
    if name == "chain":
        environment, params = Chain(6 if length is None else length), None
    elif ":" in name:
        environment, params = _own(name, length)
    else:
        environment, params = _of_gymnax(name, length)
    return adapt(name, environment, params, see)


def _own(name: str, length: int | None) -> tuple[Any, Any]:
    if length is not None:
        raise DataError(f"--length must be left out with {name}, got {length}")
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise DataError(f"--environment must be MODULE:FUNCTION, got {name}: {error}") from None
    try:
        with contextlib.suppress(ValueError):  # of one that does not say what it takes
            inspect.signature(make).bind()
    except TypeError as error:
        raise DataError(
            f"--environment must be a function without arguments, got {name}: {error}"
        ) from None
    made = make()
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)


def _of_gymnax(name: str, length: int | None) -> tuple[Any, Any]:
    if not is_installed("gymnax"):
        raise DataError(
            f"--environment {name} must have the package gymnax, got none: "
            'pip install ".[control]", or --environment chain'
        )
    gymnax = importlib.import_module("gymnax")
    if name not in gymnax.registered_envs:
        known = ", ".join(gymnax.registered_envs)
        raise DataError(
            f"--environment must be chain, MODULE:FUNCTION or one of {known}, got {name}"
        )
    environment, params = gymnax.make(name)
    if length is None:
        return environment, params
    if name not in _LENGTHS:
        raise DataError(f"--length must be left out with {name}, got {length}")
    return environment, params.replace(**{_LENGTHS[name]: length})


def adapt(name: str, environment: Any, params: Any = None, see: str | None = None) -> Task:
    """An environment with gymnax's interface as a task.

    Args:
        name: for messages.
        environment: ``reset(key, params)`` gives (observation, state); ``step(key, state, action,
            params)`` gives (observation, state, reward, terminated, truncated, info) with
            "final_observation" in info; ``num_actions`` or ``action_space(params).n``.
        params: its parameters.
        see: numbers of the observation, "0,2"; None for all.

    Raises:
        DataError: it is otherwise, and how.
    """
    for method in ("reset", "step"):
        if not callable(getattr(environment, method, None)):
            raise DataError(
                f"environment {name} must have reset and step, got no {method} in "
                f"{type(environment).__name__}"
            )
    actions = _count_actions(name, environment, params)

    def flat_reset(key: Array) -> tuple[Array, Any]:
        observation, state = environment.reset(key, params)
        return _flat(observation), state

    def flat_step(key: Array, state: Any, action: Array) -> Stepped:
        found = environment.step(key, state, action, params)
        if not isinstance(found, tuple) or len(found) != 6:
            size = len(found) if isinstance(found, tuple) else type(found).__name__
            raise DataError(
                f"step of environment {name} must give (observation, state, reward, terminated, "
                f"truncated, info), got {size}"
            )
        *parts, info = found
        if not isinstance(info, dict) or "final_observation" not in info:
            raise DataError(
                f'step of environment {name} must give info["final_observation"], got none'
            )
        observation, state, reward, terminated, truncated = parts
        last = _flat(info["final_observation"])
        reward = jnp.asarray(reward, jnp.float32)
        ends = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        return Stepped(_flat(observation), state, reward, *ends, last)

    size = _check(name, flat_reset, flat_step)
    chosen = _chosen(see, size)

    def reset(key: Array) -> tuple[Array, Any]:
        observation, state = flat_reset(key)
        return observation[chosen], state

    def step(key: Array, state: Any, action: Array) -> Stepped:
        found = flat_step(key, state, action)
        return found._replace(observation=found.observation[chosen], final=found.final[chosen])

    return Task(len(chosen), actions, reset, step)


def _check(name: str, reset: Callable, step: Callable) -> int:
    """The size of an observation of an environment whose steps fit one another."""
    key, action = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((), jnp.int32)))
    try:
        observation, state = jax.eval_shape(reset, key)
        found = jax.eval_shape(step, key, state, action)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).partition("\n")[0]
        raise DataError(f"environment {name} must run under jax.jit, got: {reason}") from error
    for part, now in (("observation", found.observation), ("final_observation", found.final)):
        if now.shape != observation.shape:
            raise DataError(
                f"{part} of environment {name} must have as many numbers as that of reset, "
                f"{observation.shape[0]}, got {now.shape[0]}"
            )
    before, after = _kinds(state), _kinds(found.state)
    if jax.tree.structure(state) != jax.tree.structure(found.state) or before != after:
        raise DataError(
            f"step of environment {name} must give a state like that of reset, got {after}, not "
            f"{before}"
        )
    for part in ("reward", "terminated", "truncated"):
        if getattr(found, part).shape != ():
            raise DataError(
                f"{part} of environment {name} must be one number, got shape "
                f"{getattr(found, part).shape}"
            )
    return observation.shape[0]


def _kinds(state: Any) -> list[str]:
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(state)]


def _count_actions(name: str, environment: Any, params: Any) -> int:
    space = getattr(environment, "action_space", None)
    # An environment with actions of several numbers may have num_actions as well.
    count = getattr(space(params) if callable(space) else environment, "n", None)
    if count is None and not callable(space):
        count = getattr(environment, "num_actions", None)
    if not isinstance(count, int) or count < 2:
        raise DataError(
            f"environment {name} must have a number of actions from 2 up, as num_actions or "
            f"action_space(params).n, got {count}"
        )
    return count


def _flat(observation: Any) -> Array:
    leaves = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(observation)]
    return jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0]


def _chosen(see: str | None, size: int) -> Array:
    if see is None:
        return jnp.arange(size)
    try:
        places = [int(place) for place in see.split(",")]
    except ValueError:
        places = [-1]
    if len(set(places)) != len(places) or not all(0 <= place < size for place in places):
        raise DataError(f"--see must be different numbers from 0 to {size - 1}, as 0,2, got {see}")
    return jnp.array(places)

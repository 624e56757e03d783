"""The network of an agent: what it sees, a memory over it, and what it makes of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import rnnjax
from experiments.recurrent_ppo.settings import Settings
from experiments.running.cells import CELLS

_CELLS: dict[str, Callable[[int], rnnjax.Cell]] = {
    **CELLS,
    "minimal_gated": rnnjax.minimal_gated,
    "min_gru": rnnjax.min_gru,
    "lru": rnnjax.lru,
}


class Linear(NamedTuple):
    """A linear map."""

    w: Array  # [D, O]
    bias: Array  # [O]

    def __call__(self, x: Array) -> Array:
        return x @ self.w + jnp.broadcast_to(self.bias, (*x.shape[:-1], self.bias.shape[0]))


class AgentParams(NamedTuple):
    """The weights of an agent."""

    eye: Linear
    memory: Any
    actor: Linear
    critic: Linear


class Agent(NamedTuple):
    """An agent as pure functions.

    Attributes:
        init: ``(key) -> params``.
        initial_carry: ``(params, count) -> carry``, leaves [count, ...].
        step: ``(params, carry, observations [B, D], resets [B]) -> (carry, (log-probabilities
            [B, A], values [B]))``, for acting.
        apply: ``(params, carry, observations [B, T, D], resets [B, T]) -> (log-probabilities
            [B, T, A], values [B, T])``, the same for whole rollouts, for learning.
    """

    init: Callable[[Array], AgentParams]
    initial_carry: Callable[[AgentParams, int], Any]
    step: Callable[..., tuple[Any, tuple[Array, Array]]]
    apply: Callable[..., tuple[Array, Array]]


def build_agent(settings: Settings, observation_size: int, num_actions: int) -> Agent:
    """The agent of the settings for a task of these sizes."""
    size = settings.hidden_size
    if settings.cell == "mlp":
        memory = rnnjax.recurrent(memoryless(size))
    else:
        memory = rnnjax.stack(*[_CELLS[settings.cell](size)] * settings.layers)
    return make_agent(memory, size, observation_size, num_actions)


def make_agent(memory: rnnjax.Layer, size: int, observation_size: int, num_actions: int) -> Agent:
    """An agent around a recurrent layer that reads ``size`` numbers."""

    def init(key: Array) -> AgentParams:
        eye, middle, actor, critic = jax.random.split(key, 4)
        return AgentParams(
            _linear(eye, observation_size, size, jnp.sqrt(2.0)),
            memory.init(middle, size),
            # Small at first, so that all actions are about equally likely.
            _linear(actor, memory.output_size, num_actions, 0.01),
            _linear(critic, memory.output_size, 1, 1.0),
        )

    def heads(params: AgentParams, ys: Array) -> tuple[Array, Array]:
        return jax.nn.log_softmax(params.actor(ys)), params.critic(ys)[..., 0]

    def step(params: AgentParams, carry: Any, seen: Array, resets: Array) -> tuple[Any, tuple]:
        carry, y = memory.step(params.memory, carry, jnp.tanh(params.eye(seen)), resets=resets)
        return carry, heads(params, y)

    def apply(params: AgentParams, carry: Any, seen: Array, resets: Array) -> tuple[Array, Array]:
        xs = jnp.tanh(params.eye(seen))
        _, ys = memory.apply(params.memory, xs, resets=resets, initial_carry=carry)
        return heads(params, ys)

    def initial_carry(params: AgentParams, count: int) -> Any:
        return memory.initial_carry(params.memory, (count,))

    return Agent(init, initial_carry, step, apply)


def memoryless(size: int) -> rnnjax.Cell:
    """A layer of tanh units that remembers nothing, written as a cell: its carry never changes."""

    def init(key: Array, input_size: int) -> Linear:
        return _linear(key, input_size, size, jnp.sqrt(2.0))

    return rnnjax.Cell(
        output_size=size,
        init=init,
        initial_carry=lambda params: jnp.zeros(1, params.w.dtype),
        project=lambda params, x: (params(x),),
        plain_step=lambda params, carry, x_proj: (carry, jnp.tanh(x_proj[0])),
    )


def _linear(key: Array, input_size: int, output_size: int, scale: Any) -> Linear:
    draw = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
    return Linear(draw(key, (input_size, output_size)), jnp.zeros(output_size))

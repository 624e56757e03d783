"""Learning from a rollout: advantages, the clipped objective, passes in minibatches.

A minibatch is whole sequences of some environments, recomputed from the carry that each had before
its first step: no sequence is cut, so no carry in its middle has to be kept or made up.

Schulman et al. (2017), Proximal policy optimization algorithms; Schulman et al. (2016),
High-dimensional continuous control using generalized advantage estimation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.recurrent_ppo.acting import Actor, Rollout, act, first_actor
from experiments.recurrent_ppo.agent import Agent, AgentParams
from experiments.recurrent_ppo.environments import Task
from experiments.recurrent_ppo.settings import Settings


class Learner(NamedTuple):
    """All that the rest of a seed's training depends on."""

    params: AgentParams
    opt_state: Any
    actor: Actor
    key: Array
    update: Array  # int32, how many were done


class Batch(NamedTuple):
    """What the loss reads: sequences [B, T], and the weight [B] of each."""

    rollout: Rollout
    advantages: Array
    targets: Array
    weights: Array  # 0 for one that only fills up a minibatch


def advantages_of(rollout: Rollout, discount: float, gae_lambda: float) -> Array:
    r"""Generalised advantages [B, T].

    :math:`A_t = \delta_t + \gamma \lambda (1 - done_t) A_{t+1}` with
    :math:`\delta_t = r_t + \gamma (1 - terminated_t) V'_t - V_t`, where :math:`V'_t` is the value
    of what the action led to in its own episode. An episode that was only cut short is worth
    what it would have gone on with; the next one is worth nothing to it.
    """
    going_on = jnp.where(rollout.terminated, 0.0, rollout.next_values)
    errors = rollout.rewards + discount * going_on - rollout.values

    def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        error, done = step
        here = error + discount * gae_lambda * jnp.where(done, 0.0, later)
        return here, here

    steps = jnp.swapaxes(errors, 0, 1), jnp.swapaxes(rollout.dones, 0, 1)
    _, found = jax.lax.scan(back, jnp.zeros_like(errors[:, 0]), steps, reverse=True)
    return jnp.swapaxes(found, 0, 1)


def clipped_objective(ratios: Array, advantages: Array, clip: float) -> Array:
    r"""What PPO makes large, :math:`\min(r A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon) A)`."""
    return jnp.minimum(ratios * advantages, jnp.clip(ratios, 1 - clip, 1 + clip) * advantages)


def make_batch(rollout: Rollout, settings: Settings) -> Batch:
    """Advantages, scaled over the whole rollout, and targets of the values."""
    advantages = advantages_of(rollout, settings.discount, settings.gae_lambda)
    scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    weights = jnp.ones(advantages.shape[0])
    return Batch(rollout, scaled, advantages + rollout.values, weights)


def loss_of(
    params: AgentParams, batch: Batch, agent: Agent, settings: Settings
) -> tuple[Array, dict[str, Array]]:
    """The loss, a mean over the steps of the sequences that count, and what it is made of."""
    rollout = batch.rollout
    resets = rollout.resets(settings.resets)
    log_probs, values = agent.apply(params, rollout.start, rollout.observations, resets)
    taken = jnp.take_along_axis(log_probs, rollout.actions[..., None], axis=-1)[..., 0]
    log_ratios = taken - rollout.log_probs
    ratios = jnp.exp(log_ratios)

    def mean(figures: Array) -> Array:
        weights = jnp.broadcast_to(batch.weights[:, None], figures.shape)
        return jnp.sum(figures * weights) / jnp.sum(weights)

    parts = {
        "policy_loss": -mean(clipped_objective(ratios, batch.advantages, settings.clip)),
        "value_loss": mean(jnp.square(values - batch.targets)) / 2,
        "entropy": mean(-jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)),
        "kl": mean(ratios - 1 - log_ratios),
        "clipped": mean((jnp.abs(ratios - 1) > settings.clip).astype(jnp.float32)),
    }
    loss = parts["policy_loss"] + settings.value * parts["value_loss"]
    return loss - settings.entropy * parts["entropy"], parts


def split_rows(key: Array, count: int, parts: int) -> tuple[Array, Array]:
    """Rows in random order in parts of one size, the last filled up with rows of no weight.

    Returns:
        int32 [parts, ceil(count / parts)], and their weights, 1 or 0.
    """
    size = -(-count // parts)
    rows = jax.random.permutation(key, count)
    fill = jnp.zeros(parts * size - count, rows.dtype)
    weights = jnp.concatenate([jnp.ones(count), jnp.zeros(fill.shape)])
    return jnp.concatenate([rows, fill]).reshape(parts, size), weights.reshape(parts, size)


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Adam, its rate falling to zero."""
    count = settings.updates * settings.epochs * settings.minibatches
    rate = optax.linear_schedule(settings.learning_rate, 0.0, count)
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate, eps=1e-5))


def first_learner(settings: Settings, task: Task, agent: Agent, seed: Array) -> Learner:
    """Where a seed begins."""
    weights, episodes, key = jax.random.split(jax.random.key(seed), 3)
    params = agent.init(weights)
    actor = first_actor(task, agent, params, episodes, settings.environments)
    opt_state = make_optimizer(settings).init(params)
    return Learner(params, opt_state, actor, key, jnp.zeros((), jnp.int32))


def update(
    settings: Settings, task: Task, agent: Agent, learner: Learner
) -> tuple[Learner, dict[str, Array]]:
    """A rollout, and the passes over it; its figures are numbers."""
    optimizer = make_optimizer(settings)
    act_key, *pass_keys = jax.random.split(
        jax.random.fold_in(learner.key, learner.update), 1 + settings.epochs
    )
    actor, rollout = act(
        task, agent, settings.resets, settings.steps, learner.params, learner.actor, act_key
    )
    rollout = rollout._replace(rewards=settings.reward_scale * rollout.rewards)
    batch = make_batch(rollout, settings)
    splits = [split_rows(key, settings.environments, settings.minibatches) for key in pass_keys]
    rows, weights = (jnp.concatenate(part) for part in zip(*splits, strict=True))

    def learn(state: tuple, part: tuple[Array, Array]) -> tuple[tuple, dict[str, Array]]:
        params, opt_state = state
        chosen = jax.tree.map(lambda leaf: leaf[part[0]], batch)._replace(weights=part[1])
        gradient, parts = jax.grad(loss_of, has_aux=True)(params, chosen, agent, settings)
        change, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, change), opt_state), parts

    state = learner.params, learner.opt_state
    (params, opt_state), parts = jax.lax.scan(learn, state, (rows, weights))
    figures = {name: jnp.mean(values) for name, values in parts.items()}
    figures["returned"] = jnp.sum(jnp.where(rollout.dones, rollout.returns, 0.0))
    figures["episodes"] = jnp.sum(rollout.dones).astype(jnp.float32)
    return Learner(params, opt_state, actor, learner.key, learner.update + 1), figures


def make_updates(settings: Settings, task: Task, agent: Agent, count: int) -> Any:
    """The compiled ``(learners) -> (learners, figures [S, count])``, with an axis S of seeds."""

    def several(learner: Learner) -> tuple[Learner, dict[str, Array]]:
        return jax.lax.scan(
            lambda now, _: update(settings, task, agent, now), learner, length=count
        )

    return jax.jit(jax.vmap(several))


def play(
    task: Task, agent: Agent, settings: Settings, params: AgentParams, key: Array, count: int,
    steps: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Returns [count] of first episodes, the likeliest action taken, and which of them came to
    their end [count]; the others have what they returned so far."""
    begin, go = jax.random.split(key)
    actor = first_actor(task, agent, params, begin, count)
    # As if an episode had just ended: a memory that is wiped late is to be wiped late here too.
    actor = actor._replace(recent=actor.recent.at[:, -1].set(True))
    _, rollout = act(
        task, agent, settings.resets, steps, params, actor, go,
        choose=lambda _, log_probs: jnp.argmax(log_probs, axis=-1),
    )  # fmt: skip
    ended = jnp.cumsum(rollout.dones, axis=1) - rollout.dones  # before the step
    returns = jnp.sum(jnp.where(ended == 0, rollout.rewards, 0.0), axis=1)
    return returns, jnp.any(rollout.dones, axis=1)

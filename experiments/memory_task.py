"""A policy gradient for an agent that must remember: roll out, then train, with resets between.

Run:     python -m experiments.memory_task --resets right
Expect:  the share of episodes at whose end the first symbol is named, over the last 40 updates of
         400, seeds 0, 1 and 2; guessing gives 0.25:

             --resets right        0.9990  0.9990  0.9994
             --resets late         0.2532  0.2466  0.2530
             --resets none         0.4388  0.3933  0.4273

         half a minute each on 2 cores of an Intel Xeon   (22 November 2026, jax 0.10.2)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import rnnjax
from experiments.recurrent_ppo.acting import CONVENTIONS
from experiments.running.console import exit_code
from experiments.running.parsing import parse
from experiments.running.room import require_room
from experiments.running.run_folder import RunFolder, run_config, usual_folder
from experiments.running.setting_checks import Rule, check_settings, whole
from rnnjax.metrics import Mean, compute, merge
from rnnjax.segments import resets_from_dones


@dataclass(frozen=True)
class Settings:
    """Train an agent to name, at an episode's end, the symbol that it saw first."""

    resets: Literal["right", "late", "none"] = "right"
    """When the agent's memory is wiped: at the first step of an episode, a step late, or never."""
    symbols: int = 4
    """How many symbols there are; guessing is right once in so many times."""
    longest: int = 8
    """Episodes last from 2 to this many steps, each length equally likely, so that their end comes
    unforeseen."""
    environments: int = 64
    """How many environments run side by side."""
    steps: int = 32
    """Steps of a rollout, several episodes long; what it cuts in two goes on in the next."""
    hidden_size: int = 32
    """Units of the GRU that remembers the symbol."""
    learning_rate: float = 3e-3
    """The step size of Adam."""
    updates: int = 400
    """Rollouts, each followed by one training step."""
    seed: int = 0
    """Decides the episodes, the initial weights and the actions."""
    out: Path | None = None
    """Folder of the run; by default runs/memory-RESETS-TIME."""


class World(NamedTuple):
    """Environments side by side, [B] each."""

    cue: Array  # the first symbol of the episode
    symbol: Array  # the one that is shown
    left: Array  # steps to the end, this one included


def begin(settings: Settings, key: Array) -> World:
    """The first step of an episode: its symbol is the cue, and nothing says so."""
    shown, lasting = jax.random.split(key)
    count = (settings.environments,)
    cue = jax.random.randint(shown, count, 0, settings.symbols)
    return World(cue, cue, jax.random.randint(lasting, count, 2, settings.longest + 1))


def act(settings: Settings, world: World, action: Array, key: Array) -> tuple[World, Array, Array]:
    """The next step, the reward, and the done that stands beside this action.

    An environment that is done shows the first step of its next episode at once.
    """
    anew, shown = jax.random.split(key)
    done = world.left == 1
    reward = (done & (action == world.cue)).astype(jnp.float32)
    symbol = jax.random.randint(shown, done.shape, 0, settings.symbols)
    same = World(world.cue, symbol, world.left - 1)
    start = begin(settings, anew)
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), start, same), reward, done


class Actor(NamedTuple):
    """What goes on from rollout to rollout."""

    world: World
    carry: Any  # [B, H]
    recent: Array  # bool [B, 2], the dones of the last two steps


class Rollout(NamedTuple):
    """What the training step needs: the steps [B, T], and what came before the first."""

    observations: Array  # [B, T, C]
    actions: Array
    rewards: Array
    dones: Array
    start: Any  # the carry before the first step, [B, H]
    recent: Array


def make_rollout(settings: Settings, agent: rnnjax.Layer) -> Any:
    """The function (params, actor, key) -> (actor, rollout)."""
    convention = CONVENTIONS[settings.resets]

    def step(params: Any, actor: Actor, key: Array) -> tuple[Actor, tuple]:
        choose, move = jax.random.split(key)
        observation = jax.nn.one_hot(actor.world.symbol, settings.symbols)
        unknown = jnp.zeros((settings.environments, 1), bool)
        resets = resets_from_dones(unknown, actor.recent, **convention)
        carry, logits = agent.apply(
            params, observation[:, None], resets=resets, initial_carry=actor.carry
        )
        action = jax.random.categorical(choose, logits[:, 0])
        world, reward, done = act(settings, actor.world, action, move)
        recent = jnp.concatenate([actor.recent[:, 1:], done[:, None]], axis=1)
        return Actor(world, carry, recent), (observation, action, reward, done)

    @jax.jit
    def rollout(params: Any, actor: Actor, key: Array) -> tuple[Actor, Rollout]:
        keys = jax.random.split(key, settings.steps)
        after, steps = jax.lax.scan(lambda a, k: step(params, a, k), actor, keys)
        observations, actions, rewards, dones = (jnp.swapaxes(a, 0, 1) for a in steps)
        record = Rollout(observations, actions, rewards, dones, actor.carry, actor.recent)
        return after, record

    return rollout


def make_loss(settings: Settings, agent: rnnjax.Layer) -> Any:
    """REINFORCE, with the mean reward for a baseline.

    Actions change nothing but the reward at their own step, so each is weighed by that alone.
    """
    convention = CONVENTIONS[settings.resets]

    def loss_fn(params: Any, rollout: Rollout, key: Array | None) -> tuple[Array, dict]:
        del key
        resets = resets_from_dones(rollout.dones, rollout.recent, **convention)
        _, logits = agent.apply(
            params, rollout.observations, resets=resets, initial_carry=rollout.start
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), rollout.actions[..., None], -1)
        recall = Mean.of(rollout.rewards, rollout.dones)
        advantage = rollout.rewards - recall.value
        loss = Mean.of(-advantage * chosen[..., 0], rollout.dones)
        return loss.value, {"loss": loss, "recall": recall}

    return loss_fn


def train(settings: Settings, folder: Path) -> float:
    """Train, write the run's folder, and return the recall over the last tenth of the updates."""
    check(settings)
    began = time.perf_counter()
    agent = rnnjax.output_head(rnnjax.gru(settings.hidden_size), settings.symbols)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(settings.learning_rate))
    init_key, world_key, step_key, act_key = jax.random.split(jax.random.key(settings.seed), 4)
    require_room(lambda key: agent.init(key, settings.symbols))
    params = agent.init(init_key, settings.symbols)
    actor = first_actor(settings, agent, params, world_key)
    state = rnnjax.init_train_state(step_key, params, optimizer)
    step = rnnjax.make_train_step(make_loss(settings, agent), optimizer)
    rollout = make_rollout(settings, agent)
    every, recall, totals = settings.updates // 10, 0.0, None
    with RunFolder(folder, run_config(settings)) as run:
        for update in range(1, settings.updates + 1):
            actor, steps = rollout(state.params, actor, jax.random.fold_in(act_key, update))
            state, metrics = step(state, steps)
            totals = metrics if totals is None else merge(totals, metrics)
            if update % every == 0:
                figures, totals = compute(totals), None
                recall = figures["recall"]
                run.write({"kind": "updates", "update": update, **figures})
                print(f"update {update}: recall {recall:.4f}", flush=True)
    seconds = time.perf_counter() - began
    print(f"resets {settings.resets}: recall {recall:.4f}, guessing {1 / settings.symbols:.4f}")
    print(f"{seconds:.0f} s in all, compiling included; files in {folder}")
    return recall


def first_actor(settings: Settings, agent: rnnjax.Layer, params: Any, key: Array) -> Actor:
    """Episodes begin, with the carry that a run over no steps gives."""
    nothing = jnp.zeros((settings.environments, 0, settings.symbols))
    carry, _ = agent.apply(params, nothing)
    return Actor(begin(settings, key), carry, jnp.zeros((settings.environments, 2), bool))


def check(settings: Settings) -> None:
    """Refuse settings under which there would be nothing to learn or to report.

    Raises:
        DataError: naming the setting.
    """
    check_settings(
        settings,
        symbols=whole(2, 10_000),
        longest=whole(2, 1_000_000),
        environments=whole(1, 1_000_000),
        updates=whole(10),
        steps=Rule(
            f"at least --longest, {settings.longest}, so that every rollout sees an end",
            lambda steps: steps >= settings.longest,
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.memory_task", arguments)
    folder = settings.out or usual_folder(f"memory-{settings.resets}")

    def run() -> None:
        train(settings, folder)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())

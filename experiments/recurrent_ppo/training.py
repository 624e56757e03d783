"""The run: one compiled loop called again and again, a line, a record and maybe a save between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recurrent_ppo.agent import Agent
from experiments.recurrent_ppo.environments import Task
from experiments.recurrent_ppo.learning import Learner, first_learner, make_updates, play
from experiments.recurrent_ppo.settings import Settings
from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.interrupts import Interrupted, Interrupts
from experiments.running.run_folder import RunFolder
from rnnjax.training import EarlyStopping, NonFiniteError

_MEANS = ("policy_loss", "value_loss", "entropy", "kl", "clipped")


def fit(settings: Settings, task: Task, agent: Agent, run: RunFolder, saver: Saver) -> Learner:
    """Train all seeds to the last update, from the newest good checkpoint if there is one.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
        NonFiniteError: weights of a seed are no longer finite.
    """
    seeds = jnp.arange(settings.seed, settings.seed + settings.seeds, dtype=jnp.uint32)
    learners = jax.jit(jax.vmap(lambda seed: first_learner(settings, task, agent, seed)))(seeds)
    stopping = EarlyStopping("return", mode="max", patience=1)  # which is not asked
    begin, passed_over = saver.restore(Snapshot(learners, stopping, jnp.zeros(())))
    run.update_config()
    for reason in passed_over:
        print(f"passed over checkpoint {reason}")
    if begin.step:
        print(f"going on after update {begin.step}")
    updates = make_updates(settings, task, agent, settings.report_every)
    return _go_on(settings, updates, begin, run, saver)


def _go_on(
    settings: Settings, updates: Any, now: Snapshot, run: RunFolder, saver: Saver
) -> Learner:
    learners: Any = now.train
    with Interrupts() as interrupts:
        try:
            every = settings.report_every
            first = now.step + every
            for done in interrupts.watch(range(first, settings.updates + 1, every)):
                began = time.perf_counter()
                learners, figures = updates(learners)
                _require_finite_rewards(settings, figures, done)
                record = {"kind": "updates", "update": done, **_record(settings, done, figures)}
                _require_finite(learners, done)
                now = now._replace(train=learners, step=done)
                seconds = time.perf_counter() - began
                run.write(record)
                run.write_timing({"kind": "updates", "update": done, "seconds": seconds})
                print(_line(settings, record, seconds, compiled=done == first), flush=True)
                if saver.is_due(done):
                    saver.save(now)
        except (Interrupted, NonFiniteError):
            saver.save(now)
            saver.wait()
            raise
    saver.save(now)
    return learners


def _record(settings: Settings, done: int, figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of some updates, each a list over the seeds."""
    found = jax.device_get(figures)
    episodes = found["episodes"].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        returned = found["returned"].sum(axis=1) / episodes  # NaN where no episode ended
    means = {name: found[name].mean(axis=1).tolist() for name in _MEANS}
    return {
        "steps": done * settings.steps_of_update,
        "return": returned.tolist(),
        "episodes": episodes.astype(int).tolist(),
        **means,
    }


def _line(settings: Settings, record: dict[str, Any], seconds: float, *, compiled: bool) -> str:
    """A line for the console; the rate is none where the time is mostly that of compiling."""
    said = f"update {record['update']:>5} of {settings.updates}  return {listed(record['return'])}"
    if compiled:
        return f"{said}  (compiled in {seconds:.0f} s)"
    speed = settings.report_every * settings.steps_of_update * settings.seeds / seconds
    left = (settings.updates - record["update"]) / settings.report_every * seconds
    return f"{said}  {speed:,.0f} steps/s, {left:.0f} s left"


def listed(returns: Sequence[float]) -> str:
    """The mean of the seeds' returns, and their range; those of which no episode ended are named.

    Example:
        >>> listed([0.25, 0.75]), listed([0.5]), listed([0.5, float("nan")])
        ('0.500 (0.250 to 0.750)', '0.500', '0.500, none ended in 1 of 2 seeds')
        >>> listed([float("nan")])
        'none, as no episode ended'
    """
    ended = [value for value in returns if not np.isnan(value)]
    if not ended:
        return "none, as no episode ended"
    said = f"{np.mean(ended):.3f}"
    if len(ended) > 1:
        said += f" ({min(ended):.3f} to {max(ended):.3f})"
    if len(ended) < len(returns):
        said += f", none ended in {len(returns) - len(ended)} of {len(returns)} seeds"
    return said


def _require_finite_rewards(settings: Settings, figures: dict[str, Any], done: int) -> None:
    if not np.isfinite(figures["returned"]).all():
        raise NonFiniteError(
            f"rewards of environment {settings.environment} must be finite, got others before "
            f"update {done}"
        )


def _require_finite(learners: Learner, done: int) -> None:
    bad = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(learners.params)
        if not np.isfinite(leaf).all()
    ]
    if bad:
        raise NonFiniteError(
            f"weights after update {done} must be finite, got others in {', '.join(bad)}: a "
            "smaller learning rate may help, if observations and rewards are finite"
        )


def evaluate(
    settings: Settings,
    task: Task,
    agent: Agent,
    params: Any,
    steps: int,
    seed: int,
    environments: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns [S, environments] of the agents of all seeds, the likeliest action taken, and which
    episodes came to their end."""

    def one(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return play(task, agent, settings, params, key, environments, steps)

    keys = jax.random.split(jax.random.key(seed), settings.seeds)
    returns, ended = jax.jit(jax.vmap(one))(params, keys)
    return np.asarray(returns), np.asarray(ended)

"""The command line: train, play, and compare."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recurrent_ppo.agent import Agent, build_agent
from experiments.recurrent_ppo.environments import Task, find_task
from experiments.recurrent_ppo.pictures import draw_returns
from experiments.recurrent_ppo.settings import Compare, Play, Settings
from experiments.recurrent_ppo.training import evaluate, fit, listed
from experiments.running.command_line import run_program
from experiments.running.console import command, how_many, parameter_table, wrapped
from experiments.running.curves import read_records
from experiments.running.opening import open_run
from experiments.running.processes import chosen_folder
from experiments.running.run_folder import METRICS
from experiments.running.run_settings import stored_config, stored_settings
from experiments.running.setting_checks import (
    Rule,
    above,
    at_least,
    check_seeds,
    check_settings,
    probability,
    refuse_unread,
    whole,
)
from experiments.running.trained import WEIGHTS, finished_settings, load_trained
from rnnjax.data import DataError
from rnnjax.weights import save_weights

PROGRAM = "python -m experiments.recurrent_ppo"
CURVES = "curves.png"


def train(settings: Settings) -> np.ndarray:
    """Train, write the run's folder, and return the mean return of each seed in the test [S]."""
    began = time.perf_counter()
    check(settings)
    task, agent = _make(settings)
    folder = chosen_folder(settings.out, f"ppo-{_name(settings)}")
    stored = stored_config(settings, folder)
    identity = {"settings": settings.written()}
    leaves = (WEIGHTS, CURVES)

    def init(key: jax.Array) -> Any:
        return jax.vmap(agent.init)(jax.random.split(key, settings.seeds))

    with open_run(settings, folder, stored, identity, leaves, init=init) as (run, saver):
        _announce(settings, task, agent)
        learners = fit(settings, task, agent, run, saver)
        returns, ended = evaluate(
            settings, task, agent, learners.params, settings.test_steps, settings.seed, 256
        )
        record = {"kind": "test", "return": returns.mean(axis=1).tolist()}
        run.write(record)
        saver.wait()
        save_weights(run.path / WEIGHTS, learners.params)
        records = read_records(run.metrics_path)
        draw_returns({settings.environment: {_label(settings): _updates(records)}},
                     run.path / CURVES)  # fmt: skip
    _report(records, returns)
    _note_unfinished(ended, "--test-steps", settings.test_steps)
    print(f"{time.perf_counter() - began:.0f} s, compiling included; {CURVES} in {folder}")
    print(f"try:\n  {command(*PROGRAM.split(), 'play', folder)}")
    return returns.mean(axis=1)


def check(settings: Settings) -> None:
    """Refuse settings that do not fit.

    Raises:
        DataError: naming them.
    """
    if jax.process_count() > 1:
        raise DataError(f"{PROGRAM} must run in one process, got {jax.process_count()}")
    every = settings.report_every
    check_settings(
        settings,
        length=whole(2, 1_000_000),
        environments=whole(1, 1_000_000),
        steps=whole(1, 1_000_000),
        epochs=whole(1, 1_000),
        minibatches=whole(1, settings.environments if settings.environments > 0 else None),
        updates=Rule(
            f"a whole number of times --report-every, {every}",
            lambda updates: updates > 0 and every > 0 and updates % every == 0,
        ),
        reward_scale=above(0),
        discount=probability(),
        gae_lambda=probability(),
        clip=above(0),
        entropy=at_least(0),
        value=at_least(0),
        seeds=whole(1, 1_000),
        test_steps=whole(1, 1_000_000),
        report_every=whole(1),
    )
    check_seeds(settings, "seeds")
    remembers = settings.cell != "mlp"
    refuse_unread(settings, "with a recurrent --cell", remembers, "layers", "resets")


def _make(settings: Settings) -> tuple[Task, Agent]:
    task = find_task(settings.environment, settings.see, settings.length)
    return task, build_agent(settings, task.observation_size, task.num_actions)


def _name(settings: Settings) -> str:
    environment = re.sub(r"\W+", "_", settings.environment)
    return f"{environment}-{settings.cell}-{settings.resets}"


def _label(settings: Settings) -> str:
    return f"{settings.cell}, {'no' if settings.resets == 'none' else settings.resets} resets"


def _updates(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "updates"]


def _announce(settings: Settings, task: Task, agent: Agent) -> None:
    steps = settings.updates * settings.steps_of_update
    print(
        f"{settings.environment}: {how_many(task.observation_size, 'number')} seen, "
        f"{how_many(task.num_actions, 'action')}; {how_many(steps, 'step')} of each of "
        f"{how_many(settings.seeds, 'seed')}"
    )
    parameter_table(jax.eval_shape(agent.init, jax.random.key(0)))


def _report(records: Sequence[dict[str, Any]], returns: np.ndarray) -> None:
    rows = {
        f"{_last_in_words(records)}:": last_returns(records).tolist(),
        "return in the test, likeliest actions:": returns.mean(axis=1).tolist(),
    }
    width = max(map(len, rows))
    for name, found in rows.items():
        print(f"{name.ljust(width)} {listed(found)}")


def _note_unfinished(ended: np.ndarray, option: str, steps: int) -> None:
    if not ended.all():
        late = int(np.sum(~ended))
        were, they = ("was", "it counts") if late == 1 else ("were", "they count")
        print(
            wrapped(
                f"note: {late:,} of {how_many(ended.size, 'episode')} {were} not at the end after "
                f"{option} {steps}: {they} with the return up to then"
            )
        )


def last_returns(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """The mean return of each seed [S] over the last tenth of the updates, all episodes alike.

    A record is of all updates since the one before it, so it may be of more than a tenth.
    """
    last = _last(records)
    episodes = np.array([record["episodes"] for record in last], float)
    returns = np.nan_to_num(np.array([record["return"] for record in last], float))
    with np.errstate(invalid="ignore"):
        return (returns * episodes).sum(axis=0) / episodes.sum(axis=0)


def _last(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    updates = _updates(records)
    return [record for record in updates if record["update"] > 0.9 * updates[-1]["update"]]


def _last_in_words(records: Sequence[dict[str, Any]]) -> str:
    """What `last_returns` is the mean of; records are equally many updates apart."""
    updates = _updates(records)
    every = updates[-1]["update"] // len(updates)
    return f"return over the last {how_many(every * len(_last(records)), 'update')}"


def play_run(request: Play) -> None:
    """Play with the agents in a run's folder."""
    check_settings(request, steps=whole(1, 1_000_000), environments=whole(1, 1_000_000))
    settings = finished_settings(PROGRAM, Settings, request.run)
    task, agent = _make(settings)
    seeds = jnp.arange(settings.seeds)

    def init(key: jax.Array) -> Any:
        return jax.vmap(lambda seed: agent.init(jax.random.fold_in(key, seed)))(seeds)

    params = load_trained(init, request.run)
    returns, ended = evaluate(
        settings, task, agent, params, request.steps, request.seed, request.environments
    )
    for number, row in enumerate(returns):
        print(
            f"seed {settings.seed + number}: mean return {row.mean():.3f}, from {row.min():.3f} to "
            f"{row.max():.3f}, {how_many(len(row), 'episode')}"
        )
    _note_unfinished(ended, "--steps", request.steps)


def compare(request: Compare) -> None:
    """Draw the returns of several runs, a panel for each environment."""
    if not request.runs:
        raise DataError("compare must have the folders of runs, got none")
    found = []
    for folder in request.runs:
        settings = stored_settings(Settings, folder)
        records = _updates(read_records(folder / METRICS))
        if not records:
            raise DataError(f"{folder} must hold updates to draw, got none")
        found.append((folder, _title(settings), _label(settings), records))
        last = listed(last_returns(records).tolist())
        print(f"{folder}: {_last_in_words(records)} {last}")
    alike = Counter((title, label) for _, title, label, _ in found)
    runs: dict[str, dict[str, Any]] = {}
    for folder, title, label, records in found:
        name = label if alike[title, label] == 1 else f"{label}, {folder}"
        runs.setdefault(title, {})[name] = records
    request.out.parent.mkdir(parents=True, exist_ok=True)
    draw_returns(runs, request.out)
    print(f"{request.out}")


def _title(settings: Settings) -> str:
    """The environment, and which numbers of an observation the agent sees if not all."""
    if settings.see is None:
        return settings.environment
    numbers = [number.strip() for number in settings.see.split(",")]
    return f"{settings.environment}, sees number{'s' * (len(numbers) > 1)} {' and '.join(numbers)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    requests = {"play": (Play, play_run), "compare": (Compare, compare)}
    return run_program(PROGRAM, Settings, train, requests, arguments)

"""Settings of a program that trains, searched by Optuna, which stops trials that promise little.

Every trial is a run of experiments.classify as its user would start it, in a folder of its own; how
good it is after each epoch is read from the run's metrics.jsonl as it grows. A trial that is worse
than the others were by then is sent SIGTERM, and ends with a checkpoint from which it could go on.

Needs Optuna: pip install ".[tune]"

Run:     python -m experiments.tune --trials 20 -- --dataset rotten_tomatoes --epochs 15
"""

from __future__ import annotations

import json
import subprocess  # it runs a program of this package, and no shell  # nosec B404
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.running.console import command, exit_code, wrapped
from experiments.running.parsing import parse
from experiments.running.run_folder import check_usable, usual_folder
from experiments.running.setting_checks import above, check_settings, each, share, whole
from rnnjax.data import DataError

# What the search gives each trial, a new run in a folder of its own.
_SEARCHED = ("--learning-rate", "--dropout", "--hidden-size")
_OWN = (*_SEARCHED, "--out", "--resume", "--repeat")
# How often a run's records are looked at: an epoch takes seconds at least.
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Settings:
    """Search settings of experiments.classify; those behind -- hold for all trials."""

    trials: int = 20
    """How many runs."""
    rate_from: float = 3e-4
    """The lowest learning rate."""
    rate_to: float = 2e-2
    """The highest."""
    dropout_to: float = 0.8
    """The highest dropout."""
    sizes: tuple[int, ...] = (32, 64, 128)
    """Units in each direction."""
    metric: str = "validation_accuracy"
    """What is made as large as it can be, by its name in the records of epochs."""
    seed: int = 0
    """Decides what is tried."""
    out: Path | None = None
    """The folder for the runs; by default runs/tune-TIME."""


def suggested(trial: Any, settings: Settings) -> list[str]:
    """What one trial is started with."""
    rate = trial.suggest_float("learning_rate", settings.rate_from, settings.rate_to, log=True)
    dropout = trial.suggest_float("dropout", 0.0, settings.dropout_to)
    size = trial.suggest_categorical("hidden_size", settings.sizes)
    found = zip(_SEARCHED, (rate, dropout, size), strict=True)
    return [word for name, value in found for word in (name, str(value))]


def epochs(metrics: Path, has_ended: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """The records of epochs, each when it has been written, until the run has ended.

    A line without its end is still being written.
    """
    read = 0
    while True:
        ended = has_ended()
        whole = metrics.read_bytes()[read:] if metrics.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        read += len(whole)
        records = map(json.loads, whole.splitlines())
        yield from (record for record in records if record["kind"] == "epoch")
        if ended:
            return
        time.sleep(_LOOK_SECONDS)


def run_trial(trial: Any, words: Sequence[str], folder: Path, metric: str) -> tuple[float, bool]:
    """The best value of a run, and whether it was stopped because it promised little.

    Args:
        trial: has ``report(value, step)`` and ``should_prune()``, as those of Optuna.
        words: the command, but for the folder.
        folder: that of the run.
        metric: which of the figures of an epoch counts.

    Raises:
        DataError: the run failed; says how, or it has no epochs, or no such figure.
    """
    process = subprocess.Popen(  # nosec B603
        [*words, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    best, is_pruned, record = -float("inf"), False, None
    try:
        for record in epochs(folder / "metrics.jsonl", lambda: process.poll() is not None):
            # No loss: the search looks for the largest value.
            names = [n for n in record if n.startswith("validation") and not n.endswith("loss")]
            if metric not in names:
                raise DataError(f"--metric must be one of {', '.join(names)}, got {metric!r}")
            value = record[metric]
            if value is None:  # NaN
                continue
            best = max(best, value)
            trial.report(value, record["epoch"])
            if trial.should_prune():
                is_pruned = True
                process.terminate()
                break
    finally:
        if process.poll() is None and not is_pruned:
            process.terminate()
        _, errors = process.communicate()
    if process.returncode and not is_pruned:
        said = errors.strip() or "nothing"
        raise DataError(
            f"the run in {folder} must end well, got exit code {process.returncode}:\n{said}"
        )
    if record is None:
        raise DataError(f"the run in {folder} must leave records of epochs, got none")
    return best, is_pruned


def tune(settings: Settings, same: Sequence[str]) -> Any:
    """Searches, and gives Optuna's study; what is best is printed, also after Ctrl-C.

    A run that fails, as by a learning rate that is too high for the others, is told, and is no more
    than a trial that promises nothing; but one before any has succeeded ends the search, since all
    may fail alike.

    Raises:
        DataError: a setting cannot be, optuna is not installed, or a run failed before any other
            succeeded.
    """
    _check(settings)
    _check_same(same)
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise DataError(
            'experiments.tune needs the package optuna: pip install ".[tune]"'
        ) from None
    folder = settings.out or usual_folder("tune")
    check_usable(folder, "new")
    # Of each trial it would print a line wider than a terminal, and of a failed one a traceback.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    program = [sys.executable, "-m", "experiments.classify", *same]

    def objective(trial: Any) -> float:
        words, own = [*program, *suggested(trial, settings)], folder / f"trial-{trial.number}"
        try:
            best, is_pruned = run_trial(trial, words, own, settings.metric)
        except DataError as error:
            if not _finished(trial.study):
                raise
            said = f"trial {trial.number} failed: {error}".split("\n")
            print("\n".join(map(wrapped, said)), flush=True)
            raise optuna.TrialPruned from None
        tried = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
        end = " (stopped: it promised little)" if is_pruned else ""
        print(wrapped(f"trial {trial.number}: {best:.4f}{end}, {tried}"), flush=True)
        if is_pruned:
            raise optuna.TrialPruned
        return best

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    )
    try:
        study.optimize(objective, n_trials=settings.trials)
    finally:
        _say_best(settings, same, study)
    return study


def _finished(study: Any) -> list[Any]:
    """The trials that came to their end."""
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _say_best(settings: Settings, same: Sequence[str], study: Any) -> None:
    """The best settings so far, as a command."""
    if not _finished(study):
        return
    print(f"best {settings.metric} {study.best_value:.4f}, of trial {study.best_trial.number}:")
    best = [w for n, v in study.best_params.items() for w in (f"--{n.replace('_', '-')}", str(v))]
    print(f"  {command('python', '-m', 'experiments.classify', *same, *best)}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _check(settings: Settings) -> None:
    check_settings(
        settings,
        trials=whole(1),
        rate_from=above(0),
        rate_to=above(0),
        dropout_to=share(),
        sizes=each(whole(1, 1_000_000)),
    )
    if settings.rate_from > settings.rate_to:
        raise DataError(
            f"--rate-from must be at most --rate-to, {settings.rate_to}, got {settings.rate_from}"
        )


def _check_same(same: Sequence[str]) -> None:
    for word in same:
        if (name := word.partition("=")[0].replace("_", "-")) in _OWN:
            raise DataError(
                f"what is behind -- must be without {name}, as the search gives each trial its "
                f"own, got {word!r}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    settings = parse(Settings, "python -m experiments.tune", given[:end])

    def search() -> None:
        tune(settings, given[end + 1 :])

    return exit_code(search)


if __name__ == "__main__":
    sys.exit(main())

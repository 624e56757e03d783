"""What every lesson shares: its settings, its rows, and the folder that remembers them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from experiments.lessons.tables import OURS, Row, lesson_rows, lesson_table
from experiments.running.console import exit_code, print_table
from experiments.running.packages import NotInstalled
from experiments.running.parsing import parse
from experiments.running.run_folder import (
    CONFIG,
    METRICS,
    TIMINGS,
    RunFolder,
    run_config,
    usual_folder,
)
from experiments.running.run_settings import read_config, require_same
from experiments.running.setting_checks import RULES, Rule, check_rules, each, whole
from rnnjax.data import DataError

# More seeds, or the same files elsewhere, leave the rows that are there what they are.
MAY_CHANGE = ("out", "data_dir", "seeds")


@dataclass(frozen=True)
class LessonSettings:
    """The settings that every lesson has; a lesson's own inherit from them."""

    seeds: int = 3
    """Repeat what depends on chance so often, with the seeds 0, 1, 2, ..., since one result does
    not show its spread."""
    out: Path | None = None
    """The folder of the run, which goes on where it was if it has begun; by default
    runs/LESSON-TIME."""


@dataclass(frozen=True)
class ExamplesSettings(LessonSettings):
    """Those of a lesson of which the examples are counted."""

    take: int | None = None
    """Use this many training examples only, and as many test examples, to be done sooner."""


@dataclass(frozen=True)
class FilesSettings(ExamplesSettings):
    """Those of a lesson that reads files."""

    data_dir: Path | None = None
    """The folder of local data sets; without it the environment variable RNNJAX_DATA says it."""


class Measured(NamedTuple):
    """What a measurement found.

    Attributes:
        figures: what follows from the settings alone, as accuracies and losses.
        epoch_seconds: of one training epoch, compiling apart.
        steps: training steps in all.
        timings: further seconds, as {"compile s": 1.5}.
        note: what a reader of the row must know.
    """

    figures: Mapping[str, float]
    epoch_seconds: float | None = None
    steps: int | None = None
    timings: Mapping[str, float] = {}
    note: str = ""


class Results:
    """The rows of a lesson, each on disk as soon as it is measured.

    Args:
        lesson: its name.
        run: the folder; rows that are in it already are not measured again. Figures are drawn
            into ``folder``, as .png.
    """

    def __init__(self, lesson: str, run: RunFolder) -> None:
        self.lesson = lesson
        self.folder = run.path
        self._run = run
        self._rows = {row.key: row for row in read_rows(run.path)}

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows so far, in the order in which they were measured."""
        return tuple(self._rows.values())

    def row(
        self, system: str, library: str, seed: int | None, measure: Callable[[], Measured]
    ) -> Row:
        """The row of that key: as it was measured before, or else measured now.

        A measurement that raises `NotInstalled` gives a row that says so; it is not kept, so that
        the row is measured once the library is there.
        """
        if found := self.find(system, library, seed):
            return found
        try:
            return self.add(system, library, seed, measure())
        except NotInstalled:
            return self.missing(system, library, seed)

    def find(self, system: str, library: str, seed: int | None) -> Row | None:
        """The row of that key, if it was measured."""
        found = self._rows.get((system, library, seed))
        return None if found is None or found.note == ABSENT else found

    def add(self, system: str, library: str, seed: int | None, measured: Measured) -> Row:
        """Keeps a measurement."""
        row = Row(self.lesson, system, library, seed, **measured._asdict())
        key = {"system": system, "library": library, "seed": seed}
        # The times first: a row without its times would never get them.
        times = {"epoch_seconds": row.epoch_seconds, "timings": row.timings}
        self._run.write_timing({"kind": "row", **key, **times})
        counts = {"figures": row.figures, "steps": row.steps, "note": row.note}
        self._run.write({"kind": "row", **key, **counts})
        self._rows[row.key] = row
        return row

    def missing(self, system: str, library: str, seed: int | None) -> Row:
        """Notes for this run alone that the library of a row is not installed."""
        row = Row(self.lesson, system, library, seed, {}, note=ABSENT)
        self._rows[row.key] = row
        return row


ABSENT = "not installed"
_ANEW = "delete the folder, and begin anew"

Run = Callable[[Any, Results], None]


def read_rows(folder: Path) -> list[Row]:
    """The rows in a lesson's folder; none where there is none yet."""
    times = {_key(record): record for record in _records(folder / TIMINGS)}
    rows = []
    for record in _records(folder / METRICS):
        if (timed := times.get(_key(record))) is None:
            raise DataError(
                f"{folder / TIMINGS} must have the times of all rows, got less: {_ANEW}"
            )
        rows.append(
            Row(
                folder_lesson(folder),
                *_key(record),
                figures=record["figures"],
                epoch_seconds=timed["epoch_seconds"],
                steps=record["steps"],
                timings=timed["timings"],
                note=record["note"],
            )
        )
    return rows


def folder_lesson(folder: Path) -> str:
    """The name of the lesson whose folder it is."""
    return read_config(folder)["lesson"]


def run_lesson(module: ModuleType, settings: LessonSettings) -> tuple[Row, ...]:
    """Runs a lesson in the folder of its settings, what is missing there, and prints its table.

    Raises:
        DataError: the run in the folder is another lesson's, was started with other settings, or is
            damaged.
        OSError: the folder cannot be used.
    """
    name = lesson_name(module)
    assert settings.out is not None
    check(settings)
    config = {"lesson": name, **run_config(settings)}
    if (settings.out / CONFIG).is_file():
        stored = read_config(settings.out)
        if stored.get("lesson") != name:
            raise DataError(
                f"{settings.out} must be a folder of the lesson {name}, got one of "
                f"{stored.get('lesson') or 'another program'}"
            )
        require_same(stored["settings"], config["settings"], MAY_CHANGE, str(settings.out))
    with _forgotten_if_refused(settings.out), RunFolder(settings.out, config, "resume") as run:
        results = Results(name, run)
        module.run(settings, results)
    _print(results.rows)
    return results.rows


def _print(rows: Sequence[Row]) -> None:
    """The table of the rows; in a terminal, where lines of Markdown would break in two, one for all
    rows with the same figures, and no column that says the same of all."""
    if not sys.stdout.isatty():
        print(lesson_table(rows))
        return
    lines = lesson_rows(rows)
    hidden = {"library"} if all(line["library"] == OURS for line in lines) else set()
    tables: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in lines:
        shown = {name: text for name, text in line.items() if text and name not in hidden}
        tables.setdefault(tuple(shown), []).append(shown)
    for table in tables.values():
        print_table(table)


@contextlib.contextmanager
def _forgotten_if_refused(folder: Path) -> Iterator[None]:
    """Leaves nothing of a run that was refused before its first row: its folder would be taken for
    that of a run with the wrong settings."""
    is_new = not (folder / CONFIG).exists()
    try:
        yield
    except ValueError:
        if is_new and (folder / CONFIG).exists() and not read_rows(folder):
            for name in (CONFIG, METRICS, TIMINGS, "lock"):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


_FINITE = Rule("a finite number", math.isfinite)


def check(settings: LessonSettings) -> None:
    """Refuse numbers with which there is nothing to measure, whatever the lesson.

    Raises:
        DataError: naming them.
    """
    kinds = {int: whole(1), float: _FINITE}
    rules = {}
    for name, hint in get_type_hints(type(settings)).items():
        parts = get_args(hint)
        kind = parts[0] if parts and get_origin(hint) is not Literal else hint
        if kind in kinds:
            is_many = get_origin(hint) is tuple
            rules[name] = each(kinds[kind]) if is_many else RULES.get(name, kinds[kind])
    check_rules(settings, rules)


def lesson_name(module: ModuleType) -> str:
    """The last part of a module's name, also where it is run as a script."""
    spec = module.__spec__
    return (spec.name if spec is not None else module.__name__).rpartition(".")[2]


def main(module_name: str, arguments: Sequence[str] | None = None) -> int:
    """The command line of one lesson; the exit code.

    Args:
        module_name: ``__name__`` of the lesson's module, which has ``Settings`` and ``run``.
        arguments: those of the process when None.
    """
    module = sys.modules[module_name]
    name = lesson_name(module)
    program = f"python -m experiments.lessons.{name}"
    settings = parse(module.Settings, program, arguments)
    if settings.out is None:
        settings = dataclasses.replace(settings, out=usual_folder(name))

    def run() -> None:
        run_lesson(module, settings)
        print(f"files in {settings.out}")

    code = exit_code(run)
    if code == 130:
        again = f"{program} --out {shlex.quote(str(settings.out))}"
        print(f"go on with the same command and --out:\n  {again} ...")
    return code


def _key(record: Mapping[str, Any]) -> tuple[str, str, int | None]:
    # The vanilla cell was called simple until November 2026.
    system = re.sub(r"^simple\b", "vanilla", record["system"])
    return system, record["library"], record["seed"]


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [record for record in records if record["kind"] == "row"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{path} must have the records of a lesson, got others: {_ANEW}") from None

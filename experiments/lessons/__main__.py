"""All lessons, one after the other, and one page with all their tables and figures.

Run:     python -m experiments.lessons --take 2000 --seeds 3 --out runs/lessons

Stopped, it goes on where it was with the same command: rows that are there are not measured again.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from experiments.lessons import LESSONS
from experiments.lessons.lesson import read_rows, run_lesson
from experiments.lessons.overview import draw_ratios
from experiments.lessons.tables import Row, lesson_table, summarize
from experiments.running.console import exit_code
from experiments.running.parsing import parse
from experiments.running.run_folder import CONFIG, environment, plain, write_whole
from experiments.running.run_settings import read_config
from experiments.running.setting_checks import check_settings, each, one_of, refuse_unread, whole
from rnnjax.data import DataError

PROGRAM = "python -m experiments.lessons"
RATIOS = "epoch_seconds.png"


@dataclass(frozen=True)
class Settings:
    """Run the lessons, what is missing of them, and write their results."""

    lessons: tuple[str, ...] = LESSONS
    """The lessons that are run, in this order; by default all."""
    take: int | None = None
    """Use this many training examples of every data set only, to be done sooner."""
    seeds: int = 3
    """Repeat what depends on chance so often, since one result does not show its spread."""
    data_dir: Path | None = None
    """The folder of local data sets; without it the environment variable RNNJAX_DATA says it."""
    out: Path = Path("runs", "lessons")
    """The folder of it all, with a folder for each lesson, results.md and results.json; what is in
    it is not measured again."""


def run_all(settings: Settings) -> dict[str, str]:
    """Runs the lessons; those that could not be run, and why."""
    check_settings(settings, seeds=whole(1), lessons=each(one_of(LESSONS)))
    modules = [importlib.import_module(f"experiments.lessons.{name}") for name in settings.lessons]
    read = {field.name for module in modules for field in dataclasses.fields(module.Settings)}
    for option in ("take", "data_dir"):
        refuse_unread(settings, "with --lessons that read it", option in read, option)
    found = _measured_before(settings)
    failed: dict[str, str] = {}
    for name, module in zip(settings.lessons, modules, strict=True):
        print(f"== {name}", flush=True)
        given = {"take": settings.take, "data_dir": settings.data_dir}
        known = {field.name for field in dataclasses.fields(module.Settings)}
        own = module.Settings(
            seeds=settings.seeds,
            out=settings.out / name,
            **{name: value for name, value in given.items() if name in known},
        )
        try:
            found[name] = run_lesson(module, own)
        except (DataError, OSError) as error:
            failed[name] = str(error)
            print(f"error: {error}", file=sys.stderr)
        write_results(settings, found, failed)
    return failed


def _measured_before(settings: Settings) -> dict[str, Sequence[Row]]:
    """The rows of the other lessons in the folder, so that the page keeps them."""
    folders = {name: settings.out / name for name in LESSONS if name not in settings.lessons}
    found = {n: read_rows(path) for n, path in folders.items() if (path / CONFIG).is_file()}
    return {name: rows for name, rows in found.items() if rows}


def write_results(
    settings: Settings, found: Mapping[str, Sequence[Row]], failed: Mapping[str, str]
) -> None:
    """Writes results.json, and results.md that shows the same with the figures."""
    found = {name: found[name] for name in LESSONS if name in found}
    lines = {name: summarize(rows) for name, rows in found.items()}
    drawn = draw_ratios(list(chain(*lines.values())), settings.out / RATIOS)
    size = {"take": settings.take, "seeds": settings.seeds}
    data = {
        "settings": size,
        "environment": environment(),
        "lessons": lines,
        "measured before": [name for name in found if name not in settings.lessons],
        "not run": dict(failed),
    }
    write_whole(settings.out / "results.json", json.dumps(plain(data), indent=1) + "\n")
    write_whole(settings.out / "results.md", "\n".join(_page(settings, found, failed, drawn)))


def _page(
    settings: Settings,
    found: Mapping[str, Sequence[Row]],
    failed: Mapping[str, str],
    drawn: bool,
) -> list[str]:
    take = "" if settings.take is None else f" --take {settings.take}"
    chosen = "" if settings.lessons == LESSONS else f" --lessons {' '.join(settings.lessons)}"
    command = f"{PROGRAM}{take} --seeds {settings.seeds}{chosen}"
    page = ["# The lessons", "", f"`{command}`, {time.strftime('%Y-%m-%d')}", ""]
    page += [f"![epoch seconds]({RATIOS})", ""] if drawn else []
    for name, rows in found.items():
        module = importlib.import_module(f"experiments.lessons.{name}")
        page += [f"## {(module.__doc__ or name).splitlines()[0]}", "", lesson_table(rows), ""]
        page += [] if name in settings.lessons else [_earlier(settings.out / name), ""]
        for png in sorted((settings.out / name).glob("*.png")):
            page += [f"![{png.stem}]({png.relative_to(settings.out)})", ""]
    page += [f"{name} was not run: {reason}\n" for name, reason in failed.items()]
    return page


def _earlier(folder: Path) -> str:
    """That a lesson was measured by an earlier command, and of how many examples."""
    take = read_config(folder)["settings"].get("take")
    return "Measured before" + ("." if take is None else f", with `--take {take}`.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code, which is 1 where a lesson could not be run."""
    settings = parse(Settings, PROGRAM, arguments)

    def run() -> int:
        settings.out.mkdir(parents=True, exist_ok=True)
        failed = run_all(settings)
        print(f"results in {settings.out / 'results.md'}")
        return 1 if failed else 0

    code = exit_code(run)
    if code == 130:
        print("the same command goes on", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

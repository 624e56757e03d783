"""Memory and time of a training step on long sequences, for what reverse mode may keep.

Run:     python -m experiments.measurements.remat
Prints:  for every number of steps and every value of ``remat``: the peak of the process's memory
         above what it held before the step, what the compiler set aside for the step, and the
         median and range of its time. One row, one fresh process: a peak does not come down.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess  # it runs this very file, and no shell  # nosec B404
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.running.console import exit_code
from experiments.running.parsing import parse
from experiments.running.process_memory import forget_peak, process_memory
from experiments.running.run_folder import write_whole
from experiments.running.setting_checks import Rule, check_settings, each, whole
from rnnjax.data import DataError

MEBIBYTE = 2**20
_WORDS = ("never", "step", "sqrt", "None")
_REMAT = Rule(
    f"one of {', '.join(_WORDS)} or a number of steps",
    lambda word: word in _WORDS or (word.isdecimal() and int(word) > 0),
)


@dataclass(frozen=True)
class Settings:
    """Measure memory and time of a training step by what reverse mode keeps."""

    cell: Literal["vanilla", "lstm", "gru"] = "lstm"
    """The recurrent cell: an LSTM has the most to keep, four gates and two states."""
    times: tuple[int, ...] = (4096, 16384)
    """Steps of the sequences: lengths at which keeping every gate starts to hurt."""
    remats: tuple[str, ...] = ("never", "step", "8", "32", "sqrt", "None")
    """What reverse mode may keep: all (never), the carries (step), those of every so many steps, as
    many as the root of the steps (sqrt), or what the library chooses (None)."""
    batch: int = 16
    """Sequences side by side, as in the published comparison of memory at 4,096 steps."""
    size: int = 128
    """Inputs and hidden units."""
    repeats: int = 5
    """Calls that are timed, after one that takes new pages of memory and is not."""
    out: str = ""
    """The file to write the rows to, as JSON; by default none is written."""


def parse_remat(word: str) -> Any:
    """The value of ``remat`` that a word of the command line means."""
    if word == "None":
        return None
    return int(word) if word.isdigit() else word


def measure(settings: Settings, steps: int, remat: str) -> dict[str, Any]:
    """One row, measured in this process."""
    import jax
    import jax.numpy as jnp

    import rnnjax

    cell = getattr(rnnjax, settings.cell)(settings.size)
    params = cell.init(jax.random.key(0), settings.size)
    xs = jax.random.normal(jax.random.key(1), (settings.batch, steps, settings.size))

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(jnp.square(rnnjax.unroll(cell, params, xs, remat=parse_remat(remat))[1]))

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, xs).compile()
    analysis = compiled.memory_analysis()
    jax.block_until_ready(xs)
    forget_peak()
    before = process_memory().resident
    seconds = []
    for _ in range(settings.repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, xs))
        seconds.append(time.perf_counter() - start)
    return {
        "T": steps,
        "remat": remat,
        "peak_mib": (process_memory().peak - before) / MEBIBYTE,
        "compiler_mib": analysis.temp_size_in_bytes / MEBIBYTE if analysis else None,
        "median_ms": 1e3 * statistics.median(seconds[1:]),
        "range_ms": [1e3 * min(seconds[1:]), 1e3 * max(seconds[1:])],
    }


def in_fresh_process(settings: Settings, steps: int, remat: str) -> dict[str, Any]:
    """One row, from a process of its own.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    task = json.dumps([dataclasses.asdict(settings), steps, remat])
    command = [sys.executable, "-m", "experiments.measurements.remat", "--row", task]
    # The interpreter that runs this, given a list, with settings as JSON.
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603
    if done.returncode:
        said = done.stderr.strip()[-500:]
        raise RuntimeError(f"{steps} steps with remat {remat} must end well, got {said}")
    return json.loads(done.stdout)


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    low, high = row["range_ms"]
    cells = [
        f"{row['T']:,}",
        f"`{row['remat']}`",
        f"{row['peak_mib']:.0f}",
        f"{row['compiler_mib']:.0f}",
        f"{row['median_ms']:.0f} ({low:.0f} to {high:.0f})",
    ]
    return f"| {' | '.join(cells)} |"


def run(settings: Settings) -> None:
    """Measure and print row after row, and write them to the file where there is one."""
    sizes = dict.fromkeys(("batch", "size", "repeats"), whole(1))
    check_settings(settings, **sizes, times=each(whole(1)), remats=each(_REMAT))
    path = Path(settings.out) if settings.out else None
    if path and (path.exists() or not path.parent.is_dir()):
        why = "a file that is there" if path.exists() else "a folder that is not there"
        raise DataError(f"out must be a new file in a folder that exists, got {path}, {why}")
    print("| T | remat | peak, MiB | set aside, MiB | step, ms |\n|---|---|---|---|---|")
    rows = []
    for steps in settings.times:
        for remat in settings.remats:
            rows.append(in_fresh_process(settings, steps, remat))
            print(line(rows[-1]), flush=True)
            if path:
                record = {"settings": dataclasses.asdict(settings), "rows": rows}
                write_whole(path, json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--row"]:
        settings, steps, remat = json.loads(given[1])
        print(json.dumps(measure(Settings(**settings), steps, remat)))
        return 0
    settings = parse(Settings, "python -m experiments.measurements.remat", given)
    return exit_code(lambda: run(settings))


if __name__ == "__main__":
    sys.exit(main())

"""The command line: what is taken, measured, kept, shown and compared."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from experiments.running.console import exit_code
from experiments.running.parsing import parse
from experiments.running.run_folder import CONFIG, RunFolder, processors, usual_folder
from experiments.running.run_settings import own_values
from experiments.running.setting_checks import above, check_rules, each, one_of, whole
from experiments.throughput import cases, report
from experiments.throughput.cases import Case, CellName, DType, Layers, Lengths, Mode
from experiments.throughput.libraries import LIBRARIES
from experiments.throughput.libraries.entries import Entry, Refusal
from experiments.throughput.measuring import Effort, Record, measure, outcome
from experiments.throughput.memory import add_process_peaks
from experiments.throughput.problems import Problem, answer, make_problem
from experiments.throughput.results import (
    RESULTS,
    Results,
    changes,
    differences,
    here,
    read_results,
)
from rnnjax.data import DataError


@dataclass(frozen=True)
class Settings:
    """Time layers of rnnjax beside those of other libraries, with the same weights."""

    take: Literal["standard", "all"] = "standard"
    """Which cases, if none of the six options below is given: a choice of them, or all."""
    cells: tuple[CellName, ...] = ()
    """The recurrent cells, by default the LSTM. GRUs are of the reset-after form; Haiku's only form
    is apart."""
    shapes: tuple[str, ...] = ()
    """Batch, steps, inputs and units as B,T,D,H, or by name: H32, H128, H256, H512, H1024,
    streaming, deepbench; by default the first five."""
    lengths: tuple[Lengths, ...] = ()
    """Lengths of the sequences: full, which is the default, or ragged, uniform between a quarter of
    T and T."""
    layers: tuple[Layers, ...] = ()
    """How many layers, and of what kind; by default one."""
    dtypes: tuple[DType, ...] = ()
    """The dtypes of weights and inputs; by default float32."""
    modes: tuple[Mode, ...] = ()
    """What is timed: forward, or training, which has the gradients of weights and inputs; by
    default both."""
    libraries: tuple[str, ...] = tuple(LIBRARIES)
    """The libraries to time, of which those take part that are installed."""
    rounds: int = 5
    """How often each library has its turn; times and ratios are medians over the rounds."""
    seconds: float = 0.1
    """Seconds that a turn lasts at least: what is shorter is called several times."""
    memory: Literal["compiler", "process"] = "compiler"
    """Whose peak memory is shown: what the compiler says (JAX only), or that of a process for each
    library."""
    quick: bool = False
    """Tiny cases of its own in two short rounds, to see that everything works."""
    seed: int = 0
    """Decides the weights, the inputs and the lengths."""
    out: Path | None = None
    """The folder of the run; by default runs/throughput-TIME. What is in it is not measured
    again."""
    again: bool = False
    """Measure also what is in the folder, as after a change of the code."""
    compare: Path | None = None
    """The results.json of an earlier run, to show what has changed since."""


# What chooses cases, beside --take and --quick.
_CHOICES = ("cells", "shapes", "lengths", "layers", "dtypes", "modes")


def wanted(settings: Settings) -> list[Case]:
    """The cases that the settings mean."""
    if settings.quick:
        return cases.quick()
    s = settings
    if not any(getattr(s, name) for name in _CHOICES):
        return cases.standard() if s.take == "standard" else cases.everything()
    return cases.product(
        s.cells or ("lstm",),
        s.shapes or tuple(name for name in cases.SHAPES if name != "streaming"),
        s.lengths or ("full",),
        s.layers or ("one",),
        s.dtypes or ("float32",),
        s.modes or ("forward", "training"),
    )


def check(settings: Settings) -> None:
    """Refuse what cannot be measured.

    Raises:
        DataError: naming the setting.
    """
    libraries = each(one_of(tuple(LIBRARIES)))
    check_rules(settings, {"libraries": libraries, "rounds": whole(1), "seconds": above(0)})
    if settings.quick and (given := [name for name in _CHOICES if getattr(settings, name)]):
        flags = ", ".join(f"--{name}" for name in given)
        raise DataError(f"--quick has cases of its own and must be without {flags}, got both")
    wanted(settings)


def run(settings: Settings, kept: RunFolder) -> Results:
    """Measure what is not in the folder yet; after every case all is on disk.

    Raises:
        DataError: the folder was measured with other versions, or on another machine.
    """
    taking, libraries = wanted(settings), _present(settings)
    path, results = kept.path / RESULTS, Results(here(), {})
    if path.exists():
        results = _continued(path, results, settings.again, [str(case) for case in taking])
    effort = Effort(2, 1e-3) if settings.quick else Effort(settings.rounds, settings.seconds)
    for number, case in enumerate(taking, 1):
        if not settings.again and not results.lacks(str(case), set(libraries)):
            continue
        print(f"[{number}/{len(taking)}] {case}", flush=True)
        busy = os.getloadavg()[0]
        if busy > processors():
            print(f"the machine is busy, load {busy:.1f}: expect wide ranges")
        # Ratios are of one race: who was in the last one is in this one, too.
        before = [name for name in LIBRARIES if name in results.measured(str(case))]
        entrants = list(dict.fromkeys([*libraries, *before]))
        records = _measured(case, entrants, effort, settings)
        kept.write_timing({"case": str(case), "load": busy, "records": records})
        results.cases[str(case)] = records
        results.write(path)
        report.print_case(records)
    return results


def _measured(
    case: Case, libraries: Sequence[str], effort: Effort, settings: Settings
) -> list[Record]:
    problem = make_problem(case, settings.seed)
    entered = [(name, one) for name in libraries for one in _entered(name, problem)]
    try:
        expected = answer(problem)
    except Exception as error:  # too large for rnnjax in float32, and so for all comparison
        why = outcome(error)
        return [{"library": one.name, "of": name, "case": case} | why for name, one in entered]
    records = measure(problem, expected, [one for _, one in entered], effort)
    date = time.strftime("%Y-%m-%d")
    for (name, _), record in zip(entered, records, strict=True):
        record.update({"of": name, "case": case, "date": date})
    if settings.memory == "process":
        add_process_peaks(case, records, settings.seed)
    return records


def _entered(name: str, problem: Problem) -> list[Entry | Refusal]:
    """What a library enters with; one that cannot even be imported refuses."""
    try:
        return list(LIBRARIES[name].enter(problem))
    except Exception as error:
        return [Refusal(name, outcome(error)["note"])]


def _present(settings: Settings) -> list[str]:
    """The libraries that can take part; the others are named."""
    for name in settings.libraries:
        if reason := LIBRARIES[name].missing:
            print(f"{name} is left out: {reason}")
    return [name for name in settings.libraries if LIBRARIES[name].missing is None]


def _continued(path: Path, fresh: Results, again: bool, taking: Sequence[str]) -> Results:
    found = read_results(path)
    lines = list(differences(found.environment, fresh.environment))
    if lines and not again:
        reasons = "".join(f"\n  {line}" for line in lines)
        raise DataError(
            f"{path} must be measured as it was before, for times to stand side by side; measure "
            f"--again or choose another folder, got:{reasons}"
        )
    if lines and (lost := [name for name in found.cases if name not in taking]):
        raise DataError(
            f"{path} must be measured anew as a whole, on another machine or with other versions; "
            f"take all its cases or choose another folder, got further ones: {', '.join(lost)}"
        )
    return fresh if lines else found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.throughput", arguments)
    folder = settings.out or usual_folder("throughput")
    # Compiled anew every time, or there would be nothing to time.
    jax.config.update("jax_enable_compilation_cache", False)

    def measure_all() -> int:
        check(settings)
        if (folder / CONFIG).is_file():
            _check_same_race(settings, folder)
        then = read_results(settings.compare) if settings.compare else None
        with RunFolder(folder, {"settings": dataclasses.asdict(settings)}, "resume") as kept:
            return _run_and_report(settings, kept, then)

    return exit_code(measure_all)


def _check_same_race(settings: Settings, folder: Path) -> None:
    """Refuse settings that what is in the folder was not measured with.

    Raises:
        DataError: naming the first that differs, or the folder is of another program.
    """
    found = own_values(folder, [field.name for field in dataclasses.fields(Settings)])
    for name in ("seed", "rounds", "seconds", "memory"):
        if not settings.again and found.get(name) != getattr(settings, name):
            raise DataError(
                f"{name} must be {found.get(name)}, as {folder} was measured; measure --again or "
                f"choose another folder, got {getattr(settings, name)}"
            )


def _run_and_report(settings: Settings, kept: RunFolder, then: Results | None) -> int:
    code, folder = 0, kept.path
    try:
        run(settings, kept)
    except KeyboardInterrupt:
        print("stopped: what was measured until now is kept", file=sys.stderr)
        code = 130
    if (folder / RESULTS).exists():
        results = read_results(folder / RESULTS)
        files = [RESULTS, *report.write(results, folder)]
        print(f"{', '.join(files)} in {folder}")
        if then is not None:
            report.print_changes(
                changes(then, results), list(differences(then.environment, results.environment))
            )
    return code

"""A case in every library: made ready, checked against the right answer, then timed in turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments.throughput.libraries.entries import Entry, Refusal, Running
from experiments.throughput.limits import limits
from experiments.throughput.problems import Problem, difference, tolerance
from rnnjax.benchmark import CallError, Timing, interleaved, ratio, tokens_per_second

BASELINE = "rnnjax"
Record = dict[str, Any]


class Effort(NamedTuple):
    """How often: rounds, and the least seconds of a turn."""

    rounds: int
    seconds: float


class Ready(NamedTuple):
    """An entry that gave the right answer, or the wrong one: ``record`` says how far off."""

    entry: Entry
    running: Running
    record: Record


def measure(
    problem: Problem, expected: np.ndarray, entered: Iterable[Entry | Refusal], effort: Effort
) -> list[Record]:
    """A record for each entry, whatever became of it.

    A record has ``library``, ``status`` ("measured", "different", "cannot", "out of memory" or
    "failed") and ``note``. One that ran has its times too; it has a ``ratio`` if it and the
    baseline both gave the right answer.
    """
    records, ready = [], []
    for one in entered:
        found = _prepare(problem, expected, one)
        records.append(found.record if isinstance(found, Ready) else found)
        ready += [found] if isinstance(found, Ready) else []
    timings = _time(ready, effort)
    least = limits(problem, effort.seconds / 2) if timings else {}
    for one in ready:
        timing = timings.get(one.entry.name)
        if timing:
            one.record.update(_figures(problem, timing, least))
    baseline = next((r for r in records if r["library"] == BASELINE), {})
    if baseline.get("status") == "measured":
        for one in ready:
            if one.record["status"] == "measured":
                found = ratio(timings[one.entry.name], timings[BASELINE])
                one.record["ratio"] = found._asdict()
    return records


def _prepare(problem: Problem, expected: np.ndarray, one: Entry | Refusal) -> Ready | Record:
    record: Record = {"library": one.name, "status": "measured", "note": ""}
    if isinstance(one, Refusal):
        return record | {"status": "cannot", "note": one.reason}
    try:
        running = one.make()
        off = difference(problem, running.read(running.call()), expected)
    except Exception as error:  # whatever a library does wrong, the next one gets its turn
        return record | outcome(error)
    record |= {"difference": off, "compile_seconds": running.compile_seconds}
    record["peak_bytes"] = running.peak_bytes
    if not off <= tolerance(problem.case):  # NaN is not right either
        note = f"off by {off:.1e} where {tolerance(problem.case):.0e} is allowed, not ranked"
        record |= {"status": "different", "note": note}
    return Ready(one, running, record)


def _time(ready: list[Ready], effort: Effort) -> dict[str, Timing]:
    """The times of those that run; one that fails while it is timed is left out and said so."""
    while ready:
        running = [one for one in ready if one.record["status"] in ("measured", "different")]
        if not running:
            break
        try:
            return interleaved(
                {one.entry.name: one.running.call for one in running},
                rounds=effort.rounds,
                seconds=effort.seconds,
                pauses={one.entry.name: one.entry.pause for one in running if one.entry.pause},
                warm=True,  # by the call that was checked
            )
        except CallError as error:
            failed = next(one for one in running if one.entry.name == error.name)
            failed.record.update(outcome(error.__cause__ or error))
    return {}


def _figures(problem: Problem, timing: Timing, least: dict[str, float]) -> Record:
    found = timing.spread
    figures: Record = {
        "seconds": found._asdict(),
        "rounds": list(timing.seconds),
        "calls": timing.calls,
        "tokens_per_second": tokens_per_second(timing, problem.valid_tokens),
        "microseconds_per_step": 1e6 * found.median / problem.case.shape.steps,
    }
    return figures | {f"share_of_{name}": s / found.median for name, s in least.items()}


def outcome(error: BaseException) -> Record:
    """What an error makes of a row.

    Example:
        >>> outcome(MemoryError("needs 90.0 GiB, of which 15.1 are free"))
        {'status': 'out of memory', 'note': 'needs 90.0 GiB, of which 15.1 are free'}
    """
    text = " ".join(str(error).split())[:200]
    signs = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
        return {"status": "out of memory", "note": text}
    return {"status": "failed", "note": f"{type(error).__name__}: {text}"}

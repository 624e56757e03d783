"""The peak of a process's memory while it runs one case in one library.

A peak does not come down, and freed memory is used again unseen: hence a process for each.
"""

from __future__ import annotations

import json
import subprocess  # it runs this very file, and no shell  # nosec B404
import sys

import jax

from experiments.running.process_memory import forget_peak, process_memory
from experiments.throughput.cases import Case, from_json
from experiments.throughput.libraries import LIBRARIES
from experiments.throughput.libraries.entries import Entry
from experiments.throughput.measuring import Record
from experiments.throughput.problems import make_problem


def add_process_peaks(case: Case, records: list[Record], seed: int) -> None:
    """Puts into the records of what ran ``process_peak_bytes``, or None where that failed."""
    for record in records:
        if "seconds" in record:
            record["process_peak_bytes"] = in_fresh_process(case, record, seed)


def in_fresh_process(case: Case, record: Record, seed: int) -> int | None:
    """By how much a call raises the peak of a process, above what it held before them."""
    task = json.dumps([case, record["of"], record["library"], seed])
    command = [sys.executable, "-m", "experiments.throughput.memory", task]
    # The interpreter that runs this, given a list, with the case as JSON.
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603
    return None if done.returncode else int(done.stdout.split()[-1])


def main(task: str) -> None:
    """Measure in this process, and print the bytes."""
    fields, library, name, seed = json.loads(task)
    problem = make_problem(from_json(fields), seed)
    for entry in LIBRARIES[library].enter(problem):
        if entry.name == name and isinstance(entry, Entry):
            call = entry.make().call
            forget_peak()
            before = process_memory().resident
            jax.block_until_ready(call())
            print(max(0, process_memory().peak - before))


if __name__ == "__main__":
    main(sys.argv[1])

"""The records of a run in results.json: kept while it goes on, read back, compared."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.running.run_folder import environment, plain, processors, write_whole
from experiments.throughput.libraries import LIBRARIES
from experiments.throughput.measuring import Record
from rnnjax.data import DataError

RESULTS = "results.json"

# What changes speed without being a version; all that is set is kept.
FLAGS = ("XLA_", "OMP_", "MKL_", "KMP_", "GLIBC_", "MALLOC_", "JAX_", "KERAS_BACKEND", "LD_PRELOAD")


class Results(NamedTuple):
    """What a file of results holds.

    Attributes:
        environment: versions, device, threads and flags.
        cases: by the name of the case, its records in the order they were measured in.
    """

    environment: dict[str, Any]
    cases: dict[str, list[Record]]

    def lacks(self, case: str, libraries: set[str]) -> bool:
        """Whether some of these libraries have no record of a case yet."""
        return not libraries <= set(self.measured(case))

    def measured(self, case: str) -> list[str]:
        """The libraries that have a record of a case."""
        return list(dict.fromkeys(record["of"] for record in self.cases.get(case, [])))

    def write(self, path: Path) -> None:
        """Write the file, in the place of an earlier one."""
        content = {"date": time.strftime("%Y-%m-%d %H:%M"), **self._asdict()}
        write_whole(path, json.dumps(plain(content), indent=1) + "\n")


def read_results(path: Path) -> Results:
    """The results in a file.

    Raises:
        DataError: it is not there, or no file of results.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        # The vanilla cell was called simple until November 2026.
        former = re.compile(r"^simple ")
        cases = {former.sub("vanilla ", name): kept for name, kept in content["cases"].items()}
        return Results(content["environment"], cases)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be the results of a run, got {error!r}") from None


def here() -> dict[str, Any]:
    """What the times depend on, beside the code that is timed."""
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = environment()
    for library in LIBRARIES.values():
        if library.missing is None:
            found[library.package] = metadata.version(library.package)
    found["threads"] = processors()
    config: Any = jax.config
    found["matmul_precision"] = config.jax_default_matmul_precision or "default"
    found["huge_pages"] = huge_pages.read_text("utf-8").strip() if huge_pages.exists() else None
    found["flags"] = {n: v for n, v in sorted(os.environ.items()) if n.startswith(FLAGS)}
    return plain(found)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two environments, a line each.

    Example:
        >>> list(differences({"jax": "0.10.2", "torch": "2.13.0"}, {"jax": "0.11.0"}))
        ['jax: 0.10.2 then, 0.11.0 now', 'torch: 2.13.0 then, nothing now']
    """
    for name in {**then, **now}:
        one, other = then.get(name, "nothing"), now.get(name, "nothing")
        if one != other:
            yield f"{name}: {one} then, {other} now"


class Change(NamedTuple):
    """What became of a row: new time over old time, and whether their ranges are apart."""

    case: str
    library: str
    then: float | None
    now: float | None
    beyond_noise: bool

    @property
    def verdict(self) -> str:
        if self.then is None:
            return "new"
        if self.now is None:
            return "gone"
        if not self.beyond_noise:
            return "within the spread"
        return "slower" if self.now > self.then else "faster"


def changes(then: Results, now: Results) -> list[Change]:
    """Every row of both: those whose times, least to most, do not overlap are beyond noise."""
    rows = dict.fromkeys([*_rows(now), *_rows(then)])
    return [_change(*row, _rows(then).get(row), _rows(now).get(row)) for row in rows]


def _rows(results: Results) -> dict[tuple[str, str], Record]:
    return {
        (case, record["library"]): record["seconds"]
        for case, records in results.cases.items()
        for record in records
        if "seconds" in record
    }


def _change(case: str, library: str, then: Record | None, now: Record | None) -> Change:
    if then is None or now is None:
        old, new = (each["median"] if each else None for each in (then, now))
        return Change(case, library, old, new, False)
    apart = now["least"] > then["most"] or now["most"] < then["least"]
    return Change(case, library, then["median"], now["median"], apart)

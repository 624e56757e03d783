"""What a training run leaves on disk: its settings, its records, and what it ran on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

from rnnjax._whole_files import written_whole
from rnnjax.checkpoint import FolderLock
from rnnjax.data import DataError

CONFIG, METRICS, TIMINGS = "config.json", "metrics.jsonl", "timings.jsonl"
CHECKPOINTS = "checkpoints"


def usual_folder(name: str) -> Path:
    """Where a run goes that was given no folder: in ``runs``, by its name and the time of now.

    Example:
        >>> usual_folder("tag-words").as_posix().startswith("runs/tag-words-20")
        True
    """
    return Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


class RunFolder:
    """A folder with the settings of a run, its records, and a lock against a second run.

    config.json holds the settings. metrics.jsonl holds what follows from them alone, so that two
    runs with the same settings leave the same bytes; what depends on the clock and the machine
    goes to timings.jsonl. Nothing is written through a link, and of a link that is to be replaced
    the link alone is deleted: what a folder from elsewhere holds cannot reach beyond it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with RunFolder(f"{folder}/run", {"learning_rate": 0.001}) as run:
        ...         run.write({"kind": "test", "loss": 0.5, "accuracy": float("nan")})
        ...     print(run.metrics_path.read_text().strip())
        {"kind": "test", "loss": 0.5, "accuracy": null}

    Args:
        path: the folder; made if need be, with those above it.
        config: what the run was started with; plain values, NumPy's and JAX's scalars, paths.
        existing: what to do with a folder that is not empty: "refuse" it, which tells of the
            options --resume and --replace; "new" refuses it for programs without these; "resume"
            its run (the records go on, see `rewind`, and config.json stays, see
            `update_config`); or "replace" its run, whose files are deleted.
        leaves: names of further files that the run will leave here, to be deleted by "replace".

    Raises:
        FileExistsError: the folder is not empty and `existing` is "refuse" or "new", or it is to be
            resumed and holds no run.
        rnnjax.checkpoint.errors.CheckpointError: another process runs in the folder.
        OSError: the folder cannot be made or written, or one of the run's files is a link.
        ValueError: `existing` is something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        existing: Literal["new", "refuse", "resume", "replace"] = "new",
        leaves: Sequence[str] = (),
    ) -> None:
        if existing not in ("new", "refuse", "resume", "replace"):
            known = '"new", "refuse", "resume" or "replace"'
            raise ValueError(f"existing must be {known}, got {existing!r}")
        self.path = Path(path)
        self.config_path = self.path / CONFIG
        self.metrics_path = self.path / METRICS
        self.checkpoints_path = self.path / CHECKPOINTS
        check_usable(self.path, existing)
        with _named(self.path), contextlib.ExitStack() as stack:
            self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FolderLock(self.path))
            own = (CONFIG, METRICS, TIMINGS, CHECKPOINTS, *leaves)
            if existing == "replace":
                _delete(self.path, own)
            _refuse_links(self.path, own)
            _sweep(self.path, (CONFIG, *leaves))
            self._config = json.dumps(plain(config), indent=2) + "\n"
            if not self.config_path.exists():
                self.update_config()
            self._metrics = stack.enter_context(_Records(self.metrics_path))
            self._timings = stack.enter_context(_Records(self.path / TIMINGS))
            self._open = stack.pop_all()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def update_config(self) -> None:
        """Makes config.json hold the given config, in a run that goes on with another one."""
        write_whole(self.config_path, self._config)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record to metrics.jsonl, on disk at once.

        NaN and infinity, which JSON lacks, become null.
        """
        self._metrics.add(record)

    def write_timing(self, record: Mapping[str, Any]) -> None:
        """Adds a record to timings.jsonl: what another run would not repeat."""
        self._timings.add(record)

    @property
    def position(self) -> dict[str, Any]:
        """How far metrics.jsonl goes, for a checkpoint: its bytes and their SHA-256."""
        return self._metrics.position

    def reaches(self, position: Mapping[str, Any]) -> bool:
        """Whether metrics.jsonl begins with exactly what it held at that position."""
        return self._metrics.reaches(position)

    def rewind(self, position: Mapping[str, Any] | None) -> None:
        """Cuts metrics.jsonl to what it held at that position; to nothing for None.

        Raises:
            ValueError: the file does not reach it.
        """
        self._metrics.rewind(position)


class _Records:
    """A file of JSON lines that only grows, and knows the hash of what is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")
        whole = path.read_bytes()
        self._cut(whole[: whole.rfind(b"\n") + 1])  # a line without its end was not written

    def __enter__(self) -> _Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def position(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def add(self, record: Mapping[str, Any]) -> None:
        line = (json.dumps(plain(record), allow_nan=False) + "\n").encode()
        with _named(self._path):
            self._file.write(line)
            self._file.flush()
        self._bytes += len(line)
        self._digest.update(line)

    def reaches(self, position: Mapping[str, Any]) -> bool:
        begin = self._path.read_bytes()[: position["bytes"]]
        return position == {"bytes": len(begin), "sha256": hashlib.sha256(begin).hexdigest()}

    def rewind(self, position: Mapping[str, Any] | None) -> None:
        if position is not None and not self.reaches(position):
            raise ValueError(
                f"{self._path} must begin as it did at byte {position['bytes']}, got other records"
            )
        self._cut(self._path.read_bytes()[: position["bytes"] if position else 0])

    def _cut(self, begin: bytes) -> None:
        self._file.truncate(len(begin))
        self._bytes, self._digest = len(begin), hashlib.sha256(begin)


def environment() -> dict[str, Any]:
    """Versions and devices, to be kept beside the settings of a run.

    Returns:
        Plain values; a package that is not installed, only importable, has version None.

    Example:
        >>> environment()["jax"] == jax.__version__
        True
    """
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "rnnjax", "numpy", "optax")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "backend": device.platform,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def processors() -> int:
    """How many processors this process may use: fewer than there are in a container, or a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def run_config(settings: Any) -> dict[str, Any]:
    """What config.json holds of a measurement: its settings, a dataclass, and what it ran on."""
    return {"settings": plain(dataclasses.asdict(settings)), "environment": environment()}


def plain(value: Any) -> Any:
    """The value as JSON would give it back: paths as strings, tuples as lists, NaN as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a scalar of NumPy or JAX
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """The content of a file that must be in the folder of a run.

    Raises:
        DataError: there is none, or it is no JSON.
    """
    if not path.is_file():
        raise DataError(f"{path.parent} must be the folder of a run, got no {path.name} in it")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be JSON, got {error}") from None


def check_usable(path: Path, existing: str) -> None:
    """Refuses a folder as `RunFolder` would, before there is a config to put in it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"run folder must have a name in UTF-8, got {str(path)!r}: in a locale without it, "
            "python -X utf8 reads names so"
        ) from None
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"run folder {path} must be a folder, got a file")
    # A run that died at its very start leaves a lock, or what was to become config.json.
    found = [] if not path.is_dir() else [entry.name for entry in path.iterdir()]
    used = [name for name in found if name != "lock" and not name.startswith(f".{CONFIG}.")]
    if existing in ("new", "refuse") and used:
        rest = ", go on with the run in it (--resume), or delete that and begin anew (--replace)"
        raise FileExistsError(
            f"run folder {path} must be empty, got {used[0]} in it: choose another"
            f"{rest if existing == 'refuse' else ''}"
        )
    if existing == "resume" and used and CONFIG not in used:
        raise FileExistsError(f"run folder {path} must hold a run to resume, got no {CONFIG} in it")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Says which file or folder it was that could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} must be writable, got {error.strerror or error}") from error


def _delete(folder: Path, names: Sequence[str]) -> None:
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_links(folder: Path, names: Sequence[str]) -> None:
    links = [name for name in names if (folder / name).is_symlink()]
    if links:
        raise OSError(f"links at {', '.join(links)}")


def _sweep(folder: Path, names: Sequence[str]) -> None:
    """Deletes what a process that died left of files it was about to rename."""
    for name in names:
        for path in folder.glob(f".{name}.*"):
            path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is whole at any time: who is cut off in between leaves what was there."""
    with written_whole(path) as file:
        file.write(text.encode())

"""The last few checkpoints of a run: saved in the background, verified when they are read."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rnnjax import _divided_arrays as divided_arrays
from rnnjax._checks import check_flag, check_size, check_there
from rnnjax._processes import Messages, ProcessError
from rnnjax.checkpoint._leaves import is_divided, kind_of, named, to_host, without_keys
from rnnjax.checkpoint._names import NAME, is_checkpoint, number_of, remove, step_of
from rnnjax.checkpoint._orbax import STATE, import_orbax, save_arrays
from rnnjax.checkpoint._plain import checked_step, plain_dict
from rnnjax.checkpoint._reading import load
from rnnjax.checkpoint._sealing import FORMAT, FORMAT_DIVIDED, MANIFEST, seal, sync, verified
from rnnjax.checkpoint._writing import DIVIDED, Copies, require_room, write_parts
from rnnjax.checkpoint.errors import CheckpointError, reason_of
from rnnjax.checkpoint.lock import FolderLock


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` found.

    Attributes:
        step: the number it was saved under.
        state: as it was saved.
        extra: what was saved beside it.
        rejected: the newer ones that were passed over, each with the reason.
    """

    step: int
    state: Any
    extra: dict[str, Any]
    rejected: tuple[str, ...]


class Checkpoints:
    """The last few checkpoints of a run, in a folder of their own.

    Saving costs the caller a copy of the arrays to the memory of the host; the rest happens in a
    thread. Where the disk is slower than the caller, a save that has not begun gives way to the
    next one, so that no more than two copies are ever held and nobody waits.

    In a program of several processes each of them makes one of the same folder, on a disk that all
    of them see, and calls its methods at the same steps. Arrays that are whole in every process are
    written by the first, those divided among processes by all; they come back on any other
    number of devices and processes. There a save waits for the one before, so that all processes
    write the same ones, and what fails in one of them is an error in all.

    Needs orbax-checkpoint; the extra ``checkpoint`` brings it.

    Args:
        folder: made if need be. What an earlier process left half-written in it is removed.
        keep: how many checkpoints stay; older ones are deleted when a new one is whole, so the
            disk needs room for one more. Those that :meth:`restore` passed over do not count, and
            stay until there are so many newer ones.
        read_only: True to read what another process may be writing: the folder is not made, swept
            or locked, and may be one that cannot be written; :meth:`save` is refused. A checkpoint
            that its writer deletes while it is verified is passed over; while it is loaded, that
            is an error, after which a newer one is there.

    Raises:
        CheckpointError: another process has the folder, or there is none to read.
        ValueError: ``keep`` is below 1, or ``read_only`` no flag.
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> state = {"w": jnp.arange(3.0), "key": jax.random.key(0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, keep=2) as checkpoints:
        ...         checkpoints.save(10, state, {"epoch": 1})
        ...     with Checkpoints(folder) as checkpoints:
        ...         restored = checkpoints.restore(state)
        >>> restored.step, restored.state["w"], restored.extra
        (10, Array([0., 1., 2.], dtype=float32), {'epoch': 1})
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep: int = 3, read_only: bool = False
    ) -> None:
        self._keep = check_size("keep", keep)
        self._read_only = check_flag("read_only", read_only)
        self._closed = False
        import_orbax()
        self.folder = Path(folder).absolute()
        self._lock: FolderLock | None = None
        self._messages = Messages()
        self._calls = itertools.count()
        self._steps = self._from_first("opened", self._open)
        self._rejected: set[Path] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._jobs: list[Future[None]] = []

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._closed = True
            self._writer.shutdown()
            if self._lock is not None:
                self._lock.close()

    def _open(self) -> list[int]:
        """Takes the folder, and sweeps it; the steps in it."""
        if self._read_only:
            if not self.folder.is_dir():
                raise CheckpointError(f"{self.folder} must be a folder of checkpoints, got none")
            return list(self.steps)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        for path in self.folder.glob("*.tmp"):
            if NAME.fullmatch(path.name):
                remove(path)
        self._next = max((number_of(path) for path in self._saved()), default=0) + 1
        return list(self.steps)

    def _from_first(self, name: str, action: Callable[[], Any]) -> Any:
        """What the first process comes to by this action, or its error, in all of them."""
        try:
            return self._messages.from_first(name, action)
        except ProcessError as error:
            raise CheckpointError(str(error)) from None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints on disk, in the order in which they were saved.

        They are not verified; :meth:`restore` does that.
        """
        if self._messages.process:
            return tuple(self._steps)  # as told: a disk of many machines may show them late
        return tuple(step_of(path) for path in self._saved())

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Copies the state and has it written in the background.

        The arrays may be donated or overwritten as soon as this returns. An error while writing,
        such as a full disk, is raised by the next call of :meth:`save` or :meth:`wait`.

        Args:
            step: a whole number, at least 0, of Python, NumPy or JAX; the same one may be saved
                again.
            state: a tree of arrays, typed keys among them.
            extra: what JSON can say: numbers, strings, flags, None, and lists and dicts of them,
                copied here. Scalars of NumPy and JAX come back as Python's.

        Raises:
            CheckpointError: an earlier save failed.
            ValueError: the step is no such number, a leaf is no array, one whose dtype is not
                written (texts, dates, objects), one that was given away (donated), or one that
                lies in other processes alone, two leaves have the same path, or JSON cannot say the
                extra; names it. Or these are closed, or to read only.
        """
        self._require_open()
        if self._read_only:
            raise ValueError("Checkpoints must not be read_only to save, got read_only=True")
        if self._messages.count > 1:
            self.wait()
        self._raise_failure()
        step = checked_step(step)
        plain_extra = plain_dict("extra", {} if extra is None else extra)
        leaves = named("state", state)
        check_there(state=state)
        manifest = {
            **FORMAT,
            "step": step,
            "leaves": {name: kind_of(leaf) for name, leaf in leaves.items()},
            "extra": plain_extra,
        }
        self._jobs = [job for job in self._jobs if not job.cancel()]
        leaves = without_keys(leaves)
        divided = {name: leaf for name, leaf in leaves.items() if is_divided(name, leaf)}
        if divided:
            manifest |= {**FORMAT_DIVIDED, "divided": list(divided)}
        whole = {name: leaf for name, leaf in leaves.items() if name not in divided}
        copies = Copies(
            to_host(whole) if self._messages.process == 0 else {},
            [divided_arrays.own_parts(leaf) for leaf in divided.values()],
            [divided_arrays.form_of(leaf) for leaf in divided.values()],
        )
        call = f"save {next(self._calls)}"
        self._jobs.append(self._writer.submit(self._write, call, step, copies, manifest))

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            CheckpointError: it could not be written; says why. Of several failures the first, with
                the others as its notes.
        """
        failures = [job.exception() for job in self._jobs]  # an interrupt here forgets none
        self._jobs = []
        _raise_first(failures)

    def restore(
        self,
        template: Any,
        step: int | None = None,
        *,
        partial: bool = False,
        accept: Callable[[dict[str, Any]], None] | None = None,
    ) -> Restored:
        """The newest checkpoint that is whole.

        Newest means saved last. One that is damaged is passed over; one that is whole but of
        another shape is an error, since those before it would be no better.

        Args:
            template: a tree like the saved one: arrays, or `jax.ShapeDtypeStruct`s, as
                `jax.eval_shape` gives them. Leaves come back where its leaves are: on their
                devices, or in NumPy arrays.
            step: only look at the checkpoints of this step; all when None.
            partial: True for a template that lacks some of what was saved, which is not loaded:
                such as a train state with ``opt_state=()``, for the parameters of a run whose
                optimizer is not at hand.
            accept: gets the ``extra`` of a whole checkpoint and raises a CheckpointError (or an
                OSError) to have it passed over too. Other errors go through to the caller.

        Raises:
            CheckpointError: there is none, none is whole (gives the reason for each), or paths,
                shapes or dtypes differ from those of the template; every difference is listed.
            ValueError: the template has a leaf that is no array, or these are closed.

        Example:
            >>> import tempfile, jax.numpy as jnp
            >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
            ...     checkpoints.save(1, {"w": jnp.zeros(3)})
            ...     checkpoints.wait()
            ...     checkpoints.restore({"w": jnp.zeros(4), "b": jnp.zeros(4)})
            Traceback (most recent call last):
                ...
            rnnjax.checkpoint.errors.CheckpointError: ... must have the leaves of the template, got:
              ['b'] must be float32[4], got nothing
              ['w'] must be float32[4], got float32[3]
        """
        self._require_open()
        step = None if step is None else checked_step(step)
        self.wait()
        call = f"restore {next(self._calls)}"
        name, manifest, rejected = self._from_first(call, lambda: self._find(step, accept))
        state = load(self.folder / name, manifest, template, partial=partial)
        # The first process may not delete it before all have read it.
        self._messages.gather(f"{call} is loaded", lambda: None)
        return Restored(manifest["step"], state, manifest["extra"], tuple(rejected))

    def _find(
        self, step: int | None, accept: Callable[[dict[str, Any]], None] | None
    ) -> tuple[str, dict[str, Any], list[str]]:
        """The newest good one: its name, its manifest, and those that were passed over."""
        rejected: list[str] = []
        for path in reversed(self._saved()):
            if step not in (None, step_of(path)):
                continue
            try:
                manifest = verified(path)
                if accept is not None:
                    accept(manifest["extra"])
            except (CheckpointError, OSError) as error:
                rejected.append(f"{path.name}: {error}")
                self._rejected.add(path)
                continue
            self._rejected.discard(path)  # if a disk could not be read for a while
            return path.name, manifest, rejected
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        reasons = "".join(f"\n  {reason}" for reason in rejected)
        raise CheckpointError(
            f"{self.folder} must have a whole {wanted}, got none{reasons and ':' + reasons}"
        )

    def _saved(self) -> list[Path]:
        found = [path for path in self.folder.iterdir() if is_checkpoint(path)]
        return sorted(found, key=number_of)

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError(
                "Checkpoints must be used inside their with block, got them closed: open the "
                "folder anew"
            )

    def _raise_failure(self) -> None:
        done = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in done]
        _raise_first([job.exception() for job in done])

    def _write(self, call: str, step: int, copies: Copies, manifest: dict[str, Any]) -> None:
        """Writes a checkpoint, each process its parts of it; fails in all of them if in one."""
        name = self._from_first(f"{call} begins", lambda: self._begin(step, copies))

        def write_own() -> dict[str, str]:
            try:
                return write_parts(self.folder / name, copies.parts)
            except Exception as error:  # see _failing
                process = self._messages.process
                raise CheckpointError(f"in process {process}: {reason_of(error)}") from error

        def finish() -> list[int]:
            with self._failing(step, self.folder / name):
                if copies.whole:
                    save_arrays(self.folder / name / STATE, copies.whole)
                sums = self._messages.gather(f"{call} parts", write_own) if copies.forms else []
                self._finish(self.folder / name, manifest, sums)
            return list(self.steps)

        if self._messages.process and copies.forms:
            with contextlib.suppress(Exception):  # the first process hears why, and tells all
                self._messages.gather(f"{call} parts", write_own)
        self._steps = self._from_first(f"{call} ends", finish)

    def _begin(self, step: int, copies: Copies) -> str:
        """Makes the folder of a checkpoint, with its divided arrays still empty; its name."""
        temporary = self.folder / f"{self._next:06d}-step-{step}.tmp"
        self._next += 1
        with self._failing(step, temporary):
            require_room(self.folder, copies)
            temporary.mkdir()
            for number, form in enumerate(copies.forms):
                divided_arrays.create(temporary / DIVIDED / str(number), form)
        return temporary.name

    def _finish(self, temporary: Path, manifest: dict[str, Any], sums: list[dict]) -> None:
        """Gives a checkpoint whose arrays are written its hashes and its name."""
        (temporary / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        seal(temporary, {name: digest for part in sums for name, digest in part.items()})
        temporary.rename(temporary.with_suffix(""))
        sync(self.folder)
        self._drop_old()

    @contextlib.contextmanager
    def _failing(self, step: int, temporary: Path) -> Iterator[None]:
        """Says of any error in it what could not be saved and what there is, and cleans up."""
        try:
            yield
        except Exception as error:  # whatever Orbax and the operating system may raise
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{self.folder}: could not save step {step} ({reason_of(error)}); "
                f"the steps there are: {', '.join(map(str, self.steps)) or 'none'}"
            ) from error

    def _drop_old(self) -> None:
        saved = self._saved()
        # What was passed over may be another run's, or could not be read for a while.
        good = [path for path in saved if path not in self._rejected]
        if len(good) < self._keep:
            return
        for path in saved[: saved.index(good[-self._keep])]:
            # Renamed first: a process killed here must not leave half a checkpoint.
            doomed = path.with_name(path.name + ".tmp")
            path.rename(doomed)
            shutil.rmtree(doomed)


def _raise_first(failures: list[BaseException | None]) -> None:
    first, *others = [error for error in failures if error is not None] or [None]
    if first is not None:
        for other in others:
            first.add_note(str(other))
        raise first

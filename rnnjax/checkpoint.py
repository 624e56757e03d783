"""Checkpoints that are whole or not there, hashed when written and verified when read.

A folder of checkpoints holds one folder for each, numbered in the order of saving:

    000007-step-1200/state/...       the arrays, as Orbax writes them, each under its path
    000007-step-1200/divided/...     those that several processes divide among them, if any
    000007-step-1200/manifest.json   step, shapes and dtypes, and what else the caller keeps
    000007-step-1200/SHA256SUMS      of every file above, in the format of sha256sum
    lock                             held by the process that writes here

All of it is written under a name that ends in .tmp and renamed when it is on disk, so a process
that is killed leaves nothing that could be taken for a checkpoint. Orbax itself restores a
flipped bit without a word; the hashes are there to notice. They are no signature: who
can write here can write them too. So what a checkpoint says of its arrays is held against the
template before memory is taken, nothing in it is run, and links, which may lead anywhere, are
refused.

In a program of several processes all of them save and restore together. The first one has the
lock, writes what all processes have whole, gives the checkpoint its name when the others have told
it the hashes of their parts, and verifies what is restored; what it finds, the others are told. The
folder lies where all of them see it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax import _divided_arrays as divided_arrays
from rnnjax._checks import check_size, missing_package
from rnnjax._native import in_native_order
from rnnjax._processes import Messages, ProcessError

SUMS, MANIFEST, STATE, DIVIDED = "SHA256SUMS", "manifest.json", "state", "divided"
_NAME = re.compile(r"([0-9]+)-step-([0-9]+)(\.tmp)?")
_ROOM = 1 << 20  # bytes on the disk for what is not arrays
_FORMAT = {"format": "rnnjax-checkpoint", "version": 1}
# With arrays in it that several processes divided among them, which version 1 did not know.
_FORMAT_DIVIDED = {"format": "rnnjax-checkpoint", "version": 2}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found, trusted or fitted; the message says why."""


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` found."""

    step: int
    state: Any
    extra: dict[str, Any]
    rejected: tuple[str, ...]  # the newer ones that were passed over, each with the reason


class FolderLock:
    """Keeps every other process out of a folder until closed, or until this process has died.

    The operating system holds the lock, in the file "lock": it ends with the process, whatever
    ended that. Other programs are not kept out, only other locks.

    Args:
        folder: a folder that exists.

    Raises:
        CheckpointError: another lock is held on the folder; says by which process. Or the file is
            a link: the process id would be written over the file it leads to.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with FolderLock(folder):
        ...         FolderLock(folder)
        Traceback (most recent call last):
            ...
        rnnjax.checkpoint.CheckpointError: ... must be free, got it in use by process ...
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder, "lock")
        if path.is_symlink():
            raise CheckpointError(f"{path} must be a file, got a link")
        self._file = open(path, "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
        try:
            _lock(self._file.fileno())
        except (BlockingIOError, PermissionError):
            self._file.seek(0)
            holder = self._file.read().strip() or "?"
            self._file.close()
            raise CheckpointError(
                f"{os.fspath(folder)} must be free, got it in use by process {holder}"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def close(self) -> None:
        """Lets others in."""
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
            disk needs room for one more.

    Raises:
        CheckpointError: another process has the folder.
        ValueError: ``keep`` is below 1.
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> state = {"w": jnp.arange(3.0), "key": jax.random.key(0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, keep=2) as checkpoints:
        ...         checkpoints.save(10, state, {"epoch": 1})
        ...     with Checkpoints(folder) as checkpoints:
        ...         restored = checkpoints.restore(state)
        >>> restored.step, restored.state["w"], restored.extra
        (10, Array([0., 1., 2.], dtype=float32), {'epoch': 1})
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3) -> None:
        self._keep = check_size("keep", keep)
        _import_orbax()
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
            self._writer.shutdown()
            if self._lock is not None:
                self._lock.close()

    def _open(self) -> list[int]:
        """Takes the folder, and sweeps it; the steps in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder)
        for path in self.folder.glob("*.tmp"):
            if _NAME.fullmatch(path.name):
                _remove(path)
        self._next = max((_number(path) for path in self._saved()), default=0) + 1
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
        return tuple(_step(path) for path in self._saved())

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
            ValueError: the step is no such number, a leaf is no array, one that was given away
                (donated), or one that lies in other processes alone, two leaves have the same path,
                or JSON cannot say the extra; names it.
        """
        if self._messages.count > 1:
            self.wait()
        self._raise_failure()
        step = _checked_step(step)
        plain_extra = _plain_dict("extra", {} if extra is None else extra)
        leaves = _named(state)
        _check_alive(leaves)
        manifest = {
            **_FORMAT,
            "step": step,
            "leaves": {name: _kind(leaf) for name, leaf in leaves.items()},
            "extra": plain_extra,
        }
        self._jobs = [job for job in self._jobs if not job.cancel()]
        leaves = _without_keys(leaves)
        divided = {name: leaf for name, leaf in leaves.items() if _is_divided(name, leaf)}
        if divided:
            manifest |= {**_FORMAT_DIVIDED, "divided": list(divided)}
        whole = {name: leaf for name, leaf in leaves.items() if name not in divided}
        copies = _Copies(
            _to_host(whole) if self._messages.process == 0 else {},
            [divided_arrays.own_parts(leaf) for leaf in divided.values()],
            [divided_arrays.form_of(leaf) for leaf in divided.values()],
        )
        call = f"save {next(self._calls)}"
        self._jobs.append(self._writer.submit(self._write, call, step, copies, manifest))

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            CheckpointError: it could not be written; says why.
        """
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def restore(
        self,
        template: Any,
        step: int | None = None,
        *,
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
            accept: gets the ``extra`` of a whole checkpoint and raises a CheckpointError (or an
                OSError) to have it passed over too. Other errors go through to the caller.

        Raises:
            CheckpointError: there is none, none is whole (gives the reason for each), or paths,
                shapes or dtypes differ from those of the template; every difference is listed.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
            ...     checkpoints.save(1, {"w": jnp.zeros(3)})
            ...     checkpoints.wait()
            ...     checkpoints.restore({"w": jnp.zeros(4), "b": jnp.zeros(4)})
            Traceback (most recent call last):
                ...
            rnnjax.checkpoint.CheckpointError: ... must have the leaves of the template, got:
              ['b'] must be float32[4], got nothing
              ['w'] must be float32[4], got float32[3]
        """
        step = None if step is None else _checked_step(step)
        self.wait()
        call = f"restore {next(self._calls)}"
        name, manifest, rejected = self._from_first(call, lambda: self._find(step, accept))
        state = _load(self.folder / name, manifest, template)
        # The first process may not delete it before all have read it.
        self._messages.gather(f"{call} is loaded", lambda: None)
        return Restored(manifest["step"], state, manifest["extra"], tuple(rejected))

    def _find(
        self, step: int | None, accept: Callable[[dict[str, Any]], None] | None
    ) -> tuple[str, dict[str, Any], list[str]]:
        """The newest good one: its name, its manifest, and those that were passed over."""
        rejected: list[str] = []
        for path in reversed(self._saved()):
            if step not in (None, _step(path)):
                continue
            try:
                manifest = _verified(path)
                if accept is not None:
                    accept(manifest["extra"])
            except (CheckpointError, OSError) as error:
                rejected.append(f"{path.name}: {error}")
                self._rejected.add(path)
                continue
            return path.name, manifest, rejected
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        reasons = "".join(f"\n  {reason}" for reason in rejected)
        raise CheckpointError(
            f"{self.folder} must have a whole {wanted}, got none{reasons and ':' + reasons}"
        )

    def _saved(self) -> list[Path]:
        found = [path for path in self.folder.iterdir() if _is_checkpoint(path)]
        return sorted(found, key=_number)

    def _raise_failure(self) -> None:
        done = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in done]
        for job in done:
            job.result()

    def _write(self, call: str, step: int, copies: _Copies, manifest: dict[str, Any]) -> None:
        """Writes a checkpoint, each process its parts of it; fails in all of them if in one."""
        name = self._from_first(f"{call} begins", lambda: self._begin(step, copies))

        def write_parts() -> dict[str, str]:
            try:
                return _write_parts(self.folder / name, copies.parts)
            except Exception as error:  # see _failing
                process = self._messages.process
                raise CheckpointError(f"in process {process}: {_reason(error)}") from error

        def finish() -> list[int]:
            with self._failing(step, self.folder / name):
                if copies.whole:
                    _save_arrays(self.folder / name / STATE, copies.whole)
                sums = self._messages.gather(f"{call} parts", write_parts) if copies.forms else []
                self._finish(self.folder / name, manifest, sums)
            return list(self.steps)

        if self._messages.process and copies.forms:
            with contextlib.suppress(Exception):  # the first process hears why, and tells all
                self._messages.gather(f"{call} parts", write_parts)
        self._steps = self._from_first(f"{call} ends", finish)

    def _begin(self, step: int, copies: _Copies) -> str:
        """Makes the folder of a checkpoint, with its divided arrays still empty; its name."""
        temporary = self.folder / f"{self._next:06d}-step-{step}.tmp"
        self._next += 1
        with self._failing(step, temporary):
            _require_room(self.folder, copies)
            temporary.mkdir()
            for number, form in enumerate(copies.forms):
                divided_arrays.create(temporary / DIVIDED / str(number), form)
        return temporary.name

    def _finish(self, temporary: Path, manifest: dict[str, Any], sums: list[dict]) -> None:
        """Gives a checkpoint whose arrays are written its hashes and its name."""
        (temporary / MANIFEST).write_text(json.dumps(manifest), "utf-8")
        _seal(temporary, {name: digest for part in sums for name, digest in part.items()})
        temporary.rename(temporary.with_suffix(""))
        _sync(self.folder)
        self._drop_old()

    @contextlib.contextmanager
    def _failing(self, step: int, temporary: Path) -> Iterator[None]:
        """Says of any error in it what could not be saved and what there is, and cleans up."""
        try:
            yield
        except Exception as error:  # whatever Orbax and the operating system may raise
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{self.folder}: could not save step {step} ({_reason(error)}); "
                f"the steps there are: {', '.join(map(str, self.steps)) or 'none'}"
            ) from error

    def _drop_old(self) -> None:
        saved = self._saved()
        good = [path for path in saved if path not in self._rejected]
        for path in saved[: saved.index(good[-self._keep :][0])]:
            # Renamed first: a process killed here must not leave half a checkpoint.
            doomed = path.with_name(path.name + ".tmp")
            path.rename(doomed)
            shutil.rmtree(doomed)


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint
    except ModuleNotFoundError as error:
        raise missing_package("rnnjax.checkpoint", "orbax-checkpoint", "checkpoint") from error
    return orbax.checkpoint


class _Copies(NamedTuple):
    """What a save writes, as it was when it was asked for."""

    whole: dict[str, np.ndarray]  # in the first process alone, which writes them
    parts: list[list[divided_arrays.Part]]  # of each divided array those that this process writes
    forms: list[divided_arrays.Form]  # of each divided array what all processes know of it


def _require_room(folder: Path, copies: _Copies) -> None:
    """Ends a save that cannot fit before Orbax does, which would say so in pages of tracebacks."""
    arrays = (*copies.whole.values(), *copies.forms)
    needed = sum(array.nbytes for array in arrays) + _ROOM
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"{folder} must have {needed:,} bytes of space left, got {free:,}")


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    orbax = _import_orbax()
    with _checkpointer() as checkpointer:
        checkpointer.save(path, args=orbax.args.StandardSave(arrays))


def _write_parts(temporary: Path, arrays: list[list[divided_arrays.Part]]) -> dict[str, str]:
    """Writes the parts that this process has of the divided arrays; the hashes of their files.

    Raises:
        CheckpointError: the folder is not there.
    """
    if not temporary.is_dir():
        raise CheckpointError(f"{temporary} must be on a disk that all processes see, got none")
    sums = {}
    for number, parts in enumerate(arrays):
        folder = temporary / DIVIDED / str(number)
        for path in divided_arrays.write(folder, parts):
            sums[path.relative_to(temporary).as_posix()] = _digest(path)
            for written in (path, *itertools.takewhile(folder.__ne__, path.parents)):
                _sync(written)
    return sums


def _stored_arrays(path: Path) -> Mapping[str, Any]:
    """Shapes and dtypes, without the arrays."""
    from etils import epath  # of Orbax, whose handlers take no other paths

    handler = _import_orbax().StandardCheckpointHandler(multiprocessing_options=_alone())
    try:
        return handler.metadata(epath.Path(path)).tree
    finally:
        handler.close()


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    orbax = _import_orbax()
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=orbax.args.StandardRestore())


def _checkpointer() -> Any:
    orbax, alone = _import_orbax(), _alone()
    handler = orbax.StandardCheckpointHandler(multiprocessing_options=alone)
    return orbax.Checkpointer(handler, multiprocessing_options=alone)


def _alone() -> Any:
    """Has Orbax write and read in this process without waiting for others at its barriers: those
    are of devices, for which a step in hand would have to end everywhere in the same order."""
    process = jax.process_index()
    return _import_orbax().options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"of {process}"
    )


def _require_kinds(found: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    kinds = {name: _kind(leaf) for name, leaf in found.items()}
    if kinds != expected:
        wrong = {name for name, _ in kinds.items() ^ expected.items()}
        raise CheckpointError(
            f"{STATE} must have the arrays of {MANIFEST}, got others at {', '.join(sorted(wrong))}"
        )


def _checked_step(step: Any) -> int:
    scalar = step.item() if _is_scalar_array(step) else step
    if isinstance(scalar, bool) or not isinstance(scalar, int) or scalar < 0:
        raise ValueError(f"step must be a whole number of at least 0, got {step!r}")
    return scalar


def _plain(name: str, value: Any) -> Any:
    """A copy in the types of JSON.

    Raises:
        ValueError: JSON cannot say it; names the part.
    """
    if _is_scalar_array(value):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{number}]", part) for number, part in enumerate(value)]
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{name} must have strings for names, got {wrong[0]!r}")
        return {key: _plain(f"{name}[{key!r}]", part) for key, part in value.items()}
    raise ValueError(
        f"{name} must be a number, a string, a flag, None, or a list or dict of them, "
        f"got {type(value).__name__}"
    )


def _plain_dict(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict, got {type(value).__name__}")
    return _plain(name, value)


def _is_scalar_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | jax.Array) and value.shape == ()


def _named(state: Any) -> dict[str, Any]:
    """The leaves under their paths, as in ".params['w']"."""
    leaves = [(jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree.leaves_with_path(state)]
    for name, leaf in leaves:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(f"state{name} must be an array, got {leaf!r}")
    doubled = [name for name, times in Counter(name for name, _ in leaves).items() if times > 1]
    if doubled:
        raise ValueError(f"state must have one leaf a path, got several at {', '.join(doubled)}")
    # Orbax would write another byte order as this one, and the manifest would say the other.
    return {n: in_native_order(a) if isinstance(a, np.ndarray) else a for n, a in leaves}


def _check_alive(leaves: Mapping[str, Any]) -> None:
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"state{name} must be there, got an array that was given away (donated): "
                "save the state that the step returned"
            )


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves with keys as the numbers in them, and without those that have no elements.

    Orbax refuses arrays without elements, and the manifest says all there is to know of them.
    """
    plain = {n: jax.random.key_data(leaf) if _is_key(leaf) else leaf for n, leaf in leaves.items()}
    return {name: leaf for name, leaf in plain.items() if leaf.size}


def _is_divided(name: str, leaf: Any) -> bool:
    """Whether no process has all of an array.

    Raises:
        ValueError: this process has nothing of it.
    """
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return False
    if not leaf.addressable_shards:
        raise ValueError(f"state{name} must have a part in every process, got {leaf.sharding}")
    return not leaf.is_fully_replicated


def _to_host(leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    # Copied: on a CPU this may be the very memory that the next step donates.
    return {name: np.array(leaf) for name, leaf in jax.device_get(leaves).items()}


def _load(path: Path, manifest: dict[str, Any], template: Any) -> Any:
    leaves, found = _named(template), manifest["leaves"]
    expected = {name: _kind(leaf) for name, leaf in leaves.items()}
    differences = [
        f"{name} must be {expected.get(name, 'absent')}, got {found.get(name, 'nothing')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} must have the leaves of the template, got:\n  " + "\n  ".join(differences)
        )
    plain = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for name, leaf in leaves.items()
    }
    # Orbax refuses arrays without elements, see _without_keys.
    arrays = {n: np.zeros(leaf.shape, leaf.dtype) for n, leaf in plain.items() if not leaf.size}
    stored = {name: _kind(leaf) for name, leaf in plain.items() if leaf.size}
    try:
        arrays |= _stored(path, manifest, stored)
    except Exception as error:  # whatever another version of Orbax may raise
        raise CheckpointError(
            f"{path} must be readable as well as whole, got {_reason(error)}"
        ) from error
    restored = [_placed(path, name, arrays[name], like) for name, like in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(template), restored)


def _stored(path: Path, manifest: dict[str, Any], expected: dict[str, str]) -> dict[str, Any]:
    """The arrays of a checkpoint, of NumPy, or on the disk those that are divided.

    What the files say of an array is held against what is expected before any of it is read:
    Orbax itself would make whatever they say, and leave out what they lack.
    """
    divided = {
        name: divided_arrays.open_array(path / DIVIDED / str(number))
        for number, name in enumerate(manifest.get("divided", ()))
    }
    whole = {name: kind for name, kind in expected.items() if name not in divided}
    in_state = _stored_arrays(path / STATE) if whole else {}
    _require_kinds({**divided_arrays.forms(divided), **in_state}, expected)
    return {**divided, **(_load_arrays(path / STATE) if whole else {})}


def _placed(path: Path, name: str, value: Any, like: Any) -> Any:
    """The value as the template has it: a key, an array on its devices, or NumPy's."""
    if isinstance(like, np.ndarray | np.generic):
        return divided_arrays.read(value)
    sharding = _sharding(like)
    if sharding is not None and not sharding.is_fully_addressable:
        placed = _placed_in_parts(value, sharding)
        if _is_key(like):
            placed = jax.random.wrap_key_data(placed, impl=_impl(like))
    else:
        # Not aliased: a step that donates it would write into memory that is NumPy's.
        where = None if _is_key(like) else sharding
        placed = jax.device_put(divided_arrays.read(value), where, may_alias=False)
        if _is_key(like):
            placed = jax.device_put(jax.random.wrap_key_data(placed, impl=_impl(like)), sharding)
    if _kind(placed) != _kind(like):  # 64 bits without jax_enable_x64
        raise CheckpointError(
            f"{path}: {name} must be {_kind(like)}, got {_kind(placed)}, which JAX makes of it here"
        )
    return placed


def _placed_in_parts(value: Any, sharding: Any) -> jax.Array:
    """An array of all processes, each of which reads what its own devices have of it."""
    parts = [
        jax.device_put(divided_arrays.read(value, index), device, may_alias=False)
        for device, index in sharding.addressable_devices_indices_map(value.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)


def _impl(like: Any) -> str:
    """The name of a key's generator, which an abstract key tells only to a trace."""
    found: list[str] = []
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), like)
    return found[0]


def _sharding(like: Any) -> Any:
    """Where a leaf of the template is; None where JAX may move it to where it is needed."""
    committed = getattr(like, "committed", True)  # an abstract array has only what it asks for
    return like.sharding if committed else None


def _is_checkpoint(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    whole = match is not None and match[3] is None
    return whole and path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Deletes a folder; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # Windows has no such flag


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed or the process ends.

    Raises:
        OSError: another process has it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # on Windows, where a range of bytes is locked instead
        import msvcrt

        # Far behind what is written: Windows lets nobody read a byte that is locked.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _sums(checkpoint: Path) -> bytes:
    """The list of the hashes of all files but the list itself."""
    lines = []
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_symlink():
            raise CheckpointError(f"{name} must be a file, got a link")
        if path.is_file() and name != SUMS:
            lines.append(f"{_digest(path)}  {name}\n")
    return "".join(lines).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(checkpoint: Path, sums: dict[str, str]) -> None:
    """Writes the list of hashes, and returns when all of the checkpoint is on the disk.

    Args:
        checkpoint: its folder.
        sums: the hashes that processes give of files they wrote: another machine may not see them
            yet, and would not list them.
    """
    lines = _parsed(_sums(checkpoint)) | sums
    order = sorted(lines, key=lambda name: checkpoint / name)  # as _sums has it
    (checkpoint / SUMS).write_text("".join(f"{lines[name]}  {name}\n" for name in order), "utf-8")
    for path in (checkpoint, *checkpoint.rglob("*")):
        _sync(path)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verified(checkpoint: Path) -> dict[str, Any]:
    """The manifest, once every file has been found to be what was written."""
    found = _sums(checkpoint)
    if not (checkpoint / SUMS).is_file():
        raise CheckpointError(f"{SUMS} must be there, got no such file")
    written = (checkpoint / SUMS).read_bytes()
    if written != found:
        raise CheckpointError(_damage(written, found))
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointError(f"{MANIFEST} must be there, got no such file")
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST} must be JSON, got {_reason(error)}") from None
    _check_manifest(manifest, _step(checkpoint))
    return manifest


def _check_manifest(manifest: Any, step: int) -> None:
    said = {n: manifest.get(n) for n in _FORMAT} if isinstance(manifest, dict) else None
    if said not in (_FORMAT, _FORMAT_DIVIDED):
        raise CheckpointError(f"{MANIFEST} must have {_FORMAT}, got {manifest!r:.80}")
    leaves = manifest.get("leaves")
    if not isinstance(leaves, dict) or not all(isinstance(kind, str) for kind in leaves.values()):
        raise CheckpointError(f"{MANIFEST} must have the kind of each leaf, got {leaves!r:.80}")
    divided = manifest.get("divided")
    if said == _FORMAT_DIVIDED and not _are_distinct_names(divided):
        raise CheckpointError(f"{MANIFEST} must have names of divided arrays, got {divided!r:.80}")
    extra, found = manifest.get("extra"), manifest.get("step")
    if not isinstance(extra, dict):
        raise CheckpointError(
            f"{MANIFEST} must have a dict of what else was kept, got {extra!r:.80}"
        )
    if found != step:
        raise CheckpointError(f"{MANIFEST} must have step {step}, got {found!r}")


def _are_distinct_names(value: Any) -> bool:
    strings = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return strings and len(set(value)) == len(value)


def _damage(written: bytes, found: bytes) -> str:
    """The first difference between the list that was written and that of what is there."""
    then, now = _parsed(written), _parsed(found)
    for name in sorted({*then, *now}):
        if name not in now:
            return f"{name} must be there, got no such file"
        if name not in then:
            return f"{SUMS} must list every file, got none of the name {name}"
        if then[name] != now[name]:
            return f"{name} must have the SHA-256 in {SUMS}, got another: it is damaged"
    return f"{SUMS} must list one file a line, got other lines: it is damaged"


def _parsed(sums: bytes) -> dict[str, str]:
    lines = sums.decode("utf-8", errors="replace").split("\n")
    return {name: digest for digest, gap, name in (line.partition("  ") for line in lines) if gap}


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: of TensorStore's long ones, the words of the system."""
    of_the_system = re.search(r"([^:]+) \[os_error_code=", str(error))
    if of_the_system:
        return of_the_system[1].strip()
    name = "" if isinstance(error, CheckpointError | ProcessError) else f"{type(error).__name__}: "
    return f"{name}{error}".splitlines()[0]

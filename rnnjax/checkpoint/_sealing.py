"""The hashes of all files of a checkpoint, and the manifest that says what is in them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rnnjax.checkpoint._names import step_of
from rnnjax.checkpoint.errors import CheckpointError, reason_of

SUMS, MANIFEST = "SHA256SUMS", "manifest.json"
FORMAT = {"format": "rnnjax-checkpoint", "version": 1}
# With arrays in it that several processes divided among them, which version 1 did not know.
FORMAT_DIVIDED = {"format": "rnnjax-checkpoint", "version": 2}


def seal(checkpoint: Path, sums: dict[str, str]) -> None:
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
        sync(path)


def sync(path: Path) -> None:
    """Returns when a file, or what a folder lists, is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verified(checkpoint: Path) -> dict[str, Any]:
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
        raise CheckpointError(f"{MANIFEST} must be JSON, got {reason_of(error)}") from None
    _check_manifest(manifest, step_of(checkpoint))
    return manifest


def _check_manifest(manifest: Any, step: int) -> None:
    said = {n: manifest.get(n) for n in FORMAT} if isinstance(manifest, dict) else None
    if said not in (FORMAT, FORMAT_DIVIDED):
        raise CheckpointError(f"{MANIFEST} must have {FORMAT}, got {manifest!r:.80}")
    leaves = manifest.get("leaves")
    if not isinstance(leaves, dict) or not all(isinstance(kind, str) for kind in leaves.values()):
        raise CheckpointError(f"{MANIFEST} must have the kind of each leaf, got {leaves!r:.80}")
    divided = manifest.get("divided")
    if said == FORMAT_DIVIDED and not _are_distinct_names(divided):
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


def _sums(checkpoint: Path) -> bytes:
    """The list of the hashes of all files but the list itself."""
    lines = []
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_symlink():
            raise CheckpointError(f"{name} must be a file, got a link")
        if path.is_file() and name != SUMS:
            lines.append(f"{digest(path)}  {name}\n")
    return "".join(lines).encode()


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

"""A network that reads and then writes, as files for a process that has JAX alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rnnjax.exporting import export_writer

ENCODE, STEP, TOKENS = "encode.jax", "step.jax", "tokens.json"


def write_programs(
    folder: Path,
    network: tuple[Any, Any, Any],
    vocabularies: Mapping[str, Path],
    *,
    source: jax.ShapeDtypeStruct | None = None,
    start: int = 2,
    stop: int = 3,
) -> None:
    """Write ``encode.jax`` and ``step.jax``, the vocabularies, and how to use them.

    Args:
        folder: where; made if need be.
        network: its ``encode``, its ``step`` and its parameters; see ``export_writer``.
        vocabularies: files to be there under these names.
        source: of one source where sources are no token ids.
        start: the id before the first one that is written.
        stop: the id that ends a text.
    """
    encode, step = export_writer(*network, source=source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENCODE).write_bytes(encode)
    (folder / STEP).write_bytes(step)
    (folder / TOKENS).write_text(json.dumps({"start": start, "stop": stop}) + "\n", "utf-8")
    for name, path in vocabularies.items():
        shutil.copyfile(path, folder / f"{name}.json")
    sizes = ", ".join(f"{name} {len(data):,} bytes" for name, data in _named(encode, step))
    given = "source, lengths" if source is None else "pictures"
    print(f"{folder}: {sizes}, the vocabularies and {TOKENS}. In a process that has jax alone:")
    print('  load = lambda name: jax.export.deserialize(open(name, "rb").read()).call')
    print(f'  carry, memory = load("{ENCODE}")({given})')
    print(f'  carry, out = load("{STEP}")(carry, memory, tokens)  # out["logits"]')
    print("experiments/translate/README.md has the whole loop")


def _named(encode: bytes, step: bytes) -> tuple[tuple[str, bytes], ...]:
    return (ENCODE, encode), (STEP, step)

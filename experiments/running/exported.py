"""A network that reads and then writes, as files for a process that has JAX alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.running.console import wrapped
from experiments.running.run_folder import CONFIG
from experiments.running.words import START, STOP
from rnnjax.data import DataError
from rnnjax.exporting import export_writer

ENCODE, STEP, TOKENS = "encode.jax", "step.jax", "tokens.json"


def write_programs(
    folder: Path,
    network: tuple[Any, Any, Any],
    vocabularies: Mapping[str, Path],
    *,
    source: jax.ShapeDtypeStruct | None = None,
) -> None:
    """Write ``encode.jax`` and ``step.jax``, the vocabularies, and how to use them.

    Args:
        folder: where; made if need be, and no folder of a run, which has vocabularies itself.
        network: its ``encode``, its ``step`` and its parameters; see ``export_writer``.
        vocabularies: files to be there under these names.
        source: of one source where sources are no token ids.

    Raises:
        DataError: it is the folder of a run.
    """
    if (folder / CONFIG).exists():
        raise DataError(f"--out must be a folder of its own, got that of a run, {folder}")
    programs = dict(zip((ENCODE, STEP), export_writer(*network, source=source), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (folder / name).write_bytes(program)
    (folder / TOKENS).write_text(json.dumps({"start": START, "stop": STOP}) + "\n", "utf-8")
    for name, path in vocabularies.items():
        shutil.copyfile(path, folder / f"{name}.json")
    sizes = ", ".join(f"{name} {len(data):,} bytes" for name, data in programs.items())
    given = "source, lengths" if source is None else "pictures"
    others = ", ".join([*(f"{name}.json" for name in vocabularies), TOKENS])
    print(wrapped(f"{folder}: {sizes}, {others}"))
    print("in a process that has jax alone:")
    print('  load = lambda name: jax.export.deserialize(open(name, "rb").read()).call')
    print(f'  carry, memory = load("{ENCODE}")({given})')
    print(f'  carry, out = load("{STEP}")(carry, memory, tokens)  # out["logits"]')
    print("experiments/translate/README.md has the whole loop")

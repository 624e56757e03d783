"""A checkpoint whose files are whole as the tree that a template describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rnnjax import _divided_arrays as divided_arrays
from rnnjax.checkpoint._leaves import is_key, kind_of, named
from rnnjax.checkpoint._orbax import STATE, load_arrays, stored_forms
from rnnjax.checkpoint._sealing import MANIFEST
from rnnjax.checkpoint._writing import DIVIDED
from rnnjax.checkpoint.errors import CheckpointError, reason_of


def load(path: Path, manifest: dict[str, Any], template: Any, *, partial: bool) -> Any:
    """The state, or with ``partial`` what the template has of it; its leaves are where those of
    the template are.

    Raises:
        CheckpointError: the template has other leaves, or the arrays cannot be read.
    """
    leaves = named("template", template)
    saved = manifest["leaves"]
    if partial:
        saved = {name: kind for name, kind in saved.items() if name in leaves}
    _require_leaves(path, saved, leaves)
    plain = {
        name: jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        for name, leaf in leaves.items()
    }
    # Orbax refuses arrays without elements, see without_keys.
    arrays = {n: np.zeros(leaf.shape, leaf.dtype) for n, leaf in plain.items() if not leaf.size}
    stored = {name: kind_of(leaf) for name, leaf in plain.items() if leaf.size}
    try:
        arrays |= _stored(path, manifest, stored, partial)
    except Exception as error:  # whatever another version of Orbax may raise
        raise CheckpointError(
            f"{path} must be readable as well as whole, got {reason_of(error)}"
        ) from error
    restored = [_placed(path, name, arrays[name], like) for name, like in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(template), restored)


def _require_leaves(path: Path, found: Mapping[str, str], leaves: Mapping[str, Any]) -> None:
    expected = {name: kind_of(leaf) for name, leaf in leaves.items()}
    differences = [
        f"{name} must be {expected.get(name, 'absent')}, got {found.get(name, 'nothing')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
    if differences:
        is_part = all(expected[name] == found.get(name) for name in expected)
        hint = " (give partial=True to read a part)" if is_part else ""
        raise CheckpointError(
            f"{path} must have the leaves of the template{hint}, got:\n  "
            + "\n  ".join(differences)
        )


def _stored(
    path: Path, manifest: dict[str, Any], expected: dict[str, str], partial: bool
) -> dict[str, Any]:
    """The arrays of a checkpoint, of NumPy, or on the disk those that are divided.

    What the files say of an array is held against what is expected before any of it is read:
    Orbax itself would make whatever they say, and leave out what they lack.
    """
    divided = {
        name: divided_arrays.open_array(path / DIVIDED / str(number))
        for number, name in enumerate(manifest.get("divided", ()))
    }
    whole = {name: kind for name, kind in expected.items() if name not in divided}
    in_state = stored_forms(path / STATE) if whole else {}
    found = {**divided_arrays.forms(divided), **in_state}
    if partial:
        found = {name: form for name, form in found.items() if name in expected}
    _require_kinds(found, expected)
    return {**divided, **(load_arrays(path / STATE, whole) if whole else {})}


def _require_kinds(found: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    kinds = {name: kind_of(leaf) for name, leaf in found.items()}
    if kinds != expected:
        wrong = {name for name, _ in kinds.items() ^ expected.items()}
        raise CheckpointError(
            f"{STATE} must have the arrays of {MANIFEST}, got others at {', '.join(sorted(wrong))}"
        )


def _placed(path: Path, name: str, value: Any, like: Any) -> Any:
    """The value as the template has it: a key, an array on its devices, or NumPy's."""
    if isinstance(like, np.ndarray | np.generic):
        return divided_arrays.read(value)
    sharding = _sharding(like)
    if sharding is not None and not sharding.is_fully_addressable:
        placed = _placed_in_parts(value, sharding)
        if is_key(like):
            placed = jax.random.wrap_key_data(placed, impl=_impl(like))
    else:
        where = None if is_key(like) else sharding
        placed = jax.device_put(divided_arrays.read(value), where)
        if is_key(like):
            placed = jax.device_put(jax.random.wrap_key_data(placed, impl=_impl(like)), sharding)
    if kind_of(placed) != kind_of(like):  # 64 bits without jax_enable_x64
        raise CheckpointError(
            f"{path}: {name} must be {kind_of(like)}, got {kind_of(placed)}, which JAX makes of it "
            "here"
        )
    return placed


def _placed_in_parts(value: Any, sharding: Any) -> jax.Array:
    """An array of all processes, each of which reads what its own devices have of it."""
    parts = [
        jax.device_put(divided_arrays.read(value, index), device)
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

"""Weights in one safetensors file, each under the name of its place in the tree."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax._checks import check_there, is_unicode, shown
from rnnjax._native import in_native_order
from rnnjax._whole_files import written_whole
from rnnjax.weights._tensor_files import KNOWN_DTYPES, open_tensors

Params = TypeVar("Params")

# Endings by which other programs know what is in a file: none of these is safetensors.
_TORCH, _KERAS = (".ckpt", ".pickle", ".pkl", ".pt", ".pth"), (".h5", ".hdf5", ".keras")
_OTHER_FORMATS = {*_TORCH, *_KERAS, ".json", ".msgpack", ".npy", ".npz", ".onnx"}


def named_parameters(params: Any) -> dict[str, Array]:
    """The leaves of a tree under their paths, joined by dots.

    Args:
        params: a tree; fields, indices and keys on the way to a leaf make its name.

    Returns:
        Names and leaves, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: two leaves would have the same name, as "a.b" and "b" in "a" do.

    Example:
        >>> list(named_parameters({"encoder": ({"w_ih": jnp.ones(2)},), "head": jnp.ones(3)}))
        ['encoder.0.w_ih', 'head']
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise ValueError(f"params must have one leaf a name, got several at {', '.join(doubled)}")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def save_weights(
    path: str | os.PathLike[str], params: Any, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes parameters to a safetensors file; a file of that name is replaced in one go.

    A run that dies meanwhile leaves the old file, or none, but never a part of the new one.

    Args:
        path: the file, in a folder that exists; its name does not end as those of another format.
        params: a tree of arrays.
        metadata: strings to keep beside them, read back by `load_metadata`.

    Raises:
        ValueError: two leaves would have the same name, one has a name or a dtype that the format
            does not know, or the metadata are no strings of Unicode; names it. Or the name of the
            file is one of another format, such as ``model.pt``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/w.safetensors", {"bias": jnp.arange(3.0)})
        ...     load_weights(f"{folder}/w.safetensors", {"bias": jnp.zeros(3)})
        {'bias': Array([0., 1., 2.], dtype=float32)}
    """
    import safetensors.numpy

    file = _checked_path(path)
    leaves = named_parameters(params)
    for name, leaf in leaves.items():
        _check_leaf(name, leaf)
    check_there(params=params)
    # The format knows row-major arrays only, and an array from a device may be strided.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in jax.device_get(leaves).items()}
    kept = None if metadata is None else _checked_metadata(metadata)
    data = safetensors.numpy.save(arrays, kept) if arrays else _without_arrays(kept or {})
    with written_whole(file) as whole:
        whole.write(data)


def load_weights(
    path: str | os.PathLike[str], like: Params, *, only: Sequence[str] | None = None
) -> Params:
    """Reads parameters from a safetensors file into a tree of known shapes.

    Nothing is cast, broadcast, left out or filled in. The header is held against the file and
    against ``like`` before an array is read, so that no file can take more memory than they do.

    With ``only``, as for fine-tuning with a new head, the parts it names are read, and of them
    nothing may be missing either. The rest stays as it is in ``like``; the rest of the file is not
    read, but for its header.

    Args:
        path: the file.
        like: the tree to fill: arrays or `jax.ShapeDtypeStruct`s, for instance
            `jax.eval_shape` of an initialiser. What ``only`` leaves out must be arrays.
        only: names of leaves, or beginnings of names up to a dot, such as ``["encoder"]`` for all
            inside it; `named_parameters` gives the names.

    Returns:
        A tree like `like`, its leaves on the default device; those that ``only`` leaves out are
        the ones of ``like``.

    Raises:
        ValueError: the file is no whole safetensors file, or names, shapes or dtypes differ
            from those of `like`; every difference is listed. Or ``only`` names no part of `like`,
            or one that is to stay is no array.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/w.safetensors", {"bias": jnp.arange(3.0)})
        ...     load_weights(f"{folder}/w.safetensors", {"bias": jnp.zeros(4)})
        Traceback (most recent call last):
            ...
        ValueError: ... must have the arrays of like, got:
          bias must be float32[4], got float32[3]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/w.safetensors", {"gain": jnp.ones(2), "head": jnp.ones(5)})
        ...     params = {"gain": jnp.zeros(2), "head": jnp.zeros(3)}
        ...     load_weights(f"{folder}/w.safetensors", params, only=["gain"])
        {'gain': Array([1., 1.], dtype=float32), 'head': Array([0., 0., 0.], dtype=float32)}
    """
    expected = named_parameters(in_native_order(like))
    parts = _checked_parts(only, expected)
    wanted = {name: leaf for name, leaf in expected.items() if _is_in(name, parts)}
    for name, leaf in expected.items():
        if name not in wanted and isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"like, at {name!r}, must be an array, which stays as only={only!r} does not "
                "name it, got its shape alone"
            )
    with open_tensors(path) as file:
        found = {name: entry for name, entry in file.entries.items() if _is_in(name, parts)}
        differences = _differences(wanted, found)
        if differences:
            hint = "" if only is not None else _agreeing(wanted, found)
            raise ValueError(
                f"{path}{hint} must have the arrays of like, got:\n  " + "\n  ".join(differences)
            )
        # The dtype is spelled out so that JAX warns where it cannot hold 64 bits.
        read = {name: jnp.asarray(file.read(name), found[name].dtype) for name in wanted}
    return jax.tree.unflatten(jax.tree.structure(like), {**expected, **read}.values())


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings that were saved beside the weights.

    Raises:
        ValueError: the file is no whole safetensors file.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/w.safetensors", {"bias": jnp.ones(3)}, {"epoch": "7"})
        ...     load_metadata(f"{folder}/w.safetensors")
        {'epoch': '7'}
    """
    with open_tensors(path) as file:
        return dict(file.metadata)


def _checked_path(path: Any) -> Path:
    """The file to write, refused where its name promises another format."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path must be the name of a file, got {shown(path)}: the order is "
            "save_weights(path, params)"
        )
    file = Path(path)
    if file.suffix.lower() in _OTHER_FORMATS:
        raise ValueError(
            f"path must end in .safetensors, which is what is written, got {os.fspath(path)!r}"
        )
    return file


def _check_leaf(name: str, leaf: Any) -> None:
    """Refuse what could not be read again: the library writes some of it without a word."""
    if name == "__metadata__":
        raise ValueError("params must have no leaf of the name '__metadata__', got one")
    if not is_unicode(name):
        raise ValueError(
            f"params must have names of Unicode text, got half of a surrogate pair in {name!r}"
        )
    if isinstance(leaf, bool | int | float | complex):
        leaf = np.asarray(leaf)
    is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    dtype = leaf.dtype if is_array else None
    native = dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype
    if native not in KNOWN_DTYPES:
        came = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
        names = ", ".join(sorted(str(known) for known in KNOWN_DTYPES))
        is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        hint = ": of a train state, save state.params" if is_key else ""
        raise ValueError(f"params, at {name!r}, must be of one of {names}, got {came}{hint}")


def _checked_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata must be a dict of strings, got {type(metadata).__name__}")
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"metadata must be strings by name, got {value!r} at {name!r}")
        if not is_unicode(name) or not is_unicode(value):
            raise ValueError(
                "metadata must be Unicode text, got half of a surrogate pair in "
                f"{value!r} at {name!r}"
            )
    return dict(metadata)


def _without_arrays(metadata: dict[str, str]) -> bytes:
    """What the library, as of 0.8.0, writes as broken JSON: a file of metadata alone."""
    header = json.dumps({"__metadata__": metadata}).encode()
    return len(header).to_bytes(8, "little") + header


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in {**expected, **found}:
        wanted = _kind(expected[name]) if name in expected else "absent"
        given = _kind(found[name]) if name in found else "nothing"
        if wanted != given:
            lines.append(f"{name} must be {wanted}, got {given}")
    return lines


def _is_in(name: str, parts: Sequence[str] | None) -> bool:
    return parts is None or any(name == part or name.startswith(f"{part}.") for part in parts)


def _checked_parts(only: Any, expected: Mapping[str, Any]) -> Sequence[str] | None:
    """``only``, every entry of which names something in ``like``."""
    if only is None:
        return None
    if isinstance(only, str) or not isinstance(only, Sequence) or not only:
        raise ValueError(f'only must be names in a list, such as ["encoder"], got {only!r:.60}')
    for part in only:
        if not isinstance(part, str) or not any(_is_in(name, [part]) for name in expected):
            tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in expected))
            raise ValueError(f"only must name parts of like, such as {tops}, got {part!r}")
    return only


def _agreeing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How to load those parts of which nothing differs; no word where there are none."""
    tops = dict.fromkeys(name.split(".")[0] for name in expected)
    differing = {
        name.split(".")[0]
        for name in {**expected, **found}
        if not (name in expected and name in found and _kind(expected[name]) == _kind(found[name]))
    }
    same = [top for top in tops if top not in differing]
    return f", of which only={same!r} loads what agrees," if same else ""


def _kind(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        raise ValueError(f"like must be a tree of arrays or their shapes, got {leaf!r:.60}")
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"

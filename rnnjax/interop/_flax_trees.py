"""What linen and nnx share: the tree of ``RNN`` and ``Bidirectional``, and gates kept apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnjax.interop._entries import read_entries
from rnnjax.interop._kinds import KINDS, make_params, read_params
from rnnjax.interop._parts import convert_parts
from rnnjax.layers.bidirectional import Directions

Pieces = Mapping[str, list[str]]  # a field of the parameters -> the entries it is made of, in order


def import_tree(kind: str, weights: Any, pieces: Pieces, library: str) -> Any:
    """Parameters from nested mappings; a field without any entry becomes zeros."""

    def convert(cell: Mapping[str, Any], place: str) -> Any:
        flat = _flat(cell)
        if not flat.keys() & {name for names in pieces.values() for name in names}:
            _suggest_place(cell, pieces, f"{place}, {library} {kind!r}", place)
        arrays = read_entries(flat, _flax_shapes(kind, pieces), f"{place}, {library} {kind!r}")
        zeros = np.zeros(arrays[pieces["w_hh"][0]].shape[0], arrays[pieces["w_hh"][0]].dtype)
        fields = {
            field: np.concatenate([arrays[name] for name in names], axis=-1) if names else zeros
            for field, names in pieces.items()
        }
        return make_params(kind, fields)

    return convert_parts(convert, _cells(weights), "weights")


def _suggest_place(weights: Any, pieces: Pieces, what: str, place: str) -> None:
    """Refuse weights among which the cell lies deeper, and say where."""
    wanted = {name for names in pieces.values() for name in names}

    def search(node: Any, path: str) -> list[str]:
        if not isinstance(node, Mapping):
            return []
        if wanted <= _flat(node).keys():
            return [path]
        return [found for key, inner in node.items() for found in search(inner, f"{path}[{key!r}]")]

    if found := search(weights, place):
        raise ValueError(
            f"{what} must be a cell, got none there; did you mean {' or '.join(found[:5])}?"
        )


def export_tree(kind: str, params: Any, pieces: Pieces, library: str) -> Any:
    """Nested mappings from parameters; a field without any entry must be zero."""

    def convert(cell: Any, place: str) -> Mapping[str, Any]:
        fields = read_params(kind, cell, place)
        nested: dict[str, dict[str, np.ndarray]] = {}
        for field, names in pieces.items():
            if not names:
                _check_zero(f"{place}: {field}", fields[field], library)
                continue
            for name, array in zip(names, np.split(fields[field], len(names), -1), strict=True):
                module, leaf = name.split("/")
                nested.setdefault(module, {})[leaf] = np.ascontiguousarray(array)
        return {"cell": nested}

    return _nested(convert_parts(convert, params, "params"))


def _check_zero(name: str, array: np.ndarray, library: str) -> None:
    if array.any():
        raise ValueError(f"{name} must be zero, as {library} has no weights for it, got others")


def _flax_shapes(kind: str, pieces: Pieces) -> dict[str, str]:
    """The axes of every entry: those of its field, the last one cut into as many pieces."""
    shapes = {}
    for field, axes in KINDS[kind].shapes.items():
        *first, last = axes.split()
        for name in pieces[field]:
            gates = int(last[:-1] or 1) // len(pieces[field])
            shapes[name] = " ".join([*first, f"{gates}{last[-1]}"])
    return shapes


def _flat(weights: Any) -> dict[str, Any]:
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights must be those of a cell by name, got {type(weights).__name__}")
    flat = {}
    for name, boxed in weights.items():
        node = boxed.unbox() if hasattr(boxed, "unbox") else boxed  # as linen keeps partitions
        inner = _flat(node) if isinstance(node, Mapping) else {"": node}
        flat |= {f"{name}/{leaf}".rstrip("/"): array for leaf, array in inner.items()}
    return flat


def _cells(weights: Any) -> Any:
    """The tree of cells that nested mappings mean."""
    if isinstance(weights, Directions):
        return Directions(*map(_cells, weights))
    if isinstance(weights, list | tuple):
        return tuple(_cells(layer) for layer in weights)
    names = set(weights) if isinstance(weights, Mapping) else set()
    if names == {"forward_rnn", "backward_rnn"}:
        return Directions(_cells(weights["forward_rnn"]), _cells(weights["backward_rnn"]))
    return weights["cell"] if names == {"cell"} else weights


def _nested(tree: Any) -> Any:
    if isinstance(tree, Directions):
        return {"forward_rnn": tree.forward, "backward_rnn": tree.backward}
    return [_nested(layer) for layer in tree] if isinstance(tree, tuple) else tree

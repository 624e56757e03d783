"""Named arrays held against the shapes they must have, before anything is converted."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rnnjax._native import in_native_order

Shapes = Mapping[str, str]  # name -> axes, as in {"weight_ih": "4H D"}


def read_entries(found: Mapping[str, Any], shapes: Shapes, place: str) -> dict[str, np.ndarray]:
    """NumPy copies of the arrays named in ``shapes``, if all of them are there and fit.

    An axis is a number, a letter, or a number of times a letter. A letter stands for one size
    everywhere; the first entry that holds it tells which, so the surest entry should come first.

    Args:
        found: arrays by name: of NumPy, JAX, or anything NumPy can read.
        shapes: the axes each must have, by name.
        place: where the arrays come from, for the message.

    Raises:
        ValueError: listing every entry that is missing, unexpected, of another shape, or not
            floating; or the entries differ in dtype.
    """
    arrays, problems = {}, []
    for name, value in found.items():
        if name not in shapes:
            problems.append(f"{name} must be absent, got {type(value).__name__}")
            continue
        try:
            # A copy: the arrays of a live module may go on changing.
            arrays[name] = in_native_order(np.asarray(value)).copy()
        except (TypeError, ValueError, RuntimeError) as error:
            hint = (
                ": give it as float32, in PyTorch by .float()" if "BFloat16" in str(error) else ""
            )
            problems.append(f"{name} must be readable by NumPy, got {error}{hint}")
    sizes = {"": 1}
    for name, axes in shapes.items():
        if name in arrays:
            problems += _misfits(name, arrays[name], axes, sizes)
        elif name not in found:
            problems.append(f"{name} must have shape {_shape(axes, sizes)}, got nothing")
    problems = problems or list(_mixed_dtypes(arrays))
    if problems:
        raise ValueError(f"{place} must have weights that fit, got:\n  " + "\n  ".join(problems))
    return {name: arrays[name] for name in shapes}


def check_names(name: str, weights: Any) -> None:
    """Refuse what is no mapping of names to arrays, such as a module itself.

    Raises:
        ValueError: naming ``name`` and what came.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"{name} must be arrays by name, got {type(weights).__name__}")
    wrong = [key for key in weights if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"{name} must be arrays by name, got the name {wrong[0]!r}")


def _misfits(name: str, array: np.ndarray, axes: str, sizes: dict[str, int]) -> Iterator[str]:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        yield f"{name} must be of floating dtype, got {array.dtype}"
    parsed = _parse(axes)
    if array.ndim == len(parsed):
        # "4H H": the axis that is H itself tells it, even where the other one does not fit.
        for (count, letter), size in sorted(zip(parsed, array.shape, strict=True)):
            if letter and size % count == 0:
                sizes.setdefault(letter, size // count)
    if array.shape != tuple(count * sizes.get(letter, -1) for count, letter in parsed):
        yield f"{name} must have shape {_shape(axes, sizes)}, got {array.shape}"


def _mixed_dtypes(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    if len({array.dtype for array in arrays.values()}) > 1:
        yield "all must have one dtype, got " + ", ".join(
            f"{name} {array.dtype}" for name, array in arrays.items()
        )


def _parse(axes: str) -> list[tuple[int, str]]:
    pairs = [re.fullmatch(r"(\d*)([A-Z]?)", axis) for axis in axes.split()]
    return [(int(pair[1] or 1), pair[2]) for pair in pairs if pair]


def _shape(axes: str, sizes: Mapping[str, int]) -> str:
    """``[4H, D]``, with the sizes of its letters as far as they are known."""
    parsed = _parse(axes)
    letters = dict.fromkeys(letter for _, letter in parsed if letter and letter in sizes)
    known = ", ".join(f"{letter} = {sizes[letter]}" for letter in letters)
    shape = ", ".join(letter if count == 1 else f"{count}{letter}" for count, letter in parsed)
    return f"[{shape}]" + (f" with {known}" if known else "")

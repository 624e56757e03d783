"""Labels as batches need them, one an example or one a step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._numbers import is_float, to_float32, to_int32, to_numbers
from rnnjax.data._sequence_checks import check_range, refuse_first
from rnnjax.data.errors import DataError, check_count
from rnnjax.data.ragged import Ragged, flatten


def checked_labels(
    labels: Sequence[Any] | NDArray[Any] | Ragged | None,
    lengths: NDArray[np.int32],
    num_classes: int | None,
) -> Ragged | NDArray[Any] | None:
    """Labels a step as a ``Ragged``, labels an example as an array; int32 or float32.

    Integers are classes, at least 0 and below ``num_classes`` if that is given. Floats are finite,
    and there are none where the number of classes is given. None stays None where it is not given.
    """
    if labels is None and num_classes is None:
        return None
    a_step = isinstance(labels, Ragged) or _has_sequences(labels)
    rows = _a_step(labels, lengths) if a_step else _an_example(labels, lengths)
    if num_classes is not None:
        check_range(rows, check_count("num_classes", num_classes), "labels")
    elif is_float(rows.values):
        refuse_first(rows, ~np.isfinite(rows.values), "labels that are finite")
    else:
        expected = "labels from 0 up, or floats where they are no classes"
        refuse_first(rows, rows.values < 0, expected)
    return rows if a_step else rows.values


def _has_sequences(labels: Any) -> bool:
    """Whether each label is a list or an array itself; a rectangular array is one label a row."""
    # Of NumPy, JAX or PyTorch; a column of a data frame may hold lists, its dtype is object then.
    if hasattr(labels, "ndim") and str(getattr(labels, "dtype", "object")) != "object":
        return False
    # Not labels[0]: a column of a data frame may have no row of that name.
    first = next(iter(labels), 0) if hasattr(labels, "__len__") else 0
    return isinstance(first, list | tuple) or np.ndim(first) > 0


def _a_step(labels: Any, lengths: NDArray[np.int32]) -> Ragged:
    ragged = flatten(labels)
    found = ragged.lengths
    if found.shape != lengths.shape:
        expected = f"one sequence for each of {len(lengths)} sequences"
        raise DataError(f"labels must have {expected}, got {len(found)}")
    bad = np.flatnonzero(found != lengths)
    if bad.size:
        row = bad[0]
        expected = f"one for each of {lengths[row]} steps"
        raise DataError(
            f"labels of sequence {row} must have {expected}, got {found[row]} (one vector a "
            "sequence is an array [N, K])"
        )
    return ragged


def _an_example(labels: Any, lengths: NDArray[np.int32]) -> Ragged:
    array = to_numbers("labels", labels)
    if array.shape[:1] != lengths.shape:
        expected = f"one for each of {len(lengths)} sequences"
        raise DataError(f"labels must have {expected}, got shape {array.shape}")
    convert = to_float32 if is_float(array) else to_int32
    return Ragged(convert("labels", array), np.arange(len(array) + 1))

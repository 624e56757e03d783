"""Refusals of sequences that do not fit, by the first of them."""

import numpy as np
from numpy.typing import NDArray

from rnnjax.data.errors import DataError
from rnnjax.data.ragged import Ragged


def check_at_most(lengths: NDArray[np.integer], longest: int, what: str = "sequence") -> None:
    """Refuse sequences that are longer than ``longest``."""
    bad = np.flatnonzero(lengths > longest)
    if bad.size:
        found = int(lengths[bad[0]])
        raise DataError(f"{what} {bad[0]} must have at most {longest} steps, got {found}")


def check_lengths(lengths: NDArray[np.int32], longest: int, what: str = "sequence") -> None:
    """Refuse empty sequences, those that are longer than ``longest``, and a set without any."""
    if not len(lengths):
        raise DataError(f"{what}s must have at least 1 {what}, got none")
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise DataError(f"{what} {empty[0]} must have at least 1 step, got 0")
    check_at_most(lengths, longest, what)


def check_range(ragged: Ragged, end: int, name: str, what: str = "sequence") -> None:
    """Refuse floats, and integers outside [0, end)."""
    values = ragged.values
    if values.dtype != np.int32:
        raise DataError(f"{name} must be integers in [0, {end}), got {values.dtype}")
    if not values.size or (values.min() >= 0 and values.max() < end):
        return  # without an array of the size of all the values
    refuse_first(ragged, (values < 0) | (values >= end), f"{name} in [0, {end})", what)


def refuse_first(
    ragged: Ragged, bad: NDArray[np.bool_], expected: str, what: str = "sequence"
) -> None:
    """Refuse the first of the values that are ``bad``, if any is."""
    places = np.argwhere(bad)
    if len(places):
        found = ragged.values[tuple(places[0])]
        row = ragged.row_of(places[0, 0])
        raise DataError(f"{what} {row} must have {expected}, got {found}")

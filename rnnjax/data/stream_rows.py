"""One long stream of ids, cut into rows that are trained side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnjax.data._numbers import is_float, to_int32, to_numbers
from rnnjax.data.errors import DataError, check_count


class Contiguous(NamedTuple):
    """One stream in B rows of L steps; row ``r + 1`` goes on where row ``r`` ends.

    Attributes:
        tokens: [B, L].
        targets: [B, L], the token that follows each of ``tokens`` in the stream.
        dropped: the number of ids at the end of the stream that no row predicts.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    dropped: int


def contiguous(ids: Sequence[int] | NDArray[np.integer], rows: int) -> Contiguous:
    """Cuts one long stream into rows of equal length, with what follows each step as its target.

    Of N ids the first is only read and each other one is predicted: N - 1 steps in B rows of
    L = (N - 1) // B, and the rest is dropped and counted. A model that carries its state along a
    row sees the stream with B - 1 interruptions.

    Args:
        ids: the stream [N], integers of at most 32 bits.
        rows: B, at least 1.

    Returns:
        Tokens, targets and the count of ids dropped at the end.

    Raises:
        DataError: ``ids`` is not one axis of integers, or too short for a step in each row.

    Example:
        >>> stream = contiguous([0, 1, 2, 3, 4, 5, 6, 7], rows=3)
        >>> stream.tokens.tolist(), stream.targets.tolist(), stream.dropped
        ([[0, 1], [2, 3], [4, 5]], [[1, 2], [3, 4], [5, 6]], 1)
    """
    stream = to_numbers("ids", ids)
    if stream.ndim != 1 or (stream.size and is_float(stream)):
        found = f"{stream.ndim} axes of {stream.dtype}"
        raise DataError(f"ids must be one axis of integers, got {found}")
    rows = check_count("rows", rows)
    length = (stream.size - 1) // rows
    if length < 1:
        raise DataError(f"ids must have at least {rows + 1} for {rows} rows, got {stream.size}")
    used = rows * length + 1
    part = to_int32("ids", stream[:used])
    shape = (rows, length)
    return Contiguous(part[:-1].reshape(shape), part[1:].reshape(shape), stream.size - used)

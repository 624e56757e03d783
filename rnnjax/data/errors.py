"""The one error of the data package."""

from collections.abc import Sequence
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used as it is.

    The message says what must be and what came instead; for a file it names the file and the
    first bad rows, so that the reader can open the file and mend them.

    Example:
        >>> from rnnjax.data import DataError, pad
        >>> try:
        ...     pad([[1, 2, 3]], length=2)
        ... except DataError as error:
        ...     print(error)
        sequence 0 must have at most 2 steps, got 3
    """


def rows_error(path: Path, wanted: str, bad: Sequence[str]) -> DataError:
    """The error for a file that must have ``wanted``, with the first three of its bad rows."""
    shown = "; ".join(bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return DataError(f"{path} must have {wanted}, got {shown}{more}")

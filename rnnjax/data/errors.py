"""The one error of the data package."""

from collections.abc import Sequence
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used as it is.

    The message says what was expected and what came instead; for a file it names the file and the
    first bad rows, so that the reader can open the file and mend them.

    Example:
        >>> from rnnjax.data import DataError, pad
        >>> try:
        ...     pad([[1, 2, 3]], length=2)
        ... except DataError as error:
        ...     print(error)
        sequence 0: expected at most 2 steps, got 3
    """


def rows_error(path: Path, expected: str, bad: Sequence[str]) -> DataError:
    """The error for a file with bad rows, of which the message shows the first three."""
    shown = "; ".join(bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return DataError(f"{path}: expected {expected}, got {shown}{more}")

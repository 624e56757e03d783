"""Ids in rows as Keras pads them, and in one vector as PyTorch packs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnnjax.data import DataError

Side = Literal["pre", "post"]
_KERAS_FILTERS = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


def pad_sequences(
    sequences: Sequence[Sequence[int] | NDArray[np.integer]],
    maxlen: int | None = None,
    padding: Side = "pre",
    truncating: Side = "pre",
    value: int = 0,
) -> NDArray[np.int32]:
    """Rows of one length, as ``keras.utils.pad_sequences``: filled, and cut, in front.

    Args:
        sequences: the ids of each row.
        maxlen: the length; that of the longest when None.
        padding: which end is filled.
        truncating: which end is cut.
        value: the filler.

    Raises:
        DataError: a side that is neither "pre" nor "post".

    Example:
        >>> pad_sequences([[1, 2, 3], [4]], maxlen=2).tolist()
        [[2, 3], [0, 4]]
    """
    for name, side in (("padding", padding), ("truncating", truncating)):
        if side not in ("pre", "post"):
            raise DataError(f"{name} must be 'pre' or 'post', got {side!r}")
    length = max(map(len, sequences), default=0) if maxlen is None else maxlen
    rows = np.full((len(sequences), length), value, np.int32)
    for row, ids in zip(rows, sequences, strict=True):
        kept = list(ids)[max(len(ids) - length, 0) :] if truncating == "pre" else ids[:length]
        place = slice(length - len(kept), None) if padding == "pre" else slice(len(kept))
        row[place] = kept
    return rows


class Packed(NamedTuple):
    """Sequences step by step: the first ids of all, then the second ids of those that go on.

    Attributes:
        data: [sum of lengths].
        batch_sizes: [T], how many sequences have a step t.
        order: [B], which sequence is the n-th longest.
    """

    data: NDArray
    batch_sizes: NDArray[np.int64]
    order: NDArray[np.int64]


def pack_padded(rows: ArrayLike, lengths: Sequence[int]) -> Packed:
    """Packs rows that are padded on the right, in any order of lengths.

    As ``torch.nn.utils.rnn.pack_padded_sequence(..., enforce_sorted=False)``.

    Example:
        >>> packed = pack_padded([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 0, 0, 0, 0]], [5, 3, 1])
        >>> packed.data.tolist(), packed.batch_sizes.tolist()
        ([1, 6, 9, 2, 7, 3, 8, 4, 5], [3, 2, 2, 1, 1])
    """
    rows, counts = np.asarray(rows), np.asarray(lengths, np.int64)
    if counts.shape != rows.shape[:1] or (counts < 1).any() or (counts > rows.shape[1]).any():
        wanted = f"one for each of {len(rows)} rows, in [1, {rows.shape[1]}]"
        raise DataError(f"lengths must be {wanted}, got {counts.tolist()}")
    order = np.argsort(-counts, kind="stable")
    real = np.arange(counts.max()) < counts[order][:, None]
    steps = rows[order][:, : counts.max()]
    return Packed(steps.T[real.T], real.sum(axis=0), order)


def unpack(packed: Packed) -> tuple[NDArray, NDArray[np.int64]]:
    """The padded rows and their lengths, in the order they came in.

    Example:
        >>> unpack(pack_padded([[6, 0], [7, 8]], [1, 2]))[0].tolist()
        [[6, 0], [7, 8]]
    """
    count = int(packed.batch_sizes[0])
    real = np.arange(count)[:, None] < packed.batch_sizes
    steps = np.zeros(real.shape, packed.data.dtype)
    steps.T[real.T] = packed.data
    back = np.argsort(packed.order)
    return steps[back], real.sum(axis=1)[back]


def word_sequence(text: str) -> list[str]:
    """Words as Keras' ``text_to_word_sequence``, which made its IMDB ids: apostrophes stay.

    Example:
        >>> word_sequence("Don't<br />stop!")
        ["don't", 'br', 'stop']
    """
    return text.lower().translate(_KERAS_FILTERS).split()

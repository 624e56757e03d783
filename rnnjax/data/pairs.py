"""Pairs of sentences, for sequence to sequence: read, divided, batched by both lengths."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnnjax.data._bucket_order import BucketOrder
from rnnjax.data._local_files import data_folder, files_sha256, find_file, put_in
from rnnjax.data._text_files import read_lines
from rnnjax.data.batching import check_lengths, check_range, filled
from rnnjax.data.boundaries import best_cuts
from rnnjax.data.errors import DataError, check_count, check_integers, rows_error
from rnnjax.data.ragged import Ragged, RaggedRows, flatten

_MULTI30K = ("train", "val", "test_2016_flickr")
_LANGUAGES = ("de", "en", "fr")


class Pairs(NamedTuple):
    """Sentences and what each becomes; ``sources[i]`` belongs to ``targets[i]``."""

    sources: list[str]
    targets: list[str]


class PairParts(NamedTuple):
    """A set of pairs in three parts.

    ``sha256`` is that of the files, one after the other. ``note`` says how they were divided.
    """

    name: str
    train: Pairs
    validation: Pairs
    test: Pairs
    sha256: str
    note: str


def read_pairs(
    path: str | os.PathLike[str], target_path: str | os.PathLike[str] | None = None
) -> Pairs:
    """Read pairs of sentences from two files of equally many lines, or from one with tabs.

    In two files line ``i`` of one belongs to line ``i`` of the other. In one file a line is
    source, tab, target, and what more columns there are is left out; quotes are text, there is no
    header, and blank lines are no pairs. Files are UTF-8, gzipped if they end in .gz.

    Args:
        path: the file of the sources, or that of both.
        target_path: the file of the targets.

    Returns:
        The pairs, without the white space around a sentence.

    Raises:
        DataError: a file is missing, empty or no text, the two have different numbers of lines,
            or a sentence is missing: names the first lines.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "pairs.tsv")
        ...     _ = path.write_text("ein Mann\\ta man\\nzwei Hunde\\ttwo dogs\\n")
        ...     read_pairs(path)
        Pairs(sources=['ein Mann', 'zwei Hunde'], targets=['a man', 'two dogs'])
    """
    path = Path(path)
    if target_path is None:
        return _read_table(path)
    sides = [[line.strip() for line in read_lines(file)] for file in (path, Path(target_path))]
    if len(sides[0]) != len(sides[1]):
        expected = f"as many lines as in {path} ({len(sides[0])})"
        raise DataError(f"{target_path} must have {expected}, got {len(sides[1])}")
    for file, lines in zip((path, Path(target_path)), sides, strict=True):
        if not lines:
            raise DataError(f"{file} must have sentences, got an empty file")
        bad = [f"line {n}: nothing" for n, line in enumerate(lines, 1) if not line]
        if bad:
            raise rows_error(file, "a sentence on every line", bad)
    return Pairs(*sides)


def _read_table(path: Path) -> Pairs:
    lines = [(n, line.split("\t")) for n, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} must have pairs, got an empty file")
    bad = [f"line {n}: {problem}" for n, fields in lines if (problem := _not_a_pair(fields))]
    if bad:
        raise rows_error(path, "two sentences a line with a tab between", bad)
    sources, targets = ([fields[i].strip() for _, fields in lines] for i in (0, 1))
    return Pairs(sources, targets)


def _not_a_pair(fields: Sequence[str]) -> str | None:
    if len(fields) < 2:
        return "no tab"
    empty = [not field.strip() for field in fields[:2]]
    return f"nothing {'before' if empty[0] else 'behind'} the tab" if any(empty) else None


def load_pairs(
    name: str,
    *,
    source: str = "de",
    target: str = "en",
    target_path: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> PairParts:
    """Load pairs of sentences by name, divided for training, validation and test.

    - ``multi30k``: ``DATA_DIR/multi30k/{train,val,test_2016_flickr}.LANGUAGE[.gz]``, captions in
      ``de``, ``en`` and ``fr``, in their own division.
    - a path: your own pairs, as ``read_pairs`` reads them, divided 80/10/10 by ``seed``. Pairs with
      equal sources go to one part, so that nothing that is tested was learned by heart.

    Args:
        name: ``multi30k``, or the path of your own file of pairs or of sources.
        source: of ``multi30k``, the language that is read.
        target: of ``multi30k``, the language that is written.
        target_path: of your own files, that of the targets, if it is another.
        data_dir: the folder of local files; by default the environment variable ``RNNJAX_DATA``.
        seed: decides the division of your own pairs.

    Returns:
        The parts.

    Raises:
        DataError: for files that are missing, damaged or not as described, or too few to divide.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "pairs.tsv")
        ...     _ = path.write_text("".join(f"{n}\\tnumber {n}\\n" for n in range(10)))
        ...     pairs = load_pairs(str(path))
        >>> len(pairs.train.sources), pairs.test
        (8, Pairs(sources=['4'], targets=['number 4']))
    """
    if name != "multi30k":
        return _own_pairs(name, target_path, seed)
    for argument, language in (("source", source), ("target", target)):
        if language not in _LANGUAGES:
            expected = ", ".join(_LANGUAGES)
            raise DataError(f"{argument} must be one of {expected}, got {language!r}")
    if source == target:
        raise DataError(f"target must be another language than source, got {target!r} twice")
    folder = data_folder(data_dir)
    if folder is None or not (folder / name).is_dir():
        layout = "train, val and test_2016_flickr, each as .de, .en and .fr (or these with .gz),"
        raise DataError(f"{name} needs local files. {put_in(layout, name)}")
    paths = [
        [find_file(folder / name, f"{part}.{language}", ("", ".gz")) for part in _MULTI30K]
        for language in (source, target)
    ]
    train, validation, test = (read_pairs(*both) for both in zip(*paths, strict=True))
    sha256 = files_sha256(*paths[0], *paths[1])
    return PairParts(
        f"multi30k {source}-{target}", train, validation, test, sha256, "divided in its files"
    )


def _own_pairs(name: str, target_path: str | os.PathLike[str] | None, seed: int) -> PairParts:
    path = Path(name)
    if target_path is None and not path.suffix and not path.exists():
        raise DataError(f"pairs must be a file or multi30k, got {name!r}")
    pairs = read_pairs(path, target_path)
    found = divided(pairs.sources, seed)
    if found is None:
        count = len(set(pairs.sources))
        raise DataError(f"{path} must have at least 3 different sources to divide, got {count}")
    train, validation, test = (_pick_pairs(pairs, part) for part in found)
    paths = [path] if target_path is None else [path, Path(target_path)]
    note = f"divided 80/10/10 by seed {seed}"
    return PairParts(path.name, train, validation, test, files_sha256(*paths), note)


def divided(keys: Sequence[str], seed: int) -> tuple[list[int], list[int], list[int]] | None:
    """The places of rows in three parts, rows with equal keys in the same: of the different keys
    80/10/10 by the seed. None where there are fewer than three.
    """
    rows: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    if len(rows) < 3:
        return None
    groups = list(rows.values())
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    tenth = max(1, round(0.1 * len(groups)))
    test, validation, train = (
        [i for group in part for i in group]
        for part in (order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :])
    )
    return train, validation, test


def _pick_pairs(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    return Pairs([pairs.sources[i] for i in rows], [pairs.targets[i] for i in rows])


def choose_pair_boundaries(
    source_lengths: ArrayLike, target_lengths: ArrayLike, count: int, multiple: int = 8
) -> tuple[tuple[int, int], ...]:
    """Bucket lengths for pairs: for each bucket how long its sources and its targets may be.

    Both lengths rise from bucket to bucket, and a pair goes to the first bucket that holds both of
    its sides. Pairs are ordered by the longer side, each side in terms of its mean; of all ways to
    cut this order the one with the fewest padded steps is taken.

    Args:
        source_lengths: [N], each at least 1.
        target_lengths: [N], each at least 1.
        count: the greatest number of buckets, that is of compiled shapes.
        multiple: each boundary is a multiple of this.

    Returns:
        At most ``count`` pairs (source, target); the last holds every pair.

    Raises:
        DataError: for no lengths, a length below 1, different numbers of the two, or a ``count``
            or ``multiple`` below 1.

    Example:
        >>> choose_pair_boundaries([3, 4, 20, 21], [5, 9, 30, 33], count=2)
        ((8, 16), (24, 40))
    """
    count, multiple = check_count("count", count), check_count("multiple", multiple)
    sides = [
        np.ravel(check_integers(name, side))
        for name, side in (("source_lengths", source_lengths), ("target_lengths", target_lengths))
    ]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"target_lengths must be one for each of {len(sides[0])} sources, got {len(sides[1])}"
        )
    lengths = np.stack(sides)
    if lengths.shape[1] == 0 or lengths.min() < 1:
        raise DataError(
            f"lengths must be one pair or more, each at least 1, got {lengths.T[:10].tolist()}"
        )
    order = np.argsort((lengths / lengths.mean(axis=1, keepdims=True)).max(axis=0), kind="stable")
    rounded = -(-lengths[:, order] // multiple) * multiple
    reached = np.maximum.accumulate(rounded, axis=1)
    shapes, counts = np.unique(reached, axis=1, return_counts=True)
    # Both sides rise along the order, so sorting the shapes has kept them in it.
    cuts = best_cuts(shapes.sum(axis=0).tolist(), counts.tolist(), min(count, len(counts)))
    return tuple((int(s), int(t)) for s, t in shapes[:, cuts].T)


class PairBatch(NamedTuple):
    """One batch of exactly ``batch_size`` pairs.

    Filler rows complete the short last batch of a bucket: lengths 0, weight 0.
    """

    sources: NDArray[Any]  # [B, S], or [B, S, ...] of steps that are no ids, 0 at padding
    source_lengths: NDArray[np.int32]  # [B]
    targets: NDArray[Any]  # [B, T] or [B, T, ...], 0 at padding
    target_lengths: NDArray[np.int32]  # [B]
    weights: NDArray[np.float32]  # [B], 1 for a pair, 0 for a filler


class PairBatches:
    """Batches of pairs grouped by both lengths, so that little is padded and few shapes compile.

    An epoch has every pair exactly once. Its order depends on ``(seed, n)`` alone, so a run that
    is resumed at epoch ``n`` sees what it would have.

    Args:
        sources: the ids, floats or vectors of each source, none empty.
        targets: the ids, floats or vectors of each target, none empty.
        batch_size: the number of rows of every batch.
        boundaries: for each bucket the length of its sources and of its targets, both rising, as
            ``choose_pair_boundaries`` gives them.
        seed: a whole number, at least 0.
        shuffle: False gives the pairs by rising length, the same in every epoch.
        source_vocab_size: if given, the ids of sources must be below it.
        target_vocab_size: if given, the ids of targets must be below it.

    Raises:
        DataError: naming the first pair that does not fit and what it must be.

    Example:
        >>> batches = PairBatches(
        ...     [[5, 6], [7]], [[1], [2, 3, 4]], batch_size=2, boundaries=((2, 3),), seed=0,
        ...     shuffle=False,
        ... )
        >>> batch = next(batches.epoch(0))
        >>> batch.sources.tolist(), batch.targets.tolist(), batch.target_lengths.tolist()
        ([[5, 6], [7, 0]], [[1, 0, 0], [2, 3, 4]], [1, 3])
    """

    def __init__(
        self,
        sources: RaggedRows | Ragged,
        targets: RaggedRows | Ragged,
        *,
        batch_size: int,
        boundaries: Sequence[tuple[int, int]],
        seed: int,
        shuffle: bool = True,
        source_vocab_size: int | None = None,
        target_vocab_size: int | None = None,
    ) -> None:
        self._sides = (flatten(sources), flatten(targets))
        self._lengths = np.stack(_equally_many(*self._sides))
        self._boundaries = _checked_pair_boundaries(boundaries)
        sizes = (source_vocab_size, target_vocab_size)
        for side, what in enumerate(("source", "target")):
            check_lengths(self._lengths[side], int(self._boundaries[-1, side]), what)
            if (size := sizes[side]) is not None:
                size = check_count(f"{what}_vocab_size", size)
                check_range(self._sides[side], size, "ids", what)
        needed = [np.searchsorted(self._boundaries[:, i], self._lengths[i]) for i in (0, 1)]
        self._order = BucketOrder(
            np.maximum(*needed),
            len(self._boundaries),
            self._lengths.sum(axis=0),
            batch_size,
            seed,
            shuffle,
        )
        self._batch_size = self._order.batch_size

    def __repr__(self) -> str:
        pairs = f"{self._lengths.shape[1]} pairs in {len(self)} batches"
        boundaries = tuple(map(tuple, self._boundaries.tolist()))
        return f"PairBatches({pairs} of {self._batch_size}, boundaries={boundaries})"

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return int(self._order.batches_per_bucket.sum())

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The distinct (B, S, T) of the batches, rising: at most one for each bucket."""
        used = self._boundaries[self._order.batches_per_bucket > 0]
        return tuple((self._batch_size, source, target) for source, target in used.tolist())

    @property
    def padding_fraction(self) -> float:
        """The share of an epoch's steps, of both sides, that hold nothing; fillers included."""
        steps = int(self._order.batches_per_bucket @ self._boundaries.sum(axis=1))
        return 1.0 - int(self._lengths.sum()) / (steps * self._batch_size)

    def epoch_indices(self, n: int) -> list[NDArray[np.int64]]:
        """Which pairs the batches of epoch ``n`` hold.

        Args:
            n: the epoch, at least 0.

        Returns:
            For each batch the positions of its pairs in ``sources``; rows beyond are filler.

        Example:
            >>> batches = PairBatches(
            ...     [[5, 6], [7], [8]], [[1], [2], [3]], batch_size=2, boundaries=((2, 1),),
            ...     seed=0, shuffle=False,
            ... )
            >>> [rows.tolist() for rows in batches.epoch_indices(0)]
            [[1, 2], [0]]
        """
        return self._order.epoch(n)

    def epoch(self, n: int) -> Iterator[PairBatch]:
        """The batches of epoch ``n``, every pair once.

        Args:
            n: the epoch, at least 0.

        Returns:
            An iterator of ``len(self)`` batches.

        Example:
            >>> batches = PairBatches(
            ...     [[5, 6]], [[1]], batch_size=2, boundaries=((2, 2),), seed=0
            ... )
            >>> [batch.weights.tolist() for batch in batches.epoch(0)]
            [[1.0, 0.0]]
        """
        return map(self._build, self.epoch_indices(n))

    def _build(self, rows: NDArray[np.int64]) -> PairBatch:
        count = self._batch_size
        lengths = self._boundaries[self._order.buckets[rows[0]]].tolist()
        sources, targets = (
            filled(side.padded(rows, length), count)
            for side, length in zip(self._sides, lengths, strict=True)
        )
        return PairBatch(
            sources=sources,
            source_lengths=filled(self._lengths[0, rows], count),
            targets=targets,
            target_lengths=filled(self._lengths[1, rows], count),
            weights=filled(np.ones(len(rows), np.float32), count),
        )


def _equally_many(sources: Ragged, targets: Ragged) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    found = len(sources.lengths), len(targets.lengths)
    if found[0] != found[1] or not found[0]:
        raise DataError(f"targets must be one for each of {found[0]} sources, got {found[1]}")
    return sources.lengths, targets.lengths


def _checked_pair_boundaries(boundaries: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    array = check_integers("boundaries", boundaries)
    right = array.ndim == 2 and array.shape[1:] == (2,) and len(array) > 0 and array.min() >= 1
    if not right or (np.diff(array, axis=0) < 0).any():
        raise DataError(f"boundaries must be rising pairs of lengths, got {boundaries}")
    return array

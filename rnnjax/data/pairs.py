"""Pairs of sentences, for sequence to sequence: read from files, and divided."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rnnjax.data._local_files import data_folder, files_sha256, find_file, subfolder
from rnnjax.data._text_files import read_lines
from rnnjax.data.errors import DataError, check_seed, rows_error

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
    name: str | os.PathLike[str],
    *,
    source: str | None = None,
    target: str | None = None,
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
        source: of ``multi30k``, the language that is read; by default ``de``.
        target: of ``multi30k``, the language that is written; by default ``en``.
        target_path: of your own files, that of the targets, if it is another.
        data_dir: the folder of local files; by default the environment variable ``RNNJAX_DATA``.
        seed: decides the division of your own pairs, by the random numbers that also shuffle epoch
            0 of batches with an equal seed.

    Returns:
        The parts.

    Raises:
        DataError: for files that are missing, damaged or not as described, or too few to divide;
            or for an argument that is of no use here.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "pairs.tsv")
        ...     _ = path.write_text("".join(f"{n}\\tnumber {n}\\n" for n in range(10)))
        ...     pairs = load_pairs(str(path))
        >>> len(pairs.train.sources), pairs.test
        (8, Pairs(sources=['4'], targets=['number 4']))
    """
    name = os.fspath(name)
    if name != "multi30k":
        _refuse_given(name, source=source, target=target)
        return _own_pairs(name, target_path, seed)
    _refuse_given(name, target_path=target_path)
    source, target = source or "de", target or "en"
    for argument, language in (("source", source), ("target", target)):
        if language not in _LANGUAGES:
            expected = ", ".join(_LANGUAGES)
            raise DataError(f"{argument} must be one of {expected}, got {language!r}")
    if source == target:
        raise DataError(f"target must be another language than source, got {target!r} twice")
    layout = "train, val and test_2016_flickr, each as .de, .en and .fr (or these with .gz),"
    folder = subfolder(data_folder(data_dir), name, layout)
    paths = [
        [find_file(folder, f"{part}.{language}", ("", ".gz")) for part in _MULTI30K]
        for language in (source, target)
    ]
    train, validation, test = (read_pairs(*both) for both in zip(*paths, strict=True))
    sha256 = files_sha256(*paths[0], *paths[1])
    return PairParts(
        f"multi30k {source}-{target}", train, validation, test, sha256, "divided in its files"
    )


def _refuse_given(name: str, **arguments: object) -> None:
    for argument, given in arguments.items():
        if given is not None:
            raise DataError(f"{argument} must be left out for {name}, got {given!r}")


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
    order = [groups[i] for i in np.random.default_rng(check_seed(seed)).permutation(len(groups))]
    tenth = max(1, round(0.1 * len(groups)))
    test, validation, train = (
        [i for group in part for i in group]
        for part in (order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :])
    )
    return train, validation, test


def _pick_pairs(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    return Pairs([pairs.sources[i] for i in rows], [pairs.targets[i] for i in rows])

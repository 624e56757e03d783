"""Long texts for language models, read and divided."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rnnjax.data._local_files import data_folder, files_sha256, find_file, subfolder
from rnnjax.data._text_files import read_text
from rnnjax.data.errors import DataError
from rnnjax.data.examples import Examples, split
from rnnjax.data.sources import NAMES, load, read_ag_news_titles
from rnnjax.data.tables import SUFFIXES

_VALIDATION = 0.1  # the last tenth, as is usual for Tiny Shakespeare


class TextParts(NamedTuple):
    """A long text in three parts; ``test`` is empty where the text has none of its own.

    ``sha256`` is that of the files, one after the other. ``note`` says how the text was divided.
    """

    name: str
    train: str
    validation: str
    test: str
    sha256: str
    note: str


def load_text(
    name: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0
) -> TextParts:
    """Load a long text by name, divided for training a language model.

    - ``tiny_shakespeare``: ``DATA_DIR/tiny_shakespeare/input.txt[.gz]``; the first nine tenths of
      its characters train, the rest validates.
    - ``ptb``: ``DATA_DIR/ptb/ptb.{train,valid,test}.txt[.gz]``. ``words_and_line_ends`` makes the
      tokens that published figures count.
    - ``ag_news_titles``: the titles of ``ag_news``, as ``load`` finds it, one a line.
    - any data set of ``load``: its texts, one a line; a tenth of the training texts, chosen by
      ``seed``, validates.
    - a path to a file of text, such as ``book.txt`` or ``thesis.tex.gz``: divided like
      ``tiny_shakespeare``. A table (``own.csv`` and its kin) is a data set of ``load``.

    Args:
        name: one of the names above, or a path.
        data_dir: the folder of local files; by default the environment variable ``RNNJAX_DATA``.
        seed: decides the division of a set of separate texts.

    Returns:
        The parts, every line end a line feed.

    Raises:
        DataError: for an unknown name, or for files that are missing, damaged or no text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "book.txt")
        ...     _ = path.write_text("It was a good start.")
        ...     book = load_text(str(path))
        >>> book.train, book.validation, book.test
        ('It was a good star', 't.', '')
    """
    name = os.fspath(name)
    if name in _TEXTS:
        return _TEXTS[name](data_folder(data_dir), seed)
    if name in NAMES or name.lower().endswith(SUFFIXES):
        data = load(name, data_dir=data_dir, seed=seed)
        return _of_rows(data.name, data.train.texts, data.test.texts, data.sha256, seed)
    path = Path(name)
    if not path.exists() and path.name == name and not path.suffix:
        known = ", ".join(TEXT_NAMES)
        raise DataError(f"text must be a file or one of {known}, got {name!r}")
    return _of_file(path.name, path)


def _tiny_shakespeare(data_dir: Path | None, seed: int) -> TextParts:
    folder = subfolder(data_dir, "tiny_shakespeare", "input.txt (or input.txt.gz)")
    return _of_file("tiny_shakespeare", find_file(folder, "input", (".txt", ".txt.gz")))


def _ptb(data_dir: Path | None, seed: int) -> TextParts:
    folder = subfolder(data_dir, "ptb", "ptb.train.txt, ptb.valid.txt and ptb.test.txt (or .gz)")
    stems = ("ptb.train", "ptb.valid", "ptb.test")
    paths = [find_file(folder, stem, (".txt", ".txt.gz")) for stem in stems]
    train, validation, test = map(read_text, paths)
    note = "divided in its files"
    return TextParts("ptb", train, validation, test, files_sha256(*paths), note)


def _ag_news_titles(data_dir: Path | None, seed: int) -> TextParts:
    (train, test), paths = read_ag_news_titles(data_dir)
    return _of_rows("ag_news_titles", train.texts, test.texts, files_sha256(*paths), seed)


def _of_file(name: str, path: Path) -> TextParts:
    text = read_text(path)
    if len(text) < 2:
        raise DataError(f"{path} must have at least 2 characters to divide, got {len(text)}")
    cut = max(1, int((1 - _VALIDATION) * len(text)))
    note = "the first nine tenths train, the rest validates"
    return TextParts(name, text[:cut], text[cut:], "", files_sha256(path), note)


def _of_rows(name: str, train: list[str], test: list[str], sha256: str, seed: int) -> TextParts:
    validation, rest = split(Examples(train, [0] * len(train)), _VALIDATION, seed)
    parts = [_one_a_line(texts) for texts in (rest.texts, validation.texts, test)]
    note = f"one text a line; a tenth of the training texts, by seed {seed}, validates"
    return TextParts(name, *parts, sha256=sha256, note=note)


def _one_a_line(texts: Sequence[str]) -> str:
    """The texts, one a line; what ends a line inside of one becomes a space."""
    return "".join(" ".join(text.splitlines()) + "\n" for text in texts)


_TEXTS: dict[str, Callable[[Path | None, int], TextParts]] = {
    "tiny_shakespeare": _tiny_shakespeare,
    "ptb": _ptb,
    "ag_news_titles": _ag_news_titles,
}

TEXT_NAMES: tuple[str, ...] = (*_TEXTS, *(name for name in NAMES if name != "local"))

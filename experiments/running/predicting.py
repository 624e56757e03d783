"""Labels for texts from the command line, by a classifier that was trained or imported here."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from experiments.running import classifier, imported
from experiments.running.console import complain
from experiments.running.parsing import Positional
from experiments.running.run_folder import CONFIG
from rnnjax.data import DataError, read_lines

# Printed in place of label and probability for an empty line.
NOTHING = "-"


@dataclass(frozen=True)
class Request:
    """Label texts with a classifier that was trained or imported. Prints label, probability and
    text of each, with tabs between."""

    run: Positional[Path]
    """The folder of the run, of either kind."""
    texts: Positional[tuple[str, ...]] = ()
    """The texts; without any, one is read from each line of standard input, so that files can be
    labelled."""
    json: bool = False
    """Print a JSON object a line, with the probabilities of all classes and the text unchanged,
    for another program to read."""
    debug_checks: bool = False
    """Look at every value while it runs and end at the first wrong one, to find where it comes
    from."""


class Predictor(Protocol):
    """What both kinds of run are once they are read."""

    label_names: list[str]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The probability [N, C] of every label for each text."""
        ...


def open_run(folder: Path, debug_checks: bool = False) -> tuple[Predictor, int]:
    """The classifier of a run of either kind, and how many texts to give it at a time.

    Raises:
        DataError: the folder holds neither kind.
    """
    if (folder / imported.CLASSIFIER).is_file():
        if debug_checks:
            raise DataError(
                f"--debug-checks must be left out for an imported run, got it for {folder}"
            )
        found = imported.Predictor(folder)
        return found, found.batch_size
    if not (folder / CONFIG).is_file():
        raise DataError(
            f"{folder} must be the folder of a run, got no {CONFIG} (trained) and no "
            f"{imported.CLASSIFIER} (imported) in it"
        )
    return classifier.Predictor(folder, debug_checks), classifier.Predictor.chunk_size


def predict(request: Request) -> None:
    """Print what the classifier says of each text, one a line."""
    predictor, size = open_run(request.run, request.debug_checks)
    row, count = json_row if request.json else tabbed_row, 0
    for chunk in given_or_read(request.texts, size):
        count += len(chunk)
        for text, probabilities in zip(chunk, predictor(chunk), strict=True):
            print(row(predictor.label_names, text, probabilities))
    if not count:
        raise DataError("texts must come as arguments or on standard input, got none")


def tabbed_row(names: Sequence[str], text: str, probabilities: np.ndarray) -> str:
    r"""Label, probability and text with tabs between; those within are written \t.

    Example:
        >>> tabbed_row(["bad", "good"], "warm\tand\nfunny", np.array([0.25, 0.75]))
        'good\t0.750\twarm\\tand\\nfunny'
        >>> tabbed_row(["bad", "good"], " ", np.array([0.25, 0.75]))
        '-\t-\t(empty)'
    """
    if not text.strip():
        return f"{NOTHING}\t{NOTHING}\t(empty)"
    best = int(probabilities.argmax())
    return f"{one_line(names[best])}\t{probabilities[best]:.3f}\t{one_line(text)}"


def json_row(names: Sequence[str], text: str, probabilities: np.ndarray) -> str:
    """The same as a JSON object, with the probabilities of all labels; null for an empty text.

    Example:
        >>> json_row(["bad", "good"], "warm", np.array([0.25, 0.75]))
        '{"text": "warm", "label": "good", "probabilities": {"bad": 0.25, "good": 0.75}}'
        >>> json_row(["bad", "good"], "", np.array([0.25, 0.75]))
        '{"text": "", "label": null, "probabilities": null}'
    """
    found: dict[str, object] = {"text": text, "label": None, "probabilities": None}
    if text.strip():
        chances = [round(float(p), 6) for p in probabilities]
        found["label"] = names[int(probabilities.argmax())]
        found["probabilities"] = dict(zip(names, chances, strict=True))
    return json.dumps(found, ensure_ascii=False)


def one_line(text: str) -> str:
    """The text with tabs and line ends spelled out, so that it stays one field of one row."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def given_or_read(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Texts in lists of ``size``; where there are none, lines of standard input, which come one by
    one from a terminal, as they are typed."""
    if texts:
        yield from chunks(texts, size)
        return
    is_typed = sys.stdin.isatty()
    if is_typed:
        complain("type a text and Enter; Ctrl-D ends")
    yield from chunks(read_lines(sys.stdin), 1 if is_typed else size)


def chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """The items in lists of ``size``; the last may be shorter."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk

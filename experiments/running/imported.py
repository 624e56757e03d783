"""A classifier imported from another library: its folder, how it reads a text, its predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.running.run_folder import read_json
from rnnjax.data import TOKENIZERS, DataError, pad, truncate
from rnnjax.interop.classifiers import Architecture, LayerSize, build
from rnnjax.models import ClassifierParams
from rnnjax.weights import load_weights, save_weights

CLASSIFIER, WEIGHTS = "classifier.json", "weights.safetensors"


@dataclass(frozen=True)
class Reading:
    """How a text becomes what the model is shown.

    Attributes:
        tokenizer: a name in ``rnnjax.data.TOKENIZERS``.
        tokens: the vocabulary by id; None where texts are token ids with spaces between.
        unknown_id: the id of words outside the vocabulary.
        padding: "unread", or the side where the model was shown padding as if it were text.
        pad_id: what it was shown there.
        length: longer texts are cut to it and, where padding is read, shorter ones padded to it;
            None cuts no text and pads a batch to its longest.
        keep: which end of a cut text stays.
        batch_size: texts in a batch.
    """

    tokenizer: str
    tokens: tuple[str, ...] | None
    unknown_id: int
    padding: Literal["unread", "right", "left"]
    pad_id: int
    length: int | None
    keep: Literal["head", "tail"]
    batch_size: int

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens or ())}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self.tokens is None:
            ids = [_parse_ids(text) for text in texts]
        else:
            find, tokenize = self._ids.get, TOKENIZERS[self.tokenizer]
            ids = [[find(token, self.unknown_id) for token in tokenize(text)] for text in texts]
        if self.length is None:
            return ids
        return [list(row) for row in truncate(ids, self.length, self.keep)]

    def batch(self, ids: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, T] and lengths [B]; where padding is read, every length is T."""
        longest = max(1, *map(len, ids))
        if self.padding == "unread":
            # Padding is not read: lengths are rounded up, so that few shapes are compiled.
            return pad(ids, max(8, 1 << (longest - 1).bit_length()), self.pad_id)
        time = longest if self.length is None else self.length
        tokens, lengths = pad(ids, time, self.pad_id)
        if self.padding == "left":
            rows = zip(tokens, lengths, strict=True)
            tokens = np.stack([np.roll(row, time - length) for row, length in rows])
        return tokens, np.full_like(lengths, time)


class Imported(NamedTuple):
    """A classifier with its weights, how it reads texts, and the names of its classes."""

    architecture: Architecture
    params: ClassifierParams
    reading: Reading
    label_names: list[str]


def in_float32(arrays: Any) -> Any:
    """The arrays of a file, a tree, in the dtype of runs here; a line says what they were.

    It comes before anything is reckoned with them, as biases are added, which 16 bits would round.

    Raises:
        DataError: they are whole numbers, as of a quantized network.
    """
    kinds = {np.asarray(leaf).dtype for leaf in jax.tree.leaves(arrays)}
    if others := sorted(str(kind) for kind in kinds if not jnp.issubdtype(kind, jnp.floating)):
        raise DataError(f"weights must be floating-point numbers, got {', '.join(others)}")
    if names := sorted({str(kind) for kind in kinds} - {"float32"}):
        how = "rounded to" if "float64" in names else "kept exactly in"
        print(f"weights of {' and '.join(names)}, {how} float32")
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), arrays)


def save(folder: Path, model: Imported, source: Mapping[str, str]) -> None:
    """Write the folder, which must be new or empty.

    Raises:
        FileExistsError: it is neither.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"run folder {folder} must be empty, got files in it: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "source": dict(source),
        "architecture": model.architecture._asdict(),
        "reading": dataclasses.asdict(model.reading),
        "label_names": model.label_names,
    }
    save_weights(folder / WEIGHTS, model.params)
    (folder / CLASSIFIER).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def load(folder: Path) -> Imported:
    """Read a folder that `save` wrote.

    Raises:
        DataError: it is none.
        ValueError: the weights are not those of its architecture.
    """
    content = read_json(folder / CLASSIFIER)
    try:
        sizes = [LayerSize(*size) for size in content["architecture"]["layers"]]
        architecture = Architecture(**content["architecture"] | {"layers": tuple(sizes)})
        tokens = content["reading"]["tokens"]
        reading = Reading(
            **content["reading"] | {"tokens": None if tokens is None else tuple(tokens)}
        )
        shapes = jax.eval_shape(build(architecture).init, jax.random.key(0))
        label_names = list(content["label_names"])
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / CLASSIFIER} must be what import writes, got {type(error).__name__}: {error}"
        ) from None
    return Imported(architecture, load_weights(folder / WEIGHTS, shapes), reading, label_names)


class Predictor:
    """An imported classifier, read from its folder."""

    def __init__(self, folder: Path) -> None:
        self._model = load(folder)
        self.label_names = self._model.label_names
        self.batch_size = self._model.reading.batch_size
        self._logits = jax.jit(build(self._model.architecture).apply)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The probability [N, C] of every class for each text, ``batch_size`` texts at once."""
        ids, result = self._model.reading.encode(texts), []
        self._check(ids)
        for start in range(0, len(ids), self.batch_size):
            rows = ids[start : start + self.batch_size]
            # Rows without a token, so that a short last batch has the shape of the others.
            filler = [[]] * (self.batch_size - len(rows))
            logits = self._logits(self._model.params, *self._model.reading.batch([*rows, *filler]))
            result.append(jax.nn.softmax(logits, axis=-1)[: len(rows)])
        return np.concatenate([np.zeros((0, len(self.label_names)), np.float32), *result])

    def _check(self, ids: Sequence[list[int]]) -> None:
        size = self._model.architecture.vocab_size
        for row in ids:
            if row and not 0 <= min(row) <= max(row) < size:
                text = " ".join(map(str, row))
                raise DataError(f"texts must be token ids from 0 to {size - 1}, got {text!r:.60}")


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise DataError(
            f"texts must be token ids, as the run has no vocabulary, got {text[:40]!r}"
        ) from None

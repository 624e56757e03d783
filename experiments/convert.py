"""Whole classifiers in from PyTorch and Keras, and out to both, to ONNX and to jax.export.

In:       python -m experiments.convert import FILE --from torch --kind lstm
              --vocabulary vocabulary.json --classes World Sports Business Sci/Tech --out runs/NAME
Predict:  python -m experiments.convert predict runs/NAME "a text" ...
Out:      python -m experiments.convert export runs/NAME --to onnx --out classifier.onnx
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import classify
from experiments.running import imported
from experiments.running.classifier import VOCABULARY
from experiments.running.console import command, exit_code, parameter_table
from experiments.running.imported import CLASSIFIER, WEIGHTS, Imported, Reading, in_float32
from experiments.running.overwriting import refuse_overwriting
from experiments.running.parsing import Positional, arg, first_lines, parse, subcommand
from experiments.running.predicting import Request, predict
from experiments.running.run_folder import CONFIG
from experiments.running.setting_checks import check_rules, refuse_unread, whole
from rnnjax.data import UNKNOWN, DataError, Vocabulary, pad, read_text
from rnnjax.exporting import PLATFORMS, export_program
from rnnjax.interop import onnx_graph
from rnnjax.interop.classifiers import (
    Architecture,
    LayerSize,
    build,
    describe,
    export_keras,
    export_torch,
    import_keras,
    import_torch,
    two_classes,
)
from rnnjax.interop.weight_files import read_keras_file, read_torch_file
from rnnjax.models import ClassifierParams
from rnnjax.weights import save_weights


@dataclass(frozen=True)
class Import:
    """Make a run folder of the weights of a PyTorch or Keras classifier."""

    weights: Positional[Path]
    """A safetensors file (for Keras with names that begin with the place of each array in
    get_weights()), or for Keras an .h5 file."""
    library: Annotated[Literal["torch", "keras"], arg(name="from")]
    """The library that wrote the weights, which decides their names and their order."""
    kind: Literal["vanilla", "lstm", "gru", "gru_reset_before"]
    """The recurrent cell: vanilla is PyTorch's RNN and Keras's SimpleRNN, gru is the one with
    reset_after."""
    classes: tuple[str, ...]
    """The names of the classes in the order of the outputs; two for one sigmoid unit."""
    out: Path
    """The folder of the run that is made; it must be new or empty."""
    vocabulary: Path | None = None
    """Tokens by id: JSON (a list, an object of token: id, a tokenizer.json of whole words, or the
    vocabulary.json of a run) or text, one token a line. Without it texts are token ids with spaces
    between."""
    tokenizer: Literal["basic_english", "strip_punctuation", "characters"] | None = None
    """How a text is cut into tokens, as it was for training; by default basic_english for torch and
    strip_punctuation for keras."""
    unknown_id: int | None = None
    """The id of words outside the vocabulary; by default the one that the file says, or
    0 for torch and 1 for keras."""
    pooling: Literal["last", "mean", "max"] = "last"
    """How the outputs of all steps become one vector, which the weights do not show."""
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"
    """The function of a cell of kind vanilla, which the weights do not show either."""
    padding: Literal["unread", "right", "left"] = "unread"
    """Where the model was shown padding as if it were text: on the right, on the left, or nowhere
    (unread), as with packed sequences and with mask_zero."""
    pad_id: int = 0
    """The token id that it was shown there."""
    length: int | None = None
    """Longer texts are cut to so many tokens and, where padding is read, shorter ones padded to
    it; by default no text is cut and a batch is padded to its longest."""
    keep: Literal["head", "tail"] = "head"
    """Which end of a cut text stays: head or tail."""
    batch_size: int = 16
    """Texts in a batch: where padding is read, predictions depend on the longest of them."""


@dataclass(frozen=True)
class Export:
    """Write a trained or an imported classifier for another program."""

    run: Positional[Path]
    """The folder of a run of experiments.classify, or of one made by import."""
    to: Literal["torch", "keras", "onnx", "jax"]
    """What reads the file: torch and keras get a safetensors file with their names, onnx a graph of
    its own nodes, jax a program of jax.export for cpu, cuda and tpu."""
    out: Path
    """The file that is written."""


def import_run(settings: Import) -> None:
    """Read the weights, write the folder of the run."""
    _refuse_unread(settings)
    if settings.library == "torch":
        named = in_float32(read_torch_file(settings.weights))
        params = import_torch(settings.kind, named)
    else:
        arrays = read_keras_file(
            settings.weights,
            kind=settings.kind,
            activation=settings.activation,
            pooling=settings.pooling,
        )
        params = import_keras(settings.kind, in_float32(arrays))
    if params.head.bias.shape == (1,) and len(settings.classes) == 2:
        params = two_classes(params)
    chosen = {"pooling": settings.pooling, "activation": settings.activation}
    architecture = describe(settings.kind, params, **chosen)
    if len(settings.classes) != architecture.num_classes:
        count = architecture.num_classes
        raise DataError(f"--classes must be {count}, one an output, got {len(settings.classes)}")
    if repeated := [name for name, count in Counter(settings.classes).items() if count > 1]:
        raise DataError(f"--classes must be different, got {repeated[0]!r} twice")
    source = {
        "library": settings.library,
        "file": settings.weights.name,
        "sha256": hashlib.sha256(settings.weights.read_bytes()).hexdigest(),
    }
    reading = make_reading(settings, architecture.vocab_size)
    model = Imported(architecture, params, reading, list(settings.classes))
    imported.save(settings.out, model, source)
    parameter_table(params)
    text = "1 0 1" if reading.tokens is None else "a text of your own"
    print(
        f"try:\n  {command('python', '-m', 'experiments.classify', 'predict', settings.out, text)}"
    )


def _refuse_unread(settings: Import) -> None:
    refuse_unread(settings, "with --kind vanilla", settings.kind == "vanilla", "activation")
    words = settings.vocabulary is not None
    refuse_unread(settings, "with --vocabulary", words, "tokenizer", "unknown_id")
    is_padded = settings.padding != "unread"
    refuse_unread(settings, "with --padding right or left", is_padded, "pad_id")
    refuse_unread(settings, "with --length", settings.length is not None, "keep")


def make_reading(settings: Import, vocab_size: int) -> Reading:
    """How the settings say that the model reads a text."""
    torch = settings.library == "torch"
    words = None if settings.vocabulary is None else read_vocabulary(settings.vocabulary)
    tokens = None if words is None else words.tokens
    usual_unknown = 0 if torch else 1
    if words is not None and words.unknown_id is not None:
        usual_unknown = words.unknown_id
    if tokens is not None and len(tokens) > vocab_size:
        raise DataError(
            f"{settings.vocabulary} must have at most {vocab_size} tokens, the rows of the "
            f"embedding, got {len(tokens)}"
        )
    reading = Reading(
        tokenizer=settings.tokenizer or ("basic_english" if torch else "strip_punctuation"),
        tokens=tokens,
        unknown_id=usual_unknown if settings.unknown_id is None else settings.unknown_id,
        padding=settings.padding,
        pad_id=settings.pad_id,
        length=settings.length,
        keep=settings.keep,
        batch_size=settings.batch_size,
    )
    token = whole(0, vocab_size - 1)
    rules = {"unknown_id": token, "pad_id": token, "length": whole(1), "batch_size": whole(1)}
    check_rules(reading, rules)
    return reading


class WordList(NamedTuple):
    """A vocabulary read from a file; ``unknown_id`` is None where the file does not say it."""

    tokens: tuple[str, ...]
    unknown_id: int | None


def read_vocabulary(path: Path) -> WordList:
    """Tokens by id, from JSON, from a file of Hugging Face tokenizers or of `Vocabulary.save`, or
    from lines of text.

    Raises:
        DataError: it is none of these, or its ids have gaps; names the file.
    """
    text = read_text(path)
    if path.suffix != ".json":
        return WordList(_each_once(path, text.removesuffix("\n").split("\n")), None)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be JSON, got {error}") from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return _read_tokenizer(path, content)
    if isinstance(content, dict) and isinstance(content.get("tokens"), list):
        return WordList(Vocabulary.load(path).tokens, UNKNOWN)  # which also knows its versions
    tokens = _by_id(path, content) if isinstance(content, dict) else content
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DataError(
            f"{path} must be a list of strings, or an object of string: id, got {text[:40]!r}"
        )
    return WordList(_each_once(path, tokens), None)


def _read_tokenizer(path: Path, content: dict[str, Any]) -> WordList:
    """The words of a tokenizer.json; one that cuts words into pieces has its own way to do so."""
    model = content["model"]
    kind = model.get("type", "WordLevel")
    if kind != "WordLevel" or not isinstance(model.get("vocab"), dict):
        raise DataError(
            f"{path} must be a tokenizer of kind WordLevel, got {kind!r}, whose tokens are no "
            "words: give token ids as texts, without --vocabulary"
        )
    added = content.get("added_tokens") or []
    try:
        ids = {token["content"]: token["id"] for token in added} | model["vocab"]
    except (TypeError, LookupError):
        raise DataError(
            f"{path} must have content and id of every added token, got {added!r:.60}"
        ) from None
    tokens = _by_id(path, ids)
    return WordList(tuple(tokens), ids.get(model.get("unk_token")))


def _by_id(path: Path, ids: dict[str, Any]) -> list[str]:
    if any(type(index) is not int for index in ids.values()):
        found = next(index for index in ids.values() if type(index) is not int)
        raise DataError(f"{path} must have a whole number for every token, got {found!r:.60}")
    if missing := sorted(set(range(len(ids))) - set(ids.values())):
        raise DataError(
            f"{path} must have the ids 0 to {len(ids) - 1}, each once, got no {missing[0]}"
        )
    return sorted(ids, key=ids.__getitem__)


def _each_once(path: Path, tokens: list[str]) -> tuple[str, ...]:
    token, count = max(Counter(tokens).items(), key=lambda item: item[1])
    if count > 1:
        raise DataError(f"{path} must have each token once, got {token!r} {count} times")
    return tuple(tokens)


def export_run(request: Export) -> None:
    """Write the file that was asked for, and say what is in it."""
    read = (request.run / name for name in (CONFIG, VOCABULARY, CLASSIFIER, WEIGHTS))
    refuse_overwriting((request.out,), read, "--out")
    architecture, params, labels, padding = load_run(request.run)
    kind, activation = architecture.kind, architecture.activation
    if request.to == "torch" and activation == "sigmoid":
        raise DataError(
            f"--to must be keras, onnx or jax for {request.run}, whose activation is sigmoid, as "
            "torch.nn.RNN has tanh and relu alone, got torch"
        )
    if request.to in ("torch", "keras"):
        named = (export_torch if request.to == "torch" else export_keras)(kind, params)
        save_weights(request.out, named)
        parameter_table(named)
        if activation != "tanh":
            layer = "torch.nn.RNN(nonlinearity" if request.to == "torch" else "SimpleRNN(activation"
            print(f'its activation: {layer}="{activation}")')
    elif request.to == "onnx":
        request.out.write_bytes(onnx_graph.export_classifier(build(architecture), params))
        print("inputs tokens int32 [batch, time] and lengths int32 [batch]; output logits")
    else:
        request.out.write_bytes(export_program(build(architecture).apply, params))
        print(f"jax.export.deserialize(...).call(tokens, lengths) on {', '.join(PLATFORMS)}")
    print(f"pooling {architecture.pooling}; classes {', '.join(labels)}")
    if padding != "unread":
        print(f"shown padding on the {padding} in training: pad so, and count it in the lengths")
    print(f"wrote {request.out}")


def load_run(folder: Path) -> tuple[Architecture, ClassifierParams, list[str], str]:
    """Architecture, parameters, names of the classes and padding of either kind of run."""
    if (folder / CLASSIFIER).is_file():
        model = imported.load(folder)
        return model.architecture, model.params, model.label_names, model.reading.padding
    run = classify.Predictor(folder)
    labels = run.label_names
    architecture = architecture_of(run.settings, len(run.encode.vocabulary), len(labels))
    params: ClassifierParams = run.params
    if len(params.encoder) == 1:  # a trained run has a stack of layers, even of one
        params = params._replace(encoder=params.encoder[0])
    check_same(folder, architecture, params, run)
    return architecture, params, labels, "unread"


def architecture_of(settings: classify.Settings, vocab_size: int, num_classes: int) -> Architecture:
    """The architecture of a run of experiments.classify."""
    size = LayerSize(settings.hidden_size, settings.bidirectional)
    return Architecture(
        kind=settings.cell,
        vocab_size=vocab_size,
        embedding_size=settings.embedding_size,
        layers=(size,) * settings.layers,
        num_classes=num_classes,
        pooling=settings.pooling,
    )


def check_same(
    folder: Path, architecture: Architecture, params: ClassifierParams, run: classify.Predictor
) -> None:
    """Refuse a run that computes something else than a classifier of this architecture.

    Raises:
        DataError: the run predicts otherwise.
    """
    words = np.random.default_rng(0).choice(run.encode.vocabulary.tokens, (8, 3)).tolist()
    texts = [" ".join(row[: 1 + i % 3]) for i, row in enumerate(words)]
    logits = jax.jit(build(architecture).apply)(params, *pad(run.encode(texts)))
    expected = run(texts)
    if not np.allclose(jax.nn.softmax(logits, axis=-1), expected, rtol=1e-3, atol=1e-5):
        raise DataError(
            f"{folder} must predict as a plain {architecture.kind} classifier with its weights to "
            "be written as one, got other predictions"
        )


COMMANDS = (
    Annotated[Import, subcommand("import", description=first_lines(Import))]
    | Annotated[Request, subcommand("predict", description=first_lines(Request))]
    | Annotated[Export, subcommand("export", description=first_lines(Export))]
)
ACTIONS = {Import: import_run, Request: predict, Export: export_run}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    request: Any = parse(COMMANDS, "python -m experiments.convert", given)
    return exit_code(lambda: ACTIONS[type(request)](request))


if __name__ == "__main__":
    sys.exit(main())

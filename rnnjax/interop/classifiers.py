"""Whole classifiers, from and to the weights of PyTorch and Keras.

A classifier here is what ``rnnjax.classifier`` makes: an embedding, recurrent layers of one kind
of cell, a pool and a linear head. The kinds are ``vanilla``, ``lstm``, ``gru``,
``gru_reset_before`` and ``peephole_lstm``, as everywhere in ``rnnjax.interop``; parameters of the
encoder are those of one layer where there is one, and a tuple, as ``stack`` has it, where there
are several.

Weights say neither how outputs are pooled nor what a simple cell's activation is. Nor do they say
what the model was shown as padding: see :func:`build`.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rnnjax._checks import check_params
from rnnjax.base import Cell
from rnnjax.cells.gru import gru
from rnnjax.cells.lstm import lstm
from rnnjax.cells.peephole_lstm import peephole_lstm
from rnnjax.cells.vanilla import vanilla
from rnnjax.interop import keras as keras_layers
from rnnjax.interop import torch as torch_layers
from rnnjax.interop._entries import check_names, read_entries
from rnnjax.interop._kinds import check_kind, read_params
from rnnjax.layers.bidirectional import Directions, bidirectional
from rnnjax.layers.recurrent import recurrent
from rnnjax.layers.stack import stack
from rnnjax.models.classifier import ClassifierParams, LinearParams, Model, classifier
from rnnjax.models.embedding import EmbeddingParams, embedding

ACTIVATIONS: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}
_CELLS: dict[str, Callable[[int], Cell]] = {
    "lstm": lstm,
    "gru": gru,
    "gru_reset_before": functools.partial(gru, reset_after=False),
    "peephole_lstm": peephole_lstm,
}
KINDS = ("vanilla", *_CELLS)
POOLINGS = ("last", "mean", "max")


class LayerSize(NamedTuple):
    """Units of one direction of a recurrent layer, and whether it has two directions."""

    hidden_size: int
    bidirectional: bool


class Architecture(NamedTuple):
    """All of a classifier but its weights: plain values, fit for JSON.

    Attributes:
        kind: of cell, one of ``KINDS``.
        vocab_size: V.
        embedding_size: E.
        layers: the recurrent layers, the lowest first.
        num_classes: C.
        pooling: "last", "mean" or "max".
        activation: of kind ``vanilla``, one of ``ACTIVATIONS``; "tanh" for the others.
    """

    kind: str
    vocab_size: int
    embedding_size: int
    layers: tuple[LayerSize, ...]
    num_classes: int
    pooling: str = "last"
    activation: str = "tanh"


def describe(
    kind: str, params: ClassifierParams, *, pooling: str = "last", activation: str = "tanh"
) -> Architecture:
    """The architecture that parameters belong to, read off their shapes.

    Args:
        kind: of cell.
        params: of a classifier with a table of vectors, forward or bidirectional layers of that
            kind and a head; a tree of arrays of NumPy or JAX.
        pooling: which the parameters do not show.
        activation: nor this one.

    Raises:
        ValueError: kind, pooling or activation is unknown, the parameters are those of another
            kind, or a part does not fit on the part below it.

    Example:
        >>> import jax, rnnjax
        >>> encoder = rnnjax.stack(rnnjax.bidirectional(rnnjax.gru(3)), rnnjax.gru(5))
        >>> model = rnnjax.classifier(rnnjax.embedding(9, 4), encoder, num_classes=2)
        >>> [tuple(size) for size in describe("gru", model.init(jax.random.key(0))).layers]
        [(3, True), (5, False)]
    """
    kind = _check_choices(kind, pooling, activation)
    params = check_params(params, ClassifierParams)
    table = read_entries({"vectors": table_of(params)}, {"vectors": "V E"}, "embedding")
    vectors = table["vectors"]
    width, layers = vectors.shape[1], []
    for index, layer in enumerate(layers_of(params.encoder)):
        size = _layer_size(kind, layer, width, f"encoder layer {index}")
        layers.append(size)
        width = size.hidden_size * (2 if size.bidirectional else 1)
    top = check_params(params.head, LinearParams, "params.head")
    head = read_entries(top._asdict(), {"w": "O C", "bias": "C"}, "head")
    if head["w"].shape[0] != width:
        raise ValueError(f"head must have weights for {width} inputs, got {head['w'].shape[0]}")
    classes = head["w"].shape[1]
    vocab_size, size = vectors.shape
    return Architecture(kind, vocab_size, size, tuple(layers), classes, pooling, activation)


def build(architecture: Architecture) -> Model:
    """The classifier of an architecture.

    Like every model here it never reads padding. A model of another library that was shown its
    padding (PyTorch without packing, Keras without ``mask_zero``) gives the same logits when it
    is shown it here too: pad the tokens with the same id on the same side, and leave out
    ``lengths``.

    Raises:
        ValueError: an unknown kind, pooling or activation, or a wrong size.

    Example:
        >>> import jax
        >>> model = build(Architecture("lstm", 100, 8, (LayerSize(16, True),), num_classes=4))
        >>> model.init(jax.random.key(0)).encoder.forward.w_hh.shape
        (16, 64)
    """
    if not isinstance(architecture, Architecture):
        raise ValueError(f"architecture must be an Architecture, got {architecture!r:.60}")
    kind = _check_choices(architecture.kind, architecture.pooling, architecture.activation)
    activation = ACTIVATIONS[architecture.activation]
    make = _CELLS.get(kind, functools.partial(vanilla, activation=activation))
    layers = [
        bidirectional(make(size)) if both else recurrent(make(size))
        for size, both in architecture.layers
    ]
    return classifier(
        embedding(architecture.vocab_size, architecture.embedding_size),
        layers[0] if len(layers) == 1 else stack(*layers),
        architecture.num_classes,
        pooling=architecture.pooling,
    )


def import_torch(
    kind: str,
    weights: Mapping[str, Any],
    *,
    embedding: str | None = None,
    encoder: str | None = None,
    head: str | None = None,
) -> ClassifierParams:
    """Parameters from the state dict of a module of ``Embedding``, ``RNN`` and ``Linear``.

    Args:
        kind: "vanilla", "lstm" or "gru".
        weights: a ``state_dict()`` on the CPU, or arrays under the same names.
        embedding: the name of the ``Embedding`` in the module; None finds it: what has a
            ``weight`` and no ``bias``.
        encoder: the name of the recurrent module; None finds it by its ``weight_ih_l0``.
        head: the name of the ``Linear``; None finds it: what has a ``weight`` and a ``bias``.

    Returns:
        Parameters of NumPy arrays for ``build(describe(kind, params, ...))``.

    Raises:
        ValueError: there is none or more than one candidate for a part, entries belong to no
            part, or do not fit; all of them named.

    Example:
        >>> import numpy as np
        >>> shapes = {"embedding.weight": (9, 4), "fc.weight": (2, 3), "fc.bias": (2,)}
        >>> shapes |= {"rnn.weight_ih_l0": (3, 4), "rnn.weight_hh_l0": (3, 3)}
        >>> params = import_torch(
        ...     "vanilla", {name: np.ones(shape) for name, shape in shapes.items()}
        ... )
        >>> params.embedding.vectors.shape, params.encoder.w_ih.shape, params.head.w.shape
        ((9, 4), (4, 3), (3, 2))
    """
    check_names("weights", weights)
    rnn = _only("encoder", encoder, _modules(weights, ".weight_ih_l0"))
    rest = [name for name in weights if not name.startswith(f"{rnn}.")]
    biased = _modules(rest, ".bias")
    bare = [name for name in _modules(rest, ".weight") if name not in biased]
    table, linear = _only("embedding", embedding, bare), _only("head", head, biased)
    known = {f"{table}.weight", f"{linear}.weight", f"{linear}.bias"}
    if unread := [name for name in rest if name not in known]:
        raise ValueError(f"weights must be those of a classifier alone, got {', '.join(unread)}")
    vectors = read_entries(_under(table, weights), {"weight": "V E"}, table)["weight"]
    last = read_entries(_under(linear, weights), {"weight": "C O", "bias": "C"}, linear)
    layers = torch_layers.import_weights(kind, weights, f"{rnn}.")
    return _checked(kind, vectors, layers, np.ascontiguousarray(last["weight"].T), last["bias"])


def export_torch(
    kind: str,
    params: ClassifierParams,
    *,
    embedding: str = "embedding",
    encoder: str = "rnn",
    head: str = "fc",
) -> dict[str, np.ndarray]:
    """The state dict of the PyTorch module that computes the same; inverse of `import_torch`.

    Args:
        kind: "vanilla", "lstm" or "gru".
        params: of a classifier.
        embedding: the name of the ``Embedding`` in the module.
        encoder: the name of the recurrent module.
        head: the name of the ``Linear``.

    Raises:
        ValueError: the parameters are no such classifier, or PyTorch has no module for its
            recurrent layers, as where their sizes differ.

    Example:
        >>> import jax, rnnjax
        >>> model = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.lstm(3), num_classes=2)
        >>> list(export_torch("lstm", model.init(jax.random.key(0))))[:3]
        ['embedding.weight', 'rnn.weight_ih_l0', 'rnn.weight_hh_l0']
    """
    describe(kind, params)
    return {
        f"{embedding}.weight": np.array(params.embedding.vectors),
        **torch_layers.export_weights(kind, layers_of(params.encoder), f"{encoder}."),
        f"{head}.weight": np.array(params.head.w).T.copy(),
        f"{head}.bias": np.array(params.head.bias),
    }


def import_keras(kind: str, weights: Sequence[Any]) -> ClassifierParams:
    """Parameters from ``model.get_weights()`` of ``Embedding``, recurrent layers and ``Dense``.

    Which cells are the two halves of a ``Bidirectional`` follows from the shapes: of two alike
    on the same input, what comes next takes the outputs of both, side by side
    (``merge_mode="concat"``, the default). Weights do not show that a layer has other activations
    than the default ones, nor ``go_backwards``: such a model has no counterpart here.

    Args:
        kind: "vanilla", "lstm", "gru" (``reset_after=True``) or "gru_reset_before".
        weights: the arrays in the order of ``model.get_weights()``.

    Returns:
        Parameters of NumPy arrays for ``build(describe(kind, params, ...))``.

    Raises:
        ValueError: the arrays are not those of such a model, or those of two, as of two GRUs of 2
            units and of three without a bias.

    Example:
        >>> import numpy as np
        >>> shapes = [(9, 4), *[(4, 12), (3, 12), (12,)] * 2, (6, 2), (2,)]
        >>> params = import_keras("lstm", [np.ones(shape) for shape in shapes])
        >>> params.encoder.backward.w_ih.shape, params.head.w.shape
        ((4, 12), (6, 2))
    """
    if not isinstance(weights, list | tuple):
        kind_of_weights = type(weights).__name__
        raise ValueError(f"weights must be a list, as get_weights() gives, got {kind_of_weights}")
    arrays = [np.asarray(array) for array in weights]
    if len(arrays) < 5 or arrays[0].ndim != 2 or arrays[-2].ndim != 2 or arrays[-1].ndim != 1:
        raise ValueError(
            "weights must be get_weights() of Embedding, recurrent layers and Dense, got arrays of "
            f"shapes {[array.shape for array in arrays]}"
        )
    vectors, *inner, w, bias = arrays

    def read(cells: list[list[np.ndarray]]) -> ClassifierParams:
        encoder = keras_layers.import_weights(kind, _keras_layers(cells, w.shape[0]))
        return _checked(kind, vectors, encoder[0] if len(encoder) == 1 else encoder, w, bias)

    found = []
    for cells in _gru_readings(inner) if kind == "gru" else ():
        with contextlib.suppress(ValueError):
            found.append(read(cells))
        if len(found) > 1:
            raise ValueError(
                f"weights must be those of one model, got shapes {[a.shape for a in inner]} before "
                "Dense, of which [2, 3H] is the bias of a GRU or the kernel of the next: "
                "rnnjax.interop.keras.import_weights takes the arrays of each layer by themselves"
            )
    return found[0] if found else read(_keras_cells(kind, inner))


def export_keras(kind: str, params: ClassifierParams) -> dict[str, np.ndarray]:
    """The weights of the Keras model that computes the same; inverse of `import_keras`.

    Args:
        kind: "vanilla", "lstm", "gru" or "gru_reset_before".
        params: of a classifier.

    Returns:
        Arrays in the order of ``model.get_weights()``, so that
        ``model.set_weights(list(found.values()))`` loads them. Each name is the place in that
        order and the path Keras gives to the variable in a fresh session.

    Raises:
        ValueError: the parameters are no such classifier.

    Example:
        >>> import jax, rnnjax
        >>> model = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.gru(3), num_classes=2)
        >>> list(export_keras("gru", model.init(jax.random.key(0))))[:2]
        ['000/embedding/embeddings', '001/gru/gru_cell/kernel']
    """
    sizes = describe(kind, params).layers
    named = [("embedding/embeddings", np.array(params.embedding.vectors))]
    for layer, path in zip(layers_of(params.encoder), _keras_paths(kind, sizes), strict=True):
        named += zip(path, keras_layers.export_weights(kind, layer), strict=True)
    named += [("dense/kernel", np.array(params.head.w)), ("dense/bias", np.array(params.head.bias))]
    return {f"{place:03}/{name}": array for place, (name, array) in enumerate(named)}


def two_classes(params: ClassifierParams) -> ClassifierParams:
    r"""A head of one sigmoid unit as one of two classes with the same probabilities.

    .. math:: \mathrm{softmax}(0, z) = (1 - \sigma(z), \sigma(z))

    Raises:
        ValueError: the head does not have one unit.

    Example:
        >>> import jax, rnnjax
        >>> model = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.lstm(3), num_classes=1)
        >>> two_classes(model.init(jax.random.key(0))).head.w.shape
        (3, 2)
    """
    params = check_params(params, ClassifierParams)
    head = check_params(params.head, LinearParams, "params.head")
    w, bias = (np.asarray(array) for array in head)
    if w.shape[1] != 1:
        raise ValueError(f"head must have one unit, got {w.shape[1]}")
    wide: Any = np.pad(w, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
    return params._replace(head=LinearParams(*wide))


def table_of(params: ClassifierParams) -> Any:
    """The vectors [V, E] of the embedding.

    Raises:
        ValueError: it has none, as ``one_hot``.
    """
    if not hasattr(params.embedding, "vectors"):
        raise ValueError("the embedding must have a table of vectors, got one without")
    return params.embedding.vectors


def layers_of(encoder: Any) -> tuple:
    """The parameters of every layer: of those of a stack, a nested one too, and of one alone."""
    if type(encoder) is not tuple:
        return (encoder,)
    return tuple(layer for part in encoder for layer in layers_of(part))


def _checked(kind: str, vectors: Any, encoder: Any, w: Any, bias: Any) -> ClassifierParams:
    params = ClassifierParams(EmbeddingParams(vectors), encoder, LinearParams(w, bias))
    describe(kind, params)
    return params


def _check_choices(kind: str, pooling: str, activation: str) -> str:
    kind = check_kind(kind, KINDS, "a classifier")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {list(POOLINGS)}, got {pooling!r}")
    if activation not in ACTIVATIONS or (kind != "vanilla" and activation != "tanh"):
        raise ValueError(
            f"activation must be one of {list(ACTIVATIONS)} for kind 'vanilla' and 'tanh' for the "
            f"others, got {activation!r} for {kind!r}"
        )
    return kind


def _layer_size(kind: str, layer: Any, width: int, place: str) -> LayerSize:
    both = isinstance(layer, Directions)
    cells = [read_params(kind, cell, place) for cell in (layer if both else (layer,))]
    sizes = {cell["w_hh"].shape[0] for cell in cells}
    if len(sizes) > 1:
        raise ValueError(f"{place} must have directions of one size, got sizes {sorted(sizes)}")
    for cell in cells:
        if cell["w_ih"].shape[0] != width:
            raise ValueError(
                f"{place} must have weights for {width} inputs, the size of what is below, "
                f"got {cell['w_ih'].shape[0]}"
            )
    return LayerSize(sizes.pop(), both)


def _modules(names: Any, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def _only(part: str, given: str | None, found: list[str]) -> str:
    if given is not None and given in found:
        return given
    if given is not None or len(found) != 1:
        wanted = "one module" if given is None else repr(given)
        raise ValueError(f"{part} must be {wanted} of the state dict, got {found}")
    return found[0]


def _under(module: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{module}."
    return {name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}


def _keras_cells(kind: str, arrays: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Two matrices a cell, and a bias where there is one: one axis, or two rows in a GRU."""
    cells = []
    while arrays:
        cell, arrays = arrays[:2], arrays[2:]
        if arrays and (
            arrays[0].ndim == 1 or (kind == "gru" and arrays[0].shape == (2, cell[0].shape[-1]))
        ):
            cell, arrays = [*cell, arrays[0]], arrays[1:]
        cells.append(cell)
    return cells


def _gru_readings(arrays: list[np.ndarray]) -> Iterator[list[list[np.ndarray]]]:
    """Every way to divide arrays into cells of which the recurrent kernels have the right shape.

    There is more than one where the two rows of a bias may be the kernel of a cell on two inputs.
    """
    if not arrays:
        yield []
        return
    cell, rest = arrays[:2], arrays[2:]
    if len(cell) < 2 or cell[0].ndim != 2:
        return
    width = cell[0].shape[1]
    if cell[1].shape != (width // 3, width):
        return
    if rest and rest[0].shape == (2, width):
        yield from ([[*cell, rest[0]], *others] for others in _gru_readings(rest[1:]))
    yield from ([cell, *others] for others in _gru_readings(rest))


def _keras_layers(cells: list[list[np.ndarray]], width: int) -> list[list[np.ndarray]]:
    """The cells joined in pairs where they are the halves of a ``Bidirectional``."""
    layers = []
    while cells:
        shapes = [[array.shape for array in cell] for cell in cells]
        above = shapes[2][0][0] if len(cells) > 2 else width
        paired = len(cells) > 1 and shapes[0] == shapes[1] and above == 2 * shapes[0][1][0]
        taken = 2 if paired else 1
        layers.append([array for cell in cells[:taken] for array in cell])
        cells = cells[taken:]
    return layers


def _keras_paths(kind: str, sizes: Sequence[LayerSize]) -> list[list[str]]:
    name = {"vanilla": "simple_rnn"}.get(kind, kind.split("_")[0])
    paths, wrappers = [], itertools.count()
    for index, size in enumerate(sizes):
        layer, prefixes = f"{name}{_number(index)}", [""]
        if size.bidirectional:
            wrapper = f"bidirectional{_number(next(wrappers))}"
            prefixes = [f"{wrapper}/forward_", f"{wrapper}/backward_"]
        variables = ("kernel", "recurrent_kernel", "bias")
        paths.append([f"{p}{layer}/{name}_cell/{v}" for p in prefixes for v in variables])
    return paths


def _number(index: int) -> str:
    return f"_{index}" if index else ""

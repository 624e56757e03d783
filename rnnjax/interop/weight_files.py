"""Files of weights that PyTorch and Keras write, read without pickle and in bounded memory."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnjax._checks import missing_package
from rnnjax.interop._keras_config import Asked, check_config
from rnnjax.interop._kinds import check_kind
from rnnjax.interop.keras import GATES
from rnnjax.weights._tensor_files import open_tensors

MAX_BYTES = 8 << 30
SAVE_TORCH = 'safetensors.torch.save_file(model.state_dict(), "model.safetensors")'
# Copies are row-major: of an array that is not, safetensors 0.8.0 writes the numbers as they lie.
SAVE_KERAS = (
    'safetensors.numpy.save_file({f"{i:03}/{v.path}": w.copy() for i, (v, w) in '
    'enumerate(zip(model.weights, model.get_weights()))}, "model.safetensors")'
)


def read_torch_file(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """A state dict from a safetensors file.

    Files of ``torch.save`` are pickles, which run what is in them: they are not read. Write, in
    PyTorch, ``safetensors.torch.save_file(model.state_dict(), "model.safetensors")``.

    Args:
        path: the file.
        max_bytes: all arrays together may take so much, by default 8 GiB. It is the header that
            is held against this, before memory is taken.

    Raises:
        ValueError: the file is no whole safetensors file, or holds more than ``max_bytes``.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} must be a .safetensors file, got {path.suffix!r}: "
            f"PyTorch writes one by {SAVE_TORCH}"
        )
    return _read_safetensors(path, max_bytes)


def read_keras_file(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    kind: str | None = None,
    activation: str = "tanh",
    pooling: str | None = None,
) -> list[np.ndarray]:
    """The arrays of a Keras model in the order of ``model.get_weights()``.

    Args:
        path: one of

            - a safetensors file whose names begin with the place of each array in that order, as
              in "000/embedding/embeddings"; ``SAVE_KERAS`` is the line that writes it;
            - what ``model.save_weights("x.weights.h5")`` writes, for a chain of one embedding,
              recurrent layers of one class and one dense layer: of others the file does not say
              in which order they come, nor of any what its options are or whether a layer is
              called twice;
            - the older .h5 files, which say it; and where they hold the whole model, every layer
              and every option is looked at: what has no counterpart here (``go_backwards``, other
              activations or ways to merge two directions, layers side by side ...) or is not known
              to have one is refused by name.

            Files .h5 need the package h5py, which the extra ``h5`` brings. They have no checksums:
            of a damaged one it is noticed when it cannot be read, not when a number has changed.
        max_bytes: all arrays together may take so much, by default 8 GiB.
        kind: as :func:`~rnnjax.interop.classifiers.import_keras` will be given it; held against a
            file that holds a whole model with a ``GRU`` of ``use_bias=False``, whose weights do not
            show its form, and needed there.
        activation: of ``SimpleRNN`` layers, as the model here will have it; held against a file
            that holds the whole model.
        pooling: "last", "mean" or "max", as the model here will have it, held against the file
            likewise; None does not look.

    Raises:
        ValueError: the file is none of these, holds more than ``max_bytes`` or is compressed, or
            leads to another file, as those of HDF5 can; or its two directions are not
            concatenated.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the package h5py is needed and not installed.
    """
    path = Path(path)
    if path.suffix == ".h5":
        kind = None if kind is None else check_kind(kind, GATES, "Keras")
        return _read_h5(path, max_bytes, Asked(kind, activation, pooling))
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} must be an .h5 or a .safetensors file, got {path.suffix!r}: "
            f"Keras writes one by {SAVE_KERAS}"
        )
    arrays = _read_safetensors(path, max_bytes)
    places = {name: re.match(r"\d+", name) for name in arrays}
    order = {int(place[0]): name for name, place in places.items() if place}
    if sorted(order) != list(range(len(arrays))):
        raise ValueError(
            f"{path} must have names that begin with 0, 1, 2, ..., got {sorted(arrays)[:5]}: "
            f"{SAVE_KERAS}"
        )
    names = [order[place] for place in range(len(arrays))]
    _check_directions(path, names, [arrays[name].shape for name in names])
    return [arrays[name] for name in names]


def _read_safetensors(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    with open_tensors(path) as file:
        _check_size(path, file.nbytes, max_bytes)
        return {name: file.read(name) for name in file.entries}


def _check_size(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(
            f"{path} must have arrays of at most max_bytes={max_bytes:,}, got {size:,}"
        )


def _read_h5(path: Path, max_bytes: int, asked: Asked) -> list[np.ndarray]:
    try:
        import h5py
    except ModuleNotFoundError:
        raise missing_package(str(path), "h5py", "h5", f"; or else: {SAVE_KERAS}") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a weight file, got no such file")
    try:
        with h5py.File(path, "r") as file:
            _check_links(path, file)
            if (config := file.attrs.get("model_config")) is not None:
                text = config.decode() if isinstance(config, bytes) else str(config)
                check_config(path, text, asked)
            found = _datasets_in(path, file)
            _check_size(path, sum(_bytes_of(path, dataset) for dataset in found), max_bytes)
            names = [dataset.name for dataset in found]
            _check_directions(path, names, [dataset.shape for dataset in found])
            return [np.asarray(dataset) for dataset in found]
    # What h5py raises where a file is not what it says.
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} must be a whole HDF5 file, got {error}") from None


def _check_links(path: Path, file: Any) -> None:
    """Refuses links by name, which are followed into other files of whoever reads."""
    import h5py

    groups = [file]
    file.visititems(lambda _, item: groups.append(item) if hasattr(item, "keys") else None)
    for group in groups:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(
                    f"{path}: {name!r} must lie in this file, got a link, which may lead elsewhere"
                )


def _bytes_of(path: Path, dataset: Any) -> int:
    """The size of an array before it is read, if it is one and lies in this file."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise ValueError(f"{path}: {dataset.name!r} must be numbers, got {dataset!r}")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{path}: {dataset.name!r} must lie in this file, got another")
    # What was never written has a size all the same; and Keras does not compress.
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > stored:
        raise ValueError(
            f"{path}: {dataset.name!r} must be stored whole, in {dataset.nbytes:,} bytes, "
            f"got {stored:,}"
        )
    return dataset.nbytes


def _datasets_in(path: Path, file: Any) -> list[Any]:
    root: Any = file.get("model_weights", file)
    if "layer_names" in root.attrs:
        layers = [root[name] for name in root.attrs["layer_names"]]
        return [
            layer[name]
            for layer in layers
            for name in sorted(layer.attrs["weight_names"], key=_place_in_layer)
        ]
    found = {name: _datasets_of(layer) for name, layer in root.get("layers", {}).items()}
    taken = _in_order(path, {name: datasets for name, datasets in found.items() if datasets})
    _check_all_taken(path, file, taken)
    return taken


def _place_in_layer(name: str | bytes) -> tuple[bool, int]:
    """Where ``get_weights()`` has a variable: files name those that are trained before the others,
    as those of a direction that is not trained."""
    text = name.decode() if isinstance(name, bytes) else str(name)
    variable = text.split("/")[-1].removesuffix(":0")
    return _direction(text) == "backward", _VARIABLES.get(variable, len(_VARIABLES))


_VARIABLES = {"kernel": 0, "recurrent_kernel": 1, "bias": 2}


def _direction(name: str) -> str:
    """ "forward" or "backward" of a variable in a ``Bidirectional``; "" of others."""
    return "".join(re.findall(r"(?:^|/)(forward|backward)_", name)[-1:])


def _check_directions(path: Path, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuses two directions that are not concatenated: what follows has as many inputs as one."""
    end, before = 0, ""
    for direction, run in itertools.groupby(map(_direction, names)):
        start, end = end, end + len(list(run))
        if (before, direction) == ("forward", "backward") and end < len(names):
            units, inputs = shapes[start + 1][:1], shapes[end][:1]
            if inputs != tuple(2 * size for size in units):
                raise ValueError(
                    f"{path}: the directions of {names[start]!r} must be concatenated "
                    f"(merge_mode='concat'), got recurrent weights {shapes[start + 1]} and then "
                    f"{names[end]!r} {shapes[end]}"
                )
        before = direction


def _check_all_taken(path: Path, file: Any, taken: Sequence[Any]) -> None:
    """Refuses a file of layers inside of layers, whose weights would be lost."""
    import h5py

    found: list[Any] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    names = {dataset.name for dataset in found} - {dataset.name for dataset in taken}
    # The state of the random numbers of dropout is none of the weights.
    if left := sorted(name for name in names if "seed_generator" not in name):
        raise ValueError(
            f"{path} must have one embedding, recurrent layers of one class and one dense layer, "
            f"none inside of another, got {left[0]!r} beside them; for another model: {SAVE_KERAS}"
        )


def _datasets_of(layer: Any) -> list[Any]:
    """Those of one layer of a .weights.h5 file, in the order of ``get_weights()``."""
    if "forward_layer" in layer:
        return [*_datasets_of(layer["forward_layer"]), *_datasets_of(layer["backward_layer"])]
    found = layer["cell/vars"] if "cell" in layer else layer["vars"]
    return [found[name] for name in sorted(found)]


def _in_order(path: Path, layers: Mapping[str, list[Any]]) -> list[Any]:
    """Layers of one class are numbered as they come; between classes there is no order."""
    ends = {"embedding", "dense"}
    inner = sorted(set(layers) - ends, key=lambda name: (len(name), name))
    if not ends <= set(layers) or len({re.sub(r"_\d+$", "", name) for name in inner}) != 1:
        raise ValueError(
            f"{path} must have one embedding, recurrent layers of one class and one dense layer, "
            f"got {sorted(layers)}; for another model: {SAVE_KERAS}"
        )
    return [dataset for name in ("embedding", *inner, "dense") for dataset in layers[name]]

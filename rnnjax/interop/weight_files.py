"""Files of weights that PyTorch and Keras write, read without pickle and in bounded memory."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnnjax._checks import missing_package
from rnnjax.interop._keras_config import check_config
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
    activation: str = "tanh",
    pooling: str | None = None,
) -> list[np.ndarray]:
    """The arrays of a Keras model in the order of ``model.get_weights()``.

    Args:
        path: one of

            - a safetensors file whose names begin with the place of each array in that order, as
              in "000/embedding/embeddings"; ``SAVE_KERAS`` is the line that writes it;
            - what ``model.save_weights("x.weights.h5")`` writes, for a model of one embedding,
              recurrent layers of one class and one dense layer: of others the file does not say
              in which order they come;
            - the older .h5 files, which say it; and where they hold the whole model, every layer
              and every option is looked at: what has no counterpart here (``go_backwards``, other
              activations or ways to merge two directions, layers side by side ...) or is not known
              to have one is refused by name.

            Files .h5 need the package h5py, which the extra ``h5`` brings. They have no checksums:
            of a damaged one it is noticed when it cannot be read, not when a number has changed.
        max_bytes: all arrays together may take so much, by default 8 GiB.
        activation: of ``SimpleRNN`` layers, as the model here will have it; held against a file
            that holds the whole model.
        pooling: "last", "mean" or "max", as the model here will have it, held against the file
            likewise; None does not look.

    Raises:
        ValueError: the file is none of these, holds more than ``max_bytes`` or is compressed, or
            leads to another file, as those of HDF5 can.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the package h5py is needed and not installed.
    """
    path = Path(path)
    if path.suffix == ".h5":
        return _read_h5(path, max_bytes, activation, pooling)
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
    return [arrays[order[place]] for place in range(len(arrays))]


def _read_safetensors(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    with open_tensors(path) as file:
        _check_size(path, file.nbytes, max_bytes)
        return {name: file.read(name) for name in file.entries}


def _check_size(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(
            f"{path} must have arrays of at most max_bytes={max_bytes:,}, got {size:,}"
        )


def _read_h5(path: Path, max_bytes: int, activation: str, pooling: str | None) -> list[np.ndarray]:
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
                check_config(path, text, activation, pooling)
            found = _datasets_in(path, file)
            _check_size(path, sum(_bytes_of(path, dataset) for dataset in found), max_bytes)
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
        return [layer[name] for layer in layers for name in layer.attrs["weight_names"]]
    found = {name: _datasets_of(layer) for name, layer in root.get("layers", {}).items()}
    return _in_order(path, {name: datasets for name, datasets in found.items() if datasets})


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

"""Files of weights that PyTorch and Keras write, read without pickle."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SAVE_TORCH = 'safetensors.torch.save_file(model.state_dict(), "model.safetensors")'
SAVE_KERAS = (
    'safetensors.numpy.save_file({f"{i:03}/{v.path}": w for i, (v, w) in '
    'enumerate(zip(model.weights, model.get_weights()))}, "model.safetensors")'
)


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A state dict from a safetensors file.

    Files of ``torch.save`` are pickles, which run what is in them: they are not read. Write, in
    PyTorch, ``safetensors.torch.save_file(model.state_dict(), "model.safetensors")``.

    Raises:
        ValueError: the file is no whole safetensors file.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a .safetensors file: {SAVE_TORCH}")
    return _read_safetensors(path)


def read_keras_file(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """The arrays of a Keras model in the order of ``model.get_weights()``.

    Args:
        path: one of

            - a safetensors file whose names begin with the place of each array in that order, as
              in "000/embedding/embeddings"; ``SAVE_KERAS`` is the line that writes it;
            - what ``model.save_weights("x.weights.h5")`` writes, for a model of one embedding,
              recurrent layers of one class and one dense layer: of others the file does not say
              in which order they come;
            - the older .h5 files, which say it; and where they hold the whole model, a recurrent
              activation or a way to merge two directions that has no counterpart here is refused.

            Files .h5 need the package h5py, which comes with Keras.

    Raises:
        ValueError: the file is none of these.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix == ".h5":
        return _read_h5(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected an .h5 or a .safetensors file: {SAVE_KERAS}")
    arrays = _read_safetensors(path)
    places = {name: re.match(r"\d+", name) for name in arrays}
    order = {int(place[0]): name for name, place in places.items() if place}
    if sorted(order) != list(range(len(arrays))):
        raise ValueError(f"{path}: expected names that begin with 0, 1, 2, ...: {SAVE_KERAS}")
    return [arrays[order[place]] for place in range(len(arrays))]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {str(path)!r}")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def _read_h5(path: Path) -> list[np.ndarray]:
    try:
        import h5py
    except ModuleNotFoundError:
        raise ValueError(f"{path}: needs the package h5py; or else {SAVE_KERAS}") from None
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {str(path)!r}")
    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{path}: not a whole HDF5 file ({error})") from None
    with file:
        root: Any = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            _check_config(path, str(file.attrs.get("model_config", "")))
            layers = [root[name] for name in root.attrs["layer_names"]]
            return [np.asarray(layer[n]) for layer in layers for n in layer.attrs["weight_names"]]
        found = {name: _arrays_of(layer) for name, layer in root.get("layers", {}).items()}
    return _in_order(path, {name: arrays for name, arrays in found.items() if arrays})


def _check_config(path: Path, config: str) -> None:
    """Keras before version 2.3 computed the gates with ``hard_sigmoid`` by default."""
    for setting, known in {"recurrent_activation": "sigmoid", "merge_mode": "concat"}.items():
        for found in re.findall(rf'"{setting}": "?(\w+)', config):
            if found != known:
                raise ValueError(f"{path}: {setting}: only {known!r} is known here, got {found!r}")


def _arrays_of(layer: Any) -> list[np.ndarray]:
    """The arrays of one layer of a .weights.h5 file, in the order of ``get_weights()``."""
    if "forward_layer" in layer:
        return [*_arrays_of(layer["forward_layer"]), *_arrays_of(layer["backward_layer"])]
    found = layer["cell/vars"] if "cell" in layer else layer["vars"]
    return [np.asarray(found[name]) for name in sorted(found, key=int)]


def _in_order(path: Path, layers: Mapping[str, list[np.ndarray]]) -> list[np.ndarray]:
    """Layers of one class are numbered as they come; between classes there is no order."""
    ends = {"embedding", "dense"}
    inner = sorted(set(layers) - ends, key=lambda name: (len(name), name))
    if not ends <= set(layers) or len({re.sub(r"_\d+$", "", name) for name in inner}) != 1:
        raise ValueError(
            f"{path}: expected one embedding, recurrent layers of one class and one dense layer, "
            f"found {sorted(layers)}; for another model: {SAVE_KERAS}"
        )
    return [array for name in ("embedding", *inner, "dense") for array in layers[name]]

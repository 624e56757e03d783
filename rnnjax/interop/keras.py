"""Weights of Keras 3's ``SimpleRNN``, ``LSTM``, ``GRU`` and ``Bidirectional`` of them.

The kinds are ``vanilla``, ``lstm``, ``gru`` (``reset_after=True``, the default of Keras) and
``gru_reset_before`` (``reset_after=False``).

**Gates.** Those of a GRU lie in the order z, r, n there and r, z, n here. An LSTM's forget bias of
1 is stored in the weights by both.

**Biases.** The reset-after GRU has two rows of biases, of which only the sum acts, except in the
candidate gate. They come in as ``bias`` and ``hidden_bias`` and go out as the rows ``bias`` and
``(0, 0, hidden_bias)``.

**Activations** are not in the weights. A ``SimpleRNN`` with another than tanh is ``vanilla`` with
that one; an ``LSTM`` or ``GRU`` with others than tanh and sigmoid has no counterpart here.

**States** are ``[h, c]`` in Keras, so ``LSTMCarry(*states)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnjax._checks import check_flag
from rnnjax.interop._entries import read_entries
from rnnjax.interop._gates import add_bias, reorder
from rnnjax.interop._kinds import check_kind, make_params, read_params
from rnnjax.interop._parts import convert_parts
from rnnjax.layers.bidirectional import Directions

GATES = {"vanilla": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
_NAMES = ("kernel", "recurrent_kernel", "bias")


def import_weights(kind: str, weights: Sequence[Any]) -> Any:
    """Parameters from what ``get_weights()`` of a Keras layer gives.

    Two or three arrays are one cell (two: ``use_bias=False``, the bias becomes zeros); four or
    six are ``Bidirectional``, the forward half first.

    Args:
        kind: "vanilla", "lstm", "gru" or "gru_reset_before".
        weights: ``layer.get_weights()``, or for a stack a list with that of every layer.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came; for a list of layers a tuple,
        as ``stack`` has it.

    Raises:
        ValueError: the kind is unknown; arrays are missing, too many, or do not fit, all of them
            named; or two biases of 16 bits cannot be added exactly.

    Example:
        >>> import numpy as np
        >>> weights = [np.ones((3, 15)), np.ones((5, 15)), np.ones((2, 15))]
        >>> params = import_weights("gru", weights)
        >>> params.w_ih.shape, float(params.bias[0]), float(params.bias[10])
        ((3, 15), 2.0, 1.0)
    """
    kind = check_kind(kind, GATES, "Keras")

    def convert(cell: Mapping[str, Any], place: str) -> Any:
        return _import_cell(kind, cell, f"{place}, Keras {kind!r}")

    return convert_parts(convert, _named(weights, "weights"), "weights")


def export_weights(kind: str, params: Any, *, bias: bool = True) -> list:
    """What ``set_weights`` of the Keras layer takes; inverse of `import_weights`.

    Args:
        kind: "vanilla", "lstm", "gru" or "gru_reset_before".
        params: parameters of a cell, of ``bidirectional`` of it, or a tuple of either.
        bias: False for layers made with ``use_bias=False``.

    Returns:
        A list of NumPy arrays; for a tuple, a list of such lists, one a layer.

    Raises:
        ValueError: parameters of another kind of cell, or biases that are not zero with
            ``bias=False``.

    Example:
        >>> import jax, rnnjax
        >>> params = rnnjax.bidirectional(rnnjax.lstm(5)).init(jax.random.key(0), 3)
        >>> [array.shape for array in export_weights("lstm", params)]
        [(3, 20), (5, 20), (20,), (3, 20), (5, 20), (20,)]
    """
    kind, bias = check_kind(kind, GATES, "Keras"), check_flag("bias", bias)

    def convert(cell: Any, place: str) -> Mapping[str, np.ndarray]:
        return _export_cell(kind, read_params(kind, cell, place), bias, place)

    return _unnamed(convert_parts(convert, params, "params"))


def _named(weights: Any, place: str) -> Any:
    """The lists of Keras as the tree of cells that they mean."""
    if not isinstance(weights, list | tuple):
        kind = type(weights).__name__
        raise ValueError(f"{place} must be a list, as get_weights() gives, got {kind}")
    if isinstance(weights, Directions):
        both = zip(weights._fields, weights, strict=True)
        return Directions(*(_named(half, f"{place}.{name}") for name, half in both))
    if any(isinstance(one, list | tuple) for one in weights):
        return tuple(_named(one, f"{place}[{i}]") for i, one in enumerate(weights))
    if len(weights) in (2, 3):
        return dict(zip(_NAMES, weights, strict=False))
    if len(weights) in (4, 6):
        half = len(weights) // 2
        return Directions(_named(weights[:half], place), _named(weights[half:], place))
    raise ValueError(
        f"{place} must have the arrays {', '.join(_NAMES)}, once or, for Bidirectional, twice, got "
        f"{len(weights)} arrays: of a stack, give a list with get_weights() of every layer"
    )


def _unnamed(tree: Any) -> list:
    if isinstance(tree, Directions):
        return [*tree.forward.values(), *tree.backward.values()]
    if isinstance(tree, tuple):
        return [_unnamed(layer) for layer in tree]
    return list(tree.values())


def _import_cell(kind: str, cell: Mapping[str, Any], place: str) -> Any:
    gates = GATES[kind]
    shapes = {"recurrent_kernel": f"H {gates}H", "kernel": f"D {gates}H"}
    if "bias" in cell:
        shapes["bias"] = "2 3H" if kind == "gru" else f"{gates}H"
    arrays = read_entries(cell, shapes, place)
    if gates == 3:
        arrays = {name: reorder(array, "zrn", "rzn") for name, array in arrays.items()}
    w_ih, w_hh = arrays["kernel"], arrays["recurrent_kernel"]
    fields = {"w_ih": w_ih, "w_hh": w_hh}
    bias = arrays.get("bias", np.zeros(w_hh.shape[1:], w_hh.dtype))
    if kind == "gru":
        of_input, of_state = np.broadcast_to(bias, (2, *w_hh.shape[1:]))
        split = 2 * len(w_hh)
        fields["hidden_bias"] = of_state[split:]
        of_state = np.concatenate([of_state[:split], np.zeros_like(of_state[split:])])
        bias = add_bias(of_input, of_state, f"{place}: the two rows of bias")
    return make_params(kind, fields | {"bias": bias})


def _export_cell(
    kind: str, fields: Mapping[str, np.ndarray], bias: bool, place: str
) -> Mapping[str, np.ndarray]:
    arrays = {
        "kernel": fields["w_ih"],
        "recurrent_kernel": fields["w_hh"],
        "bias": fields["bias"],
    }
    if kind == "gru":
        of_state = np.zeros_like(fields["bias"])
        of_state[2 * len(fields["w_hh"]) :] = fields["hidden_bias"]
        arrays["bias"] = np.stack([fields["bias"], of_state])
    if not bias and arrays.pop("bias").any():
        raise ValueError(f"{place} must have zero biases for a layer without biases, got others")
    if GATES[kind] == 3:
        arrays = {name: reorder(array, "rzn", "zrn") for name, array in arrays.items()}
    return arrays

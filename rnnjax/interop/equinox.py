"""Weights of Equinox's ``LSTMCell`` and ``GRUCell``.

The kinds are ``lstm`` and ``gru``, the reset-after form. Gates lie in the order they have here;
matrices are transposed; ``bias_n`` is ``hidden_bias``. Equinox has cells only: a stack is a tuple
of them, two directions are ``rnnjax.Directions`` of them.

**States** of an ``LSTMCell`` are ``(h, c)``, so ``LSTMCarry(*state)``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnjax._checks import check_flag
from rnnjax.interop._entries import read_entries
from rnnjax.interop._kinds import check_kind, make_params, read_params
from rnnjax.interop._parts import convert_parts

_SHAPES = {
    "lstm": {"weight_hh": "4H H", "weight_ih": "4H D", "bias": "4H"},
    "gru": {"weight_hh": "3H H", "weight_ih": "3H D", "bias": "3H", "bias_n": "H"},
}
_FIELDS = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias": "bias", "bias_n": "hidden_bias"}


def import_weights(kind: str, cells: Any) -> Any:
    """Parameters from an Equinox cell, or a tree of them.

    Args:
        kind: "lstm" or "gru".
        cells: a cell, of which the attributes ``weight_ih``, ``weight_hh``, ``bias`` and ``bias_n``
            are read, or a mapping with those names; or ``Directions`` or a tuple of either. Biases
            that are None (``use_bias=False``) become zeros.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came, in a tree of the same form.

    Raises:
        ValueError: the kind is unknown, an object is none of Equinox's own cells, or weights are
            missing or do not fit, all of them named.

    Example:
        >>> import numpy as np
        >>> cell = {"weight_ih": np.ones((20, 3)), "weight_hh": np.ones((20, 5))}
        >>> import_weights("lstm", cell).w_ih.shape
        (3, 20)
    """
    kind = check_kind(kind, _SHAPES, "Equinox")

    def convert(cell: Any, place: str) -> Any:
        named = cell if isinstance(cell, Mapping) else _attributes(kind, cell, place)
        found = {name: array for name, array in named.items() if array is not None}
        biases = [name for name in _SHAPES[kind] if name.startswith("bias")]
        without = not any(name in found for name in biases)
        shapes = {n: axes for n, axes in _SHAPES[kind].items() if not (without and n in biases)}
        arrays = read_entries(found, shapes, f"{place}, Equinox {kind!r}")
        gates, size = arrays["weight_hh"].shape
        none = np.zeros(gates, arrays["weight_hh"].dtype)
        zeros = {"bias": none, "bias_n": none[:size]}
        arrays = {name: zeros[name] for name in biases} | arrays
        return make_params(kind, {_FIELDS[name]: array.T for name, array in arrays.items()})

    return convert_parts(convert, cells, "cells")


def _attributes(kind: str, cell: Any, place: str) -> dict[str, Any]:
    """What Equinox's own cell holds; another class may use the same names otherwise."""
    wanted = f"{kind.upper()}Cell"
    found = type(cell)
    if found.__name__ != wanted or not found.__module__.startswith("equinox."):
        got = f"{found.__module__}.{found.__qualname__}"
        raise ValueError(
            f"{place}, Equinox {kind!r}, must be an equinox.nn.{wanted} or a mapping with the "
            f"names of its weights, got {got}"
        )
    return {name: getattr(cell, name, None) for name in _FIELDS}


def export_weights(kind: str, params: Any, *, bias: bool = True) -> Any:
    """The weights of Equinox cells that compute the same; inverse of `import_weights`.

    They are set in a cell of the same sizes by::

        names = list(weights)
        where = lambda cell: [getattr(cell, name) for name in names]
        cell = eqx.tree_at(where, cell, [jnp.asarray(weights[name]) for name in names])

    Args:
        kind: "lstm" or "gru".
        params: parameters of a cell, or ``Directions`` or a tuple of them.
        bias: False for cells made with ``use_bias=False``.

    Returns:
        For each cell, NumPy arrays by the name of the attribute.

    Raises:
        ValueError: parameters of another kind of cell, or biases that are not zero with
            ``bias=False``.

    Example:
        >>> import jax, rnnjax
        >>> weights = export_weights("gru", rnnjax.gru(5).init(jax.random.key(0), 3))
        >>> {name: array.shape for name, array in weights.items()}
        {'weight_ih': (15, 3), 'weight_hh': (15, 5), 'bias': (15,), 'bias_n': (5,)}
    """
    kind, bias = check_kind(kind, _SHAPES, "Equinox"), check_flag("bias", bias)

    def convert(cell: Any, place: str) -> Mapping[str, np.ndarray]:
        fields = read_params(kind, cell, place)
        arrays = {name: fields[ours].T for name, ours in _FIELDS.items() if ours in fields}
        biases = [name for name in arrays if name.startswith("bias")]
        if not bias and any(arrays.pop(name).any() for name in biases):
            raise ValueError(f"{place} must have zero biases for a cell without biases, got others")
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    return convert_parts(convert, params, "params")

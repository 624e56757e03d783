r"""Weights of Haiku's ``VanillaRNN``, ``LSTM`` and ``GRU``.

The kinds are ``vanilla``, ``lstm`` and ``gru_reset_before``, the only form of GRU that Haiku has;
a GRU of the reset-after form is another function and cannot be exported.

**LSTM.** One matrix ``w`` [D + H, 4H] holds the input rows above the hidden ones, gates in the
order i, g, f, o. Haiku adds 1 to the forget gate when it computes; here that 1 is part of ``bias``.
It is added on import and taken off on export, each rounded once: the forget bias, and nothing
else, may come back from a round trip with its last bits changed.

**GRU.** Gates lie in the order z, r, a. The update gate has the opposite sense, :math:`h_t =
(1 - z) h_{t-1} + z a` there and :math:`h_t = (1 - z) n + z h_{t-1}` here: each gate is one minus
the other. Since :math:`1 - \sigma(x) = \sigma(-x)`, the weights and the bias of that gate change
their sign, which floating point does exactly.

**Vanilla.** Its activation is ReLU: use ``vanilla(H, jax.nn.relu)``. Of its two biases only the sum
acts; they come in as one and go out as ``linear`` with all of it, ``linear_1`` with zeros.

**States** are ``LSTMState(hidden, cell)``, so ``LSTMCarry(*state)``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnjax.interop._entries import check_names, read_entries
from rnnjax.interop._gates import add_bias, reorder
from rnnjax.interop._kinds import check_kind, make_params, read_params
from rnnjax.interop._parts import convert_parts, named_parts

Arrays = Mapping[str, np.ndarray]

_SHAPES = {
    "vanilla": {"linear_1/w": "H H", "linear/w": "D H", "linear/b": "H"},
    "lstm": {"linear/b": "4H", "linear/w": "I 4H"},
    "gru_reset_before": {"w_h": "H 3H", "w_i": "D 3H", "b": "3H"},
}


def import_weights(kind: str, weights: Mapping[str, Mapping[str, Any]], modules: Any) -> Any:
    """Parameters from those of a Haiku transform.

    Args:
        kind: "vanilla", "lstm" or "gru_reset_before".
        weights: arrays by the name of the module and their own, as ``transformed.init`` gives.
        modules: the name of the core in them, as in "lstm" or "encoder/~/gru_1"; or ``Directions``
            or a tuple of names, for parameters in a tree of the same form. Other modules are not
            read.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came.

    Raises:
        ValueError: the kind is unknown; arrays of a named module are missing, unexpected, or do
            not fit, all of them named; or a bias of 16 bits cannot be added to exactly.

    Example:
        >>> import numpy as np
        >>> weights = {"lstm/linear": {"w": np.ones((8, 20)), "b": np.zeros(20)}}
        >>> params = import_weights("lstm", weights, "lstm")
        >>> params.w_ih.shape, params.w_hh.shape, params.bias[5:10].tolist()
        ((3, 20), (5, 20), [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    kind = check_kind(kind, _SHAPES, "Haiku")
    check_names("weights", weights)
    for name, arrays in weights.items():
        check_names(f"weights[{name!r}]", arrays)

    def convert(module: str, place: str) -> Any:
        shapes = dict(_SHAPES[kind])
        found = {
            f"{name.removeprefix(module)}/{leaf}".lstrip("/"): array
            for name, arrays in weights.items()
            if name == module or name.startswith(module + "/")
            for leaf, array in arrays.items()
        }
        if not found:
            _suggest_module(kind, weights, module)
        if kind == "vanilla" and "linear_1/b" in found:
            shapes["linear_1/b"] = "H"
        place = f"Haiku {kind!r}, module {module!r}"
        fields = _MAPS[kind].to_fields(read_entries(found, shapes, place), place)
        return make_params(kind, fields)

    return convert_parts(convert, modules, "modules")


def _suggest_module(kind: str, weights: Mapping[str, Any], module: str) -> None:
    """Refuse a name that no module has, with those of modules that could be meant."""
    inner = {"vanilla": "/linear", "lstm": "/linear", "gru_reset_before": ""}[kind]
    near = [
        name.removesuffix(inner)
        for name in weights
        if name.endswith(inner) and name.removesuffix(inner).split("/")[-1] == module.split("/")[-1]
    ]
    hint = f"; did you mean {' or '.join(map(repr, near[:5]))}?" if near else ""
    found = list(weights)[:20]
    raise ValueError(
        f"weights must have the module {module!r} for Haiku {kind!r}, got {found}{hint}"
    )


def export_weights(kind: str, params: Any, modules: Any) -> dict[str, dict[str, np.ndarray]]:
    """The weights of Haiku cores that compute the same; inverse of `import_weights`.

    Args:
        kind: "vanilla", "lstm" or "gru_reset_before".
        params: parameters of a cell, or ``Directions`` or a tuple of them.
        modules: the name of each core, in a tree of the same form.

    Returns:
        Arrays by module and name, to be merged into the parameters of a transform.

    Raises:
        ValueError: parameters of another kind of cell, names in a tree of another form, a name
            twice, or a forget bias of 16 bits from which 1 cannot be taken exactly.

    Example:
        >>> import jax, rnnjax
        >>> params = rnnjax.stack(rnnjax.lstm(5), rnnjax.lstm(4)).init(jax.random.key(0), 3)
        >>> weights = export_weights("lstm", params, ("lstm", "lstm_1"))
        >>> {name: arrays["w"].shape for name, arrays in weights.items()}
        {'lstm/linear': (8, 20), 'lstm_1/linear': (9, 16)}
    """
    kind = check_kind(kind, _SHAPES, "Haiku")
    cells, names = named_parts(params, ""), named_parts(modules, "")
    if cells.keys() != names.keys():
        raise ValueError(
            f"modules must have one name for each cell of params, at {list(cells)}, "
            f"got names at {list(names)}"
        )
    if len(set(names.values())) < len(names):
        raise ValueError(f"modules must have a name of its own for each cell, got {modules!r}")
    weights: dict[str, dict[str, np.ndarray]] = {}
    for where, cell in cells.items():
        place = f"params{where}"
        arrays = _MAPS[kind].to_arrays(read_params(kind, cell, place), place)
        for path, array in arrays.items():
            *inner, leaf = path.split("/")
            module = "/".join([names[where], *inner])
            weights.setdefault(module, {})[leaf] = np.ascontiguousarray(array)
    return weights


def _add_to_forget_gate(bias: np.ndarray, amount: int, place: str) -> np.ndarray:
    i, f, g, o = np.split(bias, 4)
    change = f"{place}: {amount:+d} and the forget bias"
    return np.concatenate([i, add_bias(f, np.full_like(f, amount), change), g, o])


def _negate_update_gate(arrays: Arrays) -> Arrays:
    def negate(array: np.ndarray) -> np.ndarray:
        r, z, n = np.split(array, 3, axis=-1)
        return np.concatenate([r, -z, n], axis=-1)

    return {name: negate(array) for name, array in arrays.items()}


def _vanilla_fields(arrays: Arrays, place: str) -> Arrays:
    bias = arrays["linear/b"]
    second = arrays.get("linear_1/b", np.zeros_like(bias))
    bias = add_bias(bias, second, f"{place}: linear/b and linear_1/b")
    return {"w_ih": arrays["linear/w"], "w_hh": arrays["linear_1/w"], "bias": bias}


def _vanilla_arrays(fields: Arrays, place: str) -> Arrays:
    del place
    return {
        "linear/w": fields["w_ih"],
        "linear/b": fields["bias"],
        "linear_1/w": fields["w_hh"],
        "linear_1/b": np.zeros_like(fields["bias"]),
    }


def _lstm_fields(arrays: Arrays, place: str) -> Arrays:
    w, bias = (reorder(arrays[f"linear/{leaf}"], "igfo", "ifgo") for leaf in "wb")
    size = w.shape[1] // 4
    if len(w) <= size:
        raise ValueError(
            f"{place}: linear/w must have input rows above {size} hidden ones, got {len(w)} rows"
        )
    bias = _add_to_forget_gate(bias, 1, place)
    return {"w_ih": w[:-size], "w_hh": w[-size:], "bias": bias}


def _lstm_arrays(fields: Arrays, place: str) -> Arrays:
    w = np.concatenate([fields["w_ih"], fields["w_hh"]])
    bias = _add_to_forget_gate(fields["bias"], -1, place)
    return {
        "linear/w": reorder(w, "ifgo", "igfo"),
        "linear/b": reorder(bias, "ifgo", "igfo"),
    }


def _gru_fields(arrays: Arrays, place: str) -> Arrays:
    del place
    arrays = _negate_update_gate({n: reorder(a, "zrn", "rzn") for n, a in arrays.items()})
    return {"w_ih": arrays["w_i"], "w_hh": arrays["w_h"], "bias": arrays["b"]}


def _gru_arrays(fields: Arrays, place: str) -> Arrays:
    del place
    arrays = {"w_i": fields["w_ih"], "w_h": fields["w_hh"], "b": fields["bias"]}
    return {n: reorder(a, "rzn", "zrn") for n, a in _negate_update_gate(arrays).items()}


class _Map(NamedTuple):
    to_fields: Callable[[Arrays, str], Arrays]
    to_arrays: Callable[[Arrays, str], Arrays]


_MAPS = {
    "vanilla": _Map(_vanilla_fields, _vanilla_arrays),
    "lstm": _Map(_lstm_fields, _lstm_arrays),
    "gru_reset_before": _Map(_gru_fields, _gru_arrays),
}

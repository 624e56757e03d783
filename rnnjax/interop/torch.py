"""Weights of PyTorch's ``RNN``, ``LSTM``, ``GRU`` and their cells.

The kinds are ``vanilla``, ``lstm``, ``projected_lstm`` (an ``LSTM`` with ``proj_size``) and
``gru``. Gates lie in the order they have here; matrices are transposed.

**Two biases.** PyTorch adds ``bias_ih`` and ``bias_hh``, of which only the sum acts: they come in
as one ``bias`` and go out as ``bias_ih = bias``, ``bias_hh = 0``. In a GRU's candidate gate the
second one is multiplied by the reset gate; there it is ``hidden_bias``, in both directions. PyTorch
trains both, so under plain gradient descent their sum moves twice as far as ``bias`` here, and the
norm of all gradients is another: to compare training runs, freeze ``bias_hh`` there.

**Activation.** A state dict does not say ``nonlinearity="relu"``: give it to ``vanilla``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnjax._checks import check_flag, describe
from rnnjax.cells.lstm import LSTMCarry
from rnnjax.interop._entries import check_names, read_entries
from rnnjax.interop._gates import add_bias
from rnnjax.interop._kinds import check_kind, make_params, read_params
from rnnjax.layers.bidirectional import Directions

_GATES = {"vanilla": 1, "lstm": 4, "projected_lstm": 4, "gru": 3}


class _Layout(NamedTuple):
    """Which rows of weights there are, and their names: ``_l0``, ``_l0_reverse``, ``_l1``, ..."""

    num_layers: int
    bidirectional: bool
    bias: bool
    cell: bool

    def suffixes(self) -> Iterator[tuple[int, str]]:
        for layer in range(self.num_layers):
            for direction in ("", "_reverse") if self.bidirectional else ("",):
                yield layer, "" if self.cell else f"_l{layer}{direction}"


def import_weights(kind: str, weights: Mapping[str, Any], prefix: str = "") -> Any:
    """Parameters from a PyTorch state dict.

    The result is the parameters of one cell; of ``bidirectional`` of that cell where the names
    say ``_reverse``; and a tuple of them, as ``stack`` has it, where there are several layers.
    Missing biases (``bias=False``) become zeros.

    Args:
        kind: "vanilla", "lstm", "projected_lstm" or "gru".
        weights: a ``state_dict()`` on the CPU, or arrays under the same names.
        prefix: where in a larger state dict the module is, as in "encoder.lstm."; entries under
            other names are not read.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came.

    Raises:
        ValueError: the kind is unknown; entries are missing, unexpected, or do not fit, all of
            them named; or two biases of 16 bits cannot be added exactly.

    Example:
        >>> import numpy as np
        >>> matrices = {"weight_ih": np.ones((20, 3)), "weight_hh": np.ones((20, 5))}
        >>> arrays = matrices | {"bias_ih": np.ones(20), "bias_hh": np.ones(20)}
        >>> weights = {f"rnn.{name}_l0": array for name, array in arrays.items()}
        >>> params = import_weights("lstm", weights, prefix="rnn.")
        >>> params.w_ih.shape, params.w_hh.shape, float(params.bias[0])
        ((3, 20), (5, 20), 2.0)
    """
    kind = check_kind(kind, _GATES, "PyTorch")
    check_names("weights", weights)
    if not isinstance(prefix, str):
        raise ValueError(f"prefix must be a string, got {prefix!r}")
    own = {name.removeprefix(prefix): a for name, a in weights.items() if name.startswith(prefix)}
    place = f"PyTorch {kind!r} at {prefix!r}"
    if not {"weight_ih", "weight_ih_l0"} & own.keys():
        _suggest_prefix(weights, place)
    layout = _layout_of(own)
    arrays = read_entries(own, _torch_shapes(kind, layout), place)
    return _nested([_import_row(kind, arrays, s) for _, s in layout.suffixes()], layout)


def export_weights(
    kind: str, params: Any, prefix: str = "", *, bias: bool = True, cell: bool = False
) -> dict[str, np.ndarray]:
    """The state dict of the PyTorch module that computes the same; inverse of `import_weights`.

    Args:
        kind: "vanilla", "lstm", "projected_lstm" or "gru".
        params: parameters of a cell, of ``bidirectional`` of it, or a tuple of either.
        prefix: put before every name.
        bias: False for a module made with ``bias=False``.
        cell: with the names of ``RNNCell``, ``LSTMCell``, ``GRUCell``.

    Returns:
        NumPy arrays by name: ``{name: torch.from_numpy(array) ...}`` is a state dict.

    Raises:
        ValueError: the parameters are no such module: another kind of cell, layers of different
            sizes, one direction in some layers and two in others; or biases that are not zero
            with ``bias=False``.

    Example:
        >>> import jax, rnnjax
        >>> params = rnnjax.bidirectional(rnnjax.gru(5)).init(jax.random.key(0), 3)
        >>> [name for name in export_weights("gru", params) if name.startswith("weight")]
        ['weight_ih_l0', 'weight_hh_l0', 'weight_ih_l0_reverse', 'weight_hh_l0_reverse']
    """
    kind = check_kind(kind, _GATES, "PyTorch")
    bias, cell = check_flag("bias", bias), check_flag("cell", cell)
    layers = params if type(params) is tuple else (params,)
    both = {isinstance(layer, Directions) for layer in layers}
    if len(both) != 1:
        raise ValueError(
            "params must have two directions in every layer for PyTorch, or in none, got both"
        )
    layout = _Layout(len(layers), both.pop(), bias, cell)
    rows = [row for layer in layers for row in (layer if layout.bidirectional else [layer])]
    if cell and (len(rows) > 1 or kind == "projected_lstm"):
        found = f"{len(rows)} rows of weights of kind {kind!r}"
        raise ValueError(f"params must be those of a cell that PyTorch has, got {found}")
    entries: dict[str, np.ndarray] = {}
    for row, (layer, suffix) in zip(rows, layout.suffixes(), strict=True):
        fields = read_params(kind, row, f"layer {layer}")
        entries |= _export_row(kind, fields, suffix, bias)
    read_entries(entries, _torch_shapes(kind, layout), "one PyTorch module for all layers")
    return {prefix + name: array for name, array in entries.items()}


def import_carry(kind: str, state: Any, *, bidirectional: bool = False) -> Any:
    """The carry of a layer from a PyTorch state, initial or final.

    Args:
        kind: as in `import_weights`.
        state: ``(h, c)`` of an LSTM, ``h`` of the others, each [layers * directions, B, H].
        bidirectional: whether rows come in pairs, one a direction.

    Raises:
        ValueError: the kind is unknown, the state is no such one, or rows are of an odd number and
            should come in pairs.

    Example:
        >>> import numpy as np
        >>> carry = import_carry("lstm", (np.ones((2, 7, 5)), np.zeros((2, 7, 5))))
        >>> len(carry), carry[1].h.shape
        (2, (7, 5))
    """
    kind = check_kind(kind, _GATES, "PyTorch")
    bidirectional = check_flag("bidirectional", bidirectional)
    states = _state_arrays(kind, state)
    rows = [LSTMCarry(*row) if len(row) == 2 else row[0] for row in zip(*states, strict=True)]
    if bidirectional and len(rows) % 2:
        raise ValueError(f"state must have an even number of rows, two a layer, got {len(rows)}")
    num_layers = len(rows) // 2 if bidirectional else len(rows)
    return _nested(rows, _Layout(num_layers, bidirectional, bias=True, cell=False))


def export_carry(kind: str, carry: Any) -> Any:
    """The PyTorch state of a layer's carry; inverse of `import_carry`.

    Raises:
        ValueError: the kind is unknown, the carry is that of another one, or its rows have several
            sizes.

    Example:
        >>> import numpy as np
        >>> export_carry("gru", (np.ones((7, 5)), np.ones((7, 5)))).shape
        (2, 7, 5)
    """
    kind = check_kind(kind, _GATES, "PyTorch")
    layers = carry if type(carry) is tuple and carry else (carry,)
    rows = [row for one in layers for row in (one if isinstance(one, Directions) else [one])]
    is_lstm = kind.endswith("lstm")
    pieces = [tuple(row) if isinstance(row, LSTMCarry) else (row,) for row in rows]
    for row, arrays in zip(rows, pieces, strict=True):
        if len(arrays) != 1 + is_lstm or not all(getattr(a, "ndim", 0) for a in arrays):
            expected = "LSTMCarry(h, c)" if is_lstm else "one array"
            raise ValueError(f"carry must be {expected} a row for {kind!r}, got {describe(row)}")
    shapes = {tuple(map(np.shape, arrays)) for arrays in pieces}
    if len(shapes) > 1:
        raise ValueError(f"carry must have rows of one shape for PyTorch, got {sorted(shapes)}")
    states = [np.stack(arrays) for arrays in zip(*pieces, strict=True)]
    return tuple(states) if is_lstm else states[0]


def _state_arrays(kind: str, state: Any) -> list[np.ndarray]:
    """``h``, and of an LSTM ``c``; an array alone is no pair, whatever its first axis is."""
    is_pair = isinstance(state, tuple | list)
    if is_pair is not kind.endswith("lstm") or (is_pair and len(state) != 2):
        expected = "(h, c)" if kind.endswith("lstm") else "one array h"
        raise ValueError(f"state must be {expected} for {kind!r}, got {describe(state)}")
    try:
        arrays = [np.asarray(part) for part in (state if is_pair else (state,))]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state must be readable by NumPy, got {error}") from None
    shapes = [array.shape for array in arrays]
    # Without a batch, PyTorch has states [layers * directions, H].
    if any(len(shape) not in (2, 3) for shape in shapes) or len({s[:-1] for s in shapes}) > 1:
        raise ValueError(f"state must have shape [layers * directions, B, H], got {shapes}")
    return arrays


def _suggest_prefix(names: Mapping[str, Any], place: str) -> None:
    """Refuse a prefix under which nothing lies, if recurrent modules lie under others."""
    ends = [re.search(r"weight_ih(_l0)?$", name) for name in names]
    found = [name[: end.start()] for name, end in zip(names, ends, strict=True) if end]
    if found:
        hint = " or ".join(f"prefix={one!r}" for one in found[:5])
        raise ValueError(f"{place} must have weight_ih_l0, got none there; did you mean {hint}?")


def _layout_of(names: Mapping[str, Any]) -> _Layout:
    layered = [found for name in names if (found := re.search(r"_l(\d+)(_reverse)?$", name))]
    return _Layout(
        num_layers=1 + max((int(found[1]) for found in layered), default=0),
        bidirectional=any(found[2] for found in layered),
        bias=any(name.startswith("bias_") for name in names),
        cell="weight_ih" in names,
    )


def _torch_shapes(kind: str, layout: _Layout) -> dict[str, str]:
    gates, output = _GATES[kind], "P" if kind == "projected_lstm" else "H"
    shapes = {}
    for layer, suffix in layout.suffixes():
        below = f"{2 if layout.bidirectional else 1}{output}" if layer else "D"
        if kind == "projected_lstm":
            shapes["weight_hr" + suffix] = "P H"
        shapes["weight_hh" + suffix] = f"{gates}H {output}"
        shapes["weight_ih" + suffix] = f"{gates}H {below}"
        if layout.bias:
            shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = f"{gates}H"
    return shapes


def _import_row(kind: str, arrays: Mapping[str, np.ndarray], suffix: str) -> Any:
    w_ih, w_hh = arrays["weight_ih" + suffix], arrays["weight_hh" + suffix]
    fields = {"w_ih": w_ih.T, "w_hh": w_hh.T}
    none = np.zeros(len(w_ih), w_ih.dtype)
    b_ih, b_hh = (arrays.get(half + suffix, none) for half in ("bias_ih", "bias_hh"))
    if kind == "gru":
        size = w_hh.shape[1]
        fields["hidden_bias"] = b_hh[2 * size :]
        b_hh = np.concatenate([b_hh[: 2 * size], none[2 * size :]])
    if kind == "projected_lstm":
        fields["w_hr"] = arrays["weight_hr" + suffix].T
    what = f"bias_ih{suffix} and bias_hh{suffix}"
    return make_params(kind, fields | {"bias": add_bias(b_ih, b_hh, what)})


def _export_row(
    kind: str, fields: Mapping[str, np.ndarray], suffix: str, bias: bool
) -> dict[str, np.ndarray]:
    arrays = {"weight_ih": fields["w_ih"].T, "weight_hh": fields["w_hh"].T}
    b_ih, b_hh = fields["bias"], np.zeros_like(fields["bias"])
    if kind == "gru":
        b_hh[2 * fields["w_hh"].shape[0] :] = fields["hidden_bias"]
    if bias:
        arrays |= {"bias_ih": b_ih, "bias_hh": b_hh}
    elif b_ih.any() or b_hh.any():
        raise ValueError(
            f"row {suffix!r} must have zero biases for a module without biases, got others"
        )
    if kind == "projected_lstm":
        arrays["weight_hr"] = fields["w_hr"].T
    return {name + suffix: np.ascontiguousarray(array) for name, array in arrays.items()}


def _nested(rows: list, layout: _Layout) -> Any:
    """One entry a layer; the entry itself where there is one layer."""
    if layout.bidirectional:
        rows = [Directions(*rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return rows[0] if layout.num_layers == 1 else tuple(rows)

"""Weights of the ONNX operators ``RNN``, ``LSTM`` and ``GRU``.

The kinds are ``vanilla``, ``lstm``, ``peephole_lstm`` (an ``LSTM`` with its input ``P``),
``coupled_lstm`` (``input_forget=1``), ``gru`` (``linear_before_reset=1``) and ``gru_reset_before``
(``linear_before_reset=0``, the default of ONNX); `kind_of` tells which one a node is.

**Layout.** Inputs ``W``, ``R``, ``B`` and ``P`` have a first axis for the direction. Matrices are
transposed; gates lie in the order i, o, f, g for an LSTM (i, o, f in ``P``) and z, r, n for a GRU.
An ``LSTM`` with ``input_forget=1`` does not read what it holds for f: that is dropped on import and
zero on export.

**Two biases.** ``B`` holds those of ``W`` and then those of ``R``; only their sum acts, and they go
out as (bias, 0). In the candidate gate of ``gru`` the second one is multiplied by the reset gate;
there it is ``hidden_bias``, in both directions.

**States.** ``Y_h`` and ``Y_c`` [directions, B, H] are what ``rnnjax.interop.torch.import_carry``
takes for one layer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnjax.interop._entries import check_names, read_entries
from rnnjax.interop._gates import add_bias, reorder
from rnnjax.interop._kinds import check_kind, make_params, read_params
from rnnjax.interop._parts import convert_parts
from rnnjax.layers.bidirectional import Directions

_GATES = {  # theirs, ours
    "vanilla": ("h", "h"),
    "lstm": ("iofg", "ifgo"),
    "peephole_lstm": ("iofg", "ifgo"),
    "coupled_lstm": ("iofg", "igo"),
    "gru": ("zrn", "rzn"),
    "gru_reset_before": ("zrn", "rzn"),
}
_PEEPHOLES = ("p_i", "p_o", "p_f")
# What each attribute may be; "activations" is looked at for itself.
_ANY_SIZE = ("hidden_size", "activations")
_ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "direction": ("forward", "reverse", "bidirectional"),
    "layout": (0, 1),  # of inputs and outputs, not of the weights
    "linear_before_reset": (0, 1),
    "input_forget": (0, 1),
    "output_sequence": (0, 1),  # in operator sets below 7
}
_ACTIVATIONS = {"RNN": ["tanh"], "LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


def kind_of(op_type: str, attributes: Mapping[str, Any], peepholes: bool = False) -> str:
    """The kind of cell that a node computes, from its type and attributes.

    Args:
        op_type: "RNN", "LSTM" or "GRU".
        attributes: those the node has, by name.
        peepholes: whether the node is given its input ``P``.

    Raises:
        ValueError: the node is none of those, or does not compute what that kind does: it has
            other activations than the default ones, ``clip``, ``input_forget`` with peepholes, or
            an attribute or a value that is not known here. (An ``RNN`` with
            another activation is ``vanilla`` with that one; its weights are those of this kind.)

    Example:
        >>> kind_of("GRU", {"hidden_size": 5, "linear_before_reset": 1})
        'gru'
    """
    if op_type not in _ACTIVATIONS:
        raise ValueError(f"op_type must be one of {list(_ACTIVATIONS)}, got {op_type!r}")
    given = attributes.get("activations", [])
    activations = [(a.decode() if isinstance(a, bytes) else a).lower() for a in given]
    default = _ACTIVATIONS[op_type]
    if activations not in ([], default, default * 2):
        raise ValueError(f"{op_type} must have the activations {default}, got {activations}")
    _refuse_unknown(op_type, attributes)
    coupled = attributes.get("input_forget", 0)
    if coupled and peepholes:
        found = f"input_forget with peepholes in {dict(attributes)}"
        raise ValueError(f"{op_type} must have attributes that a cell here has, got {found}")
    if op_type == "GRU":
        return "gru" if attributes.get("linear_before_reset", 0) else "gru_reset_before"
    if op_type == "LSTM" and (coupled or peepholes):
        return "coupled_lstm" if coupled else "peephole_lstm"
    return "lstm" if op_type == "LSTM" else "vanilla"


def _refuse_unknown(op_type: str, attributes: Mapping[str, Any]) -> None:
    """The default activations have no alpha and no beta: an attribute with them is refused too."""
    for name, value in attributes.items():
        if name in _ANY_SIZE or (name.startswith("activation_") and len(value) == 0):
            continue
        value = value.decode() if isinstance(value, bytes) else value
        if name not in _ATTRIBUTES or value not in _ATTRIBUTES[name]:
            raise ValueError(
                f"{op_type} must have attributes that a cell here has, got {name}={value!r}"
            )


def import_weights(kind: str, nodes: Any) -> Any:
    """Parameters from the weights of an ONNX node, or of several in a stack.

    One direction makes the parameters of a cell (for ``direction="reverse"``, of a layer
    ``recurrent(cell, reverse=True)``), two make ``Directions``. A missing ``B`` becomes zeros.

    Args:
        kind: "vanilla", "lstm", "peephole_lstm", "coupled_lstm", "gru" or "gru_reset_before".
        nodes: arrays by the names "W", "R", "B" and "P"; or a list of such mappings, one a
            layer, which makes a tuple as ``stack`` has it.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came.

    Raises:
        ValueError: the kind is unknown; arrays are missing, unexpected, or do not fit, all of them
            named; or two biases of 16 bits cannot be added exactly.

    Example:
        >>> import numpy as np
        >>> node = {"W": np.ones((1, 20, 3)), "R": np.ones((1, 20, 5)), "B": np.ones((1, 40))}
        >>> params = import_weights("lstm", node)
        >>> params.w_ih.shape, float(params.bias[0])
        ((3, 20), 2.0)
    """
    kind = check_kind(kind, _GATES, "ONNX")

    def convert(node: Mapping[str, Any], place: str) -> Any:
        place = f"{place}, ONNX {kind!r}"
        check_names(place, node)
        arrays = read_entries(node, _onnx_shapes(kind, "B" in node), place)
        directions = len(arrays["R"])
        if directions not in (1, 2):
            raise ValueError(f"{place} must have one or two directions, got {directions}")
        cells = [_import_cell(kind, arrays, d, place) for d in range(directions)]
        return cells[0] if directions == 1 else Directions(*cells)

    return convert_parts(convert, nodes, "nodes")


def export_weights(kind: str, params: Any) -> Any:
    """The inputs of the ONNX node that computes the same; inverse of `import_weights`.

    Args:
        kind: "vanilla", "lstm", "peephole_lstm", "coupled_lstm", "gru" or "gru_reset_before".
        params: parameters of a cell, of ``bidirectional`` of it, or a tuple of either.

    Returns:
        NumPy arrays by the names "W", "R", "B" and "P", or a list of such mappings for a tuple.

    Raises:
        ValueError: parameters of another kind of cell, or two directions of different sizes.

    Example:
        >>> import jax, rnnjax
        >>> params = rnnjax.bidirectional(rnnjax.gru(5)).init(jax.random.key(0), 3)
        >>> {name: array.shape for name, array in export_weights("gru", params).items()}
        {'W': (2, 15, 3), 'R': (2, 15, 5), 'B': (2, 30)}
    """
    kind = check_kind(kind, _GATES, "ONNX")
    if type(params) is tuple and params:
        return [_export_node(kind, layer, f"params[{i}]") for i, layer in enumerate(params)]
    return _export_node(kind, params, "params")


def _onnx_shapes(kind: str, bias: bool) -> dict[str, str]:
    gates = len(_GATES[kind][0])
    shapes = {"R": f"N {gates}H H", "W": f"N {gates}H D"}
    shapes |= {"B": f"N {2 * gates}H"} if bias else {}
    return shapes | ({"P": "N 3H"} if kind == "peephole_lstm" else {})


def _import_cell(kind: str, arrays: Mapping[str, np.ndarray], direction: int, place: str) -> Any:
    theirs, ours = _GATES[kind]
    w_ih, w_hh = (reorder(arrays[name][direction].T, theirs, ours) for name in ("W", "R"))
    fields = {"w_ih": w_ih, "w_hh": w_hh}
    none = np.zeros((2, len(theirs) * len(w_hh)), w_hh.dtype)
    both = arrays["B"][direction].reshape(none.shape) if "B" in arrays else none
    of_input, of_state = reorder(both, theirs, ours)
    if kind == "gru":
        split = 2 * len(w_hh)
        fields["hidden_bias"] = of_state[split:]
        of_state = np.concatenate([of_state[:split], none[0, split:]])
    if kind == "peephole_lstm":
        fields |= zip(_PEEPHOLES, np.split(arrays["P"][direction], 3), strict=True)
    bias = add_bias(of_input, of_state, f"{place}: the two halves of B")
    return make_params(kind, fields | {"bias": bias})


def _export_node(kind: str, layer: Any, place: str) -> dict[str, np.ndarray]:
    cells = layer if isinstance(layer, Directions) else (layer,)
    rows = [_export_cell(kind, read_params(kind, cell, place)) for cell in cells]
    shapes = [{name: array.shape for name, array in row.items()} for row in rows]
    if shapes[1:] not in ([], shapes[:1]):
        raise ValueError(f"{place}: ONNX needs two directions of the same sizes, got {shapes}")
    # In order, as the arrays for all libraries are: safetensors writes others as they lie.
    return {name: np.ascontiguousarray(np.stack([row[name] for row in rows])) for name in rows[0]}


def _export_cell(kind: str, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    theirs, ours = _GATES[kind]
    biases = np.stack([fields["bias"], np.zeros_like(fields["bias"])])
    if kind == "gru":
        biases[1, 2 * len(fields["w_hh"]) :] = fields["hidden_bias"]
    arrays = {
        "W": reorder(fields["w_ih"], ours, theirs).T,
        "R": reorder(fields["w_hh"], ours, theirs).T,
        "B": reorder(biases, ours, theirs).ravel(),
    }
    if kind == "peephole_lstm":
        arrays["P"] = np.concatenate([fields[name] for name in _PEEPHOLES])
    return arrays

"""The kinds of cell that other libraries have too, each with the parameters it has here.

==================== ========================== =======================
kind                 cell                       parameters
==================== ========================== =======================
``vanilla``          ``vanilla``                ``VanillaParams``
``lstm``             ``lstm``                   ``LSTMParams``
``projected_lstm``   ``projected_lstm``         ``ProjectedLSTMParams``
``peephole_lstm``    ``peephole_lstm``          ``PeepholeLSTMParams``
``coupled_lstm``     ``coupled_lstm``           ``CoupledLSTMParams``
``gru``              ``gru``                    ``GRUParams``
``gru_reset_before`` ``gru(reset_after=False)`` ``GRUParams``
``minimal_gated``    ``minimal_gated``          ``MinimalGatedParams``
==================== ========================== =======================
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnjax.cells.coupled_lstm import CoupledLSTMParams
from rnnjax.cells.gru import GRUParams
from rnnjax.cells.lstm import LSTMParams
from rnnjax.cells.minimal_gated import MinimalGatedParams
from rnnjax.cells.peephole_lstm import PeepholeLSTMParams
from rnnjax.cells.projected_lstm import ProjectedLSTMParams
from rnnjax.cells.vanilla import VanillaParams
from rnnjax.interop._entries import Shapes, read_entries


class Kind(NamedTuple):
    """``params``, the type of the parameters, and the ``shapes`` of their fields."""

    params: Any
    shapes: Shapes


_LSTM = {"w_hh": "H 4H", "w_ih": "D 4H", "bias": "4H"}
_THREE_GATES = {"w_hh": "H 3H", "w_ih": "D 3H", "bias": "3H"}
_MINIMAL_GATED = {"w_hh": "H 2H", "w_ih": "D 2H", "bias": "2H", "hidden_bias": "H"}

KINDS = {
    "vanilla": Kind(VanillaParams, {"w_hh": "H H", "w_ih": "D H", "bias": "H"}),
    "lstm": Kind(LSTMParams, _LSTM),
    "projected_lstm": Kind(ProjectedLSTMParams, {"w_hr": "H P", **_LSTM, "w_hh": "P 4H"}),
    "peephole_lstm": Kind(PeepholeLSTMParams, {**_LSTM, "p_i": "H", "p_f": "H", "p_o": "H"}),
    "coupled_lstm": Kind(CoupledLSTMParams, _THREE_GATES),
    "gru": Kind(GRUParams, {**_THREE_GATES, "hidden_bias": "H"}),
    "gru_reset_before": Kind(GRUParams, _THREE_GATES),
    "minimal_gated": Kind(MinimalGatedParams, _MINIMAL_GATED),
}


# What kinds were called before, other than the cells of this library.
_FORMER = {"rnn": "vanilla", "mgu": "minimal_gated"}


def check_kind(kind: str, known: Collection[str], library: str) -> str:
    """A kind of cell that ``library`` has, by its present name; of a former one it warns.

    Raises:
        ValueError: it does not have it; names those it has.
    """
    name = _FORMER.get(kind, kind)
    if name not in known:
        other = {"gru": "gru_reset_before", "gru_reset_before": "gru"}.get(name)
        hint = f": its GRU is rnnjax.gru(H, reset_after={other == 'gru'})" if other in known else ""
        raise ValueError(f"kind must be one of {list(known)} for {library}, got {kind!r}{hint}")
    if name != kind:
        message = f"the kind {kind!r} is called {name!r} now, as its cell is"
        # Of the caller of the function that checks: Python shows it only there.
        warnings.warn(message, DeprecationWarning, stacklevel=3)
    return name


def read_params(kind: str, params: Any, place: str) -> dict[str, np.ndarray]:
    """The fields of one cell's parameters as NumPy arrays.

    Raises:
        ValueError: they are not the parameters of that kind, or do not fit together.
    """
    expected, shapes = KINDS[kind]
    if not isinstance(params, expected):
        raise ValueError(
            f"{place} must be {expected.__name__} for kind {kind!r}, got {type(params).__name__}"
        )
    found = {name: leaf for name, leaf in params._asdict().items() if leaf is not None}
    return read_entries(found, shapes, f"{place}, kind {kind!r}")


def make_params(kind: str, fields: Mapping[str, np.ndarray]) -> Any:
    """The parameters of that kind from their fields, each contiguous in memory."""
    blank: dict[str, Any] = dict.fromkeys(KINDS[kind].params._fields)
    return KINDS[kind].params(
        **blank | {name: np.ascontiguousarray(field) for name, field in fields.items()}
    )

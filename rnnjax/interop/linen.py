"""Weights of Flax linen's ``SimpleCell``, LSTM cells, ``GRUCell`` and ``MGUCell``.

The kinds are ``vanilla``, ``lstm`` (``LSTMCell`` and ``OptimizedLSTMCell``, whose parameters are
the same), ``gru`` and ``minimal_gated`` (with ``reset_gate=True``, the default; the other form has
no counterpart here). Every gate has matrices of its own; here they lie side by side. Only one of
the two maps that are added has a bias, which is ``bias``; that of ``hn`` is ``hidden_bias``.

Not in the weights, and so not seen: a ``SimpleCell`` with ``residual=True`` is another function and
has no counterpart here; one with another activation is ``vanilla`` with that one.

**Carries** are ``(c, h)`` in Flax: ``LSTMCarry(h=carry[1], c=carry[0])``.
"""

from typing import Any

from rnnjax.interop._flax_trees import export_tree, import_tree
from rnnjax.interop._kinds import check_kind


def _kernels(half: str, gates: str) -> list[str]:
    return [f"{half}{gate}/kernel" for gate in gates]


_PIECES = {
    "vanilla": {"w_ih": ["i/kernel"], "w_hh": ["h/kernel"], "bias": ["i/bias"]},
    "lstm": {
        "w_ih": _kernels("i", "ifgo"),
        "w_hh": _kernels("h", "ifgo"),
        "bias": ["hi/bias", "hf/bias", "hg/bias", "ho/bias"],
    },
    "gru": {
        "w_ih": _kernels("i", "rzn"),
        "w_hh": _kernels("h", "rzn"),
        "bias": ["ir/bias", "iz/bias", "in/bias"],
        "hidden_bias": ["hn/bias"],
    },
    "minimal_gated": {
        "w_ih": _kernels("i", "fn"),
        "w_hh": _kernels("h", "fn"),
        "bias": ["if/bias", "in/bias"],
        "hidden_bias": ["hn/bias"],
    },
}


def import_weights(kind: str, weights: Any) -> Any:
    """Parameters from the ``"params"`` of a linen module.

    Args:
        kind: "vanilla", "lstm", "gru" or "minimal_gated".
        weights: those of a cell, of ``nn.RNN``, or of ``nn.Bidirectional``, which makes
            ``Directions``; or a list of them, one a layer, which makes a tuple as ``stack`` has it.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came.

    Raises:
        ValueError: the kind is unknown, or arrays are missing, unexpected, or do not fit, all of
            them named.

    Example:
        >>> import numpy as np
        >>> input_side = {name: {"kernel": np.ones((3, 5))} for name in ("ii", "if", "ig", "io")}
        >>> hidden_side = {
        ...     name: {"kernel": np.ones((5, 5)), "bias": np.ones(5)}
        ...     for name in ("hi", "hf", "hg", "ho")
        ... }
        >>> import_weights("lstm", {"cell": input_side | hidden_side}).w_ih.shape
        (3, 20)
    """
    kind = check_kind(kind, _PIECES, "Flax linen")
    return import_tree(kind, weights, _PIECES[kind], "linen")


def export_weights(kind: str, params: Any) -> Any:
    """The ``"params"`` of the linen module that computes the same; inverse of `import_weights`.

    Args:
        kind: "vanilla", "lstm", "gru" or "minimal_gated".
        params: parameters of a cell, of ``bidirectional`` of it, or a tuple of either.

    Returns:
        What ``nn.RNN`` holds, ``{"cell": ...}`` with NumPy arrays, or ``nn.Bidirectional``; a list
        of them for a tuple.

    Raises:
        ValueError: parameters of another kind of cell.

    Example:
        >>> import jax, rnnjax
        >>> weights = export_weights("gru", rnnjax.gru(5).init(jax.random.key(0), 3))
        >>> weights["cell"]["hn"]["bias"].shape
        (5,)
    """
    kind = check_kind(kind, _PIECES, "Flax linen")
    return export_tree(kind, params, _PIECES[kind], "linen")

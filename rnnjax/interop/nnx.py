"""Weights of Flax nnx's ``SimpleCell``, ``LSTMCell``, ``OptimizedLSTMCell`` and ``GRUCell``.

The kinds are ``vanilla``, ``lstm``, ``optimized_lstm`` (which keeps the gates of the same ``lstm``
in one matrix) and ``gru``. Gates lie in the order they have here. Only one of the two maps that are
added has a bias, which is ``bias``.

**GRU.** That of nnx has no bias in the hidden half of its candidate gate: ``hidden_bias`` comes in
as zeros, and parameters whose ``hidden_bias`` is not zero cannot be exported.

Not in the weights, and so not seen: a ``SimpleCell`` with ``residual=True`` is another function and
has no counterpart here; one with another activation is ``vanilla`` with that one.

**Carries** are ``(c, h)`` in Flax: ``LSTMCarry(h=carry[1], c=carry[0])``.
"""

from typing import Any

from rnnjax.interop._flax_trees import export_tree, import_tree
from rnnjax.interop._kinds import check_kind

_PIECES = {
    "vanilla": {"w_ih": ["dense_i/kernel"], "w_hh": ["dense_h/kernel"], "bias": ["dense_i/bias"]},
    "lstm": {
        "w_ih": ["ii/kernel", "if_/kernel", "ig/kernel", "io/kernel"],
        "w_hh": ["hi/kernel", "hf/kernel", "hg/kernel", "ho/kernel"],
        "bias": ["hi/bias", "hf/bias", "hg/bias", "ho/bias"],
    },
    "optimized_lstm": {
        "w_ih": ["dense_i/kernel"],
        "w_hh": ["dense_h/kernel"],
        "bias": ["dense_h/bias"],
    },
    "gru": {
        "w_ih": ["dense_i/kernel"],
        "w_hh": ["dense_h/kernel"],
        "bias": ["dense_i/bias"],
        "hidden_bias": [],
    },
}


def import_weights(kind: str, weights: Any) -> Any:
    """Parameters from the state of an nnx module.

    Args:
        kind: "vanilla", "lstm", "optimized_lstm" or "gru".
        weights: ``nnx.to_pure_dict(nnx.state(module, nnx.Param))`` of a cell, of ``nnx.RNN``, or of
            ``nnx.Bidirectional``, which makes ``Directions``; or a list of them, one a layer, which
            makes a tuple as ``stack`` has it.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came.

    Raises:
        ValueError: the kind is unknown, or arrays are missing, unexpected, or do not fit, all of
            them named.

    Example:
        >>> import numpy as np
        >>> of_input = {"kernel": np.ones((3, 15)), "bias": np.ones(15)}
        >>> cell = {"dense_i": of_input, "dense_h": {"kernel": np.ones((5, 15))}}
        >>> import_weights("gru", {"cell": cell}).hidden_bias
        array([0., 0., 0., 0., 0.])
    """
    kind = check_kind(kind, _PIECES, "Flax nnx")
    return import_tree(_ours(kind), weights, _PIECES[kind], "nnx")


def export_weights(kind: str, params: Any) -> Any:
    """The state of the nnx module that computes the same; inverse of `import_weights`.

    It is set in a module of the same sizes by::

        state = nnx.state(module, nnx.Param)
        nnx.replace_by_pure_dict(state, weights)
        nnx.update(module, state)

    Args:
        kind: "vanilla", "lstm", "optimized_lstm" or "gru".
        params: parameters of a cell, of ``bidirectional`` of it, or a tuple of either.

    Returns:
        What ``nnx.RNN`` holds, ``{"cell": ...}`` with NumPy arrays, or ``nnx.Bidirectional``; a
        list of them for a tuple.

    Raises:
        ValueError: parameters of another kind of cell, or a GRU whose ``hidden_bias`` is not zero.

    Example:
        >>> import jax, rnnjax
        >>> params = rnnjax.bidirectional(rnnjax.lstm(5)).init(jax.random.key(0), 3)
        >>> weights = export_weights("optimized_lstm", params)
        >>> weights["backward_rnn"]["cell"]["dense_h"]["bias"].shape
        (20,)
    """
    kind = check_kind(kind, _PIECES, "Flax nnx")
    return export_tree(_ours(kind), params, _PIECES[kind], "nnx")


def _ours(kind: str) -> str:
    return kind.removeprefix("optimized_")

"""The flat weight vector of ``jax.experimental.rnn``, the cuDNN binding of JAX, for an LSTM.

The vector holds the matrices of all layers and directions first, ``weight_ih`` and ``weight_hh``
of each in turn, and then their two biases likewise. Apart from that it is PyTorch's layout, and
the biases are folded and split by the rule of ``rnnjax.interop.torch``, whose ``import_carry`` and
``export_carry`` also convert the states ``(h, c)``.
"""

from typing import Any

import numpy as np

from rnnjax._checks import check_size
from rnnjax.interop import torch
from rnnjax.layers.bidirectional import Directions


def import_weights(
    weights: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
) -> Any:
    """LSTM parameters from a flat vector; the sizes are those that ``rnn.lstm`` is given too.

    Args:
        weights: the vector, of the length ``rnn.get_num_params_in_lstm`` tells.
        input_size: D of the first layer.
        hidden_size: H.
        num_layers: several make a tuple, as ``stack`` has it.
        bidirectional: whether each layer is ``Directions``.

    Returns:
        Parameters of NumPy arrays, copies in the dtype that came.

    Raises:
        ValueError: a size is not a positive integer, or the vector is of another length.

    Example:
        >>> import numpy as np
        >>> params = import_weights(np.arange(200.0), input_size=3, hidden_size=5)
        >>> params.w_ih.shape, float(params.w_ih[1, 0]), float(params.bias[0])
        ((3, 20), 1.0, 340.0)
    """
    sizes = (check_size("input_size", input_size), check_size("hidden_size", hidden_size))
    shapes = _shapes(*sizes, check_size("num_layers", num_layers), bidirectional)
    vector, ends = np.asarray(weights), np.cumsum([np.prod(shape) for shape in shapes.values()])
    if vector.shape != (ends[-1],):
        raise ValueError(f"weights: expected a vector of length {ends[-1]}, got {vector.shape}")
    pieces = zip(np.split(vector, ends[:-1]), shapes.items(), strict=True)
    return torch.import_weights("lstm", {name: a.reshape(shape) for a, (name, shape) in pieces})


def export_weights(params: Any) -> np.ndarray:
    """The flat vector of LSTM parameters; inverse of `import_weights`.

    Args:
        params: parameters of ``lstm``, of ``bidirectional`` of it, or a tuple of either.

    Raises:
        ValueError: the parameters are not those of an LSTM with equal sizes in all layers.

    Example:
        >>> import jax, rnnjax
        >>> export_weights(rnnjax.lstm(5).init(jax.random.key(0), 3)).shape
        (200,)
    """
    arrays = torch.export_weights("lstm", params)
    first = params[0] if type(params) is tuple else params
    num_layers = len(params) if type(params) is tuple else 1
    size, hidden_size = arrays["weight_ih_l0"].shape[1], arrays["weight_hh_l0"].shape[1]
    names = _shapes(size, hidden_size, num_layers, isinstance(first, Directions))
    return np.concatenate([arrays[name].ravel() for name in names])


def _shapes(
    input_size: int, hidden_size: int, num_layers: int, bidirectional: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes of the pieces in the order of the vector, under PyTorch's names."""
    directions = ("", "_reverse") if bidirectional else ("",)
    rows = [(layer, f"_l{layer}{way}") for layer in range(num_layers) for way in directions]
    gates, shapes = 4 * hidden_size, {}
    for layer, suffix in rows:
        size = len(directions) * hidden_size if layer else input_size
        shapes |= {f"weight_ih{suffix}": (gates, size), f"weight_hh{suffix}": (gates, hidden_size)}
    for _, suffix in rows:
        shapes |= {f"bias_ih{suffix}": (gates,), f"bias_hh{suffix}": (gates,)}
    return shapes

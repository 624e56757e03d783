"""Initial weights of a cell, by the name of the library whose rule they follow.

Every rule is drawn in float32; cast the finished parameters for another dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax.base import Key

_glorot = jax.nn.initializers.glorot_uniform()
_lecun = jax.nn.initializers.lecun_normal()


def _orthogonal(key: Key, shape: tuple[int, int], dtype: Any) -> Array:
    """An orthogonal matrix, drawn one after the other under ``vmap``.

    A batched QR decomposition inside a compiled program can wait for ever on a CPU: it hands its
    matrices to the pool of threads that it runs on (jaxlib 0.10.2).
    """
    draw = jax.nn.initializers.orthogonal()
    return jax.custom_batching.sequential_vmap(lambda k: draw(k, shape, dtype))(key)


class CellInitializer(NamedTuple):
    """How the three arrays of a cell are drawn, ``gates`` gates of ``hidden_size`` units each.

    Attributes:
        w_ih: ``(key, input_size, hidden_size, gates) -> [D, G*H]``.
        w_hh: ``(key, hidden_size, gates) -> [H, G*H]``.
        bias: ``(key, hidden_size, gates) -> [G*H]``.
        hidden_bias: ``(key, hidden_size) -> [H]``, the bias a GRU adds to the recurrent half of
            its candidate.
        forget_bias: added to the bias of the LSTM's forget gate.
    """

    w_ih: Callable[[Key, int, int, int], Array]
    w_hh: Callable[[Key, int, int], Array]
    bias: Callable[[Key, int, int], Array]
    hidden_bias: Callable[[Key, int], Array]
    forget_bias: float


def _per_gate(init: Callable, key: Key, rows: int, hidden_size: int, gates: int) -> Array:
    keys = jax.random.split(key, gates)
    blocks = [init(k, (rows, hidden_size), jnp.float32) for k in keys]
    return jnp.concatenate(blocks, axis=-1)


def _zeros(key: Key, hidden_size: int, gates: int = 1) -> Array:
    del key
    return jnp.zeros((gates * hidden_size,), jnp.float32)


def _uniform(key: Key, shape: tuple[int, ...], hidden_size: int) -> Array:
    bound = hidden_size**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _two_uniform_biases(key: Key, hidden_size: int, gates: int) -> Array:
    """PyTorch keeps an input and a hidden bias; only their sum acts, except in a GRU's candidate,
    whose hidden half is kept apart as ``hidden_bias``."""
    first, second = jax.random.split(key)
    shape = (gates * hidden_size,)
    total = _uniform(first, shape, hidden_size)
    hidden = _uniform(second, shape, hidden_size)
    if gates == 3:
        hidden = hidden.at[2 * hidden_size :].set(0.0)
    return total + hidden


def _orthogonal_per_gate(key: Key, hidden_size: int, gates: int) -> Array:
    return _per_gate(_orthogonal, key, hidden_size, hidden_size, gates)


PRESETS: dict[str, CellInitializer] = {
    "rnnjax": CellInitializer(
        w_ih=lambda key, d, h, g: _per_gate(_glorot, key, d, h, g),
        w_hh=_orthogonal_per_gate,
        bias=_zeros,
        hidden_bias=_zeros,
        forget_bias=1.0,
    ),
    "pytorch": CellInitializer(
        w_ih=lambda key, d, h, g: _uniform(key, (d, g * h), h),
        w_hh=lambda key, h, g: _uniform(key, (h, g * h), h),
        bias=_two_uniform_biases,
        hidden_bias=lambda key, h: _uniform(key, (h,), h),
        forget_bias=0.0,
    ),
    "keras": CellInitializer(
        w_ih=lambda key, d, h, g: _glorot(key, (d, g * h), jnp.float32),
        w_hh=lambda key, h, g: _orthogonal(key, (h, g * h), jnp.float32),
        bias=_zeros,
        hidden_bias=_zeros,
        forget_bias=1.0,
    ),
    "flax": CellInitializer(
        w_ih=lambda key, d, h, g: _per_gate(_lecun, key, d, h, g),
        w_hh=_orthogonal_per_gate,
        bias=_zeros,
        hidden_bias=_zeros,
        forget_bias=0.0,
    ),
}
"""The rules by name.

========= ============================ =========================== ==================== ==========
name      input weights                recurrent weights           bias                 LSTM forget
========= ============================ =========================== ==================== ==========
rnnjax    Glorot uniform, each gate    orthogonal, each gate       0                    1
pytorch   U(-1/sqrt(H), 1/sqrt(H))     U(-1/sqrt(H), 1/sqrt(H))    sum of two such      0
keras     Glorot uniform, fused        orthogonal, fused           0                    1
flax      LeCun normal, each gate      orthogonal, each gate       0                    0
========= ============================ =========================== ==================== ==========

"fused" means that the rule sees the matrix of all gates at once, as Keras does: its gates are
then not orthogonal one by one. "flax" is the rule of ``LSTMCell`` and ``GRUCell``.
"""


def draw_linear(key: Key, input_size: int, output_size: int) -> tuple[Array, Array]:
    """Weights [D, O], Glorot uniform, and a bias [O] of zeros, for a map outside the time loop."""
    return PRESETS["rnnjax"].w_ih(key, input_size, output_size, 1), _zeros(key, output_size)


def resolve(initializer: str | CellInitializer) -> CellInitializer:
    """Look a rule up by name, or pass one through.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(initializer, CellInitializer):
        return initializer
    if not isinstance(initializer, str) or initializer not in PRESETS:
        raise ValueError(
            f"initializer must be one of {sorted(PRESETS)} or a "
            f"rnnjax.initializers.CellInitializer, got {initializer!r}"
        )
    return PRESETS[initializer]

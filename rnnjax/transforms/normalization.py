"""Layer normalisation inside the gates of a cell."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rnnjax._checks import check_cell, check_epsilon
from rnnjax._recipe import factory
from rnnjax.base import Carry, Cell, Key, Noise, NoiseShape, Params


class LayerNormParams(NamedTuple):
    """Parameters ``cell`` of what is normalised, and the gains: ``input_gain`` [G*H], and
    ``hidden_gain`` [G*H], None for a cell without recurrent weights."""

    cell: Any
    input_gain: Array
    hidden_gain: Array | None


@factory
def layer_norm(cell: Cell, epsilon: float = 1e-5) -> Cell:
    r"""A cell whose gates see normalised sums, gate by gate, for any cell the engine can run fast.

    .. math::

        \hat z_k &= \alpha^x_k \odot N(x_t W_{ih}^{(k)}) + b_k \\
        \hat r_k &= \alpha^h_k \odot N(h_{t-1} W_{hh}^{(k)}) \\
        N(a) &= \frac{a - \mathrm{mean}(a)}{\sqrt{\mathrm{var}(a) + \epsilon}}

    with mean and (biased) variance over the H units of gate k. This is the normalised LSTM of the
    paper, and the same for any cell, but for three choices. Each gate has statistics of its own,
    where the paper takes them over all gates at once. The shift is the cell's own bias, which is
    whatever its ``project`` gives for an input of zeros: it stays outside N, so that a forget bias
    of 1 is one still. And the cell state of an LSTM is not normalised on its way to the output.

    Of a piece of one number, N leaves 0, and the bias alone acts. The selector of an
    ``attention_cell`` is such a piece: normalise the cell inside, ``layer_norm(cell)`` as its
    first argument.

    The derivative of the engine stays; one step does two more passes over its gates.

    Args:
        cell: a cell that gives ``project`` and ``update``; without recurrent weights it is only
            the pieces of ``project`` that are normalised.
        epsilon: added to the variance, in [1e-25, 1e38]: with less, gradients of equal sums, as of
            a state of zeros, are infinite in float32.

    Raises:
        ValueError: a cell written as a ``plain_step``, such as ``gru(reset_after=False)``, whose
            recurrent sums nothing outside it can reach; or an epsilon that is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.layer_norm(rnnjax.lstm(4))
        >>> params = cell.init(jax.random.key(0), 3)
        >>> params.cell.w_hh.shape, params.input_gain.shape, params.hidden_gain.shape
        ((4, 16), (16,), (16,))
        >>> xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
        >>> _, ys = rnnjax.unroll(cell, params, xs)
        >>> _, scaled = rnnjax.unroll(cell, params, 100 * xs)
        >>> bool(jnp.allclose(ys, scaled, atol=1e-3))
        True

    References:
        Ba, Kiros and Hinton, "Layer normalization", 2016, arXiv:1607.06450, equations 20 to 22.
    """
    check_cell(cell)
    epsilon = check_epsilon(epsilon)
    if cell.update is None:
        raise ValueError(
            "layer_norm needs a cell that gives project and update; this one is a plain step, and "
            "its recurrent sums are made inside it, where they cannot be normalised"
        )
    inner, update = cell, cell.update

    def init(key: Key, input_size: int) -> LayerNormParams:
        params = inner.init(key, input_size)
        x = jax.ShapeDtypeStruct((input_size,), jnp.float32)
        size = _normalised_size(inner, params, x)
        hidden_gain = None if inner.recurrent is None else jnp.ones((size,), jnp.float32)
        return LayerNormParams(params, jnp.ones((size,), jnp.float32), hidden_gain)

    def project(params: LayerNormParams, x: Array) -> tuple:
        zs = inner.project(params.cell, x)
        shifts = inner.project(params.cell, jax.tree.map(jnp.zeros_like, x))
        gains = _like_pieces(params.input_gain, zs)
        pieces = zip(zs, shifts, gains, strict=False)
        normed = tuple(shift + _normalise(z - shift, gain, epsilon) for z, shift, gain in pieces)
        return normed + zs[len(gains) :]

    def normalise(params: LayerNormParams, h_proj: tuple) -> tuple:
        if inner.recurrent is None:
            return h_proj
        gains = _like_pieces(params.hidden_gain, h_proj)
        return tuple(_normalise(a, gain, epsilon) for a, gain in zip(h_proj, gains, strict=True))

    def normed_update(
        params: LayerNormParams, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any
    ) -> tuple[Carry, Any]:
        return update(params.cell, carry, x_proj, normalise(params, h_proj), *context)

    def gates(
        params: LayerNormParams, carry: Carry, x_proj: tuple, h_proj: tuple, *context: Any
    ) -> Any:
        assert inner.gates is not None
        return inner.gates(params.cell, carry, x_proj, normalise(params, h_proj), *context)

    def of_cell(function: Callable | None) -> Callable | None:
        return function and (lambda params, *rest: function(params.cell, *rest))

    def noise(key: Key, params: LayerNormParams, shape: NoiseShape) -> Noise:
        assert inner.noise is not None
        return inner.noise(key, params.cell, shape)

    return cell._replace(
        init=init,
        initial_carry=lambda params: inner.initial_carry(params.cell),
        project=project,
        recurrent=of_cell(inner.recurrent),
        update=normed_update,
        gates=inner.gates and gates,
        noise=inner.noise and noise,
        linear=of_cell(inner.linear),
        # Without recurrent weights ``normed_update`` is the cell's own.
        chunk=of_cell(inner.chunk) if inner.recurrent is None else None,
        context=of_cell(inner.context),
    )


def _normalise(a: Array, gain: Array, epsilon: float) -> Array:
    centred = a - jnp.mean(a, keepdims=True)
    variance = jnp.mean(jnp.square(centred), keepdims=True)
    return gain.astype(a.dtype) * centred * jax.lax.rsqrt(variance + epsilon)


def _like_pieces(gain: Any, pieces: tuple) -> list[Array]:
    """``gain`` cut at the widths of the first ``pieces``, until it is used up."""
    gains, start = [], 0
    while start < gain.size:
        gains.append(gain[start : start + pieces[len(gains)].size])
        start += gains[-1].size
    return gains


def _normalised_size(cell: Cell, params: Params, x: jax.ShapeDtypeStruct) -> int:
    if cell.recurrent is not None:
        *heads, _, columns = jax.eval_shape(cell.recurrent, params).shape
        return math.prod(heads) * columns
    x_proj = jax.eval_shape(cell.project, params, x)
    for k, piece in enumerate(x_proj):
        real = isinstance(piece, jax.ShapeDtypeStruct) and jnp.issubdtype(piece.dtype, jnp.floating)
        if not real:
            raise ValueError(
                f"layer_norm needs a cell with real gates, got {piece} as piece {k} of x_proj"
            )
    return sum(piece.size for piece in x_proj)

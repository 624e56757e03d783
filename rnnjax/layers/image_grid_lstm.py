"""A grid of LSTM blocks over the rows and columns of an image, and over depth."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnjax import masking
from rnnjax._checks import check_flag, check_floating, check_key, check_size, describe
from rnnjax._native import jit
from rnnjax._numerics import affine, carry_dtype, split_gates, varying_like
from rnnjax._recipe import Made, factory
from rnnjax.base import Key
from rnnjax.cells._common import draw_packed
from rnnjax.cells.lstm import LSTMCarry
from rnnjax.initializers import CellInitializer, resolve
from rnnjax.layers.grid_lstm import OUTPUTS, GridSide, check_choice, finish_side, gates_of

SIDES = ("down", "right", "depth")
CORNERS = ("top left", "top right", "bottom left", "bottom right")


class ImageGridParams(NamedTuple):
    """``w`` [D, 2H] and ``bias`` [2H], from an input to the ``h`` and ``c`` that depth starts with;
    the three sides, each a ``GridSide`` with ``w`` [3H, 4H] for the outputs of down, right and
    depth, with an axis [L] in front where layers are not tied."""

    w: Array
    bias: Array
    down: GridSide
    right: GridSide
    depth: GridSide


class _ImageGridFields(NamedTuple):
    init: Callable[[Key, int], ImageGridParams]
    apply: Callable[..., Array]
    output_size: int


class ImageGrid(Made, _ImageGridFields):
    """A grid over images as pure functions.

    Attributes:
        init: ``(key, input_size) -> params``.
        apply: ``(params, images [..., R, C, D], *, mask [..., R, C]) -> outputs [..., R, C, H]``.
            Places where ``mask`` is False are never read, give 0, and what comes from them is what
            comes from outside of the image.
        output_size: H.
    """


class _How(NamedTuple):
    """All that a grid is, but for its parameters."""

    size: int
    num_layers: int
    tied: bool
    priority: str | None
    output: str
    corner: str


@factory
def image_grid_lstm(
    hidden_size: int,
    num_layers: int,
    *,
    tied: bool = True,
    priority: str | None = "depth",
    output: str = "inside",
    corner: str = "top left",
    initializer: str | CellInitializer = "rnnjax",
) -> ImageGrid:
    r"""A Grid LSTM of three dimensions: down the rows, along the columns, and up in depth.

    The block at row r, column c and layer l has three sides, each an LSTM with an output h and a
    cell state of its own, which come from row r - 1, column c - 1 and layer l - 1. All read all
    outputs:

    .. math::

        H &= [h^{down}_{r-1,c,l},\ h^{right}_{r,c-1,l},\ h^{depth}_{r,c,l-1}] \\
        (i, f, g, o)^s &= H W^s + b^s, \qquad
        c'^s = \sigma(f) c^s + \sigma(i) \tanh(g), \qquad
        h'^s = \tanh(\sigma(o) c'^s)

    Depth begins with the input, :math:`[h^{depth}_{rc0}, c^{depth}_{rc0}] = x_{rc} W + b`, and the
    output is :math:`h^{depth}_{rcL}`, which knows of all places above and to the left. For the
    other three corners of an image there is ``corner``; a network that sees all of it joins four.

    Blocks of one diagonal, r + c, do not depend on one another, so they are one step: a layer
    takes R + C - 1 of them rather than R times C.

    Args:
        hidden_size: H, the same for all sides.
        num_layers: L.
        tied: whether all layers have the same parameters.
        priority: the side that reads the others' new outputs in place of the old ones: ``"depth"``,
            ``"down"``, ``"right"``, or None for none.
        output: ``"inside"``, as above; ``"outside"``, :math:`h' = \sigma(o) \tanh(c')`.
        corner: where it begins: ``"top left"``, ``"top right"``, ``"bottom left"`` or
            ``"bottom right"``.
        initializer: as for :func:`rnnjax.grid_lstm`.

    Raises:
        ValueError: a size is not a positive integer, or another argument has none of its values.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> grid = rnnjax.image_grid_lstm(4, 2)
        >>> params = grid.init(jax.random.key(0), 3)
        >>> params.depth.w.shape
        (12, 16)
        >>> grid.apply(params, jnp.ones((2, 5, 6, 3))).shape
        (2, 5, 6, 4)

    References:
        Kalchbrenner, Danihelka and Graves, "Grid long short-term memory", ICLR 2016,
        arXiv:1507.01526; diagonals as steps: van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel
        recurrent neural networks", ICML 2016.
    """
    check_choice("priority", priority, (*SIDES, None))
    check_choice("output", output, OUTPUTS)
    check_choice("corner", corner, CORNERS)
    how = _How(
        check_size("hidden_size", hidden_size),
        check_size("num_layers", num_layers),
        check_flag("tied", tied),
        priority,
        output,
        corner,
    )
    draw = resolve(initializer)

    def init(key: Key, input_size: int) -> ImageGridParams:
        first, second = jax.random.split(check_key(key))
        w = draw.w_ih(first, check_size("input_size", input_size), how.size, 2)
        if how.tied:
            sides = _draw_sides(second, draw, how.size)
        else:
            keys = jax.random.split(second, how.num_layers)
            sides = jax.vmap(lambda k: _draw_sides(k, draw, how.size))(keys)
        return ImageGridParams(w, jnp.zeros((2 * how.size,), jnp.float32), *sides)

    def apply(params: ImageGridParams, images: Array, *, mask: Any = None) -> Array:
        _check_params(how, params)
        images = jnp.asarray(masking.as_array("images", images))
        check_floating("images", images)
        if images.ndim < 3 or images.shape[-1] != params.w.shape[0]:
            raise ValueError(
                f"images must have shape [..., R, C, {params.w.shape[0]}], got {images.shape}"
            )
        if mask is not None:
            mask = masking.check_flags("mask", mask, images.shape[:-2], images.shape[-2])
        if 0 in images.shape[-3:-1]:  # without a place there is no diagonal
            return jnp.zeros((*images.shape[:-1], how.size), carry_dtype(params))
        return _run(how, params, images, mask)

    return ImageGrid(init, apply, how.size)


def _draw_sides(key: Key, draw: CellInitializer, size: int) -> tuple[GridSide, ...]:
    def side(key: Key, place: int) -> GridSide:
        two, one = jax.random.split(key)
        other, own, bias = draw_packed(draw, jax.random.split(two, 3), size, size, 4)
        rows = [other, draw.w_ih(one, size, size, 4)]
        rows.insert(place, own)
        return GridSide(jnp.concatenate(rows), bias.at[size : 2 * size].add(draw.forget_bias))

    return tuple(side(k, place) for place, k in enumerate(jax.random.split(key, 3)))


def _check_params(how: _How, params: Any) -> None:
    shape = (*(() if how.tied else (how.num_layers,)), 3 * how.size, 4 * how.size)
    if not isinstance(params, ImageGridParams) or params.depth.w.shape != shape:
        raise ValueError(
            f"params must be ImageGridParams with depth.w of shape {shape}, got {describe(params)}"
        )


@functools.partial(jit, static=1)
def _run(how: _How, params: ImageGridParams, images: Array, mask: Array | None) -> Array:
    """The layers one after the other, each a loop over diagonals."""
    batch = images.shape[:-3]
    flip = _flipped(how.corner)
    images = flip(images.reshape(-1, *images.shape[-3:]), -3)
    if mask is not None:
        mask = flip(mask.reshape(-1, *mask.shape[-2:]), -2)
    first = affine(masking.zero_padding(mask, images), params.w, params.bias)
    depth = LSTMCarry(*(a.astype(carry_dtype(params)) for a in split_gates(first, 2)))
    real = jnp.ones(images.shape[:-1], bool) if mask is None else mask
    on_diagonals = _skewed(real)
    sides = (params.down, params.right, params.depth)

    def one_layer(depth: LSTMCarry, own: Any) -> tuple[LSTMCarry, None]:
        return _layer(how, sides if how.tied else own, depth, on_diagonals), None

    # Diagonals [T, B, R, ...] from the first layer to the last: skewed once.
    depth = varying_like((params, images), jax.tree.map(_skewed, depth))
    depth, _ = lax.scan(one_layer, depth, None if how.tied else sides, length=how.num_layers)
    found = masking.zero_padding(mask, _straightened(depth.h, images.shape[-2]))
    return flip(found, -3).reshape(*batch, *found.shape[1:])


def _layer(how: _How, sides: tuple, depth: LSTMCarry, real: Array) -> LSTMCarry:
    """One layer: the depth sides of all diagonals [T, B, R, H]."""
    zeros = jax.tree.map(lambda a: jnp.zeros_like(a[0]), depth)

    def step(before: tuple, at: tuple) -> tuple[tuple, LSTMCarry]:
        down, right = before
        depth, real = at
        # The block above in the same column is one row up on the diagonal before; the block to
        # the left is in the same row.
        down = jax.tree.map(lambda a: jnp.pad(a[:, :-1], ((0, 0), (1, 0), (0, 0))), down)
        new = _block(how, sides, (down, right, depth))
        # What comes from a place that is not real is what comes from outside of the image.
        down, right, depth = masking.zero_padding(real, new)
        return (down, right), depth

    _, found = lax.scan(step, (zeros, zeros), (depth, real))
    return found


def _block(how: _How, sides: tuple[GridSide, ...], states: tuple[LSTMCarry, ...]) -> tuple:
    """What leaves the three sides of blocks [B, R], from what comes to them."""

    def side(k: int, outputs: list[Array]) -> LSTMCarry:
        sums = affine(jnp.concatenate(outputs, axis=-1), sides[k].w, sides[k].bias)
        new = finish_side(how.output, gates_of(sums), states[k].c)
        return jax.tree.map(lambda a, old: a.astype(old.dtype), new, states[k])

    outputs = [state.h for state in states]
    last = None if how.priority is None else SIDES.index(how.priority)
    new = {k: side(k, outputs) for k in range(3) if k != last}
    if last is not None:
        new[last] = side(last, [outputs[k] if k == last else new[k].h for k in range(3)])
    return tuple(new[k] for k in range(3))


def _flipped(corner: str) -> Callable[[Array, int], Array]:
    """Turns an image so that ``corner`` is top left, and back; rows are its axis ``rows``."""
    over = [k for k, word in enumerate(("bottom", "right")) if word in corner]

    def flip(image: Array, rows: int) -> Array:
        return jnp.flip(image, [rows + k for k in over]) if over else image

    return flip


def _skewed(image: Array) -> Array:
    """Places [B, R, C, ...] as diagonals [R + C - 1, B, R, ...]: row r is moved by r to the right.

    Where a diagonal has no place in a row there is 0, or False.
    """
    rows, columns = image.shape[1:3]
    places = jnp.arange(rows + columns - 1)[:, None] - jnp.arange(rows)[None]
    inside = (places >= 0) & (places < columns)
    found = image[:, jnp.arange(rows)[None], jnp.clip(places, 0, max(columns - 1, 0))]
    inside = inside.reshape(1, *inside.shape, *(1,) * (image.ndim - 3))
    return jnp.moveaxis(jnp.where(inside, found, jnp.zeros_like(found)), 1, 0)


def _straightened(diagonals: Array, columns: int) -> Array:
    """What :func:`_skewed` made, as places again."""
    rows = diagonals.shape[2]
    at = jnp.arange(rows)[:, None] + jnp.arange(columns)[None]
    return jnp.moveaxis(diagonals, 0, 1)[:, at, jnp.arange(rows)[:, None]]

"""The convolutional LSTM cell, and the layout of its frames."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rnnjax._checks import check_floating, check_key, check_size
from rnnjax._numerics import accumulation_dtype, carry_dtype, split_gates
from rnnjax._recipe import factory
from rnnjax.base import Cell
from rnnjax.cells.lstm import LSTMCarry, LSTMGates, finish_lstm, lstm_gates
from rnnjax.initializers import CellInitializer, resolve
from rnnjax.masking import as_array


class ConvLSTMParams(NamedTuple):
    """``w_ih`` [*K, C, 4H], ``w_hh`` [*K, H, 4H] for kernels of shape K, ``bias`` [4H]; gates
    packed i, f, g, o."""

    w_ih: Array
    w_hh: Array
    bias: Array


def flatten_frames(frames: Array, spatial_shape: Sequence[int]) -> Array:
    """Frames as the flat features that ``unroll`` and every layer take.

    The order inside is channel by channel, so that layers which join features side by side, as
    ``bidirectional`` does, join channels.

    Args:
        frames: [..., *S, C].
        spatial_shape: S.

    Returns:
        [..., C * prod(S)].

    Raises:
        ValueError: the frames are not of that shape.

    Example:
        >>> import jax.numpy as jnp, rnnjax
        >>> frames = jnp.arange(12.0).reshape(1, 2, 3, 2)  # one frame of 2 by 3, two channels
        >>> rnnjax.flatten_frames(frames, (2, 3))[0].tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    """
    shape = _check_shape("spatial_shape", spatial_shape)
    frames = as_array("frames", frames)
    if frames.ndim <= len(shape) or frames.shape[-1 - len(shape) : -1] != shape:
        raise ValueError(f"frames must have shape (..., *{shape}, C), got shape {frames.shape}")
    channels_first = jnp.moveaxis(frames, -1, -1 - len(shape))
    batch, size = frames.shape[: -1 - len(shape)], frames.shape[-1] * math.prod(shape)
    return channels_first.reshape(*batch, size)


def unflatten_frames(features: Array, spatial_shape: Sequence[int]) -> Array:
    """The frames that :func:`flatten_frames` made flat.

    Args:
        features: [..., C * prod(S)].
        spatial_shape: S.

    Returns:
        [..., *S, C].

    Raises:
        ValueError: the number of features is no multiple of prod(S).

    Example:
        >>> import jax.numpy as jnp, rnnjax
        >>> frames = jnp.arange(12.0).reshape(1, 2, 3, 2)
        >>> flat = rnnjax.flatten_frames(frames, (2, 3))
        >>> bool(jnp.all(rnnjax.unflatten_frames(flat, (2, 3)) == frames))
        True
    """
    shape = _check_shape("spatial_shape", spatial_shape)
    features = as_array("features", features)
    if not features.ndim:
        raise ValueError("features must have shape [..., C * prod(S)], got shape ()")
    channels = _channels(features.shape[-1], shape)
    channels_first = features.reshape(*features.shape[:-1], channels, *shape)
    return jnp.moveaxis(channels_first, -1 - len(shape), -1)


@factory
def conv_lstm(
    spatial_shape: Sequence[int],
    hidden_channels: int,
    kernel_size: int | Sequence[int] = 3,
    *,
    initializer: str | CellInitializer = "rnnjax",
) -> Cell:
    r"""The convolutional LSTM: an LSTM whose units are laid out in space and see near ones only.

    .. math::

        (i, f, g, o) &= X_t * W_{ih} + H_{t-1} * W_{hh} + b \\
        C_t &= \sigma(f) C_{t-1} + \sigma(i) \tanh(g) \\
        H_t &= \sigma(o) \tanh(C_t)

    with :math:`*` a convolution (a cross-correlation, as everywhere in deep learning) of stride 1
    over any number of spatial axes, padded with zeros to keep the shape. As in Keras and Flax,
    without the peepholes of the paper.

    A step of the sequence is one frame. ``unroll`` and the layers know one axis of features, so
    frames go in and come out flat: :func:`flatten_frames` and :func:`unflatten_frames` go between
    [..., T, *S, C] and [..., T, C * prod(S)]. A stack or a bidirectional layer of such cells
    needs nothing in between. The carry is ``LSTMCarry(h, c)`` of frames [*S, H].

    A convolution is no product with one matrix, so the cell is a ``plain_step``: under the same
    sequence law, the convolution of the inputs outside the loop over time, differentiated by
    ordinary autodiff.

    Args:
        spatial_shape: S, such as ``(height, width)``; its length is the number of spatial axes.
        hidden_channels: H, channels of the state and of the output.
        kernel_size: K, one size for all spatial axes, or one a spatial axis.
        initializer: a name in ``rnnjax.initializers.PRESETS``, or one of your own. Both kernels
            follow its rule for input weights, as matrices of prod(K) C and prod(K) H rows.

    Raises:
        ValueError: a size is not a positive integer, the kernel does not fit the spatial axes, or
            the initializer is unknown; from ``init``, an input size that is no multiple of prod(S).

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.conv_lstm((8, 6), hidden_channels=4)
        >>> frames = jnp.ones((2, 5, 8, 6, 3))  # two sequences of five frames with three channels
        >>> xs = rnnjax.flatten_frames(frames, (8, 6))
        >>> params = cell.init(jax.random.key(0), xs.shape[-1])
        >>> params.w_ih.shape, params.w_hh.shape
        ((3, 3, 3, 16), (3, 3, 4, 16))
        >>> carry, ys = rnnjax.unroll(cell, params, xs, lengths=[5, 2])
        >>> rnnjax.unflatten_frames(ys, (8, 6)).shape, carry.h.shape
        ((2, 5, 8, 6, 4), (2, 8, 6, 4))

    References:
        Shi et al., "Convolutional LSTM network: a machine learning approach for precipitation
        nowcasting", NeurIPS 2015, arXiv:1506.04214.
    """
    shape = _check_shape("spatial_shape", spatial_shape)
    size = check_size("hidden_channels", hidden_channels)
    kernel = _check_kernel(kernel_size, shape)
    draw = resolve(initializer)

    def draw_kernel(key: Array, channels: int) -> Array:
        rows = draw.w_ih(key, math.prod(kernel) * channels, size, 4)
        return rows.reshape(*kernel, channels, 4 * size)

    def init(key: Array, input_size: int) -> ConvLSTMParams:
        channels = _channels(check_size("input_size", input_size), shape)
        ih, hh, b = jax.random.split(check_key(key), 3)
        return ConvLSTMParams(
            draw_kernel(ih, channels),
            draw_kernel(hh, size),
            draw.bias(b, size, 4).at[size : 2 * size].add(draw.forget_bias),
        )

    def initial_carry(params: ConvLSTMParams) -> LSTMCarry:
        dtype = carry_dtype(params)
        return LSTMCarry(jnp.zeros((*shape, size), dtype), jnp.zeros((*shape, size), dtype))

    def project(params: ConvLSTMParams, x: Array) -> tuple[Array, ...]:
        check_floating("the input", x)
        out = _convolve(unflatten_frames(x, shape), params.w_ih)
        bias = params.bias.astype(out.dtype).reshape((1,) * len(shape) + params.bias.shape)
        return split_gates(out + bias, 4)

    def step(params: ConvLSTMParams, carry: LSTMCarry, x_proj: tuple) -> tuple[LSTMCarry, Array]:
        new, h = finish_lstm(_gates(params, carry, x_proj, ()), carry)
        return new, flatten_frames(h, shape)

    return Cell(
        math.prod(shape) * size, init, initial_carry, project, plain_step=step, gates=_gates
    )


def _gates(params: ConvLSTMParams, carry: LSTMCarry, x_proj: tuple, h_proj: tuple) -> LSTMGates:
    recurrent = split_gates(_convolve(carry.h, params.w_hh), 4)
    return lstm_gates(x_proj, recurrent)


def _convolve(frame: Array, kernel: Array) -> Array:
    """The frame [*S, C] under the kernel [*K, C, O]: [*S, O], in at least float32."""
    axes = kernel.ndim - 2
    if frame.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"frames must have {kernel.shape[-2]} channels (kernel of shape {kernel.shape}), "
            f"got {frame.shape[-1]} channels"
        )
    channels_last = (0, axes + 1, *range(1, axes + 1))
    return lax.conv_general_dilated(
        frame[None].astype(kernel.dtype),
        kernel,
        window_strides=(1,) * axes,
        padding="SAME",
        dimension_numbers=lax.ConvDimensionNumbers(
            channels_last, (axes + 1, axes, *range(axes)), channels_last
        ),
        preferred_element_type=accumulation_dtype(kernel.dtype),
    )[0]


def _channels(features: int, spatial_shape: tuple[int, ...]) -> int:
    places = math.prod(spatial_shape)
    if features % places:
        raise ValueError(
            f"frames of spatial shape {spatial_shape} must have a multiple of {places} features, "
            f"got {features}"
        )
    return features // places


def _check_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        raise ValueError(f"{name} must be a tuple of positive integers, got {shape!r}")
    return tuple(check_size(f"{name}[{k}]", size) for k, size in enumerate(shape))


def _check_kernel(kernel_size: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    if np.ndim(kernel_size) == 0 and not isinstance(kernel_size, str):
        return (check_size("kernel_size", kernel_size),) * len(shape)
    kernel = _check_shape("kernel_size", kernel_size)  # pyright: ignore[reportArgumentType]
    if len(kernel) != len(shape):
        raise ValueError(
            f"kernel_size must have one size for each of the {len(shape)} spatial axes, "
            f"got {kernel_size!r}"
        )
    return kernel

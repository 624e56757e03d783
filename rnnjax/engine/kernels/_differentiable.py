"""The loop as one function of JAX, with its derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rnnjax._numerics import varying_like
from rnnjax.base import Cell
from rnnjax.engine import _loop
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.engine.kernels._divided_rows import on_each_device
from rnnjax.engine.kernels._launch import Kernels, Launch
from rnnjax.engine.kernels._mapped_rows import over_rows
from rnnjax.engine.kernels._row_axes import ARGUMENTS, RowAxes
from rnnjax.engine.kernels._rows import (
    BACKWARD_AXES,
    FORWARD_AXES,
    cotangents_of,
    moves,
    run_backward,
    run_forward,
)


def differentiable_loop(
    cell: Cell, loop: Loop, launch_for: Callable[..., Launch], by_itself: bool, kernels: Kernels
) -> Callable:
    """``(weights, carry, inputs) -> (carry, ys)`` with reverse mode by the kernels.

    Args:
        cell: what is run.
        loop: how.
        launch_for: the launch for such arguments.
        by_itself: run the scan where it is compiled for anything but an NVIDIA GPU.
        kernels: what runs it.
    """
    scan = functools.partial(_loop.run_scan, cell, loop)

    def here(kernel: Callable, otherwise: Callable) -> Callable:
        if not by_itself:
            return kernel
        return lambda *args: lax.platform_dependent(*args, cuda=kernel, default=otherwise)

    def kernel_forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return _by_rows(lambda *args: run_forward(launch_for(*args), kernels, *args), FORWARD_AXES)(
            weights, carry, inputs
        )

    # Where one program is compiled for several platforms, the branch that is not for a GPU must
    # give results of the same shapes; what the kernel would have kept is never read there.
    def scan_forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        args = (weights, carry, inputs)
        made = jax.eval_shape(kernel_forward, *args)[1]
        return scan(*args), varying_like(args, jax.tree.map(_zeros_of, made))

    def kernel_values(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return _by_rows(
            lambda *args: run_forward(launch_for(*args), kernels, *args, save=False)[0],
            RowAxes(ARGUMENTS, (0, 1)),
        )(weights, carry, inputs)

    # Three derivatives, one inside the other. ``over_time`` is a custom_vjp: its two halves are the
    # two kernels. These halves are custom_jvps, whose rule is the scan's: so a derivative of the
    # gradient is right, if no faster than the scan.
    @jax.custom_jvp
    def forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return here(kernel_forward, scan_forward)(weights, carry, inputs)

    @forward.defjvp
    def forward_rule(primals: tuple, tangents: tuple) -> Any:
        results, saved = forward(*primals)
        moved = jax.jvp(scan, primals, tangents)[1]
        return (results, saved), (moved, jax.tree.map(jnp.zeros_like, saved))

    def kernel_backward(args: tuple, saved: Any, cotangents: Any) -> Any:
        def kernel(args: tuple, saved: Any, cotangents: Any) -> Any:
            return run_backward(launch_for(*args), kernels, args, saved, cotangents)

        rows = _by_rows(kernel, BACKWARD_AXES)(args, saved, cotangents)
        return cotangents_of(launch_for(*args), args, saved, rows)

    def scan_backward(args: tuple, saved: Any, cotangents: Any) -> Any:
        del saved
        moving, still = _by_movement(args)
        _, pull = jax.vjp(lambda some: scan(*_merged(some, still, args)), moving)
        return pull(cotangents)[0]

    @jax.custom_jvp
    def backward(args: tuple, saved: Any, cotangents: Any) -> Any:
        return here(kernel_backward, scan_backward)(args, saved, cotangents)

    @backward.defjvp
    def backward_rule(primals: tuple, tangents: tuple) -> Any:
        args, saved, cotangents = primals

        def by_scan(args: tuple, cotangents: Any) -> Any:
            return scan_backward(args, saved, cotangents)

        moved = jax.jvp(by_scan, (args, cotangents), (tangents[0], tangents[2]))[1]
        return backward(*primals), moved

    @jax.custom_vjp
    def over_time(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        return here(kernel_values, scan)(weights, carry, inputs)

    def over_time_forward(weights: Weights, carry: Any, inputs: Inputs) -> Any:
        results, saved = forward(weights, carry, inputs)
        return results, ((weights, carry, inputs), saved)

    def over_time_backward(kept: tuple, cotangents: Any) -> tuple:
        args, saved = kept
        moved = iter(backward(args, saved, cotangents))
        leaves, tree = jax.tree.flatten(args)
        return jax.tree.unflatten(tree, [next(moved) if moves(a) else _still(a) for a in leaves])

    over_time.defvjp(over_time_forward, over_time_backward)
    return over_time


def _by_rows(function: Callable, axes: RowAxes) -> Callable:
    return over_rows(on_each_device(function, axes), axes)


def _still(a: Array) -> np.ndarray:
    return np.zeros(a.shape, jax.dtypes.float0)


def _by_movement(args: tuple) -> tuple[list, list]:
    leaves = jax.tree.leaves(args)
    return [a for a in leaves if moves(a)], [a for a in leaves if not moves(a)]


def _merged(moving: list, still: list, args: tuple) -> tuple:
    some, others = iter(moving), iter(still)
    leaves, tree = jax.tree.flatten(args)
    return jax.tree.unflatten(tree, [next(some) if moves(a) else next(others) for a in leaves])


def _zeros_of(shape: Any) -> Array:
    return jnp.zeros(shape.shape, shape.dtype)

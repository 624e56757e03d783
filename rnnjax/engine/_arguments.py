"""The checks of what ``unroll`` is given, and of what a cell's functions give."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax import _checks, masking
from rnnjax._checks import check_floating, describe
from rnnjax.base import Carry, Cell, Noise, NoiseShape
from rnnjax.engine._products import gate_widths


def check_cell(cell: Any) -> None:
    """Refuse what is no cell, and one that gives too much or too little.

    Raises:
        ValueError: saying what is missing.
    """
    _checks.check_cell(cell)
    for name, part in zip(cell._fields[1:], cell[1:], strict=True):
        if part is not None and not callable(part):
            raise ValueError(f"a cell's {name} must be a function, got {describe(part)}")
    split = cell.update is not None and (cell.hidden is not None or cell.recurrent is None)
    if (cell.plain_step is not None) == split:
        names = ("update", "hidden", "recurrent", "plain_step")
        given = [name for name in names if getattr(cell, name) is not None]
        raise ValueError(
            "a cell must give either update (with hidden, where it gives recurrent), or "
            f"plain_step, got {', '.join(given) or 'none of them'}"
        )


def check_xs(xs: Any) -> Any:
    """Inputs as one array [..., T, D], or as a tree of such arrays with equal leading axes.

    A dict is a tree, and so is a tuple that holds arrays. Of a tree the leaves may be integers,
    such as token ids that the cell embeds; a single array must be floating.

    Raises:
        ValueError: naming the leaf, what was expected and what came.
    """
    if not is_tree_of_inputs(xs):
        xs = masking.as_array("xs", xs)
        if xs.ndim < 2:
            raise ValueError(f"xs must have shape [..., T, D], got shape {xs.shape}")
        check_floating("xs", xs)
        return xs
    leaves, structure = jax.tree.flatten_with_path(xs)
    names = [f"xs{jax.tree_util.keystr(path)}" for path, _ in leaves]
    arrays = [masking.as_array(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    if not arrays:
        raise ValueError("xs must have at least one array, got none")
    # The first with most axes: what has fewer is probably the one that lacks its features.
    first, whole = max(zip(names, arrays, strict=True), key=lambda named: named[1].ndim)
    for name, array in zip(names, arrays, strict=True):
        if array.ndim < 2:
            raise ValueError(f"{name} must have shape [..., T, D], got shape {array.shape}")
        if array.shape[:-1] != whole.shape[:-1]:
            raise ValueError(
                f"{name} must have the batch and time axes {whole.shape[:-1]} of {first}, of shape "
                f"{whole.shape}, and an axis of features, got shape {array.shape}"
                + (f": {name}[..., None]" if array.shape == whole.shape[:-1] else "")
            )
    return structure.unflatten(arrays)


def is_tree_of_inputs(xs: Any) -> bool:
    """Whether ``xs`` is several inputs: a dict, or a tuple that holds arrays."""
    if isinstance(xs, tuple):
        return any(np.ndim(leaf) >= 1 for leaf in jax.tree.leaves(xs))
    return isinstance(xs, dict)


def check_order(cell: Cell, params: Any, xs: Any) -> None:
    """Tell parameters and inputs given in each other's place.

    Raises:
        ValueError: naming both.
    """
    if not isinstance(params, Array | np.ndarray) or params.ndim < 2 or not is_tree_of_inputs(xs):
        return
    made = _init_shapes(cell, params.shape[-1])
    if made is not None and jax.tree.structure(made) == jax.tree.structure(xs):
        raise ValueError(
            f"params must have the structure {describe(made)}, got {describe(params)}, and xs must "
            f"be an array, got {describe(xs)}: params come before xs"
        )


def check_context(cell: Cell, context: Any, batch: tuple[int, ...]) -> Any:
    """The constants of each sequence, leaves [..., anything].

    Raises:
        ValueError: a cell that takes none, or one that needs them; or a leaf of another batch.
    """
    if cell.context is None:
        if context is not None:
            raise ValueError(
                "context must be None for a cell without the field context, "
                f"got {describe(context)}"
            )
        return None
    if context is None:
        raise ValueError(
            "context must be given to a cell with the field context, such as an attention_cell, "
            "got None"
        )
    for name in ("linear", "chunk"):
        if getattr(cell, name) is not None:
            raise ValueError(f"a cell must give either {name} or context, got both")

    def check(path: Any, leaf: Any) -> Any:
        name = f"context{jax.tree_util.keystr(path)}"
        array = masking.as_array(name, leaf)
        if array.shape[: len(batch)] != batch:
            raise ValueError(f"{name} must begin with the batch {batch}, got shape {array.shape}")
        return array

    return jax.tree_util.tree_map_with_path(check, context)


def check_pieces(w_hh: Array | None, carry: Carry, x_projs: Any) -> None:
    """Refuse what a cell's ``project`` and ``initial_carry`` may not give.

    Raises:
        ValueError: no tuple, pieces that do not fit the recurrent weights, or weights or a carry
            of integers.
    """
    if not isinstance(x_projs, tuple):
        raise ValueError(f"a cell's project must give a tuple, got {describe(x_projs)}")
    if w_hh is not None and not jnp.issubdtype(w_hh.dtype, jnp.inexact):
        raise ValueError(
            f"a cell's recurrent must give weights of floating or complex dtype, got {w_hh.dtype}"
        )
    gate_widths(w_hh, x_projs)
    if w_hh is not None and not jax.tree.leaves(carry):
        raise ValueError(f"a cell's carry must have an array for recurrent, got {describe(carry)}")
    check_carry_dtypes(carry)


def check_carry_dtypes(carry: Carry) -> None:
    """Refuse a carry of integers or flags, which has no derivative.

    Raises:
        ValueError: saying how it is kept.
    """
    for leaf in jax.tree.leaves(carry):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"a cell's carry must be of floating or complex dtype, got {leaf.dtype}: keep a "
                "count or a flag as a float, jnp.array(0.0)"
            )


def check_outputs(cell: Cell, ys: Any) -> None:
    """Refuse outputs [T, B, ...] of another size than the cell says; those of a tree have none.

    Raises:
        ValueError: naming both.
    """
    if hasattr(ys, "shape") and ys.shape[2:] != (cell.output_size,):
        raise ValueError(
            f"a cell's update or plain_step must give outputs of shape {(cell.output_size,)} for "
            f"one example, as its output_size says, got shape {ys.shape[2:]}"
        )


def check_noise(cell: Cell, noise: Any, shape: NoiseShape) -> None:
    """Refuse what is no noise, noise of a product that the engine does not take, or of other steps.

    Raises:
        ValueError: naming the part of the noise.
    """
    if not isinstance(noise, Noise):
        raise ValueError(f"a cell's noise must give a rnnjax.Noise, got {describe(noise)}")
    if not isinstance(noise.steps, tuple):
        raise ValueError(
            "a cell's noise must have a tuple of trees [T, B, ...] as steps, got "
            f"{describe(noise.steps)}"
        )
    for leaf in jax.tree.leaves(noise.steps):
        if leaf.shape[:2] != (shape.time, shape.batch):
            raise ValueError(
                f"a cell's noise must have steps of shape [T, B, ...], here T = {shape.time} and "
                f"B = {shape.batch}, got shape {leaf.shape}"
            )
    for name in ("hidden", "recurrent"):
        if getattr(noise, name) is None:
            continue
        if cell.recurrent is None:
            raise ValueError(
                f"a cell's noise must have no {name} where the engine multiplies no recurrent "
                "weights, got one from a cell that gives plain_step, or no recurrent"
            )
        if cell.chunk is not None:
            raise ValueError(
                f"a cell's noise must have no {name} beside chunk, which does not see it, got one: "
                "give the cell without chunk, cell._replace(chunk=None)"
            )


def explain_failure(cell: Cell, params: Any, xs: Any) -> None:
    """After a run has failed: say which parameter ``cell.init`` would have made otherwise.

    Only then, since a cell may well run with parameters that its ``init`` would not make.

    Raises:
        ValueError: naming the first leaf of ``params``, or ``xs``, that does not fit.
    """
    if is_tree_of_inputs(xs):
        return
    # What ``init`` would make for these inputs is the only thing to compare with: a cell does not
    # declare the shapes of its parameters.
    made = _init_shapes(cell, xs.shape[-1])
    if made is None:
        return
    if jax.tree.structure(params) != jax.tree.structure(made):
        raise ValueError(
            f"params must have the structure {describe(made)}, as cell.init gives, "
            f"got {describe(params)}"
        )
    leaves = []
    for (path, expected), leaf in zip(
        jax.tree.leaves_with_path(made), jax.tree.leaves(params), strict=True
    ):
        name = f"params{jax.tree_util.keystr(path)}"
        leaves.append((name, expected, masking.as_array(name, leaf)))
        if not isinstance(leaf, Array | np.ndarray | np.generic | bool | int | float | complex):
            raise ValueError(
                f"{name} must be an array of JAX or NumPy, got {type(leaf).__name__}: "
                "rnnjax.interop takes weights of other libraries"
            )
    free = _axes_of_inputs(cell, made, xs.shape[-1])
    for (name, expected, given), axes in zip(leaves, free, strict=True):
        # An axis that follows the inputs says how many features the leaf was made for.
        own = [expected.shape[i] if i in axes else n for i, n in enumerate(given.shape)]
        if tuple(own) != expected.shape:
            raise ValueError(f"{name} must have shape {expected.shape}, got shape {given.shape}")
        if given.dtype.kind in "biu" and jnp.issubdtype(expected.dtype, jnp.inexact):
            raise ValueError(f"{name} must be of dtype {expected.dtype}, got {given.dtype}")
    for (_, expected, given), axes in zip(leaves, free, strict=True):
        if given.shape != expected.shape and axes == {0}:
            raise ValueError(
                f"xs must have size {given.shape[0]} in the last axis (weights of shape "
                f"{given.shape}), got size {xs.shape[-1]}"
            )
    _check_one_dtype(leaves)


def _check_one_dtype(leaves: list) -> None:
    floats = [(n, g.dtype) for n, _, g in leaves if jnp.issubdtype(g.dtype, jnp.floating)]
    for name, dtype in floats:
        if dtype != floats[0][1]:
            raise ValueError(
                f"{name} must be of dtype {floats[0][1]}, as {floats[0][0]} is, got {dtype}"
            )


def _axes_of_inputs(cell: Cell, made: Any, input_size: int) -> list[set[int]]:
    """The axes of each leaf of ``made`` whose size follows that of the inputs."""
    other = _init_shapes(cell, 2 * input_size)
    if other is None:  # a cell for one size of inputs
        return [set()] * len(jax.tree.leaves(made))
    return [
        {i for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if n != m}
        for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(other), strict=True)
    ]


def _init_shapes(cell: Cell, input_size: int) -> Any:
    """The shapes of the parameters for inputs of this size; None if there are none."""
    try:
        return jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    except (TypeError, ValueError):  # not of this size; what the run said of it is clearer
        return None

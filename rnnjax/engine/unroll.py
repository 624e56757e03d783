"""A cell over a whole sequence, or over any number of them at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rnnjax import _values, masking
from rnnjax._checks import check_flag, check_key, check_there, describe
from rnnjax._devices import platform_of
from rnnjax._native import in_native_order
from rnnjax.base import Carry, Cell, Key, Params
from rnnjax.engine import _arguments
from rnnjax.engine._mapped import run_as_one_batch
from rnnjax.engine._plan import check_request, make_plan, size_of, with_choice
from rnnjax.engine._prepare import Call
from rnnjax.engine._run import Static, kernel_for, run_call
from rnnjax.engine.kernels import persistent


def unroll(
    cell: Cell,
    params: Params,
    xs: Any,
    lengths: Any = None,
    *,
    mask: Any = None,
    resets: Any = None,
    initial_carry: Carry = None,
    reverse: bool = False,
    key: Key | None = None,
    all_carries: bool = False,
    include_initial: bool = False,
    remat: int | str | None = None,
    implementation: str | None = None,
    scan_unroll: int | None = None,
    context: Any = None,
) -> tuple[Carry, Any]:
    r"""Run a cell over time, exactly as if each sequence of the batch were run alone.

    .. math:: s_t, y_t = \mathrm{cell}(s_{t-1}, x_t)

    For one sequence it is this loop, but differentiated in a way that costs less::

        carry, ys = cell.initial_carry(params), []
        for t in range(T):
            if mask[t]:
                if resets[t]:
                    carry = cell.initial_carry(params)
                x_proj = cell.project(params, xs[t])
                h = cell.hidden(carry)
                h_proj = jnp.split(h @ cell.recurrent(params), len(x_proj))  # as x_proj is divided
                carry, y = cell.update(params, carry, x_proj, h_proj)
            else:
                y = zeros  # and the carry is held
            ys.append(y)

    What holds for every cell, in both directions, with any of the options together:

    - Outputs at real steps, the final carry and every gradient are those of the sequence run by
      itself, without its padding. Masked steps hold the carry and emit exact zeros.
    - Padding is never read: NaN or Inf there changes nothing, and its gradient is exactly zero.
    - A sequence of length 0 returns its initial carry. T = 0 and an empty batch work.
    - ``reverse=True`` runs from the last real step down to the first; outputs stay in the order
      of time, and the final carry is the one after the first real step.
    - The carry and the outputs have the dtypes that the cell gives them: those of the cells here
      are at least float32, whatever the parameters are. ``h_proj`` is, and gradients of parameters
      are summed so, for every cell.

    Args:
        cell: what to run.
        params: its parameters. Products are taken in their dtype, summed in at least float32.
        xs: inputs [..., T, D]: one sequence, or any number of batch axes. For a cell of several
            inputs, a dict or tuple of such arrays with equal leading axes.
        lengths: valid steps [...] of each sequence, integers in [0, T]; None means all. Where
            their values are traced they cannot be checked and are clipped to [0, T].
        mask: bool [..., T], True where a step is real; may be False anywhere. Together with
            ``lengths``, a step is real where both say so.
        resets: bool [..., T], True where a new segment starts: the carry returns to
            ``cell.initial_carry(params)`` before that step. The same array means the same
            segments in reverse: there the carry returns before a step whose next real step starts
            a segment. A flag on a masked step is not read.
        initial_carry: the carry before the first step, leaves [..., H]; by default
            ``cell.initial_carry(params)`` for every sequence.
        reverse: run backwards in time.
        key: the source of the cell's noise, for training; without one there is none. The same key
            gives the same noise.
        all_carries: give ``(carry, (ys, carries))``, with ``carries`` [..., T, H] a leaf: the
            carry after every step, held through masked ones.
        include_initial: ``carries`` is [..., T + 1, H], with the carry before the first step taken
            at the end it belongs to: index 0, or T in reverse. Needs ``all_carries``.
        remat: what reverse mode keeps. ``"never"``: the gates of every step. ``"step"``,
            ``"sqrt"`` or a number k: the carry before every step, every floor(sqrt(T))-th or
            every k-th step, and the steps between are run again. None chooses; see
            :func:`explain`. Values and gradients are the same.
        implementation: ``"scan"``, step after step; ``"associative"``, in parallel over time, for
            a cell that is linear in its carry (:class:`rnnjax.Cell`, ``linear``); ``"chunked"``,
            many steps at once, for a cell with the field ``chunk``: as many as ``remat`` says, or
            64 (32 on a CPU); ``"persistent"``, the whole loop as one kernel, on an NVIDIA GPU of
            compute capability 9.0, for a cell whose ``update`` acts unit by unit
            (``rnnjax.engine.kernels`` says what is promised there). None chooses; see
            :func:`explain`.
        scan_unroll: steps per iteration of the scan's compiled loop; a number asks for the scan.
            The result is the same. None chooses: several on a GPU, one elsewhere.
        context: constants of each sequence for a cell with the field ``context``: a tree of arrays
            [..., anything].

    Returns:
        ``(carry, ys)``: the carry after the last step taken, leaves [..., H], and the outputs
        [..., T, O].

    Raises:
        ValueError: an argument of wrong shape, dtype or value, named in the message.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (2, 5, 3))
        >>> carry, ys = rnnjax.unroll(cell, params, xs, lengths=[5, 2])
        >>> ys.shape, carry.h.shape
        ((2, 5, 4), (2, 4))
        >>> bool(jnp.all(carry.h[1] == ys[1, 1])), bool(jnp.all(ys[1, 2:] == 0))
        (True, True)
    """
    _arguments.check_cell(cell)
    _arguments.check_order(cell, params, xs)
    call = _checked_call(cell, params, xs, lengths, mask, resets, initial_carry, key, context)
    reverse = check_flag("reverse", reverse)
    all_carries = check_flag("all_carries", all_carries)
    include_initial = check_flag("include_initial", include_initial)
    if include_initial and not all_carries:
        raise ValueError("include_initial=True needs all_carries=True")
    request = check_request(cell, implementation, remat, scan_unroll)

    def run(call: Call, mapped: int) -> tuple[Carry, Any]:
        return run_call(cell, static._replace(mapped=mapped), call)

    # A cell's own functions fail somewhere in the middle of a product. The error is looked at again
    # afterwards: it may be a parameter or an input of another shape, which has a clearer message.
    try:
        # Where the arrays lie is asked here: inside ``jax.jit`` they are traced and do not say.
        device = persistent.find_device(call, call.xs)
        if implementation is None and persistent.is_forward_mode(call):
            device = "it has no forward mode, as of jax.jvp"
        static = Static(reverse, all_carries, include_initial, request, platform_of(call), device)
        carry, ys = run_as_one_batch(run, call)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        persistent.explain_forward_mode(error, call)
        _arguments.explain_failure(cell, params, call.xs)
        raise
    except RuntimeError:
        check_there(params=params, xs=xs, initial_carry=initial_carry)
        raise
    _values.require_finite("the outputs", ys)
    _values.require_finite("the final carry", carry)
    return carry, ys


def _checked_call(
    cell: Cell,
    params: Params,
    xs: Any,
    lengths: Any,
    mask: Any,
    resets: Any,
    initial_carry: Carry,
    key: Any,
    context: Any,
) -> Call:
    """The arrays of a call, checked as far as their values are known.

    What is computed of them (lengths to a mask, for one) is left to the compiled program: an eager
    call would start a small program of its own for every such operation.
    """
    xs = _arguments.check_xs(xs)
    *batch, time = jax.tree.leaves(xs)[0].shape[:-1]
    batch = tuple(batch)
    if lengths is not None:
        lengths = masking.check_lengths(lengths, batch, time)
    if mask is not None:
        mask = masking.flags_as_given("mask", mask, batch, time)
    if resets is not None:
        resets = masking.flags_as_given("resets", resets, batch, time)
    key = None if key is None else check_key(key)
    carry = jax.tree.map(functools.partial(masking.as_array, "initial_carry"), initial_carry)
    context = _arguments.check_context(cell, context, batch)
    params = in_native_order(params)
    for name, tree in (("params", params), ("initial_carry", carry), ("context", context)):
        _values.require_finite(name, tree)
    if _values.is_checking():
        _values.require_finite("xs", xs, masking.real_steps(lengths, mask, time))
    key = None if cell.noise is None else key
    return Call(params, xs, lengths, mask, resets, carry, key, context)


def explain(
    cell: Cell,
    params: Params,
    xs: Any,
    *,
    implementation: str | None = None,
    remat: Any = None,
    scan_unroll: int | None = None,
) -> str:
    """How :func:`unroll` would run these arguments here, and why, in a few lines of text.

    Args:
        cell: what would be run.
        params: its parameters, or their shapes.
        xs: inputs [..., T, D], or their shape as a tuple of integers.
        implementation: as for ``unroll``.
        remat: as for ``unroll``.
        scan_unroll: as for ``unroll``.

    Raises:
        ValueError: what ``unroll`` would raise for these.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> cell = rnnjax.lstm(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> print(rnnjax.explain(cell, params, jnp.ones((2, 5, 3)), remat=2))
        implementation: scan over time
        derivative: one rule for all cells; one product after the loop for the recurrent weights
        memory: remat=2: chunks of 2 steps
        loop: 1 step an iteration on cpu; forward, each cuts its gates out of one array
    """
    _arguments.check_cell(cell)
    xs = _as_shapes(xs)
    platform = platform_of((params, xs))
    request = check_request(cell, implementation, remat, scan_unroll)
    time = jax.tree.leaves(xs)[0].shape[-2]
    request = with_choice(cell, request, False, time)
    try:
        plan = make_plan(request, size_of(cell, params, xs), platform)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        _arguments.explain_failure(cell, params, xs)
        raise
    lines, kernel, device = {"memory": plan.reason}, None, None
    if plan.implementation == "scan" and request.implementation != "scan":
        device = persistent.find_device((params, xs), xs)
        static = Static(False, False, False, request, platform, device)
        call = Call(params, xs, *(None for _ in Call._fields[2:]))
        kernel = kernel_for(cell, static, call, plan.chunk)
    if plan.implementation == "associative":
        lines["implementation"] = "associative scan, parallel over time"
        lines["derivative"] = "a linear recurrence in the other direction, in parallel too"
    elif plan.implementation == "chunked":
        lines["implementation"] = "many steps at once, a scan over such chunks"
        lines["derivative"] = "ordinary autodiff of each chunk"
    elif isinstance(kernel, persistent.Launch):
        where = device.describe_shares() if isinstance(device, persistent.Device) else ""
        lines["implementation"] = f"one persistent kernel{where}: {kernel.tiling.describe()}"
        lines["derivative"] = "a kernel of its own; the weight gradient is one product after it"
    else:
        lines["implementation"] = "scan over time"
        lines["derivative"] = "one rule for all cells"
        if cell.recurrent is not None:
            lines["derivative"] += "; one product after the loop for the recurrent weights"
        if cell.plain_step is not None:
            lines["derivative"] = "ordinary autodiff of the cell's plain_step, which is slower"
        steps = "1 step" if plan.scan_unroll == 1 else f"{plan.scan_unroll} steps"
        late = "; forward, each cuts its gates out of one array" if plan.packed else ""
        lines["loop"] = f"{steps} an iteration on {platform}{late}"
        if platform == "gpu" and kernel is not None:
            lines["no persistent kernel"] = kernel
    order = ("implementation", "derivative", "memory", "loop", "no persistent kernel")
    return "\n".join(f"{name}: {lines[name]}" for name in order if name in lines)


def _as_shapes(xs: Any) -> Any:
    """Inputs, or their shapes, as ``explain`` takes them."""
    if isinstance(xs, tuple) and all(isinstance(n, int) for n in xs):
        xs = jax.ShapeDtypeStruct(xs, jnp.float32)
    for leaf in jax.tree.leaves(xs):
        if not hasattr(leaf, "shape") or len(leaf.shape) < 2:
            raise ValueError(
                f"xs must be arrays [..., T, D] or a shape such as (B, T, D), got {describe(leaf)}"
            )
    return xs

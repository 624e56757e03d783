"""The table of cells and layers that every property test runs over, and the oracle for them.

A new cell is a new row of ``CELLS``, by itself a row of ``LAYERS`` too; a new composition is a new
row of ``COMPOSED``. The oracle is a Python loop over one sequence that looks at nothing but its
real steps: no scan, no mask, no batch, ordinary autodiff.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax

H = 4
D = 3


class GatedParams(NamedTuple):
    w_ih: Any
    w_hh: Any
    bias: Any
    peephole: Any
    start: Any


def users_own_cell() -> rnnjax.Cell:
    """From outside the library: a learned start, parameters read by ``update``, pieces of unequal
    width, and a piece that is a tree and never meets the recurrent weights."""

    def init(key, input_size):
        ih, hh, peep, start = jax.random.split(key, 4)
        return GatedParams(
            jax.random.normal(ih, (input_size, 2 * H + 1)) * 0.5,
            jax.random.normal(hh, (H, H + 1)) * 0.5,
            jnp.ones((2 * H + 1,)),
            jax.random.normal(peep, (H,)),
            jax.random.normal(start, (H,)),
        )

    def project(params, x):
        gate, scale, drive = jnp.split(x @ params.w_ih + params.bias, [H, H + 1])
        return gate, scale, {"drive": drive}

    def update(params, carry, x_proj, h_proj):
        f = jax.nn.sigmoid(x_proj[0] + h_proj[0] + params.peephole * carry)
        new = f * carry + (1 - f) * jnp.tanh(x_proj[1] * (1 + h_proj[1]) + x_proj[2]["drive"])
        return new, jnp.sin(new)

    return rnnjax.Cell(
        output_size=H,
        init=init,
        initial_carry=lambda params: params.start,
        project=project,
        recurrent=lambda params: params.w_hh,
        hidden=lambda carry: carry,
        update=update,
    )


class IndependentParams(NamedTuple):
    w_ih: Any
    decay: Any


def cell_without_recurrent_matrix() -> rnnjax.Cell:
    """Every unit sees only its own past; the engine has no product to take."""

    def init(key, input_size):
        ih, decay = jax.random.split(key)
        w_ih = jax.random.normal(ih, (input_size, H))
        return IndependentParams(w_ih, jax.random.uniform(decay, (H,)))

    def update(params, carry, x_proj, h_proj):
        h = jax.nn.relu(x_proj[0] + params.decay * carry)
        return h, h

    return rnnjax.Cell(
        output_size=H,
        init=init,
        initial_carry=lambda params: jnp.zeros_like(params.decay),
        project=lambda params, x: (x @ params.w_ih,),
        hidden=lambda carry: carry,
        update=update,
    )


def with_memory(cell: rnnjax.Cell, size: int) -> rnnjax.Cell:
    """A cell that reads a memory, which is the same for every sequence."""
    states = jnp.sin(jnp.arange(3.0 * size)).reshape(3, size)
    memory = rnnjax.Memory(states, jnp.array([True, True, False]))
    assert cell.context is not None
    assert cell.update is not None

    def update(params, carry, x_proj, h_proj):
        return cell.update(params, carry, x_proj, h_proj, cell.context(params, memory))

    return cell._replace(update=update, context=None)


CELLS = {
    "vanilla": rnnjax.vanilla(H),
    "vanilla_softplus": rnnjax.vanilla(H, jax.nn.softplus),
    "lstm": rnnjax.lstm(H),
    "gru": rnnjax.gru(H),
    "gru_reset_before": rnnjax.gru(H, reset_after=False),
    "users_own": users_own_cell(),
    "no_recurrent_matrix": cell_without_recurrent_matrix(),
    "projected": rnnjax.projected_lstm(H, 2),
    "peephole": rnnjax.peephole_lstm(H),
    "coupled": rnnjax.coupled_lstm(H),
    "minimal_gated": rnnjax.minimal_gated(H),
    "minimal_gated_reset_before": rnnjax.minimal_gated(H, reset_after=False),
    "mogrifier": rnnjax.mogrifier_lstm(H, rounds=3, rank=2),
    "slstm": rnnjax.slstm(H),
    "mlstm": rnnjax.mlstm(H, num_heads=2),
    "gated_delta": rnnjax.gated_delta(H, num_heads=2, negative_eigenvalues=True),
    "rg_lru": rnnjax.rg_lru(H),
    "cornn": rnnjax.cornn(H, time_step=0.3),
    "lmu": rnnjax.lmu(H, 3, theta=4.0),
    "cfc": rnnjax.cfc(H),
    "indrnn": rnnjax.indrnn(H, jnp.tanh),  # relu is in no_recurrent_matrix, with its kinks
    "conv": rnnjax.conv_lstm((D,), hidden_channels=2, kernel_size=2),
    "learned_carry": rnnjax.learn_initial_carry(rnnjax.lstm(H)),
    "learned_carry_of_a_step": rnnjax.learn_initial_carry(rnnjax.gru(H, reset_after=False)),
}


class One(NamedTuple):
    cell: rnnjax.Cell
    reverse: bool = False


class Both(NamedTuple):
    forward: Any
    backward: Any


class Tower(NamedTuple):
    floors: tuple


class Head(NamedTuple):
    below: Any


class Convolution(NamedTuple):
    """A ``causal_convolution`` over ``window`` steps of ``size`` channels, and then a tanh."""

    size: int
    window: int


class Dense(NamedTuple):
    """A ``dense`` of ``size`` outputs, of which the sine is taken."""

    size: int


class Block(NamedTuple):
    """A norm before, and a gate beside, what is ``below``."""

    below: Any
    size: int = H


class Grid(NamedTuple):
    """A ``grid_lstm`` of H units with these arguments."""

    num_layers: int = 2
    dimensions: int = 2
    tied: bool = True
    priority: str | None = "depth"
    output: str = "inside"
    reverse: bool = False


# One row each way.
REVERSED = ("vanilla", "lstm", "gru", "gru_reset_before", "users_own", "no_recurrent_matrix")


def both(forward: str, backward: str) -> Both:
    """Two cells by name, the second one in reverse."""
    return Both(One(CELLS[forward]), One(CELLS[backward], True))


def reversed_stack(*names: str) -> Tower:
    """A stack of cells by name, all in reverse."""
    return Tower(tuple(One(CELLS[name], True) for name in names))


COMPOSED: dict[str, Any] = {
    "bidirectional": both("lstm", "gru"),
    "stack": Tower((One(CELLS["gru"]), One(CELLS["lstm"], True))),
    "bidirectional_stack": Tower((both("lstm", "lstm"), both("users_own", "vanilla"))),
    "output_head": Head(One(CELLS["lstm"])),
    "dense": Tower((Dense(4), One(CELLS["gru"]), Dense(2))),
    # The other cells run in reverse here, on top of one another.
    "reversed_lstms": reversed_stack("projected", "coupled", "peephole"),
    "reversed_units": reversed_stack("minimal_gated", "indrnn", "learned_carry"),
    "reversed_steps": reversed_stack(
        "conv", "minimal_gated_reset_before", "learned_carry_of_a_step"
    ),
    "linear": Tower(
        (
            One(rnnjax.min_lstm(H)),
            One(rnnjax.lru(H), True),
            One(rnnjax.min_gru(H)),
            One(rnnjax.s4d(H, 2)),
            One(rnnjax.s5(H, 2)),
        )
    ),
    "window": One(with_memory(rnnjax.window_cell(rnnjax.gru(H), 2, 2, speed=0.3), 2)),
    "grids": Tower(
        (Grid(2), Grid(1, tied=False, priority=None, reverse=True), Grid(1, priority="time"))
    ),
    "mamba": Block(Tower((Convolution(5, 3), One(rnnjax.s6(5, 2))))),
    "transformed": Tower(
        (
            One(rnnjax.layer_norm(rnnjax.lstm(H))),
            One(rnnjax.zoneout(rnnjax.weight_drop(rnnjax.gru(H), 0.3), 0.2), True),
        )
    ),
}
LAYERS: dict[str, Any] = {
    **{name: One(cell) for name, cell in CELLS.items()},
    **{f"{name}_reverse": One(CELLS[name], True) for name in REVERSED},
    **COMPOSED,
}


def build(spec: Any, scan_unroll: int = 1) -> rnnjax.Layer:
    """The layer of a row."""
    if isinstance(spec, One):
        return rnnjax.recurrent(spec.cell, reverse=spec.reverse, scan_unroll=scan_unroll)
    if isinstance(spec, Grid):
        return rnnjax.grid_lstm(H, **spec._asdict())
    if isinstance(spec, Both):
        return rnnjax.bidirectional(
            build(spec.forward, scan_unroll), build(spec.backward, scan_unroll)
        )
    if isinstance(spec, Convolution):
        return rnnjax.causal_convolution(*spec, jnp.tanh)
    if isinstance(spec, Dense):
        return rnnjax.dense(spec.size, jnp.sin)
    if isinstance(spec, Block):
        return rnnjax.rms_norm(rnnjax.gated(build(spec.below, scan_unroll), spec.size))
    if isinstance(spec, Head):
        return rnnjax.output_head(build(spec.below, scan_unroll), 2, jnp.cos)
    return rnnjax.stack(*(build(floor, scan_unroll) for floor in spec.floors))


def initial_carry(spec: Any, params: Any) -> Any:
    """The carry of one sequence before its first step."""
    if isinstance(spec, One):
        return spec.cell.initial_carry(params)
    if isinstance(spec, Grid):
        zeros = jnp.zeros((spec.num_layers, H), params.w.dtype)
        return rnnjax.LSTMCarry(zeros, zeros) if spec.dimensions == 2 else ()
    if isinstance(spec, Both):
        return rnnjax.Directions(
            initial_carry(spec.forward, params.forward),
            initial_carry(spec.backward, params.backward),
        )
    if isinstance(spec, Convolution):
        return jnp.zeros((spec.window - 1, spec.size), params.w.dtype)
    if isinstance(spec, Dense):
        return ()
    if isinstance(spec, Block):
        return initial_carry(spec.below, params.layer.layer)
    if isinstance(spec, Head):
        return initial_carry(spec.below, params.layer)
    return tuple(initial_carry(f, p) for f, p in zip(spec.floors, params, strict=True))


def alone(spec: Any, params: Any, xs: list, starts: list[bool], carry: Any) -> tuple[Any, list]:
    """The oracle: the real steps ``xs`` of one sequence, a new segment wherever ``starts``."""
    if isinstance(spec, Both):
        forward, ahead = alone(spec.forward, params.forward, xs, starts, carry.forward)
        backward, back = alone(spec.backward, params.backward, xs, starts, carry.backward)
        ys = [jnp.concatenate([a, b]) for a, b in zip(ahead, back, strict=True)]
        return rnnjax.Directions(forward, backward), ys
    if isinstance(spec, Convolution):
        return convolution_alone(params, xs, starts, carry)
    if isinstance(spec, Dense):
        return carry, [jnp.sin(x @ params.w + params.bias) for x in xs]
    if isinstance(spec, Block):
        norm, own = params
        xs = [norm * x / jnp.sqrt(jnp.mean(x**2) + 1e-6) for x in xs]
        carry, hs = alone(spec.below, own.layer, [x @ own.w_in for x in xs], starts, carry)
        gates = [jax.nn.silu(x @ own.w_gate) for x in xs]
        return carry, [(h * g) @ own.w_out for h, g in zip(hs, gates, strict=True)]
    if isinstance(spec, Head):
        carry, hs = alone(spec.below, params.layer, xs, starts, carry)
        return carry, [jnp.cos(h @ params.w + params.bias) for h in hs]
    if isinstance(spec, Tower):
        carries = []
        for floor, p, c in zip(spec.floors, params, carry, strict=True):
            c, xs = alone(floor, p, xs, starts, c)
            carries.append(c)
        return tuple(carries), xs
    if isinstance(spec, Grid):
        return grid_alone(spec, params, xs, starts, carry)
    return _loop(spec, params, xs, starts, carry)


def convolution_alone(params: Any, xs: list, starts: list[bool], carry: Any) -> tuple[Any, list]:
    """The last inputs of the segment, the newest last, and their weighted sums."""
    ys = []
    for x, start in zip(xs, starts, strict=True):
        before = jnp.zeros_like(carry) if start else carry
        seen = jnp.concatenate([before, x[None].astype(carry.dtype)])
        ys.append(jnp.tanh(jnp.sum(seen[::-1] * params.w, axis=0) + params.bias))
        carry = seen[1:]
    return carry, ys


def grid_alone(
    spec: Grid, params: Any, xs: list, starts: list[bool], carry: Any, np: Any = jnp
) -> tuple[Any, list]:
    """The grid block by block, in NumPy or JAX's NumPy."""

    def side(side: Any, h_time: Any, h_depth: Any, c: Any) -> tuple[Any, Any]:
        outputs = [h_depth] if spec.dimensions == 1 else [h_time, h_depth]
        i, f, g, o = np.split(np.concatenate(outputs) @ side.w + side.bias, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = f * c + i * np.tanh(g)
        return (np.tanh(o * c) if spec.output == "inside" else o * np.tanh(c)), c

    layers = range(spec.num_layers)
    parts = (params.time, params.depth)
    if not spec.tied:
        parts = [jax.tree.map(lambda a, n=n: a[n], parts) for n in layers]
    time = [(carry.h[n], carry.c[n]) if spec.dimensions == 2 else None for n in layers]
    ys: list = [None] * len(xs)
    order = range(len(xs))
    for t in reversed(order) if spec.reverse else order:
        crossing = starts[t] if not spec.reverse else t + 1 < len(xs) and starts[t + 1]
        h, c = np.split(xs[t] @ params.w + params.bias, 2)
        for n in layers:
            of_time, of_depth = parts if spec.tied else parts[n]
            if spec.dimensions == 1:
                h, c = side(of_depth, None, h, c)
                continue
            h_old, c_old = (np.zeros_like(h), np.zeros_like(h)) if crossing else time[n]
            if spec.priority == "time":
                h_new, c_new = side(of_depth, h_old, h, c)
                time[n] = side(of_time, h_old, h_new, c_old)
            else:
                time[n] = side(of_time, h_old, h, c_old)
                seen = time[n][0] if spec.priority == "depth" else h_old
                h_new, c_new = side(of_depth, seen, h, c)
            h, c = h_new, c_new
        ys[t] = h
    if spec.dimensions == 1:
        return (), ys
    return rnnjax.LSTMCarry(*(np.stack(part) for part in zip(*time, strict=True))), ys


def _loop(spec: One, params: Any, xs: list, starts: list[bool], carry: Any) -> tuple[Any, list]:
    ys: list = [None] * len(xs)
    order = range(len(xs))
    for t in reversed(order) if spec.reverse else order:
        crossing = starts[t] if not spec.reverse else t + 1 < len(xs) and starts[t + 1]
        if crossing:
            carry = spec.cell.initial_carry(params)
        carry, ys[t] = _step(spec.cell, params, carry, xs[t])
    return carry, ys


def _step(cell: rnnjax.Cell, params: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    x_proj = cell.project(params, x)
    if cell.plain_step is not None:
        return cell.plain_step(params, carry, x_proj)
    h_proj: tuple = ()
    if cell.recurrent is not None:
        h_proj = _as_wide_as(x_proj, cell.hidden(carry) @ cell.recurrent(params))
    return cell.update(params, carry, x_proj, h_proj)


def _as_wide_as(x_proj: tuple, product: Any) -> tuple:
    """``product`` in pieces as wide as the first of ``x_proj``, until nothing is left."""
    pieces: list = []
    while product.size:
        width = x_proj[len(pieces)].size
        assert width <= product.size
        pieces.append(product[:width])
        product = product[width:]
    return tuple(pieces)


class Ragged(NamedTuple):
    """A batch with its options; ``valid`` and ``starts`` say what they mean, row by row."""

    xs: Any
    options: dict
    valid: np.ndarray
    starts: np.ndarray


B, T = 3, 4
LENGTHS = np.array([4, 2, 0])
MASK = np.array([[True, False, True, True], [False, True, True, False], [False] * 4])
RESETS = np.array(
    [[False, False, True, True], [True, True, False, True], [False, True, False, True]]
)
OPTIONS: dict[str, dict] = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": MASK},
    "resets": {"resets": RESETS},
    # Lengths and mask each leave out a step that the other has.
    "all": {"lengths": np.array([3, 3, 2]), "mask": MASK, "resets": RESETS},
}


def ragged(options: str, seed: int = 0) -> Ragged:
    """A batch [B, T, D] with the options of a row of ``OPTIONS``."""
    given = OPTIONS[options]
    xs = jax.random.normal(jax.random.key(seed), (B, T, D), jnp.result_type(float))
    valid = np.arange(T) < given.get("lengths", np.full(B, T))[:, None]
    valid = valid & given.get("mask", np.ones((B, T), bool))
    return Ragged(xs, given, valid, given.get("resets", np.zeros((B, T), bool)))


def batch_alone(spec: Any, params: Any, batch: Ragged, carry: Any, xs: Any) -> tuple[Any, Any]:
    """The oracle row by row: the carries stacked, the outputs put back with zeros between."""
    carries, outputs = [], []
    size = build(spec).output_size
    for b in range(B):
        real = np.flatnonzero(batch.valid[b])
        start = jax.tree.map(lambda a, b=b: a[b], carry)
        final, ys = alone(
            spec, params, [xs[b, t] for t in real], list(batch.starts[b, real]), start
        )
        row = [jnp.zeros((size,), xs.dtype)] * T
        for t, y in zip(real, ys, strict=True):
            row[t] = y
        carries.append(final)
        outputs.append(jnp.stack(row))
    return jax.tree.map(lambda *a: jnp.stack(a), *carries), jnp.stack(outputs)


def init(spec: Any, seed: int = 1) -> Any:
    """Parameters of a row in the default float dtype, none at the zero it may start from."""
    params = build(spec).init(jax.random.key(seed), D)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    dtype = jnp.result_type(float)
    moved = [
        a.astype(dtype) + 0.2 * jax.random.normal(k, a.shape, dtype)
        for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def random_carry(spec: Any, params: Any, seed: int = 2) -> Any:
    """An initial carry [B, ...] other than the cell's own."""
    leaves, treedef = jax.tree.flatten(initial_carry(spec, params))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [
        0.5 * jax.random.normal(k, (B, *a.shape), a.dtype)
        for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)

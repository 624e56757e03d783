"""Values, carries and all gradients of the kernels beside the scan and beside float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import rnnjax

BATCH, TIME = 20, 18


def both_directions(cell: Any, params: Any, xs: Any, **how: Any) -> Any:
    """Two loops that share the device: none may take the room that the other waits for."""
    layer = rnnjax.bidirectional(
        *(
            rnnjax.recurrent(
                cell,
                reverse=reverse,
                implementation=how["implementation"],
                scan_unroll=how.get("scan_unroll"),
            )
            for reverse in (False, True)
        )
    )
    made = jax.eval_shape(lambda: layer.init(jax.random.key(0), 4))
    flags = {name: how[name] for name in ("lengths", "resets")}
    return layer.apply(type(made)(params, params), xs, **flags)


def in_shard_map(cell: Any, params: Any, xs: Any, **how: Any) -> Any:
    """The kernels in a program for each device of a mesh, here of one."""
    flags = {name: how.pop(name) for name in ("lengths", "resets")}

    def run(params: Any, xs: Any, flags: dict[str, Any]) -> Any:
        return rnnjax.unroll(cell, params, xs, **how, **flags)

    if how["implementation"] == "scan":
        return run(params, xs, flags)
    same, divided = jax.P(), jax.P("batch")
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    specs = {"in_specs": (same, divided, divided), "out_specs": divided}
    return jax.shard_map(run, mesh=mesh, **specs)(params, xs, flags)


class Row(NamedTuple):
    """A cell, a dtype, what ``unroll`` is given beside it, and what may stand in its place."""

    name: str
    cell: Any
    dtype: Any
    batch: int = BATCH
    time: int = TIME
    options: tuple[tuple[str, Any], ...] = ()
    ragged: bool = True
    noisy: bool = False
    run: Callable = rnnjax.unroll


def loop_alone(cell: Any) -> Any:
    """``cell`` with its pieces of ``x_proj`` as inputs: no error of another product is seen."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 4))
    x_proj = jax.eval_shape(cell.project, params, jax.ShapeDtypeStruct((4,), jnp.float32))
    count = len(x_proj)
    return cell._replace(project=lambda params, x: tuple(jnp.split(x, count, axis=-1)))


def users_own(size: int) -> Any:
    """A cell the library does not have: a parameter in ``update``, softplus and expm1."""
    gru = rnnjax.gru(size)

    def update(params: Any, carry: Any, x_proj: tuple, h_proj: tuple) -> Any:
        a, b = x_proj[0] + h_proj[0], x_proj[1] * jnp.tanh(h_proj[1] + params.hidden_bias)
        new = 0.9 * carry + jax.nn.softplus(a) * jnp.expm1(-jax.nn.relu(b))
        return new, jnp.sin(new)

    return gru._replace(update=update, hidden=jnp.tanh, gates=None)


def rows() -> list[Row]:
    """The cells and options that are held to float64 and to the scan."""
    f32, bf16, fp16 = jnp.float32, jnp.bfloat16, jnp.float16
    reverse = (("reverse", True), ("all_carries", True))
    return [
        Row("lstm", rnnjax.lstm(256), bf16, 64),
        Row("lstm", rnnjax.lstm(256), f32, 64),
        Row("lstm, full rows", rnnjax.lstm(128), fp16, ragged=False),
        Row("lstm, reverse, all carries", rnnjax.lstm(100), f32, options=reverse),
        Row("lstm, in rounds", rnnjax.lstm(500), bf16, 500, 6),
        Row("gru", rnnjax.gru(70), f32),
        Row("vanilla", rnnjax.vanilla(70), f32),
        Row("slstm", rnnjax.slstm(64), f32),
        Row("coupled lstm", rnnjax.coupled_lstm(64), f32, options=(("remat", 5),)),
        Row("a user's own", users_own(64), f32),
        Row("peephole lstm, variational",
            rnnjax.variational_dropout(rnnjax.peephole_lstm(30), hidden=0.3), f32, noisy=True),
        Row("lstm, zoneout", rnnjax.zoneout(rnnjax.lstm(64), 0.2), bf16, noisy=True),
        Row("learned carry", rnnjax.learn_initial_carry(rnnjax.minimal_gated(64)), bf16),
        Row("lstm, both directions", rnnjax.lstm(256), bf16, 120, run=both_directions),
        Row("gru, in shard_map", rnnjax.gru(64), f32, run=in_shard_map),
    ]  # fmt: skip


def arguments(row: Row) -> tuple[Any, Any, dict[str, Any]]:
    """Parameters, inputs, and the other arguments of ``unroll``."""
    keys = jax.random.split(jax.random.key(3), 6)
    cell = loop_alone(row.cell)
    made = jax.eval_shape(lambda: row.cell.init(keys[0], 4))
    pieces = jax.eval_shape(row.cell.project, made, jax.ShapeDtypeStruct((4,), jnp.float32))
    params = row.cell.init(keys[0], 4)
    params = jax.tree.map(
        lambda a: (a + 0.1 * jax.random.normal(keys[1], a.shape)).astype(row.dtype), params
    )
    columns = len(pieces) * cell.output_size
    xs = jax.random.normal(keys[2], (row.batch, row.time, columns))
    options = dict(row.options)
    if row.ragged:
        options["lengths"] = jax.random.randint(keys[3], (row.batch,), 0, row.time + 1)
        options["resets"] = jax.random.bernoulli(keys[4], 0.1, (row.batch, row.time))
    if row.noisy:
        options["key"] = keys[5]
    return params, xs, options


def program(row: Row, implementation: str) -> Callable:
    """``(params, xs, arrays) -> (outputs, gradients)`` for fixed random cotangents."""
    cell = loop_alone(row.cell)

    def run(params: Any, xs: Any, arrays: dict[str, Any]) -> Any:
        static = dict(row.options, implementation=implementation)
        if implementation == "scan":
            static["scan_unroll"] = 1

        def loss(params: Any, xs: Any) -> Any:
            outputs = row.run(cell, params, xs, **static, **arrays)
            rng = np.random.default_rng(1)
            leaves = jax.tree.leaves(outputs)
            total = sum(jnp.sum(a * rng.normal(size=a.shape).astype("f4")) for a in leaves)
            return total, outputs

        gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs)
        return outputs, gradients

    return run


class Job(NamedTuple):
    """The programs of a row: kernel, scan, and the scan in float64 on the CPU."""

    row: Row
    args: tuple
    exact_args: tuple | None
    compiled: tuple


def start(row: Row, pool: Any) -> Job:
    """Trace a row's programs here, and compile them in ``pool``."""
    params, xs, options = arguments(row)
    arrays = {k: v for k, v in options.items() if k in ("lengths", "resets", "key")}
    args = (params, xs, arrays)
    lowered = [jax.jit(program(row, name)).lower(*args) for name in ("persistent", "scan")]
    exact_args = None
    if not row.noisy:
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            wide = lambda a: np.asarray(a, np.float64 if a.dtype != bool else bool)  # noqa: E731
            host = {k: np.asarray(v) for k, v in arrays.items()}
            exact_args = (jax.tree.map(wide, params), wide(xs), host)
            lowered.append(jax.jit(program(row, "scan")).lower(*exact_args))
    return Job(row, args, exact_args, tuple(pool.submit(one.compile) for one in lowered))


def _error(given: Any, exact: Any) -> float:
    """The largest error of any array, as a share of its norm."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        norm = np.linalg.norm(b)
        worst = max(worst, float(np.linalg.norm(a - b) / norm) if norm else float(np.abs(a).max()))
    return worst


def finish(job: Job) -> dict[str, Any]:
    """Run a row's programs and judge the kernel."""
    kernel, scan = job.compiled[0].result(), job.compiled[1].result()
    first, again = kernel(*job.args), kernel(*job.args)
    by_scan = scan(*job.args)
    bits = all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=False)
        for a, b in zip(
            jax.tree.leaves(jax.tree.map(_bits, first)),
            jax.tree.leaves(jax.tree.map(_bits, again)),
            strict=True,
        )
    )
    if job.exact_args is None:
        exact = by_scan
    else:
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            exact = jax.tree.map(np.asarray, job.compiled[2].result()(*job.exact_args))
    found = {
        "kernel": [_error(first[k], exact[k]) for k in range(2)],
        "scan": [_error(by_scan[k], exact[k]) for k in range(2)],
        "against": "float64" if job.exact_args is not None else "the scan",
        "same_bits": bits,
    }
    return found | {"right": bits and _is_right(job.row.dtype, found)}


def _bits(a: Any) -> Any:
    return np.asarray(a).view(np.uint16 if a.dtype.itemsize == 2 else np.uint32)


# float32: three products; beside the scan of a row with noise, whose products are TF32, its error.
# 16 bits: the scan rounds as often but for one rounding of the cotangents.
EXACT, BESIDE_TF32, BESIDE_16_BITS = 1e-4, 5e-3, 1e-2


def _is_right(dtype: Any, found: dict[str, Any]) -> bool:
    for kernel, scan in zip(found["kernel"], found["scan"], strict=True):
        if found["against"] == "the scan":
            allowed = BESIDE_TF32 if dtype == jnp.float32 else BESIDE_16_BITS
        else:
            allowed = EXACT if dtype == jnp.float32 else 2 * scan + 1e-3
        if not kernel <= allowed:
            return False
    return True

"""The persistent kernels without a GPU: their mathematics tile by tile, their arrays, refusals."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated_kernels import H100, KERNELS
from jax.sharding import AxisType

import rnnjax
from rnnjax.engine import _loop
from rnnjax.engine._step import Inputs, Loop, Weights
from rnnjax.engine.kernels import _device, _tiles, persistent

pytestmark = pytest.mark.usefixtures("quick_compile")
NEW_JAX = pytest.mark.skipif(
    jax.__version_info__ < persistent.OLDEST_JAX, reason="the kernels need a newer JAX"
)
# Errors of norms beside the scan's. float32: three products leave out 2^-18 of each; 16 bits: the
# cotangents of h W are rounded once more than in the scan.
TOLERANCE = {"float32": 3e-5, "bfloat16": 8e-3, "float16": 1e-3}


def with_softplus(size):
    """A cell of a user: a parameter of no axes, log1p, expm1, a hidden state that is computed."""
    lstm = rnnjax.lstm(size)

    def init(key, input_size):
        return {"inner": lstm.init(key, input_size), "slope": jnp.float32(0.7)}

    def update(params, carry, x_proj, h_proj):
        a, b = x_proj[0] + h_proj[0], x_proj[1] * jnp.tanh(h_proj[1])
        new = 0.9 * carry + jax.nn.softplus(a) * jnp.expm1(-jax.nn.relu(b)) * params["slope"]
        return new, jnp.sin(new)

    return rnnjax.Cell(
        output_size=size,
        init=init,
        initial_carry=lambda params: jnp.zeros(size),
        project=lambda params, x: lstm.project(params["inner"], x)[:2],
        recurrent=lambda params: params["inner"].w_hh[:, : 2 * size],
        hidden=jnp.tanh,
        update=update,
    )


def _reads_one_gate(params, carry, x_proj, h_proj):
    new = 0.5 * carry + jnp.tanh(x_proj[1] + h_proj[1])
    return new, new


CELLS = {
    "lstm": rnnjax.lstm,
    "gru": rnnjax.gru,
    "vanilla": rnnjax.vanilla,
    "minimal_gated": rnnjax.minimal_gated,
    "coupled_lstm": rnnjax.coupled_lstm,
    "peephole_lstm": rnnjax.peephole_lstm,
    "own": with_softplus,
    "unread": lambda size: rnnjax.gru(size)._replace(update=_reads_one_gate, gates=None),
    "traced": lambda size: rnnjax.trace_gates(rnnjax.lstm(size)),
}
PLAIN, ALL = Loop(), Loop(reverse=True, all_carries=True)


def problem(cell, time, batch, size, *, flags=False, noise=False, dtype="float32"):
    """A loop's arguments: lengths from 0 to ``time``, resets, a carry, noise."""
    keys = iter(jax.random.split(jax.random.key(0), 64))

    def normal(shape, scale=1.0):
        return scale * jax.random.normal(next(keys), shape)

    params = jax.tree.map(lambda a: a + normal(a.shape, 0.1), cell.init(next(keys), 3))
    x_proj = jax.eval_shape(cell.project, params, jnp.zeros(3))
    x_projs = jax.tree.map(lambda a: normal((time, batch, *a.shape)), x_proj)
    carry = jax.tree.map(lambda a: normal((batch, size)), cell.initial_carry(params))
    fresh = jax.tree.map(lambda a: normal((batch, size), 0.3), carry)
    lengths = jax.random.randint(next(keys), (batch,), 0, time + 1).at[0].set(0)
    valid = jnp.arange(time)[:, None] < lengths[None] if flags else None
    resets = jax.random.bernoulli(next(keys), 0.3, (time, batch)) if flags else None
    hidden_noise = 1 + normal((batch, size), 0.3) if noise else None
    w_hh = cell.recurrent(params).astype(dtype)
    weights = Weights(w_hh, params, fresh, hidden_noise)
    return weights, carry, Inputs(x_projs, valid, resets)


def shapes(*about, **options):
    """Those of a problem: to be refused, and to be compiled, needs no numbers."""
    return jax.eval_shape(lambda: problem(*about, **options))


def emulated(cell, loop, device=H100):
    def run(weights, carry, inputs):
        return persistent.run_persistent(
            cell, loop, weights, carry, inputs, device=device, kernels=KERNELS
        )

    return run


def scanned(cell, loop):
    return lambda weights, carry, inputs: _loop.run_scan(cell, loop, weights, carry, inputs)


def values_and_gradients(run, args):
    """Outputs, and gradients of all that moves for random cotangents."""
    weights, carry, inputs = args

    def of(weights, carry, x_projs):
        return run(weights, carry, inputs._replace(x_projs=x_projs))

    def loss(*moving):
        leaves = jax.tree.leaves(of(*moving))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        return sum(
            jnp.sum(a * jax.random.normal(k, a.shape, a.dtype))
            for k, a in zip(keys, leaves, strict=True)
        )

    def both(*moving):
        return of(*moving), jax.grad(loss, argnums=(0, 1, 2))(*moving)

    return jax.jit(both)(weights, carry, inputs.x_projs)


def assert_close(given, expected, tolerance):
    for (path, a), b in zip(
        jax.tree.leaves_with_path(given), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), name


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("loop", "options"),
    [(PLAIN, {}), (ALL, {"flags": True, "noise": True})],
    ids=["plain", "all"],
)
@pytest.mark.kept
def test_tile_by_tile_a_loop_is_the_scan(name, loop, options):
    cell = CELLS[name](20)
    args = problem(cell, 5, 18, 20, **options)
    given = values_and_gradients(emulated(cell, loop), args)
    assert_close(given, values_and_gradients(scanned(cell, loop), args), TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_products_of_16_bits_are_the_scans(dtype):
    cell = rnnjax.gru(64)
    args = problem(cell, 6, 20, 64, flags=True, dtype=dtype)
    given = values_and_gradients(emulated(cell, PLAIN), args)
    assert_close(given, values_and_gradients(scanned(cell, PLAIN), args), TOLERANCE[dtype])


def test_more_tiles_than_fit_run_in_rounds():
    cell = rnnjax.lstm(512)
    args = problem(cell, 2, 300, 512, dtype="bfloat16")
    shapes = persistent.problem_of(cell, PLAIN, *args)
    assert persistent._launch(shapes, H100).tiling.rounds > 1
    given = values_and_gradients(emulated(cell, PLAIN), args)
    assert_close(given, values_and_gradients(scanned(cell, PLAIN), args), TOLERANCE["bfloat16"])


def test_three_products_are_nearer_to_float64_than_tf32():
    size = 128
    rng = np.random.default_rng(0)
    h, w = rng.normal(size=(16, size)).astype("f4"), rng.normal(size=(size, size)).astype("f4")
    exact = h.astype("f8") @ w.astype("f8")

    def tf32(a):  # 10 bits behind the point, to the nearest
        bits = a.view(np.uint32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).astype(np.uint32).view("f4")

    def error(product):
        return np.linalg.norm(product - exact) / np.linalg.norm(exact)

    parts = [np.asarray(_tiles.split_parts(jnp.asarray(a), 2, jnp.bfloat16), "f8") for a in (h, w)]
    three = sum(parts[0][p] @ parts[1][q] for p in range(2) for q in range(2 - p))
    assert error(three) < 0.05 * error(tf32(h).astype("f8") @ tf32(w).astype("f8"))


def test_xla_may_not_leave_the_small_part_out():
    """A cast to 16 bits and back is one of the pairs that XLA drops; then nothing would be left."""
    compiled = jax.jit(lambda a: _tiles.split_parts(a, 2, jnp.bfloat16)).lower(jnp.ones(8))
    assert "reduce_precision" in compiled.as_text()
    a = np.random.default_rng(0).normal(size=1000).astype("f4")
    parts = np.asarray(jax.jit(lambda a: _tiles.split_parts(a, 2, jnp.bfloat16))(a), "f8")
    assert np.abs(parts.sum(0) - a).max() < 2.0**-16 * np.abs(a).max()


def test_padding_is_never_read():
    cell = rnnjax.lstm(20)
    weights, carry, inputs = problem(cell, 5, 18, 20, flags=True)
    hidden = ~inputs.valid[:, :, None]
    spoilt = jax.tree.map(lambda a: jnp.where(hidden, jnp.nan, a), inputs.x_projs)
    given = values_and_gradients(
        emulated(cell, PLAIN), (weights, carry, inputs._replace(x_projs=spoilt))
    )
    expected = values_and_gradients(emulated(cell, PLAIN), (weights, carry, inputs))
    (last, ys), _ = given
    assert_close((last, ys), expected[0], 0.0)


@pytest.mark.full
def test_an_axis_mapped_by_vmap_joins_the_batch():
    cell = rnnjax.gru(16)
    weights, carry, inputs = problem(cell, 4, 6, 16, flags=True)
    rows = (weights._replace(w_hh=None, params=None), carry, inputs)
    axes = (jax.tree.map(lambda _: 0, rows[0]), 0, jax.tree.map(lambda _: 1, inputs))
    split = jax.tree.map(
        lambda a, axis: a.reshape(*a.shape[:axis], 3, 2, *a.shape[axis + 1 :]),
        rows,
        jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part), axes, rows),
    )

    def one(rows):
        some, carry, inputs = rows
        whole = some._replace(w_hh=weights.w_hh, params=weights.params)
        return emulated(cell, PLAIN)(whole, carry, inputs)

    def total(split):
        (last, ys) = jax.vmap(one, in_axes=(axes,), out_axes=(0, 1))(split)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(last**2)

    def total_of_all(rows):
        last, ys = one(rows)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(last**2)

    moving = lambda f: jax.jit(jax.grad(f, allow_int=True))  # noqa: E731
    given, expected = moving(total)(split), moving(total_of_all)(rows)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        if a.dtype == jnp.float32:
            np.testing.assert_allclose(a.reshape(b.shape), b, rtol=2e-5, atol=2e-6)


@pytest.mark.full
def test_an_ensemble_is_its_members():
    cell = rnnjax.lstm(16)
    members = [problem(cell, 4, 3, 16), problem(cell, 4, 3, 16)]
    members[1] = jax.tree.map(lambda a: a * 1.1, members[1])
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)
    run = jax.jit(emulated(cell, PLAIN))
    given = jax.jit(jax.vmap(run))(*stacked)
    for k, member in enumerate(members):
        assert_close(jax.tree.map(lambda a, k=k: a[k], given), run(*member), 1e-6)

    def loss(weights, carry, inputs):
        return jnp.sum(jax.vmap(run)(weights, carry, inputs)[1] ** 2)

    gradient = jax.jit(jax.grad(loss))(*stacked)
    one = jax.jit(jax.grad(lambda *a: jnp.sum(run(*a)[1] ** 2)))(*members[1])
    assert_close(jax.tree.map(lambda a: a[1], gradient), one, 1e-5)


@pytest.mark.full
def test_second_derivatives_are_the_scans():
    cell = rnnjax.gru(16)
    weights, carry, inputs = problem(cell, 3, 2, 16)

    def curvature(run):
        def loss(w_hh):
            return jnp.sum(jnp.sin(run(weights._replace(w_hh=w_hh), carry, inputs)[1]))

        @jax.jit
        def both(w_hh):
            direction = jnp.ones_like(w_hh)
            forward = jax.jvp(jax.grad(loss), (w_hh,), (direction,))[1]
            back = jax.grad(lambda w: jnp.vdot(jax.grad(loss)(w), direction))(w_hh)
            return forward, back

        return both(weights.w_hh)

    assert_close(curvature(emulated(cell, PLAIN)), curvature(scanned(cell, PLAIN)), 1e-4)


def tangents(implementation, wrap=lambda run: run):
    cell = rnnjax.gru(8)
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (2, 17, 3))
    run = lambda xs: rnnjax.unroll(cell, params, xs, implementation=implementation)[1]  # noqa: E731
    return jax.jvp(wrap(run), (xs,), (jnp.cos(xs),))


@NEW_JAX
def test_forward_mode_is_the_scans(emulated_gpu):
    assert_close(tangents(None), tangents("scan"), 0.0)


@NEW_JAX
@pytest.mark.parametrize(
    ("implementation", "wrap", "words"),
    [
        ("persistent", lambda run: run, "needs implementation='scan'"),
        (None, jax.vmap, "needs implementation='scan'"),
        (None, jax.jit, "forward-mode"),  # of JAX
    ],
)
def test_forward_mode_is_refused_by_name_and_where_it_is_not_seen(
    emulated_gpu, implementation, wrap, words
):
    with pytest.raises(TypeError, match=words):
        tangents(implementation, wrap)


# ---- arrays ------------------------------------------------------------------------------------


def tiling_of(batch, size, gates=4):
    return _tiles.tilings(H100, 3, batch, size, gates, 1, jnp.bfloat16)[0]


@pytest.mark.parametrize(("batch", "size"), [(5, 20), (40, 64), (33, 130)])
def test_tiles_hold_what_rows_hold(batch, size):
    tiling = tiling_of(batch, size)
    rows = np.random.default_rng(0).normal(size=(3, batch, 2, size)).astype("f4")
    tiles = np.asarray(_tiles.to_tiles(tiling, jnp.asarray(rows)))
    assert tiles.shape == (3, tiling.tiles, tiling.groups, 32, tiling.width)
    for t, b, k, h in [(0, 0, 0, 0), (2, batch - 1, 1, size - 1), (1, batch // 2, 1, size // 2)]:
        at = (t, b // tiling.width, h // 16, k * 16 + h % 16, b % tiling.width)
        assert tiles[at] == rows[t, b, k, h]
    np.testing.assert_array_equal(_tiles.from_tiles(tiling, jnp.asarray(tiles)), rows)
    assert np.count_nonzero(tiles) == np.count_nonzero(rows)  # padding is 0


@pytest.mark.parametrize("size", [20, 130])
def test_weights_by_groups_multiply_as_the_matrix_does(size):
    gates, rng = 3, np.random.default_rng(0)
    tiling = _tiles.tilings(H100, 3, 7, size, gates, 1, jnp.float16)[0]
    product = _tiles.Product(64, tiling.padded_size // 64, 16, 1)
    w = rng.integers(-4, 5, size=(size, gates * size)).astype("f4")
    h = rng.integers(-4, 5, size=(size,)).astype("f4")
    padded = np.zeros(tiling.padded_size)
    padded[:size] = h
    forward = np.asarray(_tiles.forward_weights(tiling, product, jnp.asarray(w)), "f8")
    by_group = np.einsum("gprk,pk->gr", forward, padded.reshape(-1, 64))
    found = by_group[:, : gates * 16].reshape(-1, gates, 16).swapaxes(0, 1).reshape(gates, -1)
    np.testing.assert_array_equal(found[:, :size], (h @ w).reshape(gates, size))
    assert not by_group[:, gates * 16 :].any()
    backward = np.asarray(_tiles.backward_weights(tiling, product, jnp.asarray(w)), "f8")
    d = rng.integers(-4, 5, size=(gates, size)).astype("f4")
    columns = np.zeros((gates, tiling.padded_size))
    columns[:, :size] = d
    blocks = np.einsum("gprk,qpk->grq", backward, columns.reshape(gates, -1, 64))
    found = sum(blocks[:, q * 16 : (q + 1) * 16, q] for q in range(gates)).reshape(-1)
    np.testing.assert_array_equal(found[:size], w @ d.reshape(-1))


def test_what_a_product_reads_comes_back_by_rows():
    tiling = _tiles.tilings(H100, 2, 20, 70, 2, 2, jnp.bfloat16)[0]
    rows = np.random.default_rng(0).normal(size=(2, 2, 20, 3, 70)).astype("f4")
    padded = np.zeros((2, 2, tiling.tiles * tiling.width, 3, tiling.padded_size), "f4")
    padded[:, :, :20, :, :70] = rows
    a = padded.reshape(2, 2, tiling.tiles, tiling.width, 3, tiling.padded_size)
    a = a.transpose(1, 2, 0, 5, 4, 3).reshape(2, tiling.tiles, 4, 64, 3 * tiling.width)
    np.testing.assert_array_equal(_tiles.from_product(tiling, jnp.asarray(a)), rows)


# ---- what is refused ---------------------------------------------------------------------------


def reason_for(cell, *, device=H100, dtype="float32", time=20, batch=8, by_itself=False, **options):
    args = shapes(cell, time, batch, cell.output_size, dtype=dtype, **options)
    found = persistent.plan(persistent.problem_of(cell, PLAIN, *args), device, by_itself)
    return found if isinstance(found, str) else ""


@NEW_JAX
def test_sizes_that_could_not_run_at_once_are_refused():
    assert "processors at once" in reason_for(rnnjax.vanilla(2200), time=1, batch=1)
    assert "do not fit" in reason_for(rnnjax.lstm(1400), dtype="float32", time=1, batch=1)
    small = H100._replace(processors=3)
    assert "the device has 3" in reason_for(rnnjax.lstm(64), device=small)
    assert "shared memory" in reason_for(rnnjax.lstm(64), device=H100._replace(shared_memory=9000))


@NEW_JAX
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.full
def test_loops_that_run_side_by_side_fit_on_the_device_together(seen_gpu, by_name):
    """However they overlap, none then waits for ever for room that another has."""
    implementation = "persistent" if by_name else None
    half = rnnjax.recurrent(rnnjax.lstm(256), implementation=implementation)
    back = rnnjax.recurrent(rnnjax.lstm(256), implementation=implementation, reverse=True)
    layer, xs = rnnjax.bidirectional(half, back), jnp.ones((240, 20, 3))
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), 3))

    def gradient(apply, params, xs):
        return jax.grad(lambda p: jnp.sum(apply(p, xs)[1]))(params)

    def processors(apply, params, gradient=gradient):
        """What the kernels of a program take, all at once."""
        program = str(jax.make_jaxpr(lambda p, xs: gradient(apply, p, xs))(params, xs))
        mesh = r"grid=\((\d+),\s+(\d+)\),\s+grid_names=\([^)]*\),\s+cluster=\((\d*),?\)"
        grids = re.findall(mesh, program)
        assert len(grids) == program.count("grid_names=")
        return [int(a) * int(b) * int(c or 1) for a, b, c in grids]

    alone = processors(half.apply, params.forward)
    assert (max(alone, default=0) > 66) == by_name
    together = processors(layer.apply, params)
    assert len(together) == 4 * by_name
    # In a shard_map the other kernels may be collectives, which wait for other devices.
    mesh = jax.sharding.AbstractMesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    batch = jax.P("batch")
    part = jax.shard_map(half.apply, mesh=mesh, in_specs=(jax.P(), batch), out_specs=batch)
    beside_collectives = processors(part, params.forward)
    assert len(beside_collectives) == 2 * by_name
    for taken in together + beside_collectives:
        assert 2 * taken <= H100.processors

    # A jit hides from the choice that its example is one of many: the kernel runs the rows of all.
    def by_row(apply, params, xs):
        one = jax.jit(lambda p, x: gradient(apply, p, x[None]))
        return jax.vmap(one, (None, 0))(params, xs)

    rows_together = processors(half.apply, params.forward, by_row)
    assert len(rows_together) == 2
    for taken in [] if by_name else rows_together:
        assert 2 * taken <= H100.processors


@NEW_JAX
def test_what_the_scan_does_as_well_is_left_to_it_unless_asked_for():
    for dtype in ("float32", "bfloat16", "float16"):
        assert reason_for(rnnjax.lstm(64), dtype=dtype, by_itself=True) == ""
    chosen = {"dtype": "bfloat16", "by_itself": True}
    assert "too few" in reason_for(rnnjax.lstm(64), time=4, **chosen)
    assert "rounds" in reason_for(rnnjax.lstm(512), batch=300, **chosen)
    assert "its share is 66 of 132" in reason_for(rnnjax.lstm(512), batch=64, **chosen)
    collectives = chosen | {"device": H100._replace(collectives=True)}
    assert "its share is 44 of 132" in reason_for(rnnjax.lstm(512), batch=32, **collectives)
    assert reason_for(rnnjax.lstm(512), batch=32, **chosen) == ""


@NEW_JAX
@pytest.mark.parametrize("precision", ["highest", "float32", "F32_F32_F32", "BF16_BF16_F32_X6"])
def test_float32_is_refused_where_more_precision_is_asked_for(precision):
    with jax.default_matmul_precision(precision):
        assert repr(precision) in reason_for(rnnjax.lstm(64))
        assert reason_for(rnnjax.lstm(64), dtype="bfloat16") == ""
    for enough in ("high", "tensorfloat32", "BF16_BF16_F32_X3"):
        with jax.default_matmul_precision(enough):
            assert reason_for(rnnjax.lstm(64)) == ""


@NEW_JAX
def test_float64_weights_are_refused(float64):
    assert "float64" in reason_for(rnnjax.lstm(64), dtype="float64")


def gpu(**changes):
    about = {
        "platform": "gpu", "device_kind": "NVIDIA H100", "compute_capability": "9.0",
        "core_count": 132, "shared_memory_per_block_optin": 232_448,
    }  # fmt: skip
    return types.SimpleNamespace(**(about | changes))


def test_a_device_is_known_by_what_it_says():
    assert _device.describe_gpu(gpu()) == H100._replace(name="NVIDIA H100")
    assert _device.describe_gpu(gpu(core_count=78)).processors == 78
    assert "compute capability 9.0" in _device.describe_gpu(gpu(compute_capability="8.0"))
    assert "for cpu" in _device.describe_gpu(jax.devices("cpu")[0])
    assert "how many processors" in _device.describe_gpu(gpu(core_count=None))
    unsaid = gpu()
    del unsaid.shared_memory_per_block_optin
    assert _device.describe_gpu(unsaid).shared_memory == 232_448


def test_a_device_whose_processors_processes_share_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert _device.describe_gpu(gpu()) == H100._replace(name="NVIDIA H100")
    (tmp_path / "control").touch()
    assert "MPS is running" in _device.describe_gpu(gpu())


# ---- the kernels themselves, as far as they can be compiled without a GPU ------------------------


@NEW_JAX
@pytest.mark.parametrize(
    ("name", "size", "batch", "loop", "options"),
    [
        ("lstm", 256, 64, PLAIN, {"dtype": "bfloat16"}),
        ("lstm", 768, 16, PLAIN, {"dtype": "float16"}),
        ("lstm", 100, 20, ALL, {"flags": True, "noise": True}),
        ("lstm", 512, 300, PLAIN, {"flags": True, "dtype": "bfloat16"}),
        ("lstm", 1024, 128, PLAIN, {"dtype": "bfloat16"}),
        ("gru", 70, 20, PLAIN, {"flags": True, "noise": True}),
        ("vanilla", 70, 20, ALL, {"flags": True}),
        ("minimal_gated", 70, 20, PLAIN, {"dtype": "float16"}),
        ("coupled_lstm", 64, 16, PLAIN, {}),
        ("peephole_lstm", 64, 16, ALL, {"dtype": "bfloat16"}),
        ("own", 64, 16, PLAIN, {"flags": True}),
        ("slstm", 64, 16, ALL, {"flags": True}),
        ("slstm", 64, 16, PLAIN, {"dtype": "bfloat16"}),
        ("unread", 64, 16, PLAIN, {"dtype": "bfloat16"}),
        ("traced", 64, 16, PLAIN, {"dtype": "bfloat16"}),
    ],
)
@pytest.mark.full
def test_kernels_compile_for_a_gpu(name, size, batch, loop, options):
    cell = (CELLS | {"slstm": rnnjax.slstm})[name](size)
    weights, carry, inputs = shapes(cell, 3, batch, size, **options)

    def loss(weights, carry, x_projs, flags):
        inputs = Inputs(x_projs, *flags)
        last, ys = persistent.run_persistent(cell, loop, weights, carry, inputs, device=H100)
        return sum(jnp.sum(a) for a in jax.tree.leaves((last, ys)))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    traced = gradient.trace(weights, carry, inputs.x_projs, inputs[1:])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call @mosaic_gpu" in line]
    assert len(calls) >= 2
    # The counters are zeros that a launch writes over, and says so: XLA gives each launch its own,
    # in a loop and where two have as many.
    assert all("output_operand_alias<output_tuple_indices" in line for line in calls)


# ---- through unroll ------------------------------------------------------------------------------


LENGTHS = [0, 3, 7, 5]


@NEW_JAX
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        rnnjax.lstm,
        rnnjax.gru,
        lambda size: rnnjax.learn_initial_carry(rnnjax.lstm(size)),
        lambda size: rnnjax.variational_dropout(rnnjax.gru(size), inputs=0.2, hidden=0.3),
        lambda size: rnnjax.recurrent_dropout(rnnjax.lstm(size), 0.3),
        lambda size: rnnjax.weight_drop(rnnjax.lstm(size), 0.3),
        lambda size: rnnjax.zoneout(rnnjax.gru(size), 0.3),
        lambda size: rnnjax.trace_gates(rnnjax.minimal_gated(size)),
        with_softplus,
    ],
    ids=["lstm", "gru", "learned", "variational", "recurrent", "drop", "zoneout", "traced", "own"],
)
@pytest.mark.full
def test_every_option_of_unroll_is_the_scans(emulated_gpu, make, reverse):
    cell = make(12)
    keys = jax.random.split(jax.random.key(0), 4)
    params, xs = cell.init(keys[0], 3), jax.random.normal(keys[1], (4, 7, 3))
    options = {
        "mask": jax.random.bernoulli(keys[2], 0.8, (4, 7)),
        "resets": jax.random.bernoulli(keys[3], 0.2, (4, 7)),
        "key": keys[2],
        "all_carries": True,
        "include_initial": True,
        "reverse": reverse,
    }

    def run(implementation):
        def loss(params, xs):
            carry, ys = rnnjax.unroll(
                cell, params, xs, LENGTHS, implementation=implementation, **options
            )
            return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((carry, ys))), (carry, ys)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    assert_close(run("persistent"), run("scan"), TOLERANCE["float32"])


@NEW_JAX
@pytest.mark.full
def test_loops_in_a_scan_and_in_a_checkpoint_change_no_result(emulated_gpu):
    cell = rnnjax.gru(8)
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (2, 2, 4, 3))

    def run(implementation):
        def loss(params, xs):
            def body(carry, xs):
                return rnnjax.unroll(
                    cell, params, xs, initial_carry=carry, implementation=implementation
                )

            carry, ys = jax.lax.scan(jax.checkpoint(body), jnp.zeros((2, 8)), xs)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(carry**2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, xs)

    assert_close(run("persistent"), run("scan"), TOLERANCE["float32"])


@NEW_JAX
def test_no_traced_array_is_held(emulated_gpu):
    cell = rnnjax.lstm(8)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((2, 5, 3))
    run = lambda p: jnp.sum(rnnjax.unroll(cell, p, xs, implementation="persistent")[1])  # noqa: E731
    with jax.checking_leaks():
        jax.jit(jax.grad(run))(params)


@NEW_JAX
@pytest.mark.parametrize("remat", ["step", "sqrt", 3])
@pytest.mark.full
def test_remat_over_time_changes_no_result(emulated_gpu, remat):
    cell = rnnjax.gru(12)
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (4, 7, 3))

    def run(implementation, remat):
        def loss(params):
            options = {"implementation": implementation, "remat": remat}
            return jnp.sum(rnnjax.unroll(cell, params, xs, LENGTHS, **options)[1] ** 2)

        return jax.value_and_grad(loss)(params)

    assert_close(run("persistent", remat), run("scan", None), TOLERANCE["float32"])


@NEW_JAX
def test_bfloat16_parameters_have_gradients_of_their_dtype(emulated_gpu):
    cell = rnnjax.gru(32)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), cell.init(jax.random.key(0), 3))
    xs = jax.random.normal(jax.random.key(1), (4, 7, 3))

    def run(implementation):
        def loss(params):
            return jnp.sum(
                rnnjax.unroll(cell, params, xs, LENGTHS, implementation=implementation)[1] ** 2
            )

        return jax.value_and_grad(loss)(params)

    assert_close(run("persistent"), run("scan"), TOLERANCE["bfloat16"])


def test_asked_for_by_name_it_says_why_it_cannot_run_here():
    cell = rnnjax.lstm(4)
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="'persistent': it runs on an NVIDIA GPU"):
        rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), implementation="persistent")
    with pytest.raises(ValueError, match="'persistent': it runs on an NVIDIA GPU"):
        rnnjax.explain(cell, params, jnp.ones((2, 5, 3)), implementation="persistent")


@NEW_JAX
def test_explain_says_when_it_is_the_kernel(seen_gpu):
    cell = rnnjax.lstm(64)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), cell.init(jax.random.key(0), 3))
    text = rnnjax.explain(cell, params, jnp.ones((20, 50, 3)))
    assert "one persistent kernel" in text
    assert "2 tiles of 16 sequences, each on 4 processors" in text
    assert "scan over time" in rnnjax.explain(cell, params, jnp.ones((20, 5, 3)))
    said = rnnjax.explain(cell, params, jnp.ones((20, 50, 3)), scan_unroll=2)
    assert "scan over time" in said
    assert "2 steps an iteration" in said


@NEW_JAX
def test_explain_tells_of_chunks_what_runs_in_them(seen_gpu):
    cell = rnnjax.lstm(64)
    params = cell.init(jax.random.key(0), 3)
    said = lambda **options: rnnjax.explain(cell, params, (20, 50, 3), **options)  # noqa: E731
    assert "one persistent kernel" in said()
    assert "one persistent kernel" in said(remat=16)
    assert "scan over time" in said(remat=8)
    assert "one persistent kernel" in said(remat=8, implementation="persistent")


@NEW_JAX
def test_a_cell_that_reads_a_memory_is_refused_by_explain_too(seen_gpu):
    cell = rnnjax.attention_cell(rnnjax.lstm(8), 6)
    params = cell.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="'persistent': the cell reads constants"):
        rnnjax.explain(cell, params, (2, 20, 3), implementation="persistent")
    assert "scan over time" in rnnjax.explain(cell, params, (2, 20, 3))


@NEW_JAX
@pytest.mark.parametrize("shape", [(3, 0, 3), (0, 5, 3)])
def test_where_there_is_no_step_nothing_is_refused(emulated_gpu, shape):
    cell = rnnjax.lstm(8)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones(shape)
    given = rnnjax.unroll(cell, params, xs, implementation="persistent")
    assert_close(given, rnnjax.unroll(cell, params, xs, implementation="scan"), 0.0)


@NEW_JAX
def test_chosen_by_itself_a_cpu_still_runs_the_scan(monkeypatch):
    """A process that has a GPU may compute on its CPU: what is compiled for it has no kernel."""
    cell = rnnjax.lstm(8)
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (2, 17, 3))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)

    def gradient(params):
        return jax.grad(lambda p: jnp.sum(rnnjax.unroll(cell, p, xs)[1] ** 2))(params)

    expected = gradient(params)
    monkeypatch.setattr(_device, "describe_gpu", lambda device: H100)
    assert_close(gradient(params), expected, 1e-6)

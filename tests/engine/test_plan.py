"""What is chosen for a call, and by what: the devices of its arrays, never those in sight."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rnnjax
from rnnjax._devices import may_merge_axes, platform_of, with_automatic_axes
from rnnjax.engine._plan import Request, Size, make_plan, size_of

SIZE = Size(time=128, gates=4, gate_bytes=2**20)


@pytest.mark.parametrize(
    ("platform", "asked", "steps"),
    [("gpu", None, 8), ("cpu", None, 1), ("tpu", None, 1), ("gpu", 1, 1), ("cpu", 4, 4)],
)
def test_several_steps_an_iteration_are_taken_on_a_gpu_unless_the_caller_says(
    platform, asked, steps
):
    assert make_plan(Request(None, None, asked), SIZE, platform).scan_unroll == steps


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_of_a_number_of_steps_that_is_left_open_one_is_taken_an_iteration(platform):
    (time,) = jax.export.symbolic_shape("time")
    size = SIZE._replace(time=time, gate_bytes=64 * time)
    assert make_plan(Request(None, None, None), size, platform).scan_unroll == 1
    for asked in (Request(None, None, 8), Request("associative", None, None)):
        with pytest.raises(ValueError, match=r"(=8|='associative') needs a T known .*, got time"):
            make_plan(asked, size, platform)


@pytest.mark.parametrize(
    ("platform", "width", "time", "cut_in_the_loop"),
    [("cpu", 256, 2, 4), ("cpu", 257, 2, 0), ("cpu", 0, 2, 0), ("cpu", 8, 1, 0), ("gpu", 8, 2, 0)],
)
def test_narrow_gates_are_cut_in_the_loop_on_a_cpu(platform, width, time, cut_in_the_loop):
    plan = make_plan(Request(None, None, None), SIZE._replace(time=time, packed=width), platform)
    assert plan.packed == cut_in_the_loop


def test_gates_are_packed_where_project_ends_with_the_cut_of_one_vector():
    def packed(cell, mapped=1):
        params = cell.init(jax.random.key(0), 3)
        return size_of(cell, params, jax.ShapeDtypeStruct((2, 5, 3), jnp.float32), mapped).packed

    assert packed(rnnjax.lstm(4)) == 16
    assert packed(rnnjax.gru(4)) == 12
    assert packed(rnnjax.lstm(4), mapped=2) == 0
    assert packed(rnnjax.vanilla(4)) == 0
    assert packed(rnnjax.gru(4, reset_after=False)) == 0
    assert packed(rnnjax.layer_norm(rnnjax.lstm(4))) == 0


def test_the_loop_that_is_compiled_is_the_one_that_was_planned():
    """In the program: the steps of an iteration, and whether the loop cuts the gates."""

    def program(size, **options):
        cell = rnnjax.lstm(size)
        params = cell.init(jax.random.key(0), 3)
        run = lambda xs: rnnjax.unroll(cell, params, xs, **options)  # noqa: E731
        return str(jax.make_jaxpr(run)(jnp.ones((2, 6, 3))))

    assert "unroll=1" in program(4)
    assert "unroll=3" in program(4, scan_unroll=3)
    assert "dynamic_slice" in program(64)
    assert "dynamic_slice" not in program(65)


def test_a_number_of_steps_an_iteration_asks_for_the_scan():
    cell = rnnjax.mlstm(4)
    params = cell.init(jax.random.key(0), 3)
    assert "many steps at once" in rnnjax.explain(cell, params, (2, 5, 3))
    assert "loop: 2 steps" in rnnjax.explain(cell, params, (2, 5, 3), scan_unroll=2)
    run = lambda xs: rnnjax.unroll(cell, params, xs, scan_unroll=2)  # noqa: E731
    assert "unroll=2" in str(jax.make_jaxpr(run)(jnp.ones((2, 6, 3))))


def test_explain_says_how_many_steps_an_iteration_takes():
    cell = rnnjax.lstm(4)
    params = cell.init(jax.random.key(0), 3)
    assert "loop: 1 step an iteration on cpu" in rnnjax.explain(cell, params, (2, 5, 3))
    said = rnnjax.explain(cell, params, (2, 5, 3), scan_unroll=4)
    assert "loop: 4 steps an iteration on cpu" in said


def test_the_default_backend_decides_nothing_where_arrays_lie_elsewhere(monkeypatch):
    on_cpu = jnp.ones(3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert platform_of(on_cpu) == "cpu"
    assert platform_of(jax.ShapeDtypeStruct((3,), jnp.float32)) == "gpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert platform_of(jax.ShapeDtypeStruct((3,), jnp.float32)) == "cpu"


def test_a_mesh_says_the_platform_of_traced_arrays_and_committed_ones_that_of_others(monkeypatch):
    of_gpus = jax.sharding.AbstractDevice("H100", None, "cuda")
    mesh = jax.sharding.AbstractMesh((2,), ("batch",), abstract_device=of_gpus)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform_of(jax.ShapeDtypeStruct((3,), jnp.float32)) == "gpu"

    def array(platform, committed):
        device = SimpleNamespace(platform=platform)
        return SimpleNamespace(committed=committed, devices=lambda: [device])

    monkeypatch.setattr("rnnjax._devices.Array", SimpleNamespace)  # no GPU is needed for it
    assert platform_of([array("cpu", False), array("gpu", True)]) == "gpu"


@pytest.mark.parametrize(
    ("kinds", "merged"), [("Manual Manual", True), ("Manual Auto", False), ("Auto Auto", False)]
)
def test_axes_are_merged_on_a_mesh_where_each_device_runs_a_program_of_its_own(kinds, merged):
    types = tuple(AxisType[kind] for kind in kinds.split())
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 2), ("a", "b"), types)):
        assert may_merge_axes(jax.ShapeDtypeStruct((3, 2), jnp.float32)) == merged


def test_an_axis_that_divides_rows_and_words_divides_the_rows_of_the_logits():
    mesh = jax.make_mesh((1,), ("all",), (AxisType.Explicit,))
    rows = jax.device_put(jnp.ones((2, 3)), NamedSharding(mesh, P("all")))
    words = jax.device_put(jnp.ones((3, 4)), NamedSharding(mesh, P(None, "all")))
    logits = with_automatic_axes(lambda both: both[0] @ both[1], (rows, words), rows, 1, words)
    assert jax.typeof(logits).sharding.spec == P("all", None)


@pytest.mark.parametrize(
    ("xs", "message"),
    [
        (
            jnp.ones(3),
            r"xs must be arrays \[..., T, D\] or a shape such as \(B, T, D\)",
        ),
        ((5,), r"got an array of shape \(5,\)"),
        ("many", "got str"),
        ((2, 5, 7), "xs must have size 3 in the last axis"),
    ],
)
def test_explain_says_what_it_expects(xs, message):
    cell = rnnjax.lstm(4)
    with pytest.raises(ValueError, match=message):
        rnnjax.explain(cell, cell.init(jax.random.key(0), 3), xs)


def test_frames_of_other_channels_are_not_taken_for_wrong_parameters():
    cell = rnnjax.conv_lstm((3, 2), 2)
    with pytest.raises(ValueError, match=r"frames must have 1 channels .*, got 2 channels"):
        rnnjax.unroll(cell, cell.init(jax.random.key(0), 6), jnp.zeros((2, 5, 12)))


def test_parameters_of_another_size_are_named_where_inputs_and_units_are_as_many():
    params = rnnjax.lstm(4).init(jax.random.key(0), 6)
    with pytest.raises(ValueError, match=r"params.w_ih must have shape \(6, 24\), got .*\(6, 16\)"):
        rnnjax.unroll(rnnjax.lstm(6), params, jnp.zeros((2, 5, 6)))


@pytest.mark.parametrize("cell", [rnnjax.gru(4), rnnjax.lru(4, 5)], ids=["gru", "lru"])
def test_explain_tells_of_a_product_of_recurrent_weights_only_where_there_are_some(cell):
    lines = rnnjax.explain(cell, cell.init(jax.random.key(0), 3), (2, 5, 3)).splitlines()
    product = "; one product after the loop for the recurrent weights"
    more = product if cell.recurrent is not None else ""
    assert f"derivative: one rule for all cells{more}" in lines


def test_parameters_and_inputs_in_each_others_place_are_named():
    cell = rnnjax.lstm(4)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((2, 5, 3))
    with pytest.raises(ValueError, match=r"params must .* LSTMParams.*: params come before xs"):
        rnnjax.unroll(cell, xs, params)


def test_parameters_of_two_dtypes_have_a_carry_of_the_wider_one():
    cell = rnnjax.lstm(4)
    with jax.enable_x64(True):
        params = cell.init(jax.random.key(0), 3)
        mixed = params._replace(w_ih=params.w_ih.astype(jnp.float64))
        xs = np.linspace(-1, 1, 30, dtype=np.float32).reshape(2, 5, 3)
        carry, ys = rnnjax.unroll(cell, mixed, xs)
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        expected = rnnjax.unroll(cell, wide, xs)[1]
    assert (carry.c.dtype, ys.dtype) == (jnp.float64, jnp.float64)
    # Products with the float32 weights are taken in float32.
    np.testing.assert_allclose(ys, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("remat", [5, 6, 1000, np.int64(7)])
def test_explain_says_how_long_the_only_chunk_is(remat):
    cell = rnnjax.lstm(4)
    said = rnnjax.explain(cell, cell.init(jax.random.key(0), 3), (2, 5, 3), remat=remat)
    assert f"remat={remat}: chunks of 5 steps" in said

"""Which cells the persistent kernels run, what they make of them, and which they refuse."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from test_kernels import (
    LENGTHS,
    NEW_JAX,
    PLAIN,
    TOLERANCE,
    assert_close,
    emulated,
    problem,
    scanned,
    values_and_gradients,
)

import rnnjax
from rnnjax.engine.kernels import _pointwise

pytestmark = pytest.mark.usefixtures("quick_compile")


def one_gate(size, of, hidden=lambda h: h, project=None):
    """A simple cell: ``of(params, h, x + h_proj)`` gives the carry and the output."""
    simple = rnnjax.vanilla(size)

    def init(key, input_size):
        return {"cell": simple.init(key, input_size), "slope": jnp.float32(0.7)}

    def update(params, carry, x_proj, h_proj):
        return of(params, carry, x_proj[0] + h_proj[0])

    return rnnjax.Cell(
        output_size=size,
        init=init,
        initial_carry=lambda params: jnp.zeros(size),
        project=project or (lambda params, x: simple.project(params["cell"], x)),
        recurrent=lambda params: simple.recurrent(params["cell"]),
        hidden=hidden,
        update=update,
    )


def twice(function):
    def of(params, carry, a):
        new = jnp.tanh(function(params, carry, a))
        return new, new

    return of


SHAPES = {
    "the last axis": one_gate(20, twice(lambda p, c, a: (a + c) / c.shape[-1] ** 0.5)),
    "the size": one_gate(20, twice(lambda p, c, a: (a + c) / c.size)),
    "of the hidden state": one_gate(20, twice(lambda p, c, a: a), hidden=lambda h: h / len(h)),
    "the number of axes": one_gate(20, twice(lambda p, c, a: a / (1 + a.ndim))),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_shape_that_a_cell_reads_is_that_of_one_example(case):
    args = problem(SHAPES[case], 4, 18, 20)
    given = values_and_gradients(emulated(SHAPES[case], PLAIN), args)
    expected = values_and_gradients(scanned(SHAPES[case], PLAIN), args)
    assert_close(given, expected, TOLERANCE["float32"])


# What the kernels know, by the name of JAX's operation; x is float32, near 1.
OPERATIONS = {
    "abs": lambda x: jnp.abs(x - 1),
    "add": lambda x: x + 2,
    "and": lambda x: jnp.where((x > 0.5) & (x < 1.2), x, 2 * x),
    "broadcast_in_dim": lambda x: x + jnp.full_like(x, 3),
    "clamp": lambda x: lax.clamp(x.dtype.type(0.9), x, x.dtype.type(1.1)),
    "convert_element_type": lambda x: x * (x - 1).astype(bool).astype(x.dtype),
    "copy": jnp.copy,
    "cos": jnp.cos,
    "div": lambda x: 1 / (1 + x * x),
    "eq": lambda x: jnp.where(x == 1, 2, x),
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": lambda x: jnp.expm1(x - 1),
    "ge": lambda x: jnp.where(x >= 1, 2 * x, x),
    "gt": lambda x: jnp.where(x > 1, 2 * x, x),
    "integer_pow": lambda x: x**3 + x**-1 + x**-3,
    "le": lambda x: jnp.where(x <= 1, 2 * x, x),
    "log": jnp.log,
    "log1p": jnp.log1p,
    "logistic": jax.nn.sigmoid,
    "lt": lambda x: jnp.where(x < 1, 2 * x, x),
    "max": lambda x: jnp.maximum(x, 1),
    "min": lambda x: jnp.minimum(x, 1),
    "mul": lambda x: x * x,
    "ne": lambda x: jnp.where(x != 1, 2 * x, x),
    "neg": lambda x: -x,
    "not": lambda x: jnp.where(~(x > 1), 2 * x, x),
    "or": lambda x: jnp.where((x > 1) | (x < 0.8), 2 * x, x),
    "rsqrt": lax.rsqrt,
    "select_n": lambda x: jnp.where(x > 1, x, 0),
    "sign": lambda x: x * jnp.sign(x - 1),
    "sin": jnp.sin,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "stop_gradient": lambda x: x * lax.stop_gradient(x),
    "sub": lambda x: 3 - x,
    "tanh": jnp.tanh,
    "xor": lambda x: jnp.where((x > 1) ^ (x < 0.8), 2 * x, x),
}


def computes_all(size, dtype, operations):
    """A cell that computes all ``operations`` in ``dtype``."""

    def of(params, carry, a):
        x = (1 + 0.3 * jnp.tanh(a + carry)).astype(dtype)
        return jnp.tanh(0.2 * sum(f(x).astype(jnp.float32) for f in operations))

    return one_gate(size, twice(of))


# Written by JAX's own derivatives and by trace_gates.
WRITTEN_BY_JAX = {"add_any", "copy_p", "one_minus_square"}


def test_the_operations_below_are_all_that_the_kernels_know():
    assert set(OPERATIONS) | WRITTEN_BY_JAX == _pointwise._KNOWN | set(_pointwise._REWRITTEN)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.full
def test_an_operation_is_that_of_the_scan(name, dtype):
    cell = computes_all(16, dtype, [OPERATIONS[name]])
    args = problem(cell, 3, 4, 16)
    given = values_and_gradients(emulated(cell, PLAIN), args)
    # XLA keeps 16-bit numbers in float32 between operations that it fuses, so they may differ by
    # what rounds them.
    tolerance = {"float32": 3e-5, "bfloat16": 3e-2, "float16": 4e-3}[dtype]
    assert_close(given, values_and_gradients(scanned(cell, PLAIN), args), tolerance)


def test_outputs_keep_their_dtype():
    cell = one_gate(20, lambda p, c, a: (jnp.tanh(a), jnp.tanh(a).astype(jnp.bfloat16)))
    args = problem(cell, 4, 18, 20, flags=True)
    given = values_and_gradients(emulated(cell, PLAIN), args)
    assert given[0][1].dtype == jnp.bfloat16
    assert_close(given, values_and_gradients(scanned(cell, PLAIN), args), TOLERANCE["bfloat16"])


@NEW_JAX
def test_complex_parameters_of_the_inputs_have_gradients(emulated_gpu):
    simple = rnnjax.vanilla(8)

    def project(params, x):
        x = jnp.real(x * params["turn"])
        return simple.project(params["cell"], x)

    cell = one_gate(8, twice(lambda p, c, a: a), project=project)
    params = cell.init(jax.random.key(0), 3) | {"turn": jnp.array([1 + 2j, 1j, 2], jnp.complex64)}
    xs = jax.random.normal(jax.random.key(1), (4, 17, 3))

    def gradient(implementation):
        def loss(params):
            return jnp.sum(rnnjax.unroll(cell, params, xs, implementation=implementation)[1] ** 2)

        return jax.grad(loss)(params)

    given, expected = gradient("persistent")["turn"], gradient("scan")["turn"]
    np.testing.assert_allclose(given, expected, rtol=1e-4)


# ---- what is refused ---------------------------------------------------------------------------


def layer_norm_inside(size):
    cell = rnnjax.gru(size)

    def update(params, carry, x_proj, h_proj):
        new, y = cell.update(params, carry, x_proj, h_proj)
        return new - jnp.mean(new), y

    return cell._replace(update=update)


def closes_over_an_array(size):
    cell, scale = rnnjax.gru(size), jnp.linspace(0.0, 1.0, size)

    def update(params, carry, x_proj, h_proj):
        new, y = cell.update(params, carry, x_proj, h_proj)
        return new * scale, y

    return cell._replace(update=update)


def _prints(params, carry, a):
    jax.debug.print("{}", a[0])
    return a


def _needs_a_number(params, carry, a):
    assert params["slope"].ndim == 0
    return a * params["slope"]


REFUSED = {
    "layer_norm": (lambda: layer_norm_inside(16), "reduce_sum, which is none of those"),
    "its own layer norm": (lambda: rnnjax.layer_norm(rnnjax.gru(16)), "update has the operation"),
    "closure": (lambda: closes_over_an_array(16), "closes over an array, of shape (16,)"),
    "plain_step": (lambda: rnnjax.gru(16, reset_after=False), "the cell gives plain_step"),
    "indrnn": (lambda: rnnjax.indrnn(16), "no recurrent weights"),
    "blocks": (lambda: rnnjax.slstm(16, num_heads=2), "blocks of a matrix"),
    "prints": (lambda: one_gate(16, twice(_prints)), "side effects, such as jax.debug.print"),
    "floor": (lambda: one_gate(16, twice(lambda p, c, a: jnp.floor(a))), "floor, which is none of"),
    "integers": (
        lambda: one_gate(16, twice(lambda p, c, a: (2 * a.astype(jnp.int32)).astype(a.dtype))),
        "update has the operation mul of int32",
    ),
    "their bits": (
        lambda: one_gate(16, twice(lambda p, c, a: (~a.astype(jnp.int32)).astype(a.dtype))),
        "update has the operation xor of int32",
    ),
    "flags as y": (lambda: one_gate(16, lambda p, c, a: (a, a > 0)), "a piece of its y is of bool"),
    "a number": (lambda: one_gate(16, twice(_needs_a_number)), "needs a parameter without axes"),
    "its size": (
        lambda: one_gate(16, twice(lambda p, c, a: a * p["slope"] * p["slope"].size)),
        "reads the shape of a parameter",
    ),
    "one for all": (
        lambda: one_gate(16, twice(lambda p, c, a: lax.select_n(np.bool_(True), a, -a))),
        "selects all units by one number",
    ),
    "accuracy": (
        lambda: one_gate(16, twice(lambda p, c, a: lax.exp(a, accuracy=lax.AccuracyMode.HIGHEST))),
        "asks for an accuracy of exp",
    ),
}


@NEW_JAX
@pytest.mark.parametrize("case", REFUSED)
def test_other_cells_are_refused_with_the_reason(emulated_gpu, case):
    made, words = REFUSED[case]
    cell = made()
    params = cell.init(jax.random.key(0), 3)
    for run in (rnnjax.unroll, rnnjax.explain):
        with pytest.raises(ValueError, match=re.escape(words)):
            run(cell, params, jnp.ones((2, 20, 3)), implementation="persistent")
    assert "one persistent kernel" not in rnnjax.explain(cell, params, (2, 20, 3))
    rnnjax.unroll(cell, params, jnp.ones((2, 20, 3)))


# ---- the kernels, as far as they can be compiled without a GPU -----------------------------------


def kernels_of(function, *args):
    """How many kernels the gradient of a function is, compiled for a GPU."""

    def loss(*args):
        return sum(jnp.sum(jnp.abs(a) ** 2) for a in jax.tree.leaves(function(*args)))

    traced = jax.jit(jax.grad(loss)).trace(*args)
    return traced.lower(lowering_platforms=("cuda",)).as_text().count("custom_call @mosaic_gpu")


@NEW_JAX
@pytest.mark.parametrize("w_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.full
def test_all_operations_compile_for_a_gpu(seen_gpu, dtype, w_dtype):
    cell = computes_all(20, dtype, OPERATIONS.values())
    params = cell.init(jax.random.key(0), 3)
    params["cell"] = jax.tree.map(lambda a: a.astype(w_dtype), params["cell"])
    assert kernels_of(lambda p: rnnjax.unroll(cell, p, jnp.ones((4, 17, 3))), params) == 2


TRANSFORMED = {
    "learned": rnnjax.learn_initial_carry,
    "variational": lambda cell: rnnjax.variational_dropout(cell, inputs=0.2, hidden=0.3),
    "recurrent": lambda cell: rnnjax.recurrent_dropout(cell, 0.3),
    "drop": lambda cell: rnnjax.weight_drop(cell, 0.3),
    "zoneout": lambda cell: rnnjax.zoneout(cell, 0.3),
    "gates": rnnjax.trace_gates,
}


@NEW_JAX
@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("implementation", [None, "persistent"])
@pytest.mark.full
def test_transformed_cells_compile_for_a_gpu(seen_gpu, name, implementation):
    cell = TRANSFORMED[name](rnnjax.lstm(20))
    options = {"resets": jnp.zeros((4, 17), bool), "key": jax.random.key(0), "reverse": True}

    def run(params):
        xs = jnp.ones((4, 17, 3))
        return rnnjax.unroll(
            cell, params, xs, LENGTHS, all_carries=True, implementation=implementation, **options
        )

    assert kernels_of(run, cell.init(jax.random.key(0), 3)) == 2


@NEW_JAX
@pytest.mark.parametrize("size", [20, 64, 512])
@pytest.mark.full
def test_kernels_compile_where_integers_have_64_bits(seen_gpu, float64, size):
    """512 units in 300 sequences are run in rounds."""
    cell, batch = rnnjax.lstm(size), 300 if size == 512 else 4
    xs = jnp.ones((batch, 17, 3), jnp.float32)
    run = lambda p: rnnjax.unroll(cell, p, xs, implementation="persistent", remat="never")  # noqa: E731
    assert kernels_of(run, cell.init(jax.random.key(0), 3)) == 2


@NEW_JAX
@pytest.mark.parametrize("implementation", [None, "persistent"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.full
def test_gradients_compile_in_a_shard_map(seen_gpu, implementation, kind):
    cell, batch = rnnjax.lstm(20), jax.P("batch")
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(kind,))

    def run(params, xs):
        return rnnjax.unroll(cell, params, xs, implementation=implementation)[1]

    run = jax.shard_map(run, mesh=mesh, in_specs=(jax.P(), batch), out_specs=batch)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((4, 17, 3))
    params, xs = jax.device_put(
        (params, xs), (NamedSharding(mesh, jax.P()), NamedSharding(mesh, batch))
    )
    assert kernels_of(run, params, xs) == 2

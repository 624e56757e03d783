"""In which dtypes the functions of a cell are given what they read, with and without a policy."""

import jax
import jax.numpy as jnp
import pytest

import rnnjax
from rnnjax import Policy

pytestmark = pytest.mark.usefixtures("float64")

B, T, D, H = 2, 3, 4, 5
ALWAYS = {"project", "gates", "noise"}
# A cell reads a context, or runs many steps at once, or can do neither.
KINDS = {
    "update": {"recurrent", "update", "context"},
    "plain_step": {"plain_step", "context"},
    "many_steps": {"recurrent", "update", "linear", "chunk"},
}


def recording(seen, dtype, kind):
    """A cell whose functions write into ``seen`` the dtypes of what they are given."""

    def read(function):
        def noted(params, *args):
            given = {k: a.dtype.name for k, a in params.items()}
            rest = {a.dtype.name for a in jax.tree.leaves(args) if hasattr(a, "dtype")}
            seen.append((function.__name__, given, rest - {"bool", "key<fry>"}))
            return function(params, *args)

        return noted

    def init(key, size):
        ones = {"matrix": jnp.ones((D, H)), "recurrent": jnp.ones((H, H)), "vector": jnp.ones(H)}
        return {k: a.astype(jnp.float32) for k, a in ones.items()} | {"count": jnp.int32(0)}

    def drive_of(params, z):
        return z[0].astype(dtype) + params["vector"].astype(dtype)

    def project(params, x):
        return (jnp.sum(params["matrix"] * x[:, None].astype(params["matrix"].dtype), axis=0),)

    def recurrent(params):
        return params["recurrent"]

    def update(params, carry, z, h, *given):
        new = (0.5 * carry + drive_of(params, z)).astype(carry.dtype)
        return new, new

    def plain_step(params, carry, z, *given):
        return update(params, carry, z, None)

    def gates(params, carry, z, h, *given):
        return z[0]

    def context(params, given):
        return given + params["vector"].astype(given.dtype)

    def noise(params, key, shape):
        return rnnjax.Noise()

    def linear(params, z):
        return jnp.full(H, 0.5, dtype), drive_of(params, z)

    def chunk(params, carry, start, z, valid, resets):
        return carry, z[0].astype(dtype) + params["vector"].astype(dtype)[None]

    functions = (recurrent, update, plain_step, linear, chunk, context)
    return rnnjax.Cell(
        output_size=H,
        init=init,
        initial_carry=lambda params: jnp.zeros(H, dtype),
        project=read(project),
        hidden=lambda carry: carry,
        gates=read(gates),
        noise=lambda key, params, shape: read(noise)(params, key, shape),
        **{f.__name__: read(f) for f in functions if f.__name__ in KINDS[kind]},
    )


def run_in_every_way(cell, params, x):
    """Values and gradients by each implementation that the cell has, and its gates."""
    floats = {k: a for k, a in params.items() if k != "count"}

    def run(cell, way):
        def loss(floats, xs):
            _, ys = rnnjax.unroll(
                cell,
                {**params, **floats},
                xs,
                resets=jnp.zeros((B, T), bool),
                context=jnp.ones((B, H), x) if cell.context else None,
                key=jax.random.key(1),
                implementation=way,
            )
            return sum(jnp.sum(y.astype(jnp.float64)) for y in jax.tree.leaves(ys))

        return jax.eval_shape(jax.grad(loss), floats, jax.ShapeDtypeStruct((B, T, D), x))

    ways = {"associative": cell.linear, "chunked": cell.chunk}
    found = [run(cell, way) for way in ("scan", *(w for w, part in ways.items() if part))]
    for gradient in [*found, run(rnnjax.trace_gates(cell), "scan")]:
        assert all(gradient[k].dtype == floats[k].dtype for k in floats)


def test_every_function_reads_parameters_in_their_own_dtypes():
    """Their gradients are summed wider; what a step computes of them is not."""
    own = {"matrix": "bfloat16", "recurrent": "float32", "vector": "bfloat16", "count": "int32"}
    for kind, functions in KINDS.items():
        seen = []
        cell = recording(seen, jnp.float32, kind)
        params = {k: a.astype(own[k]) for k, a in cell.init(jax.random.key(0), D).items()}
        run_in_every_way(cell, params, "float32")
        assert all(given == own for _, given, _ in seen), seen
        assert {name for name, _, _ in seen} == ALWAYS | functions


@pytest.mark.parametrize(
    ("policy", "work"),
    [
        (Policy(compute="bfloat16"), "float32"),
        (Policy("bfloat16", "bfloat16", "bfloat16"), "float32"),
        (Policy(compute="bfloat16", state="float64"), "float64"),
        (Policy("float64", "float64", "float32"), "float64"),
    ],
)
def test_under_a_policy_only_operands_of_products_are_narrow(policy, work):
    wide = {"matrix": work, "recurrent": work, "vector": work, "count": "int32"}
    operands = wide | {"matrix": policy.compute, "recurrent": policy.compute}
    rounded = set() if work == policy.state else {"linear", "chunk"}  # step by step alone
    for kind, functions in KINDS.items():
        seen = []
        cell = rnnjax.with_policy(recording(seen, work, kind), policy)
        params = cell.init(jax.random.key(0), D)
        for dtype_of_inputs in ("bfloat16", "float64"):
            run_in_every_way(cell, params, dtype_of_inputs)
        for name, read, rest in seen:
            assert read == (wide if name in ("recurrent", "noise") else operands), name
            assert rest <= {policy.compute if name in ("project", "context") else work}, name
        assert {name for name, _, _ in seen} == (ALWAYS | functions) - rounded

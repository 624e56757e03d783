"""Layers that run by the kernels on several devices, beside the scan on one.

    python tests/engine/kernels_on_devices.py in_shard_map divided choice       wants four devices

Values and gradients are those of the steps in plain JAX (``emulated_kernels.py``).
"""

import contextlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated_kernels import H100, KERNELS
from jax.sharding import AxisType, NamedSharding

import rnnjax
from rnnjax.engine.kernels import _device, persistent

KINDS = (AxisType.Auto, AxisType.Explicit)
XS = jax.random.normal(jax.random.key(3), (8, 5, 3))
LENGTHS = jnp.array([5, 0, 3, 2, 4, 1, 5, 2])
RESETS = jnp.arange(40).reshape(8, 5) % 7 == 3
KEY = jax.random.key(5)
SAME, ROWS = jax.P(), jax.P("batch")


def layer(implementation):
    noisy = rnnjax.variational_dropout(rnnjax.lstm(20), 0.2, 0.3)
    forward = rnnjax.recurrent(noisy, implementation=implementation)
    backward = rnnjax.recurrent(rnnjax.gru(20), implementation=implementation, reverse=True)
    return rnnjax.bidirectional(forward, backward)


def make_apply(implementation, key=KEY):
    def apply(params, xs, lengths, resets):
        return layer(implementation).apply(params, xs, lengths, resets=resets, key=key)

    return apply


def in_each_program(mesh):
    """The layer in a ``jax.shard_map``, without noise: each device would draw the same."""
    specs = {"in_specs": (SAME, ROWS, ROWS, ROWS), "out_specs": ROWS}
    return jax.shard_map(make_apply("persistent", None), mesh=mesh, **specs)


def program(apply):
    """Loss, outputs, and gradients of all that moves."""

    def loss(params, xs, *flags):
        _, ys = apply(params, xs, *flags)
        return jnp.sum(jnp.sin(ys)), ys

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def make_mesh(kind, sizes):
    return jax.make_mesh(sizes, ("batch", "model")[: len(sizes)], axis_types=(kind,) * len(sizes))


def place(mesh, params, rows=ROWS, weights=SAME):
    specs = jax.tree.map(lambda a: weights if a.ndim > 1 else SAME, params), rows
    where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    params, flags = jax.device_put((params, (XS, LENGTHS, RESETS)), where)
    return params, *flags


def compare(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5)


@contextlib.contextmanager
def emulated():
    jax.clear_caches()  # what runs the loop is no part of their keys
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persistent, "_mosaic", lambda: KERNELS)
        yield
    jax.clear_caches()


def in_shard_map(kind):
    mesh = make_mesh(kind, (4,))
    params = layer(None).init(jax.random.key(0), 3)
    given = place(mesh, params)
    kernels = program(in_each_program(mesh)).trace(*given).lower(lowering_platforms=("cuda",))
    assert kernels.as_text().count("custom_call @mosaic_gpu") == 4
    with emulated():
        found = program(in_each_program(mesh))(*given)
    compare(found, program(make_apply("scan", None))(params, XS, LENGTHS, RESETS))


def divided(kind):
    """XLA divides the program: rows over one axis, over two, beside weights that are divided."""
    params = layer(None).init(jax.random.key(0), 3)
    one_device = params, XS, LENGTHS, RESETS
    expected = program(make_apply("scan"))(*one_device)
    run = program(make_apply("persistent"))
    for sizes, rows, weights in (
        ((4,), ROWS, SAME),
        ((2, 2), jax.P(("batch", "model")), SAME),
        ((2, 2), ROWS, jax.P(None, "model")),
    ):
        mesh = make_mesh(kind, sizes)
        given = place(mesh, params, rows, weights)
        for context in (contextlib.nullcontext, lambda mesh=mesh: jax.set_mesh(mesh)):
            with context(), emulated():
                compiled = run.lower(*given).compile()
                found = compiled(*given)
            compare(found, expected)
            assert found[0][1].sharding.spec[0] == rows[0]
            if weights == SAME:
                assert collectives(compiled) == {"all-reduce": 1}


def collectives(compiled):
    """How often the devices exchange something, by the kind of exchange."""
    kinds = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", compiled.as_text())
    return {kind: kinds.count(kind) for kind in kinds}


def choice(kind):
    """By itself: a third of 132 processors holds 2 tiles of 16 groups each, and no 4."""
    cell = rnnjax.lstm(256)
    params = cell.init(jax.random.key(0), 3)
    for sizes in ((4,), (2, 2)):
        mesh, xs = make_mesh(kind, sizes), jnp.ones((32 * sizes[0], 20, 3))
        where = NamedSharding(mesh, SAME), NamedSharding(mesh, ROWS)
        # Nothing below reads them, and to end a process while XLA still copies can be a fault.
        given = jax.block_until_ready(jax.device_put((params, xs), where))
        # Of arrays that are not traced all is known, of traced ones with Explicit axes, too.
        said = rnnjax.explain(cell, *given, remat="never")
        tiles = "2 tiles of 16 sequences"
        assert f"one persistent kernel on each of {sizes[0]} devices: {tiles}" in said, said

        def loss(params, xs):
            return jnp.sum(rnnjax.unroll(cell, params, xs, remat="never")[1])

        lowered = jax.jit(jax.grad(loss)).trace(*given).lower(lowering_platforms=("cuda",))
        is_known = kind == AxisType.Explicit or len(sizes) == 1
        assert lowered.as_text().count("@CustomSPMDPartitioning") == 2 * is_known

    partly = jax.shard_map(
        lambda xs: rnnjax.unroll(cell, params, xs, implementation="persistent")[1],
        mesh=make_mesh(AxisType.Auto, (2, 2)),
        in_specs=ROWS, out_specs=ROWS, axis_names={"batch"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="all axes of the mesh to be manual, and some are not"):
        jax.jit(partly)(xs)


if __name__ == "__main__":
    _device.describe_gpu = lambda device: H100
    for name in sys.argv[1:]:
        for kind in KINDS:
            globals()[name](kind)
            print(name, kind, flush=True)

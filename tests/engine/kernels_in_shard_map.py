"""A layer that runs by the kernels, inside of ``jax.shard_map``, beside the scan on one device.

    python tests/engine/kernels_in_shard_map.py         wants two devices

Its values and gradients are those of the steps in plain JAX (``emulated_kernels.py``); and the
kernels themselves lower for a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated_kernels import H100, KERNELS
from jax.sharding import AxisType, NamedSharding

import rnnjax
from rnnjax.engine.kernels import persistent

XS = jax.random.normal(jax.random.key(3), (6, 5, 3))
LENGTHS = jnp.array([5, 0, 3, 2, 4, 1])


def layer(implementation):
    forward = rnnjax.recurrent(rnnjax.lstm(20), implementation=implementation)
    backward = rnnjax.recurrent(rnnjax.gru(20), implementation=implementation, reverse=True)
    return rnnjax.bidirectional(forward, backward)


def program(apply):
    """Loss and gradients of all that moves."""

    def loss(params, xs, lengths):
        return jnp.sum(jnp.sin(apply(params, xs, lengths)[1]))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def check(kind):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    same, divided = jax.P(), jax.P("batch")
    params = layer(None).init(jax.random.key(0), 3)
    place = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: E731
    given = place(params, same), place(XS, divided), place(LENGTHS, divided)

    def apply(params, xs, lengths):
        specs = {"in_specs": (same, divided, divided), "out_specs": divided}
        return jax.shard_map(layer("persistent").apply, mesh=mesh, **specs)(params, xs, lengths)

    jax.clear_caches()  # what runs the loop is no part of their keys
    kernels = program(apply).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert kernels.count("custom_call @mosaic_gpu") == 4
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persistent, "_mosaic", lambda: KERNELS)
        found = program(apply)(*given)
    expected = program(layer("scan").apply)(params, XS, LENGTHS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5)


if __name__ == "__main__":
    persistent.find_device = lambda tree: H100._replace(collectives=True)
    for kind in (AxisType.Auto, AxisType.Explicit):
        check(kind)
        print(kind, flush=True)

"""Batches divided over devices, on meshes as ``jax.make_mesh`` makes them, beside the table of
``tests/mesh_cases.py``.

Each case runs in a process of its own, since the number of devices is fixed when JAX starts.
"""

import textwrap

import processes
import pytest

COMMON = """
    import contextlib, jax, jax.numpy as jnp, numpy as np, rnnjax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    layers = rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(8)), rnnjax.gru(4))
    vectors = jax.random.normal(jax.random.key(1), (8, 6, 3))
    tokens = jax.random.randint(jax.random.key(2), (8, 6), 0, 10)
    lengths = jnp.array([6, 5, 4, 3, 2, 1, 0, 6])
    model = rnnjax.classifier(rnnjax.embedding(10, 3), rnnjax.bidirectional(rnnjax.lstm(8)), 3)
"""

DIVIDED = """
    def of_layers(params, xs, lengths):
        carry, ys = layers.apply(params, xs, lengths)
        return ys, carry[0]

    def of_model(params, xs, lengths):
        return model.apply(params, xs, lengths)

    function, xs, params = {
        "layers": (of_layers, vectors, layers.init(jax.random.key(0), 3)),
        "classifier": (of_model, tokens, model.init(jax.random.key(0))),
    }[NAME]

    def values_and_gradients(params, xs, lengths):
        def loss(params):
            results = function(params, xs, lengths)
            return sum((leaf ** 2).sum() for leaf in jax.tree.leaves(results)), results
        gradients, results = jax.grad(loss, has_aux=True)(params)
        return results, gradients

    expected = jax.jit(values_and_gradients)(params, xs, lengths)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Explicit,))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh) if SET_MESH else contextlib.nullcontext():
        given = params, jax.device_put(xs, rows), jax.device_put(lengths, rows)
        calls = [jax.jit(values_and_gradients)]
        if SET_MESH:  # without, JAX itself has no gradient of a sum over Explicit axes outside jit
            calls.append(values_and_gradients)
        for call in calls:
            found = call(*given)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            for leaf in jax.tree.leaves(found[0]):
                assert leaf.sharding.spec[0] == "batch", leaf.sharding
"""


def run(code, devices, **names):
    header = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    return processes.run(
        "-c", header + textwrap.dedent(COMMON) + textwrap.dedent(code), devices=devices
    )


@pytest.mark.parametrize("name", ["layers", "classifier"])
@pytest.mark.full
def test_results_stay_divided_and_outside_jit_are_those_of_one_device(name):
    run(DIVIDED, 4, NAME=name, SET_MESH=True)


@pytest.mark.parametrize("name", ["layers", "classifier"])
def test_a_mesh_of_one_device_has_explicit_axes_too(name):
    run(DIVIDED, 1, NAME=name, SET_MESH=False)


PROGRAM = """
    def loss(params, xs, lengths):
        return (layers.apply(params, xs, lengths)[1] ** 2).sum()

    params = layers.init(jax.random.key(0), 3)
    program = jax.jit(jax.grad(loss)).lower(params, vectors, lengths)
    print(program.as_text())
"""


def test_with_everything_on_one_of_several_devices_the_program_is_that_of_one():
    alone = run(PROGRAM, 1)
    assert "stablehlo.while" in alone
    assert run(PROGRAM, 2) == alone

"""Carries that are complex, or matrices: kept in files and programs, and gone on with."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

import rnnjax
from rnnjax.checkpoint import Checkpoints
from rnnjax.exporting import export_program, export_step
from rnnjax.weights import load_weights, named_parameters, save_weights

pytestmark = pytest.mark.usefixtures("quick_compile")

H = 4
CELLS = {
    "complex": rnnjax.s5(H, 3),
    "complex matrix": rnnjax.s4d(H, 3),
    "matrix": rnnjax.s6(H, 3),
    "named matrices": rnnjax.mlstm(H, num_heads=2),
}
BY_NAME = pytest.mark.parametrize("name", CELLS)
XS = jax.random.normal(jax.random.key(1), (2, 6, H))


def half(name):
    """Parameters, and the carry after half of the steps."""
    params = CELLS[name].init(jax.random.key(0), H)
    return params, rnnjax.unroll(CELLS[name], params, XS[:, :3])[0]


@BY_NAME
def test_a_carry_comes_back_from_files_bit_for_bit_and_the_sequence_goes_on(name, tmp_path):
    params, carry = half(name)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(3, {"params": params, "carry": carry})
        checkpoints.wait()
        template = jax.tree.map(jnp.zeros_like, {"params": params, "carry": carry})
        restored = checkpoints.restore(template).state
    assert_trees_equal(restored, {"params": params, "carry": carry}, rtol=0, atol=0)
    save_weights(tmp_path / "carry.safetensors", carry)
    loaded = load_weights(tmp_path / "carry.safetensors", jax.eval_shape(lambda: carry))
    assert_trees_equal(loaded, carry, rtol=0, atol=0)
    _, ys = rnnjax.unroll(CELLS[name], params, XS[:, 3:], initial_carry=loaded)
    _, whole = rnnjax.unroll(CELLS[name], params, XS)
    np.testing.assert_allclose(ys, whole[:, 3:], rtol=1e-5, atol=1e-6)


@BY_NAME
def test_an_exported_step_takes_and_gives_the_carry(name):
    cell = CELLS[name]
    params, carry = half(name)
    layer = rnnjax.recurrent(cell)
    data = export_step(layer.step, layer.initial_carry, params, input_size=H, platforms=["cpu"])
    program = jax.export.deserialize(data)
    named = named_parameters(carry)
    plain = carry if list(named) == [""] else named
    given, y = program.call(plain, XS[:, 3], jnp.zeros((2,), bool))
    expected, expected_y = layer.step(params, carry, XS[:, 3])
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-6)
    for place, leaf in named_parameters(expected).items():
        found = given[place] if place else given
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-6)


def test_what_runs_in_chunks_is_exported_for_any_number_of_steps():
    cell = CELLS["named matrices"]
    params, _ = half("named matrices")
    layer = rnnjax.recurrent(cell)
    data = export_program(layer.apply, params, input_size=H, platforms=["cpu"])
    out = jax.export.deserialize(data).call(XS, jnp.array([6, 2]))
    _, ys = layer.apply(params, XS, jnp.array([6, 2]))
    found = [a for a in jax.tree.leaves(out) if a.shape == ys.shape]
    np.testing.assert_allclose(found[0], ys, rtol=1e-5, atol=1e-6)

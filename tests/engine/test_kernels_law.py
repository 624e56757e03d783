"""The sequence law through the persistent kernels, tile by tile in plain JAX.

The cells, layers and options are those of ``cases.py``, the truth is the scan in float64, which
``test_sequence_law.py`` holds to a plain loop. Rows that the kernels do not take are refused.
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    CELLS,
    LAYERS,
    OPTIONS,
    B,
    Both,
    D,
    Head,
    One,
    T,
    init,
    ragged,
    random_carry,
)  # fmt: skip
from processes import TESTS, run
from test_kernels import NEW_JAX
from test_sequence_law import weigh

import rnnjax
from experiments.gpu_check import values

pytestmark = [NEW_JAX, pytest.mark.full, pytest.mark.usefixtures("quick_compile", "emulated_gpu")]

# float32 is three products of bfloat16; bfloat16 rounds every input of a product to 8 bits.
TOLERANCE = {"float32": 3e-5, "bfloat16": 2e-2}
TAKEN = (
    "vanilla", "vanilla_softplus", "lstm", "gru", "peephole", "coupled", "minimal_gated",
    "slstm", "learned_carry",
)  # fmt: skip
COMPOSED = ("vanilla_reverse", "bidirectional", "stack", "output_head")
ROWS = [
    *((row, "all", "float32") for row in (*TAKEN, *COMPOSED)),
    *(("lstm", options, "float32") for options in OPTIONS if options != "all"),
    *((row, "all", "bfloat16") for row in ("gru", "bidirectional")),
]


def build(spec, implementation):
    """The layer of a row, run in one way."""
    if isinstance(spec, One):
        return rnnjax.recurrent(spec.cell, reverse=spec.reverse, implementation=implementation)
    if isinstance(spec, Both):
        return rnnjax.bidirectional(*(build(part, implementation) for part in spec))
    if isinstance(spec, Head):
        return rnnjax.output_head(build(spec.below, implementation), 2, jnp.cos)
    return rnnjax.stack(*(build(floor, implementation) for floor in spec.floors))


def everything(layer, options, params, start, xs):
    """Carry, outputs, and the gradients to all that is given."""

    def loss(params, start, xs):
        carry, ys = layer.apply(params, xs, **options, initial_carry=start)
        return weigh(carry, ys), (carry, ys)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, start, xs)


def as_dtype(tree, dtype):
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype), tree)


@pytest.mark.parametrize(("row", "options", "dtype"), ROWS)
def test_a_batch_is_that_of_the_scan_in_float64(row, options, dtype):
    spec, batch = LAYERS[row], ragged(options)
    params = as_dtype(init(spec), dtype)
    start = random_carry(spec, as_dtype(params, "float32"))
    given = everything(build(spec, "persistent"), batch.options, params, start, batch.xs)
    with jax.enable_x64(True):
        wide = as_dtype((params, start, batch.xs), "float64")
        exact = everything(build(spec, "scan"), batch.options, *wide)
    for (path, a), b in zip(jax.tree.leaves_with_path(given), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, "f8"), np.asarray(b)
        assert a.shape == b.shape
        error = np.linalg.norm(a - b)
        assert error <= TOLERANCE[dtype] * np.linalg.norm(b), jax.tree_util.keystr(path)


@pytest.mark.parametrize("row", ["gru", "bidirectional"])
def test_padding_is_never_read(row):
    spec, batch = LAYERS[row], ragged("all")
    params, layer = init(spec), build(LAYERS[row], "persistent")
    start, real = random_carry(spec, params), batch.valid[..., None]
    clean = everything(layer, batch.options, params, start, jnp.where(real, batch.xs, 0))
    dirt = np.resize(np.array([np.nan, np.inf, -1e30, -np.inf], "f4"), batch.xs.shape)
    dirty = everything(layer, batch.options, params, start, jnp.where(real, batch.xs, dirt))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    (_, _, d_xs), (_, ys) = dirty
    assert np.all(ys[~batch.valid] == 0)
    assert np.all(d_xs[~batch.valid] == 0)


def test_an_empty_row_returns_its_initial_carry():
    spec, batch = LAYERS["stack"], ragged("plain")
    params = init(spec)
    start = random_carry(spec, params)
    layer = build(spec, "persistent")
    carry, ys = layer.apply(params, batch.xs, np.zeros(B, int), initial_carry=start)
    jax.tree.map(np.testing.assert_array_equal, carry, start)
    assert np.all(ys == 0)


def test_batch_axes_and_vmap_agree():
    layer, params, batch = build(LAYERS["gru"], "persistent"), init(LAYERS["gru"]), ragged("all")

    def apply(xs, lengths, mask, resets):
        return layer.apply(params, xs, lengths, mask=mask, resets=resets)

    args = (batch.xs, *(jnp.asarray(batch.options[k]) for k in ("lengths", "mask", "resets")))
    whole = apply(*args)
    by_row = jax.vmap(apply)(*args)
    grid = apply(*(a.reshape(B, 1, 1, *a.shape[1:]) for a in args))
    for other in (by_row, jax.tree.map(lambda a: a.reshape(B, *a.shape[3:]), grid)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other, whole)


@pytest.mark.parametrize("name", ["lstm, both directions", "gru, in shard_map"])
def test_what_is_checked_on_a_gpu_is_right_tile_by_tile(name):
    row = next(row for row in values.rows() if row.name == name)
    small = row._replace(cell=rnnjax.gru(20), batch=4, time=3)
    with ThreadPoolExecutor(1) as pool:
        assert values.finish(values.start(small, pool))["right"]


@pytest.mark.parametrize("what", ["in_shard_map", "divided", "choice"])
def test_several_devices_give_what_one_gives(what):
    printed = run(TESTS / "engine" / "kernels_on_devices.py", what, devices=4)
    assert printed.split() == [what, "AxisType.Auto", what, "AxisType.Explicit"]


@pytest.mark.parametrize("name", [name for name in CELLS if name not in TAKEN])
def test_every_other_cell_of_the_table_is_refused_by_name(name):
    layer, params = build(LAYERS[name], "persistent"), init(LAYERS[name])
    with pytest.raises(ValueError, match="implementation must be one that can run here"):
        layer.apply(params, jnp.ones((B, T, D)))

"""Cells of rnnjax as cells of ``flax.linen``: in the runners of both, and as ordinary modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax_cases import OPTIONS, B, D, H, T, close, draw, valid_steps

import rnnjax
from rnnjax import modules
from rnnjax.cells import minimal_gated
from rnnjax.transforms import learn_initial_carry, variational_dropout

pytestmark = pytest.mark.usefixtures("quick_compile")

NAMED = {
    "LSTMCell": rnnjax.lstm(H),
    "GRUCell": rnnjax.gru(H),
    "SimpleCell": rnnjax.vanilla(H),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTMCell", "plain"), ("GRUCell", "reverse_lengths"), ("SimpleCell", "lengths")],
)
def test_our_cells_run_in_flax_and_in_ours_alike(name, options):
    cell = getattr(modules.linen, name)(H)
    xs, given = draw(1, B, T, D), {"return_carry": True, **OPTIONS[options]}
    (flax_carry, flax_ys), variables = nn.RNN(cell).init_with_output(jax.random.key(0), xs, **given)
    (carry, ys), same = modules.linen.RNN(cell).init_with_output(jax.random.key(0), xs, **given)
    close(same, variables, 0)
    valid = valid_steps(given)
    close(ys[valid], flax_ys[valid], 1e-6)
    close(carry, flax_carry, 1e-6)
    held = variables["params"]["cell"]
    params = NAMED[name].init(jax.random.key(1), D)
    params = type(params)(**{field: held[field] for field in params._fields})
    lengths, reverse = given.get("seq_lengths"), given.get("reverse", False)
    pure, _ = rnnjax.unroll(NAMED[name], params, xs, lengths, reverse=reverse)
    close(carry, (pure.c, pure.h) if name == "LSTMCell" else pure, 0)


def test_any_cell_can_be_wrapped_and_named_by_its_tree():
    cell = modules.linen.RNNCell(learn_initial_carry(minimal_gated(H)))
    layer, xs = modules.linen.RNN(cell), draw(1, B, T, D)
    variables = layer.init(jax.random.PRNGKey(0), xs)  # a legacy key, as much Flax code has it
    names = {"cell.bias", "cell.hidden_bias", "cell.w_hh", "cell.w_ih", "initial_carry"}
    assert set(variables["params"]["cell"]) == names
    variables["params"]["cell"]["initial_carry"] += 0.5
    empty, _ = layer.apply(variables, xs, seq_lengths=np.zeros(B, int), return_carry=True)
    assert np.all(empty == 0.5)
    close(layer.apply(variables, xs), nn.RNN(cell).apply(variables, xs), 1e-6)
    bound = cell.bind({"params": variables["params"]["cell"]})
    assert np.all(bound.initialize_carry(jax.random.key(0), (B, D)) == 0.5)
    with pytest.raises(
        ValueError, match="initial carry of this cell needs a bound module, as it is learned"
    ):
        cell.initialize_carry(jax.random.key(0), (B, D))


def test_our_cells_start_at_zeros_without_parameters_and_step():
    cell, xs = modules.linen.LSTMCell(H), draw(1, 2, B, D)
    carry = cell.initialize_carry(jax.random.key(0), xs.shape)
    assert [leaf.shape for leaf in carry] == [(2, B, H)] * 2
    assert np.all(carry[0] == 0)
    (new, y), variables = cell.init_with_output(jax.random.key(0), carry, xs)
    params = rnnjax.LSTMParams(**variables["params"])
    for k in range(2):
        expected, _ = rnnjax.unroll(rnnjax.lstm(H), params, xs[k, :, None])
        close((new[1][k], new[0][k]), (expected.h, expected.c), 1e-6)
    close(y, new[1], 0)


def test_partitioning_boxes_the_parameters_it_names():
    cell = modules.linen.GRUCell(H, partitioning={"w_hh": (None, "model")})
    layer, xs = modules.linen.RNN(cell), draw(1, B, T, D)
    variables = layer.init(jax.random.key(0), xs)
    specs = nn.get_partition_spec(variables)["params"]["cell"]
    assert specs["w_hh"] == jax.sharding.PartitionSpec(None, "model")
    assert specs["w_ih"] == jax.sharding.PartitionSpec()
    plain = modules.linen.RNN(modules.linen.GRUCell(H))
    close(layer.apply(variables, xs), plain.apply(plain.init(jax.random.key(0), xs), xs), 0)
    with pytest.raises(ValueError, match="partitioning must name parameters"):
        modules.linen.RNN(modules.linen.GRUCell(H, partitioning={"kernel": ()})).init(
            jax.random.key(0), xs
        )


def test_noise_is_drawn_from_the_dropout_stream_unless_deterministic():
    noisy, xs = variational_dropout(rnnjax.gru(H), inputs=0.5, hidden=0.5), draw(1, B, T, D)
    train = modules.linen.RNN(modules.linen.RNNCell(noisy))
    test = modules.linen.RNN(modules.linen.RNNCell(noisy, deterministic=True))
    ys, variables = train.init_with_output(jax.random.key(0), xs)
    close(nn.RNN(train.cell).init(jax.random.key(0), xs), variables, 0)
    first, second = (
        train.apply(variables, xs, rngs={"dropout": jax.random.key(k)}) for k in range(2)
    )
    assert np.any(first != second)
    close(first, train.apply(variables, xs, rngs={"dropout": jax.random.key(0)}), 0)
    still = test.apply(variables, xs)
    close(ys, still, 0)  # where parameters are made there is no such stream yet
    params = rnnjax.GRUParams(**variables["params"]["cell"])
    close(still, rnnjax.unroll(rnnjax.gru(H), params, xs)[1], 0)
    close(nn.RNN(test.cell).apply(variables, xs), still, 1e-6)
    with pytest.raises(
        ValueError, match="needs deterministic=True, as noise is drawn for whole sequences"
    ):
        nn.RNN(train.cell).apply(variables, xs)
    with pytest.raises(errors.InvalidRngError, match='needs PRNG for "dropout"'):
        train.apply(variables, xs)


def test_dtypes_of_our_cells():
    xs = draw(1, B, T, D).astype(jnp.float32)
    cells = [modules.linen.LSTMCell(H, **{k: jnp.bfloat16}) for k in ("dtype", "param_dtype")]
    results = [modules.linen.RNN(cell).init_with_output(jax.random.key(0), xs) for cell in cells]
    dtypes = [{leaf.dtype for leaf in jax.tree.leaves(variables)} for _, variables in results]
    assert dtypes == [{jnp.dtype(jnp.float32)}, {jnp.dtype(jnp.bfloat16)}]
    assert results[0][0].dtype == jnp.float32
    # Carry and outputs have the dtype of the parameters, as in Flax.
    assert results[1][0].dtype == jnp.bfloat16
    wide = (jnp.zeros((B, H), jnp.float32),) * 2
    for kind in (modules.linen.RNN, nn.RNN):  # unless they begin wider
        ys, _ = kind(cells[1]).init_with_output(jax.random.key(0), xs, initial_carry=wide)
        assert ys.dtype == jnp.float32
    close(results[0][0].astype(jnp.bfloat16), results[1][0], 0)


def test_a_summary_counts_every_parameter():
    for cell in (modules.linen.LSTMCell(H), nn.LSTMCell(H)):
        table = modules.linen.RNN(cell).tabulate(jax.random.key(0), jnp.ones((B, T, D)))
        assert f"Total Parameters: {(D + H + 1) * 4 * H}" in table

"""Cells of rnnjax as cells of ``flax.nnx``: in the runners of both, and as ordinary modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_cases import LENGTHS, OPTIONS, VALID, B, D, H, T, close, draw, valid_steps

import rnnjax
from rnnjax import modules
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
    cell = getattr(modules.nnx, name)(D, H, rngs=nnx.Rngs(0))
    xs, given = draw(1, B, T, D), {"return_carry": True, **OPTIONS[options]}
    flax_carry, flax_ys = nnx.RNN(cell)(xs, **given)
    carry, ys = modules.nnx.RNN(cell)(xs, **given)
    valid = valid_steps(given)
    close(ys[valid], flax_ys[valid], 1e-6)
    close(carry, flax_carry, 1e-6)
    params = cell.cell.init(nnx.Rngs(0).params(), D)
    _, pure = rnnjax.unroll(NAMED[name], params, xs, given.get("seq_lengths"))
    if "reverse" not in given:
        close(ys, pure, 0)


def test_our_cells_go_in_bidirectional_of_flax():
    one, two = (
        modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(0)),
        modules.nnx.GRUCell(D, H, rngs=nnx.Rngs(1)),
    )
    xs = draw(1, B, T, D)
    stepwise = nnx.Bidirectional(nnx.RNN(one), nnx.RNN(two))(xs, seq_lengths=LENGTHS)
    layer = rnnjax.bidirectional(one.cell, two.cell)
    values = (jax.tree.map(lambda p: p[...], c.params, is_leaf=is_variable) for c in (one, two))
    _, ys = layer.apply(rnnjax.Directions(*values), xs, LENGTHS)
    close(stepwise[VALID], ys[VALID], 1e-6)


def is_variable(node):
    return isinstance(node, nnx.Variable)


def test_parameters_are_flax_params_with_metadata():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        metadata = {"w_hh": {"out_sharding": (None, "model")}, "bias": {"decay": False}}
        cell = modules.nnx.GRUCell(D, H, metadata=metadata, rngs=nnx.Rngs(0))
    assert cell.params.bias.decay is False
    state = nnx.state(cell, nnx.Param)
    assert [".".join(path) for path, _ in nnx.to_flat_state(state)] == [
        "params.bias",
        "params.hidden_bias",
        "params.w_hh",
        "params.w_ih",
    ]
    specs = nnx.to_pure_dict(nnx.get_partition_spec(state))["params"]
    assert specs["w_hh"] == jax.sharding.PartitionSpec(None, "model")
    assert specs["w_ih"] == jax.sharding.PartitionSpec()
    with pytest.raises(ValueError, match=r"metadata must name parameters, .* got \['kernel'\]"):
        modules.nnx.GRUCell(D, H, metadata={"kernel": {}}, rngs=nnx.Rngs(0))


def test_equal_settings_are_one_graph_definition():
    one, two = (
        nnx.graphdef(modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(params=k)))  # no noise, no stream
        for k in range(2)
    )
    assert one == two
    assert hash(one) == hash(two)


def test_a_summary_counts_every_parameter(capsys):
    pytest.importorskip("rich")
    layers = (
        modules.nnx.RNN(modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))),
        modules.nnx.RNN(nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))),
    )
    for layer in layers:
        table = nnx.tabulate(layer, jnp.ones((B, T, D)))
        assert f"{(D + H + 1) * 4 * H} " in table


def test_the_step_of_a_cell_takes_any_batch_axes_and_traces_gates():
    cell = modules.nnx.RNNCell(rnnjax.trace_gates(rnnjax.gru(H)), D, rngs=nnx.Rngs(0))
    xs = draw(1, 2, B, D)
    carry, (y, gates) = cell(cell.initialize_carry(xs.shape), xs)
    assert gates.z.shape == (2, B, H)
    close(y, carry, 0)
    alone, _ = cell(cell.initialize_carry((D,)), xs[1, 2])
    close(carry[1, 2], alone, 1e-6)
    for named in (modules.nnx.LSTMCell, modules.nnx.GRUCell):  # any activations, none to be traced
        with pytest.raises(ValueError, match="gates"):
            rnnjax.trace_gates(named(D, H, rngs=nnx.Rngs(0)).cell)


def test_a_learned_carry_starts_both_kinds_of_rnn():
    cell = modules.nnx.RNNCell(learn_initial_carry(rnnjax.gru(H)), D, rngs=nnx.Rngs(0))
    nnx.update(cell, jax.tree.map(lambda a: a + 0.5, nnx.state(cell)))
    start = cell.initialize_carry((B, D))
    assert np.all(start == 0.5)
    xs = draw(1, B, T, D)
    close(modules.nnx.RNN(cell)(xs), nnx.RNN(cell)(xs), 1e-6)
    empty, _ = modules.nnx.RNN(cell, return_carry=True)(xs, seq_lengths=np.zeros(B, int))
    assert np.all(empty == 0.5)


def test_a_carry_may_be_drawn():
    cell = modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
    ones = cell.initialize_carry((B, D), nnx.Rngs(0), nnx.initializers.ones)
    assert np.all(ones[0] == 1)
    own = modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(0), carry_init=nnx.initializers.zeros)
    given = own.initialize_carry((B, D), nnx.Rngs(0), nnx.initializers.ones)
    assert np.all(given[0] == 1)  # what the call is given comes first
    normal = nnx.initializers.normal()
    for rngs in (nnx.Rngs(0), nnx.Rngs(0).carry):
        drawn = cell.initialize_carry((B, D), rngs, normal)
        assert np.all(drawn[0] != drawn[1])
    with pytest.raises(ValueError, match="carry_init needs rngs"):
        cell.initialize_carry((B, D), None, normal)


def test_noise_is_on_in_training_off_in_evaluation_and_new_in_every_call():
    noisy = variational_dropout(rnnjax.gru(H), inputs=0.5, hidden=0.5)
    layer = modules.nnx.RNN(modules.nnx.RNNCell(noisy, D, rngs=nnx.Rngs(0)))
    xs = draw(1, B, T, D)
    first, second = layer(xs), layer(xs)
    assert np.any(first != second)
    layer.eval()
    still = layer(xs)
    layer.cell.set_view()  # of a view that says nothing of noise
    close(still, layer(xs), 0)
    params = jax.tree.map(lambda p: p[...], layer.cell.params, is_leaf=is_variable)
    close(still, rnnjax.unroll(rnnjax.gru(H), params, xs)[1], 0)
    close(nnx.RNN(layer.cell)(xs), still, 1e-6)
    layer.train()
    assert np.any(layer(xs) != still)
    # A dropout of Flax beside it takes this too: a cell that did not would stay noisy unseen.
    close(nnx.view(layer, deterministic=True)(xs), still, 0)
    assert np.any(layer(xs) != still)
    with pytest.raises(
        ValueError, match=r"needs eval\(\) before it, as noise is drawn for whole sequences"
    ):
        nnx.RNN(layer.cell)(xs)
    jitted = nnx.jit(lambda layer: layer(xs))
    assert np.any(jitted(layer) != jitted(layer))


def test_the_noise_of_a_cell_is_its_own_whatever_else_is_drawn_from_the_same_streams():
    noisy, xs = variational_dropout(rnnjax.gru(H), inputs=0.5), draw(1, B, T, D)
    streams = nnx.Rngs(0), nnx.Rngs(0)
    alone, beside = (modules.nnx.RNN(modules.nnx.RNNCell(noisy, D, rngs=rngs)) for rngs in streams)
    streams[1].dropout()
    close(alone(xs), beside(xs), 0)


def test_dtypes_of_our_cells():
    cell = modules.nnx.LSTMCell(D, H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    xs = draw(1, B, T, D).astype(jnp.float32)
    assert cell.params.w_hh.dtype == jnp.float32
    ys = modules.nnx.RNN(cell)(xs)
    half = modules.nnx.LSTMCell(D, H, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half.params.w_hh.dtype == jnp.bfloat16
    assert ys.dtype == jnp.float32
    # Carry and outputs have the dtype of the parameters, as in Flax.
    assert modules.nnx.RNN(half)(xs).dtype == jnp.bfloat16
    wide = (jnp.zeros((B, H), jnp.float32),) * 2
    for kind in (modules.nnx.RNN, nnx.RNN):  # unless they begin wider
        assert kind(half)(xs, initial_carry=wide).dtype == jnp.float32
    close(ys.astype(jnp.bfloat16), modules.nnx.RNN(half)(xs), 0)


def test_what_is_no_cell_is_refused():
    with pytest.raises(ValueError, match=r"cell must be a rnnjax\.Cell, got LSTMCell"):
        modules.nnx.RNNCell(nnx.LSTMCell(D, H, rngs=nnx.Rngs(0)), D, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"rngs must be nnx\.Rngs, such as nnx\.Rngs\(0\), got int"
    ):
        modules.nnx.LSTMCell(D, H, rngs=0)

"""Any other Flax cell in our ``RNN``: by its own ``__call__``, as Flax runs it, under the law."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_cases import LENGTHS, OPTIONS, VALID, B, D, H, T, close, draw, valid_steps

import rnnjax
from rnnjax import interop, modules
from rnnjax.modules import _mapping as mapping

pytestmark = pytest.mark.usefixtures("quick_compile")

TOLERANCE = 2e-6


class Plain(nnx.Module):
    """A cell that knows no base class of Flax, with a carry that is a dictionary."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(D + H, H, rngs=rngs)

    def __call__(self, carry, inputs):
        h = jnp.tanh(self.dense(jnp.concatenate([inputs, carry["h"]], axis=-1)))
        return {"h": h, "sum": carry["sum"] + h.sum(-1)}, h

    def initialize_carry(self, input_shape, rngs):
        batch = input_shape[:-1]
        return {"h": jnp.zeros((*batch, H)), "sum": jnp.ones(batch)}

    @property
    def num_feature_axes(self):
        return 1


class Dropping(nnx.OptimizedLSTMCell):
    """An LSTM that drops part of its carry with keys of its own."""

    def __init__(self, *, rngs):
        super().__init__(D, H, rngs=rngs)
        streams = {"rng_collection": "recurrent_dropout", "rngs": rngs}
        self.drop = nnx.Dropout(0.4, deterministic=False, **streams)

    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return jax.tree.map(self.drop, carry), y


class Own(nnx.LSTMCell):
    def __call__(self, carry, inputs):
        return super().__call__(carry, 2 * inputs)


class Half(nnx.Linear):
    def __call__(self, inputs):
        return super().__call__(inputs) / 2


def doubled_product(*operands, **options):
    return 2 * jax.lax.dot_general(*operands, **options)


def with_layer(name, layer):
    cell = nnx.GRUCell(D, H, rngs=nnx.Rngs(0))
    setattr(cell, name, layer)
    return cell


NNX_CELLS = {
    "no_base_class": lambda: Plain(nnx.Rngs(0)),
    "recurrent_dropout": lambda: Dropping(rngs=nnx.Rngs(0, recurrent_dropout=1)),
    "subclass": lambda: Own(D, H, rngs=nnx.Rngs(0)),
    "replaced_layer": lambda: with_layer(
        "dense_i",
        nnx.LoRALinear(
            D, 3 * H, lora_rank=1, b_initializer=nnx.initializers.normal(), rngs=nnx.Rngs(0)
        ),
    ),
    "without_bias": lambda: with_layer(
        "dense_i", nnx.Linear(D, 3 * H, use_bias=False, rngs=nnx.Rngs(0))
    ),
    "layer_of_its_own_call": lambda: with_layer("dense_i", Half(D, 3 * H, rngs=nnx.Rngs(0))),
    "layer_of_its_own_product": lambda: with_layer(
        "dense_i", nnx.Linear(D, 3 * H, dot_general=doubled_product, rngs=nnx.Rngs(0))
    ),
    "layer_of_its_own_dtype": lambda: with_layer(
        "dense_i", nnx.Linear(D, 3 * H, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ),
    "module_as_gate": lambda: nnx.LSTMCell(D, H, gate_fn=nnx.PReLU(), rngs=nnx.Rngs(0)),
    "own_promotion": lambda: nnx.GRUCell(
        D, H, promote_dtype=lambda args, dtype: args, rngs=nnx.Rngs(0)
    ),
}
XS = draw(3, B, T, D).astype(jnp.float32)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NNX_CELLS)
def test_any_nnx_cell_gives_what_it_gives_in_flax(name, options):
    given = {"return_carry": True, **OPTIONS[options]}
    # Each run on a cell of its own: keys move on with every call.
    carry, ys = modules.nnx.RNN(NNX_CELLS[name]())(XS, **given)
    flax_carry, flax_ys = nnx.RNN(NNX_CELLS[name]())(XS, **given)
    valid = valid_steps(given)
    close(ys[valid], flax_ys[valid], TOLERANCE)
    close(carry, flax_carry, TOLERANCE)
    assert np.all(ys[~valid] == 0)


@pytest.mark.parametrize("name", [name for name in NNX_CELLS if name != "recurrent_dropout"])
def test_the_law_holds_for_any_nnx_cell(name):
    layer = modules.nnx.RNN(NNX_CELLS[name](), return_carry=True)
    lengths = np.array([2, 0, T])
    valid = np.arange(T) < lengths[:, None]
    weights = draw(4, B, T, H).astype(jnp.float32)

    def loss(layer, xs, reverse):
        carry, ys = layer(xs, seq_lengths=lengths, reverse=reverse, keep_order=True)
        return (ys * weights).sum() + sum(a.sum() for a in jax.tree.leaves(carry)), (carry, ys)

    gradient = nnx.grad(loss, argnums=(0, 1), has_aux=True)
    for reverse in (False, True):
        clean, (carry, ys) = gradient(layer, XS, reverse)
        dirty, found = gradient(layer, jnp.where(valid[..., None], XS, jnp.nan), reverse)
        close((nnx.to_pure_dict(dirty[0]), dirty[1]), (nnx.to_pure_dict(clean[0]), clean[1]), 0)
        close(found, (carry, ys), 0)
        assert np.all(clean[1][~valid] == 0)
        start = layer.cell.initialize_carry((B, D), nnx.Rngs(0))
        close(*(jax.tree.map(lambda a: a[1], tree) for tree in (carry, start)), 0)
        for row, length in ((0, 2), (2, T)):  # alone, without padding
            alone, one = layer(XS[row : row + 1, :length], reverse=reverse, keep_order=True)
            close(ys[row : row + 1, :length], one, TOLERANCE)
            close(jax.tree.map(lambda a, r=row: a[r : r + 1], carry), alone, TOLERANCE)


def test_the_keys_of_a_cell_are_those_of_flax_call_after_call():
    ours, theirs = (
        kind(NNX_CELLS["recurrent_dropout"](), broadcast_rngs="recurrent_dropout")
        for kind in (modules.nnx.RNN, nnx.RNN)
    )
    first = ours(XS)
    close(first, theirs(XS), TOLERANCE)
    second = ours(XS)
    close(second, theirs(XS), TOLERANCE)
    assert np.any(first != second)
    assert ours.cell.drop.rngs.count[...] == theirs.cell.drop.rngs.count[...] > 0


def test_a_module_as_activation_may_draw_noise_at_every_step():
    def cell():
        noise = nnx.Dropout(0.4, rngs=nnx.Rngs(1))
        return nnx.GRUCell(D, H, activation_fn=noise, rngs=nnx.Rngs(0))

    close(modules.nnx.RNN(cell())(XS), nnx.RNN(cell())(XS), TOLERANCE)


def test_parameters_that_change_from_step_to_step_run_as_in_flax():
    def layer(kind):
        cell = nnx.GRUCell(D, H, rngs=nnx.Rngs(0))
        state = nnx.state(cell, nnx.Param)
        stacked = [jax.tree.map(lambda a, n=n: a * (1 - n / 9), state) for n in range(T)]
        nnx.update(cell, jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacked))
        axes = nnx.StateAxes({nnx.Param: 0, ...: nnx.Carry})
        return kind(cell, state_axes=axes, return_carry=True)

    with jax.numpy_rank_promotion("allow"):
        ours, theirs = layer(modules.nnx.RNN), layer(nnx.RNN)
        close(ours(XS), theirs(XS), TOLERANCE)


# linen


class LinenOwn(nn.GRUCell):
    @nn.compact
    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, 2 * inputs)
        return carry, nn.Dense(H, name="out")(y)


class LinenDropping(nn.OptimizedLSTMCell):
    @nn.compact
    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return jax.tree.map(nn.Dropout(0.4, deterministic=False), carry), y


LINEN_CELLS = {
    "subclass": (LinenOwn, {}),
    "recurrent_dropout": (LinenDropping, {"split_rngs": {"params": False, "dropout": True}}),
    "parameters_of_each_step": (
        nn.GRUCell,
        {
            "variable_broadcast": False,
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True},
        },
    ),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LINEN_CELLS)
def test_any_linen_cell_gives_what_it_gives_in_flax(name, options):
    make, settings = LINEN_CELLS[name]
    given = {"return_carry": True, **OPTIONS[options]}
    found = []
    for kind in (modules.linen.RNN, nn.RNN):
        layer = kind(make(H), **settings)
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = layer.init(rngs, XS)
        found.append(layer.apply(variables, XS, rngs=rngs, **given))
    (carry, ys), (flax_carry, flax_ys) = found
    valid = valid_steps(given)
    close(ys[valid], flax_ys[valid], TOLERANCE)
    close(carry, flax_carry, TOLERANCE)
    assert np.all(ys[~valid] == 0)


LINEN_SETTINGS = [
    {"variable_axes": {"stats": 0}},
    {"variable_broadcast": ["params", "stats"]},
    {"variable_carry": "stats"},
    {"split_rngs": {"params": True}},
]


def test_a_cell_of_flax_runs_by_the_engine_unless_it_is_told_otherwise(monkeypatch):
    monkeypatch.setattr(mapping, "run_by_steps", lambda *_, **__: "steps")

    def by_steps(layer):
        is_nnx = isinstance(layer, nnx.RNN)
        ys = layer(XS) if is_nnx else layer.init_with_output(jax.random.key(0), XS)[0]
        return isinstance(ys, str)

    known = [nn.MGUCell(H, reset_gate=gate) for gate in (True, False)]
    assert not any(by_steps(modules.linen.RNN(cell)) for cell in known)
    assert all(by_steps(modules.linen.RNN(nn.GRUCell(H), **given)) for given in LINEN_SETTINGS)
    assert not by_steps(modules.nnx.RNN(nnx.GRUCell(D, H, rngs=nnx.Rngs(0))))
    assert by_steps(modules.nnx.RNN(NNX_CELLS["own_promotion"]()))


def conv_case(kind, **options):
    layer = kind(nn.ConvLSTMCell(4, kernel_size=(3, 3)), return_carry=True, **options)
    images = draw(5, 2, T, 5, 6, 3).astype(jnp.float32)
    return layer, layer.init(jax.random.key(0), images), images


def test_a_convolutional_lstm_runs_with_its_spatial_axes():
    (ours, variables, images), (theirs, expected, _) = map(conv_case, (modules.linen.RNN, nn.RNN))
    close(variables, expected, 0)
    close(ours.apply(variables, images), theirs.apply(variables, images), TOLERANCE)
    assert variables["params"]["cell"]["hh"]["kernel"].shape == (3, 3, 4, 16)
    lengths = np.array([2, 0])
    poisoned = images.at[:, 2:].set(jnp.nan).at[1].set(jnp.nan)
    carry, ys = ours.apply(variables, poisoned, seq_lengths=lengths)
    alone, short = ours.apply(variables, images[:1, :2])
    close(ys[:1, :2], short, TOLERANCE)
    close(jax.tree.map(lambda a: a[:1], carry), alone, TOLERANCE)
    assert np.all(ys[0, 2:] == 0)
    assert np.all(ys[1] == 0)
    assert all(np.all(leaf[1] == 0) for leaf in carry)
    timed = ours.apply(variables, jnp.swapaxes(images, 0, 1), time_major=True, seq_lengths=lengths)
    close(jnp.swapaxes(timed[1], 0, 1), ys, 0)


# What is no cell


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnx.Linear(D, H, rngs=nnx.Rngs(0)), "got Linear without initialize_carry, num_fe"),
        (lambda: rnnjax.lstm(4), r"got a rnnjax\.Cell: wrap it, RNN\(RNNCell\("),
        (lambda: rnnjax.recurrent(rnnjax.lstm(4)), r"got a rnnjax\.Layer, .* layer\.apply"),
    ],
)
@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_what_is_no_cell_is_refused_and_what_to_do_is_said(make, message, api):
    def run():
        if api == "nnx":
            return modules.nnx.RNN(make())(XS)
        return modules.linen.RNN(make()).init(jax.random.key(0), XS)

    with pytest.raises(ValueError, match=f"cell must be a Flax cell.*{message}"):
        run()


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_a_cell_given_to_the_layer_of_flax_says_what_makes_one_of_it(api):
    def run():
        if api == "nnx":
            return nnx.RNN(rnnjax.lstm(4))(XS)  # pyright: ignore
        return nn.RNN(rnnjax.lstm(4)).init(jax.random.key(0), XS)  # pyright: ignore

    with pytest.raises(AttributeError, match=r"RNNCell of rnnjax\.modules makes a Flax cell"):
        run()


def test_a_cell_of_the_other_interface_of_flax_is_refused():
    with pytest.raises(
        ValueError, match=r"cell must be a flax\.nnx\.Module, got flax\.linen\..*LSTM"
    ):
        modules.nnx.RNN(nn.LSTMCell(H))(XS)
    cell = nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"cell must be a flax\.linen\.Module, got flax\.nnx\."):
        modules.linen.RNN(cell).init(jax.random.key(0), XS)


def test_a_carry_that_cannot_be_held_is_named():
    class Counting(Plain):
        def initialize_carry(self, input_shape, rngs):
            return super().initialize_carry(input_shape, rngs) | {"sum": jnp.zeros(())}

    layer = modules.nnx.RNN(Counting(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"carry\['sum'\] must have the batch axes \(3,\) in fro"):
        layer(XS, seq_lengths=LENGTHS)
    with pytest.raises(ValueError, match="inputs must have a time axis and 1 feature axes"):
        layer(jnp.ones(D))


def test_traced_lengths_are_clipped_in_reverse_too():
    """Outputs in the order of steps begin at the length: one too large pointed at other steps."""
    run = nnx.jit(lambda layer, lengths: layer(XS, seq_lengths=lengths))
    wrong, right = jnp.array([T + 2, -3, 2]), jnp.array([T, 0, 2])
    for cell in (Plain(nnx.Rngs(0)), nnx.GRUCell(D, H, rngs=nnx.Rngs(0))):
        layer = modules.nnx.RNN(cell, reverse=True)
        np.testing.assert_array_equal(run(layer, wrong), run(layer, right))


def test_the_order_that_is_kept_is_that_of_time_in_a_run_forwards():
    layer = modules.nnx.RNN(Plain(nnx.Rngs(0)))
    close(layer(XS, keep_order=True), layer(XS), 0)


def test_steps_and_rows_may_be_none():
    layer = modules.nnx.RNN(Plain(nnx.Rngs(0)), return_carry=True)
    for reverse in (False, True):
        carry, ys = layer(jnp.zeros((B, 0, D)), seq_lengths=np.zeros(B, int), reverse=reverse)
        assert ys.shape == (B, 0, H)
        assert np.all(carry["sum"] == 1)
    assert layer(jnp.zeros((0, T, D)))[1].shape == (0, T, H)


def test_our_cells_have_the_arguments_of_flax():
    """By name; what the two lists do not share is in the docstring of ``rnnjax.modules``."""
    import dataclasses
    import inspect

    def arguments(kind):
        found = set(inspect.signature(kind.__init__).parameters)
        return found | set(inspect.signature(modules.nnx.RNNCell.__init__).parameters)

    left_out = {"promote_dtype", "keep_rngs"}
    for name in ("LSTMCell", "GRUCell", "SimpleCell"):
        theirs = set(inspect.signature(getattr(nnx, name).__init__).parameters)
        assert theirs - arguments(getattr(modules.nnx, name)) == left_out
        assert all(word in modules.__doc__ for word in left_out)
        ours, flax = (
            {field.name for field in dataclasses.fields(getattr(api, name))}
            for api in (modules.linen, nn)
        )
        assert flax <= ours


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "SimpleCell"])
def test_our_cells_with_the_arguments_of_flax_compute_as_flax(name):
    given = {"activation_fn": jax.nn.elu}
    given |= {"residual": True} if name == "SimpleCell" else {"gate_fn": jax.nn.hard_sigmoid}
    theirs = getattr(nnx, name)(D, H, rngs=nnx.Rngs(0), **given)
    ours = getattr(modules.nnx, name)(D, H, rngs=nnx.Rngs(1), **given)
    kind = {"LSTMCell": "lstm", "GRUCell": "gru", "SimpleCell": "vanilla"}[name]
    state = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    params = interop.nnx.import_weights(kind, state)
    for field, values in params._asdict().items():
        getattr(ours.params, field)[...] = values
    run = {"seq_lengths": LENGTHS, "return_carry": True}
    carry, ys = modules.nnx.RNN(ours)(XS, **run)
    flax_carry, flax_ys = nnx.RNN(theirs)(XS, **run)
    close(carry, flax_carry, TOLERANCE)  # (c, h), as Flax has it
    close(ys[VALID], flax_ys[VALID], TOLERANCE)
    one, y = ours(ours.initialize_carry((B, D), nnx.Rngs(0)), XS[:, 0])
    close((one, y), theirs(theirs.initialize_carry((B, D), nnx.Rngs(0)), XS[:, 0]), TOLERANCE)


def test_a_gru_that_resets_before_has_its_own_activations_alone():
    cell = modules.nnx.GRUCell(D, H, reset_after=False, rngs=nnx.Rngs(0))
    params = jax.tree.map(lambda p: p[...], cell.params, is_leaf=is_variable)
    expected = rnnjax.unroll(rnnjax.gru(H, reset_after=False), params, XS)[1]
    close(modules.nnx.RNN(cell)(XS), expected, 0)
    for given in ({"gate_fn": jax.nn.hard_sigmoid}, {"activation_fn": jax.nn.elu}):
        with pytest.raises(ValueError, match="must be sigmoid and tanh for reset_after=False"):
            modules.nnx.GRUCell(D, H, reset_after=False, rngs=nnx.Rngs(0), **given)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_the_initial_weights_may_be_those_of_functions(api):
    ones, twos, threes = (nnx.initializers.constant(float(n)) for n in (1, 2, 3))
    given = {"kernel_init": ones, "recurrent_kernel_init": twos, "bias_init": threes}
    if api == "nnx":
        cell = modules.nnx.LSTMCell(
            D, H, rngs=nnx.Rngs(0), kernel_metadata={"decay": False}, **given
        )
        assert cell.params.w_ih.decay is False
        params = jax.tree.map(lambda p: p[...], cell.params, is_leaf=is_variable)
    else:
        layer = modules.linen.RNN(modules.linen.LSTMCell(H, **given))
        params = layer.init(jax.random.key(0), XS)["params"]["cell"]
        params = rnnjax.LSTMParams(**params)
    assert [set(np.ravel(a).tolist()) for a in params] == [{1.0}, {2.0}, {3.0}]
    again = modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(1), **given)
    assert again.cell == modules.nnx.LSTMCell(D, H, rngs=nnx.Rngs(2), **given).cell


def test_each_gate_is_drawn_for_itself_and_the_hidden_bias_too():
    options = {
        "kernel_init": nnx.initializers.normal(),
        "bias_init": nnx.initializers.constant(3.0),
    }
    params = modules.nnx.GRUCell(D, H, rngs=nnx.Rngs(0), **options).params
    first, second, _ = np.split(np.asarray(params.w_ih[...]), 3, axis=1)
    assert not np.any(first == second)
    assert np.all(params.hidden_bias[...] == 3)

    def width(key, shape, dtype):
        return jnp.full(shape, shape[-1], dtype)

    options = {"kernel_init": width, "recurrent_kernel_init": width}
    params = modules.nnx.GRUCell(D, H, rngs=nnx.Rngs(0), **options).params
    assert all(np.all(kernel[...] == H) for kernel in (params.w_ih, params.w_hh))


def is_variable(node):
    return isinstance(node, nnx.Variable)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_integers_are_features_as_in_flax(api):
    ids = jnp.arange(B * T * D).reshape(B, T, D) % 3
    if api == "nnx":
        layer = modules.nnx.RNN(modules.nnx.GRUCell(D, H, rngs=nnx.Rngs(0)))
        close(layer(ids), layer(ids.astype(jnp.float32)), 0)
        cell = layer.cell
        start = cell.initialize_carry((B, D))
        close(cell(start, ids[:, 0]), cell(start, ids[:, 0].astype(jnp.float32)), 0)
        return
    layer = modules.linen.RNN(modules.linen.LSTMCell(H))
    variables = layer.init(jax.random.key(0), ids)
    close(layer.apply(variables, ids), layer.apply(variables, ids.astype(jnp.float32)), 0)


DTYPES = [
    (jnp.float32, jnp.float32),
    (jnp.bfloat16, jnp.float32),
    (jnp.float16, jnp.float16),
    (jnp.bfloat16, jnp.bfloat16),
]


# Flax's own RNN fails where its SimpleCell gives another dtype than that of its carry.
NAMED_DTYPES = [
    (name, *dtypes)
    for name in ("LSTMCell", "GRUCell", "SimpleCell")
    for dtypes in DTYPES
    if name != "SimpleCell" or dtypes[0] == dtypes[1]
]


@pytest.mark.parametrize(("name", "dtype", "param_dtype"), NAMED_DTYPES)
def test_dtypes_of_our_cells_are_those_of_flax(name, dtype, param_dtype):
    given = {"dtype": dtype, "param_dtype": param_dtype}
    # The orthogonal matrices of some of Flax's cells cannot be drawn in 16 bits.
    given["recurrent_kernel_init"] = nnx.initializers.lecun_normal()
    xs = XS.astype(param_dtype)
    found = []
    for api, kind in ((modules.nnx, modules.nnx.RNN), (nnx, nnx.RNN)):
        cell = getattr(api, name)(D, H, rngs=nnx.Rngs(0), **given)
        start = cell.initialize_carry((B, D), nnx.Rngs(0))
        one = cell(start, xs[:, 0])
        found.append([a.dtype for a in jax.tree.leaves((start, one, kind(cell)(xs)))])
    linen = modules.linen.RNN(getattr(modules.linen, name)(H, **given))
    outputs = linen.init_with_output(jax.random.key(0), xs)[0]
    assert found[0] == found[1]
    assert outputs.dtype == found[1][-1]

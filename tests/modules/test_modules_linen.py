"""``modules.linen`` and ``flax.linen``: the same where Flax is right, correct where it is not."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, serialization
from flax_cases import LENGTHS, OPTIONS, VALID, B, D, H, T, close, draw, valid_steps

import rnnjax
from rnnjax import modules

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

CELLS = {
    "LSTMCell": {},
    "OptimizedLSTMCell": {},
    "GRUCell": {},
    "MGUCell": {},
    "MGUCell_plain": {"reset_gate": False},
    "SimpleCell": {},
    "SimpleCell_residual": {"residual": True, "activation_fn": jnp.sin},
    "LSTMCell_activations": {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.softmax},
}


def flax_cell(name, **options):
    settings = {"param_dtype": jnp.float64, **CELLS[name], **options}
    return getattr(nn, name.split("_")[0])(H, **settings)


def random_variables(layer, xs):
    """Variables of a layer with every parameter random, its biases too."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(layer.init, jax.random.key(0), xs))
    return jax.tree.unflatten(structure, [draw(k, *leaf.shape) for k, leaf in enumerate(leaves)])


@pytest.mark.parametrize(
    ("name", "options"),
    [("GRUCell", options) for options in OPTIONS]
    + [(name, "reverse_lengths") for name in CELLS if name != "GRUCell"],
)
def test_valid_outputs_and_carry_are_those_of_flax(name, options):
    cell, xs = flax_cell(name), draw(1, B, T, D)
    given = {"return_carry": True, **OPTIONS[options]}
    variables = random_variables(nn.RNN(cell), xs)
    flax_carry, flax_ys = nn.RNN(cell).apply(variables, xs, **given)
    carry, ys = modules.linen.RNN(cell).apply(variables, xs, **given)
    valid = valid_steps(given)
    close(ys[valid], flax_ys[valid])
    close(carry, flax_carry)
    assert np.all(ys[~valid] == 0)


@pytest.mark.parametrize("name", ["OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell"])
def test_gradients_are_those_of_flax(name):
    cell, xs, weights = flax_cell(name), draw(1, B, T, D), draw(2, B, T, H)
    variables = random_variables(nn.RNN(cell), xs)

    def loss(variables, xs, layer):
        carry, ys = layer.apply(variables, xs, seq_lengths=LENGTHS, return_carry=True)
        final = sum(a.sum() for a in jax.tree.leaves(carry))
        return (ys * weights * VALID[..., None]).sum() + final

    gradient = jax.grad(loss, argnums=(0, 1))
    ours, theirs = (gradient(variables, xs, kind(cell)) for kind in (modules.linen.RNN, nn.RNN))
    close(ours, theirs, 1e-10)


@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell", "MGUCell"])
def test_init_draws_the_variables_that_flax_draws(name):
    xs = draw(1, B, T, D)
    for time_major in (False, True):
        ours, theirs = (
            kind(flax_cell(name), time_major=time_major).init(jax.random.key(0), xs)
            for kind in (modules.linen.RNN, nn.RNN)
        )
        close(ours, theirs, 0)


def test_signatures_and_attributes_are_those_of_flax():
    ours, theirs = (
        inspect.signature(kind.__call__).parameters for kind in (modules.linen.RNN, nn.RNN)
    )
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    assert inspect.signature(modules.linen.RNN) == inspect.signature(nn.RNN)


# What Flax gets wrong. Each test also holds that Flax still does, so that the claim stays true.


def test_an_empty_row_keeps_its_initial_carry():
    cell, xs, lengths = flax_cell("LSTMCell"), draw(1, B, T, D), np.array([0, T, 0])
    variables = random_variables(nn.RNN(cell), xs)
    start = (draw(2, B, H), draw(3, B, H))
    given = {"seq_lengths": lengths, "initial_carry": start, "return_carry": True}
    carry, ys = modules.linen.RNN(cell).apply(variables, xs, **given)
    for got, at_start in zip(carry, start, strict=True):
        assert np.all(got[lengths == 0] == at_start[lengths == 0])
    assert np.all(ys[lengths == 0] == 0)
    flax_carry, _ = nn.RNN(cell).apply(variables, xs, **given)
    close(carry[0][1], flax_carry[0][1])
    assert np.all(np.abs(flax_carry[0][0] - start[0][0]) > 1e-3)


def test_nan_in_padding_reaches_no_gradient():
    cell, xs = flax_cell("GRUCell"), draw(1, B, T, D)
    variables = random_variables(nn.RNN(cell), xs)

    def loss(variables, xs, layer):
        carry, ys = layer.apply(variables, xs, seq_lengths=LENGTHS, return_carry=True)
        return jnp.where(VALID[..., None], ys, 0).sum() + carry.sum()

    poisoned = jnp.where(VALID[..., None], xs, jnp.nan)
    gradient = jax.grad(loss, argnums=(0, 1))
    clean, dirty = (gradient(variables, a, modules.linen.RNN(cell)) for a in (xs, poisoned))
    close(dirty, clean, 0)
    assert np.all(dirty[1][~VALID] == 0)
    flax_gradient, _ = gradient(variables, poisoned, nn.RNN(cell))
    assert np.isnan(flax_gradient["params"]["cell"]["ir"]["kernel"]).any()


def test_two_batch_axes_go_with_lengths_and_a_carry():
    cell, xs = flax_cell("LSTMCell"), draw(1, 2, B, T, D)
    variables = random_variables(nn.RNN(cell), xs)
    lengths = np.stack([LENGTHS, LENGTHS[::-1]])
    given = {"return_carry": True, "reverse": True}
    layer = modules.linen.RNN(cell)
    carry, ys = layer.apply(variables, xs, seq_lengths=lengths, **given)
    for k in range(2):
        part = layer.apply(variables, xs[k], seq_lengths=lengths[k], **given)
        close((jax.tree.map(lambda a, k=k: a[k], carry), ys[k]), part)
    with pytest.raises(ValueError, match="broadcast"):
        nn.RNN(cell).apply(variables, xs, seq_lengths=lengths, return_carry=True)


def test_lengths_out_of_range_are_refused_where_they_are_known():
    layer, xs = modules.linen.RNN(flax_cell("GRUCell")), draw(1, B, T, D)
    variables = random_variables(layer, xs)
    for bad in ([T + 1, 1, 1], [-1, 1, 1]):
        with pytest.raises(ValueError, match=rf"lengths must lie in \[0, {T}\]"):
            layer.apply(variables, xs, seq_lengths=np.array(bad))


# The drop-in: one line of a model changed, and everything around it left as it was.


class Classifier(nn.Module):
    """Embedding, bidirectional RNN made on the spot, and a head on the mean over valid steps."""

    rnn: type

    @nn.compact
    def __call__(self, tokens, lengths):
        xs = nn.Embed(7, D)(tokens)
        forward, backward = self.rnn(nn.OptimizedLSTMCell(H)), self.rnn(nn.GRUCell(H))
        ys = nn.Bidirectional(forward, backward)(xs, seq_lengths=lengths)
        valid = rnnjax.lengths_to_mask(lengths, T)[..., None]
        return nn.Dense(2)(jnp.where(valid, ys, 0).sum(1) / lengths[:, None])


TOKENS = np.random.default_rng(5).integers(0, 7, (B, T))


def test_a_model_trains_alike_before_and_after():
    losses = []
    for kind in (nn.RNN, modules.linen.RNN):
        model = Classifier(kind)

        @jax.jit
        def step(variables, model=model):
            def loss(variables):
                logits = model.apply(variables, TOKENS, jnp.asarray(LENGTHS))
                labels = jnp.arange(B) % 2
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            value, gradient = jax.value_and_grad(loss)(variables)
            return value, jax.tree.map(lambda p, g: p - 0.5 * g, variables, gradient)

        variables = model.init(jax.random.key(0), TOKENS, jnp.asarray(LENGTHS))
        losses.append([])
        for _ in range(4):
            value, variables = step(variables)
            losses[-1].append(float(value))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_a_checkpoint_keeps_loading():
    lengths = jnp.asarray(LENGTHS)
    before, after = Classifier(nn.RNN), Classifier(modules.linen.RNN)
    saved = before.init(jax.random.key(0), TOKENS, lengths)
    fresh = after.init(jax.random.key(1), TOKENS, lengths)
    restored = serialization.from_bytes(fresh, serialization.to_bytes(saved))
    close(after.apply(restored, TOKENS, lengths), before.apply(saved, TOKENS, lengths), 1e-6)


def test_partitioned_parameters_stay_boxed():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer, xs = modules.linen.RNN(flax_cell("GRUCell", kernel_init=kernel_init)), draw(1, B, T, D)
    variables = layer.init(jax.random.key(0), xs)
    assert variables["params"]["cell"]["ir"]["kernel"].names == (None, "model")
    close(layer.apply(variables, xs), nn.RNN(layer.cell).apply(variables, xs))


def test_parameters_that_are_not_there_are_named_by_flax():
    layer, xs = modules.linen.RNN(flax_cell("GRUCell")), draw(1, B, T, D)
    with pytest.raises(errors.ScopeCollectionNotFound, match='Tried to access "kernel"'):
        layer.apply({"params": {}}, xs)
    ours = modules.linen.RNN(modules.linen.GRUCell(H))
    variables = ours.init(jax.random.key(0), xs)
    del variables["params"]["cell"]["w_hh"]
    with pytest.raises(errors.ScopeParamNotFoundError, match='parameter named "w_hh"'):
        ours.apply(variables, xs)


def test_a_random_carry_is_drawn_as_flax_draws_it():
    random = {"carry_init": nn.initializers.normal(), "param_dtype": jnp.float64}
    xs = draw(1, B, T, D)
    for cell in (flax_cell("LSTMCell", **random), modules.linen.LSTMCell(H, **random)):
        variables = random_variables(nn.RNN(cell), xs)
        for given in ({}, {"init_key": jax.random.key(7)}):
            ours, flax = (
                kind(cell).apply(variables, xs, **given) for kind in (modules.linen.RNN, nn.RNN)
            )
            close(ours, flax)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_dtypes_are_those_of_flax(dtype):
    cell = nn.GRUCell(H, dtype=dtype)
    xs = draw(1, B, T, D).astype(jnp.float32)
    variables = nn.RNN(cell).init(jax.random.key(0), xs)
    ours, theirs = (
        kind(cell, return_carry=True).apply(variables, xs) for kind in (modules.linen.RNN, nn.RNN)
    )
    assert [a.dtype for a in ours] == [a.dtype for a in theirs] == [jnp.float32] * 2
    close(ours, theirs, 1e-6 if dtype is None else 2e-2)


def test_no_dtypes_are_mixed_where_a_flax_cell_makes_its_parameters():
    layer, xs = modules.linen.RNN(nn.GRUCell(H)), jnp.ones((B, T, D), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        ys, _ = layer.init_with_output(jax.random.key(0), xs)
    assert ys.dtype == jnp.float32


def test_a_flax_cell_is_not_wrapped():
    cell = modules.linen.RNNCell(nn.GRUCell(H))
    with pytest.raises(ValueError, match=r"cell must be a rnnjax\.Cell, got GRUCell"):
        modules.linen.RNN(cell).init(jax.random.key(0), draw(1, B, T, D))

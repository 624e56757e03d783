"""``modules.nnx`` beside ``flax.nnx``: the same where Flax is right, correct where it is not."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_cases import LENGTHS, OPTIONS, VALID, B, D, H, T, close, draw, valid_steps

import rnnjax
from rnnjax import modules

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

CELLS = {
    "LSTMCell": {},
    "OptimizedLSTMCell": {},
    "GRUCell": {},
    "SimpleCell": {},
    "SimpleCell_residual": {"residual": True},
    "LSTMCell_activations": {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.softmax},
    "GRUCell_activations": {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.elu},
}


def flax_cell(name, seed=0, **options):
    """A Flax cell in float64, every parameter random, its biases too."""
    kind = getattr(nnx, name.split("_")[0])
    settings = {"dtype": jnp.float64, "param_dtype": jnp.float64, **CELLS[name], **options}
    cell = kind(D, H, rngs=nnx.Rngs(seed), **settings)
    state = nnx.state(cell)
    leaves, structure = jax.tree.flatten(state)
    drawn = [draw(k, *leaf.shape) for k, leaf in enumerate(leaves)]
    nnx.update(cell, jax.tree.unflatten(structure, drawn))
    return cell


@pytest.mark.parametrize(
    ("name", "options"),
    [("OptimizedLSTMCell", options) for options in OPTIONS]
    + [(name, "reverse_lengths") for name in CELLS if name != "OptimizedLSTMCell"],
)
def test_valid_outputs_and_carry_are_those_of_flax(name, options):
    cell, xs = flax_cell(name), draw(1, B, T, D)
    given = {"return_carry": True, **OPTIONS[options]}
    flax_carry, flax_ys = nnx.RNN(cell)(xs, **given)
    carry, ys = modules.nnx.RNN(cell)(xs, **given)
    valid = valid_steps(given)
    close(ys[valid], flax_ys[valid])
    close(carry, flax_carry)
    assert np.all(ys[~valid] == 0)


@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_gradients_are_those_of_flax(name):
    cell, xs, weights = flax_cell(name), draw(1, B, T, D), draw(2, B, T, H)

    def loss(layer, xs):
        carry, ys = layer(xs, seq_lengths=LENGTHS, return_carry=True, reverse=True, keep_order=True)
        return (ys * weights * VALID[..., None]).sum() + sum(
            a.sum() for a in jax.tree.leaves(carry)
        )

    ours, theirs = (
        nnx.grad(loss, argnums=(0, 1))(kind(cell), xs) for kind in (modules.nnx.RNN, nnx.RNN)
    )
    close(nnx.to_pure_dict(ours[0]), nnx.to_pure_dict(theirs[0]), 1e-10)
    close(ours[1], theirs[1], 1e-10)


def test_time_major_swaps_the_axes_of_inputs_and_outputs():
    cell, xs = flax_cell("GRUCell"), draw(1, B, T, D)
    for given in (OPTIONS["plain"], OPTIONS["reverse_lengths"]):
        carry, ys = modules.nnx.RNN(cell, time_major=True)(
            jnp.swapaxes(xs, 0, 1), return_carry=True, **given
        )
        other_carry, other = modules.nnx.RNN(cell)(xs, return_carry=True, **given)
        close(ys, jnp.swapaxes(other, 0, 1), 0)
        close(carry, other_carry, 0)
    close(
        nnx.RNN(cell, time_major=True)(jnp.swapaxes(xs, 0, 1)),
        modules.nnx.RNN(cell, time_major=True)(jnp.swapaxes(xs, 0, 1)),
    )


def test_options_of_the_constructor_and_of_the_call_agree():
    cell, xs = flax_cell("GRUCell"), draw(1, B, T, D)
    names = {"reverse": True, "keep_order": True, "return_carry": True}
    built = modules.nnx.RNN(cell, **names)(xs, seq_lengths=LENGTHS)
    close(built, modules.nnx.RNN(cell)(xs, seq_lengths=LENGTHS, **names), 0)
    overridden = modules.nnx.RNN(cell, **names)(xs, reverse=False, return_carry=False)
    close(overridden, modules.nnx.RNN(cell)(xs), 0)
    close(modules.nnx.RNN(cell, unroll=3)(xs), modules.nnx.RNN(cell)(xs))


def test_flax_s_one_step_an_iteration_leaves_the_choice_to_the_engine(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cell = flax_cell("GRUCell")
    for options, steps in (({}, 8), ({"unroll": 1}, 8), ({"unroll": 3}, 3)):
        definition, state = nnx.split(modules.nnx.RNN(cell, **options))
        run = lambda state, xs, it=definition: nnx.merge(it, state)(xs)  # noqa: E731
        assert f"unroll={steps}" in str(jax.make_jaxpr(run)(state, draw(1, B, 20, D)))


def test_an_initial_carry_is_in_the_order_of_flax():
    cell, xs = flax_cell("OptimizedLSTMCell"), draw(1, B, T, D)
    start = (draw(2, B, H), draw(3, B, H))
    given = {"initial_carry": start, "return_carry": True}
    close(modules.nnx.RNN(cell)(xs, **given), nnx.RNN(cell)(xs, **given))
    with pytest.raises(
        ValueError, match=r"initial_carry must be a tuple of 2, got LSTMCarry\(h, c\)"
    ):
        modules.nnx.RNN(cell)(xs, initial_carry=rnnjax.LSTMCarry(*start))


def test_signatures_are_those_of_flax():
    for method in ("__init__", "__call__"):
        ours, theirs = (
            inspect.signature(getattr(kind, method)).parameters
            for kind in (modules.nnx.RNN, nnx.RNN)
        )
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


# What Flax gets wrong. Each test also holds that Flax still does, so that the claim stays true.


def test_an_empty_row_keeps_its_initial_carry():
    cell, xs, lengths = flax_cell("LSTMCell"), draw(1, B, T, D), np.array([0, T, 0])
    start = (draw(2, B, H), draw(3, B, H))
    given = {"seq_lengths": lengths, "initial_carry": start, "return_carry": True}
    for reverse in (False, True):
        carry, ys = modules.nnx.RNN(cell, reverse=reverse)(xs, **given)
        for got, at_start in zip(carry, start, strict=True):
            assert np.all(got[lengths == 0] == at_start[lengths == 0])
        assert np.all(ys[lengths == 0] == 0)
    flax_carry, flax_ys = nnx.RNN(cell)(xs, **given)
    assert np.all(np.abs(flax_carry[0][0] - start[0][0]) > 1e-3)
    assert np.any(flax_ys[0] != 0)


def test_nan_in_padding_reaches_no_gradient():
    cell, xs = flax_cell("GRUCell"), draw(1, B, T, D)
    poisoned = jnp.where(VALID[..., None], xs, jnp.nan)

    def loss(layer, xs):
        carry, ys = layer(xs, seq_lengths=LENGTHS, return_carry=True)
        return jnp.where(VALID[..., None], ys, 0).sum() + carry.sum()

    gradient = nnx.grad(loss, argnums=(0, 1))
    clean, dirty = (gradient(modules.nnx.RNN(cell), a) for a in (xs, poisoned))
    close(nnx.to_pure_dict(dirty[0]), nnx.to_pure_dict(clean[0]), 0)
    assert np.all(dirty[1][~VALID] == 0)
    flax_gradient, _ = gradient(nnx.RNN(cell), poisoned)
    assert np.isnan(nnx.to_pure_dict(flax_gradient)["cell"]["dense_i"]["kernel"]).any()


def test_two_batch_axes_go_with_lengths_and_a_carry():
    cell, xs = flax_cell("OptimizedLSTMCell"), draw(1, 2, B, T, D)
    lengths = np.stack([LENGTHS, LENGTHS[::-1]])
    given = {"return_carry": True, "reverse": True}
    carry, ys = modules.nnx.RNN(cell)(xs, seq_lengths=lengths, **given)
    for k in range(2):
        part = modules.nnx.RNN(cell)(xs[k], seq_lengths=lengths[k], **given)
        close((jax.tree.map(lambda a, k=k: a[k], carry), ys[k]), part)
    with pytest.raises(ValueError, match="broadcast"):
        nnx.RNN(cell)(xs, seq_lengths=lengths, return_carry=True)


def test_lengths_out_of_range_are_refused_where_they_are_known():
    layer, xs = modules.nnx.RNN(flax_cell("GRUCell")), draw(1, B, T, D)
    for bad in ([T + 1, 1, 1], [-1, 1, 1]):
        with pytest.raises(ValueError, match=rf"lengths must lie in \[0, {T}\]"):
            layer(xs, seq_lengths=np.array(bad))
    with pytest.raises(ValueError, match=rf"lengths must have shape \({B},\), one for each"):
        layer(xs, seq_lengths=np.array([1, 2]))
    clipped = nnx.jit(lambda layer, lengths: layer(xs, seq_lengths=lengths, reverse=True))
    close(clipped(layer, jnp.array([9, 2, -3])), layer(xs, seq_lengths=[T, 2, 0], reverse=True))


def test_no_time_and_no_batch():
    layer = modules.nnx.RNN(flax_cell("LSTMCell"), return_carry=True, reverse=True)
    carry, ys = layer(jnp.zeros((B, 0, D)), seq_lengths=np.zeros(B, int))
    assert ys.shape == (B, 0, H)
    assert np.all(carry[0] == 0)
    assert layer(jnp.zeros((0, T, D)))[1].shape == (0, T, H)
    assert layer(jnp.zeros((T, D)))[0][0].shape == (H,)


# The drop-in: one line of a model changed, and everything around it left as it was.


class Classifier(nnx.Module):
    """Embedding, bidirectional RNN, and a head on the mean over valid steps."""

    def __init__(self, rnn, *, rngs):
        self.embed = nnx.Embed(7, D, rngs=rngs)
        forward = rnn(nnx.OptimizedLSTMCell(D, H, rngs=rngs))
        backward = rnn(nnx.GRUCell(D, H, rngs=rngs))
        self.encoder = nnx.Bidirectional(forward, backward)
        self.head = nnx.Linear(2 * H, 2, rngs=rngs)

    def __call__(self, tokens, lengths):
        valid = rnnjax.lengths_to_mask(lengths, tokens.shape[1])[..., None]
        ys = self.encoder(self.embed(tokens), seq_lengths=lengths)
        return self.head(jnp.where(valid, ys, 0).sum(1) / lengths[:, None])


TOKENS = jnp.asarray(np.random.default_rng(5).integers(0, 7, (B, T)))


def test_a_model_trains_alike_before_and_after():
    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logits = model(TOKENS, jnp.asarray(LENGTHS))
            labels = jnp.arange(B) % 2
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = []
    for kind in (nnx.RNN, modules.nnx.RNN):
        model = Classifier(kind, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
        losses.append([float(step(model, optimizer)) for _ in range(4)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_the_state_is_that_of_flax_and_a_checkpoint_keeps_loading(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    before, after = (
        Classifier(kind, rngs=nnx.Rngs(seed)) for kind, seed in ((nnx.RNN, 0), (modules.nnx.RNN, 1))
    )
    paths = [[path for path, _ in nnx.to_flat_state(nnx.state(m))] for m in (before, after)]
    assert paths[0] == paths[1]
    with checkpoint.StandardCheckpointer() as files:
        files.save(tmp_path / "before", nnx.state(before, nnx.Param))
        files.wait_until_finished()
        nnx.update(after, files.restore(tmp_path / "before", nnx.state(after, nnx.Param)))
    lengths = jnp.asarray(LENGTHS)
    # float32, and mean pooling over real steps, so that Flax's padded outputs do not matter.
    close(after(TOKENS, lengths), before(TOKENS, lengths), 1e-6)


def test_split_merge_and_jit_see_an_ordinary_module():
    layer, xs = modules.nnx.RNN(flax_cell("GRUCell")), draw(1, B, T, D)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    close(nnx.merge(graphdef, params, rest)(xs), layer(xs), 0)
    pure = jax.jit(lambda params: nnx.merge(graphdef, params, rest)(xs))
    close(pure(params), layer(xs))
    close(nnx.jit(lambda layer: layer(xs))(layer), layer(xs))


def test_a_second_call_traces_nothing():
    traced = []

    def counted(x):
        traced.append(None)
        return jnp.tanh(x)

    xs = draw(1, B, T, D)
    layer = modules.nnx.RNN(flax_cell("SimpleCell", activation_fn=counted))
    layer(xs)
    first = len(traced)
    layer(xs + 1)
    layer(xs, seq_lengths=None)
    assert first == len(traced) > 0


def test_bidirectional_of_flax_takes_it_as_it_is():
    cells, xs = (flax_cell("LSTMCell"), flax_cell("GRUCell")), draw(1, B, T, D)
    ours, theirs = (
        nnx.Bidirectional(*map(kind, cells), return_carry=True)(xs, seq_lengths=LENGTHS)
        for kind in (modules.nnx.RNN, nnx.RNN)
    )
    close(ours[0], theirs[0])
    close(ours[1][VALID], theirs[1][VALID])
    assert np.all(ours[1][~VALID] == 0)


def test_a_random_carry_is_drawn_as_flax_draws_it():
    with pytest.warns(UserWarning, match="carry_init"):
        cell = flax_cell("LSTMCell", carry_init=nnx.initializers.normal())
    xs = draw(1, B, T, D)
    for rngs in (lambda: True, lambda: nnx.Rngs(3)):
        ours, theirs = modules.nnx.RNN(cell, rngs=rngs()), nnx.RNN(cell, rngs=rngs())
        close(ours(xs), theirs(xs))
        close(ours(xs), theirs(xs))  # the streams have moved on alike
    close(ours(xs, rngs=nnx.Rngs(8)), theirs(xs, rngs=nnx.Rngs(8)))


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "expected"),
    [
        (None, jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float16, jnp.float16, jnp.float16),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_dtypes_are_those_of_flax_and_sums_at_least_float32(dtype, param_dtype, expected):
    cell = nnx.LSTMCell(D, H, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    xs = draw(1, B, T, D).astype(param_dtype)
    ours, theirs = (kind(cell, return_carry=True)(xs) for kind in (modules.nnx.RNN, nnx.RNN))
    assert {a.dtype for a in jax.tree.leaves(ours)} == {jnp.dtype(expected)}
    assert [a.dtype for a in jax.tree.leaves(ours)] == [a.dtype for a in jax.tree.leaves(theirs)]
    half = dtype is not None
    close(
        *(jax.tree.map(lambda a: a.astype(float), r) for r in (ours, theirs)),
        4e-2 if half else 1e-6,
    )


def test_integer_inputs_are_promoted_as_in_flax():
    cell, xs = flax_cell("GRUCell"), jnp.arange(B * T * D).reshape(B, T, D) % 3
    close(modules.nnx.RNN(cell)(xs), nnx.RNN(cell)(xs))


def test_inputs_of_another_size_are_named_though_the_cell_has_no_hidden_bias():
    with pytest.raises(ValueError, match=f"xs must have size {D} in the last axis"):
        modules.nnx.RNN(flax_cell("GRUCell"))(jnp.ones((B, T, D + 1)))


def test_inputs_without_time_are_refused():
    with pytest.raises(ValueError, match="time and a feature axis"):
        modules.nnx.RNN(flax_cell("GRUCell"))(jnp.ones(D))


def test_rngs_in_the_place_of_a_key_are_refused_with_how_to_get_one():
    """They have any attribute, a dtype among them."""
    cell, rngs = rnnjax.gru(H), nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"key must be one key, .* got Rngs of Flax: .* rngs\(\)"):
        cell.init(rngs, D)
    with pytest.raises(ValueError, match=r"key must be one key, .* got RngStream of Flax"):
        cell.init(rngs.params, D)
    model = rnnjax.language_model(rnnjax.one_hot(3), cell)
    with pytest.raises(ValueError, match=r"key must be one key, .* got Rngs of Flax"):
        rnnjax.generate(
            model, model.init(rngs()), jnp.zeros((2, 1), int), max_new_tokens=1, key=rngs
        )

"""JAX's strict modes: rnnjax's own functions work under each, in value and in gradient."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.metrics import accuracy, cross_entropy, evaluate

pytestmark = pytest.mark.usefixtures("quick_compile")

MODES = {
    "strict dtype promotion": {"jax_numpy_dtype_promotion": "strict"},
    "no rank promotion, keys used once, internal checks": {
        "jax_numpy_rank_promotion": "raise",
        "jax_debug_key_reuse": True,
        "jax_enable_checks": True,
    },
    "NaN and infinity are errors": {"jax_debug_nans": True, "jax_debug_infs": True},
    "leaked tracers are errors": {"jax_check_tracer_leaks": True},
    "x64": {"jax_enable_x64": True},
}
# Optax's own Adam promotes dtypes, and reads a constant as if it were of the wider kind.
NOT_OPTAX = {"strict dtype promotion"}
CELLS = {
    "lstm": rnnjax.lstm(4),
    "gru": rnnjax.gru(4),
    "vanilla": rnnjax.vanilla(4),
    "gru_reset_before": rnnjax.gru(4, reset_after=False),
    "noisy": rnnjax.zoneout(rnnjax.variational_dropout(rnnjax.lstm(4), 0.2, 0.2), 0.1),
}


@contextlib.contextmanager
def mode(options):
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def make(cell):
    encoder = rnnjax.stack(rnnjax.bidirectional(cell), cell, dropout=0.2)
    return rnnjax.classifier(rnnjax.embedding(10, 3), encoder, 3, pooling="mean")


def batch():
    return {
        "tokens": jnp.asarray(np.arange(24).reshape(4, 6) % 8 + 2, jnp.int32),
        "lengths": jnp.array([6, 3, 1, 0], jnp.int32),
        "labels": jnp.array([0, 1, 2, 0], jnp.int32),
    }


def loss_of(model):
    def loss_fn(params, batch, key):
        logits = model.apply(params, batch["tokens"], batch["lengths"], key=key)
        loss = cross_entropy(logits, batch["labels"])
        return loss.value, {"loss": loss, "accuracy": accuracy(logits, batch["labels"])}

    return loss_fn


@pytest.mark.parametrize("name", MODES)
def test_a_classifier_trains_and_is_evaluated_under(name):
    with mode(MODES[name]):
        model = make(CELLS["noisy"])
        params = model.init(jax.random.key(0))
        loss_fn = loss_of(model)
        if name in NOT_OPTAX:
            grads = jax.grad(loss_fn, has_aux=True)(params, batch(), jax.random.key(1))[0]
            assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))
            return
        step = rnnjax.make_train_step(loss_fn, optax.adam(0.05))
        state = rnnjax.init_train_state(jax.random.key(1), params, optax.adam(0.05))
        for _ in range(2):
            state, metrics = step(state, batch())
        assert metrics["skipped"][0] == 0
        figures = evaluate(rnnjax.make_eval_step(loss_fn), state.params, [batch()])
        assert 0 < figures["loss"] < 3


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", MODES)
def test_every_option_of_unroll_works_under(name, cell):
    with mode(MODES[name]):
        cell = CELLS[cell]
        params = cell.init(jax.random.key(0), 3)
        xs = jax.random.normal(jax.random.key(1), (2, 6, 3), params_dtype(params))
        resets = jnp.zeros((2, 6), bool).at[0, 3].set(True)

        def loss(params, xs, key):
            carry, (ys, carries) = rnnjax.unroll(
                cell,
                params,
                xs,
                jnp.array([6, 2]),
                resets=resets,
                key=key,
                remat=4,
                all_carries=True,
            )
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((carry, ys, carries)))

        value, grads = jax.value_and_grad(loss)(params, xs, jax.random.key(2))
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((value, grads)))


def writes():
    """A text, and on from where it ended."""
    model = rnnjax.language_model(rnnjax.embedding(9, 4), rnnjax.lstm(4))
    params, lengths = model.init(jax.random.key(0)), jnp.array([4, 2], jnp.int32)
    prompt = jnp.array([[1, 2, 3, 4], [5, 6, 0, 0]], jnp.int32)
    out = rnnjax.generate(
        model, params, prompt, lengths, max_new_tokens=3, key=jax.random.key(1), stop=1
    )
    more = {"initial_carry": out.carry, "key": out.keys, "max_new_tokens": 2}
    return rnnjax.generate(model, params, out.last[:, None], **more).log_probs


def trains_through_windows():
    """A state and a carry moved twice; windows overlap, and what is dropped is drawn again."""
    layer = rnnjax.recurrent(CELLS["noisy"])
    step = rnnjax.make_truncated_step(
        layer.apply, lambda ys, *_: (jnp.mean(ys**2), {}), optax.sgd(0.1), k1=2, k2=4
    )
    state = rnnjax.init_train_state(
        jax.random.key(1), layer.init(jax.random.key(0), 3), optax.sgd(0.1)
    )
    xs = jnp.ones((2, 5, 3), params_dtype(state.params))
    carry = None
    for _ in range(2):
        state, carry, _ = step(state, rnnjax.Sequences(xs, jnp.zeros((2, 5))), carry)
    return state.params


@pytest.mark.parametrize("program", [writes, trains_through_windows])
@pytest.mark.parametrize("name", MODES)
def test_a_text_is_written_and_windows_are_trained_on_under(name, program):
    # Not both: JAX's internal checks read a loop as one that uses up every key it is given.
    with mode(MODES[name] | {"jax_enable_checks": False}):
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(program()))


def params_dtype(params):
    return jax.tree.leaves(params)[0].dtype


def test_what_masks_with_an_infinity_is_not_stopped_by_it():
    ys, valid = jnp.ones((2, 3, 2)), jnp.array([[True, False, False], [False] * 3])
    attention = rnnjax.attention("general")
    params = attention.init(jax.random.key(0), 2, 2)
    with mode(MODES["NaN and infinity are errors"]):
        rnnjax.masking.max_pool(ys, valid)
        rnnjax.pool_segments(ys, valid.astype(int), 2, "max")
        attention.apply(params, ys, ys, jnp.array([1, 0]))


@pytest.mark.parametrize("make", [rnnjax.residual, lambda cell: rnnjax.skip_stack(cell, cell)])
def test_inputs_of_16_bits_pass_by_a_layer_of_32_under_strict_promotion(make):
    layer = make(rnnjax.gru(4))
    params, xs = layer.init(jax.random.key(0), 4), jnp.ones((2, 5, 4), jnp.bfloat16)
    expected = layer.apply(params, xs, [5, 2])[1]
    with mode(MODES["strict dtype promotion"]):
        ys = layer.apply(params, xs, [5, 2])[1]
    assert ys.dtype == jnp.float32
    np.testing.assert_array_equal(ys, expected)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
@pytest.mark.parametrize("cell", ["lstm", "gru", "vanilla"])
def test_dropped_inputs_are_those_inputs_times_their_factor_under_strict_promotion(cell, dtypes):
    of_weights, of_inputs = dtypes
    noisy, key = rnnjax.variational_dropout(CELLS[cell], inputs=0.2), jax.random.key(1)
    params = jax.tree.map(lambda a: a.astype(of_weights), noisy.init(jax.random.key(0), 3))
    xs = jax.random.normal(jax.random.key(2), (2, 5, 3)).astype(of_inputs)
    factor = noisy.noise(key, params, rnnjax.NoiseShape(2, 5, 3)).inputs
    with jax.numpy_dtype_promotion("strict"):
        found = rnnjax.unroll(noisy, params, xs, key=key)[1]
        by_hand = xs.astype(jnp.float32) * factor[:, None]
        expected = rnnjax.unroll(CELLS[cell], params, by_hand)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrap", [rnnjax.attention_cell, rnnjax.window_cell])
def test_dropped_weights_below_attention_are_those_of_16_bits_under_strict_promotion(wrap):
    cell, key = wrap(rnnjax.weight_drop(CELLS["gru"], 0.5), 3), jax.random.key(1)
    params = jax.tree.map(lambda a: a.astype("bfloat16"), cell.init(jax.random.key(0), 3))
    memory = rnnjax.Memory(jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool))

    def outputs():
        return rnnjax.unroll(cell, params, jnp.ones((2, 5, 3)), context=memory, key=key)[1]

    with jax.numpy_dtype_promotion("strict"):
        found = outputs()
    jax.tree.map(np.testing.assert_array_equal, found, outputs())


def test_places_of_64_bits_are_counted_under_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        model = rnnjax.captioner(6, rnnjax.embedding(9, 5), rnnjax.gru(8), start=1)
        params = model.init(jax.random.key(0))
        places = jax.random.normal(jax.random.key(1), (2, 4, 6), "float64")
        texts = jnp.array([[1, 2], [2, 1]])
        both = model.apply(params, places, jnp.array([4, 2]), texts)[0]
        alone = model.apply(params, places[1:, :2], None, texts[1:])[0]
    np.testing.assert_allclose(both[1:], alone, rtol=1e-5, atol=1e-6)


def test_a_carry_of_two_dtypes_crosses_under_strict_promotion():
    half = rnnjax.Policy("bfloat16", "bfloat16", "bfloat16")
    encoder = rnnjax.stack(rnnjax.recurrent(rnnjax.gru(4), policy=half), rnnjax.gru(4))
    words = rnnjax.embedding(6, 4)
    model = rnnjax.sequence_to_sequence(words, encoder, words, rnnjax.gru(4), start=1)
    params, tokens = model.init(jax.random.key(0)), jnp.ones((2, 3), int)
    with jax.numpy_dtype_promotion("strict"):
        carry, _ = model.encode(params, tokens)
    final, _ = encoder.apply(params.encoder, words.apply(params.source, tokens))
    known = np.concatenate([np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(final)], -1)
    (bridge,) = params.bridge
    expected = np.tanh(known @ np.asarray(bridge.w) + np.asarray(bridge.bias))
    np.testing.assert_allclose(jax.tree.leaves(carry)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_dropped_state_of_16_bits_is_what_it_is_without_strict_promotion():
    half = rnnjax.Policy("bfloat16", "bfloat16", "bfloat16")
    layer = rnnjax.recurrent(rnnjax.variational_dropout(rnnjax.lstm(4), hidden=0.2), policy=half)
    params, xs = layer.init(jax.random.key(0), 3), jnp.ones((2, 5, 3), "bfloat16")

    def run(params):
        return jnp.sum(layer.apply(params, xs, key=jax.random.key(1))[1])

    expected = jax.value_and_grad(run)(params)
    with jax.numpy_dtype_promotion("strict"):
        found = jax.value_and_grad(run)(params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_layers_of_two_kinds_of_16_bits_meet_in_32():
    layer = rnnjax.skip_stack(rnnjax.gru(3), rnnjax.gru(3), policy=rnnjax.Policy(state="bfloat16"))
    params, xs = layer.init(jax.random.key(0), 4), jnp.ones((2, 5, 4), jnp.float16)
    expected = layer.apply(params, xs.astype(jnp.float32))[1]
    with jax.numpy_dtype_promotion("strict"):
        found = layer.apply(params, xs)[1]
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), rtol=1e-2, atol=1e-2
    )


def test_lazy_adam_moves_weights_of_16_bits_under_strict_promotion():
    from rnnjax.training.lazy_adam import init_lazy_adam, make_lazy_adam_step

    def loss_fn(rows, rest, batch, key):
        return jnp.sum(rows**2) + jnp.sum(rest.astype(jnp.float32) ** 2), {}

    step = make_lazy_adam_step(loss_fn, 0.1)

    def start():
        return init_lazy_adam(jnp.ones((300, 2)), jnp.ones(2, jnp.bfloat16), max_steps=5)

    expected, _ = step(start(), jnp.array([1, 3]), None)
    with jax.numpy_dtype_promotion("strict"):
        found, _ = step(start(), np.array([1, 3], np.int8), None)
    np.testing.assert_array_equal(found.rest, expected.rest)
    np.testing.assert_array_equal(found.table.last, expected.table.last)


def test_micro_batches_are_weighed_in_the_dtype_of_each_gradient_under_strict_promotion():
    def loss_fn(params, batch, key):
        loss = rnnjax.metrics.squared_error(batch, jnp.zeros_like(batch) + params)
        return loss.value, {"loss": loss}

    optimizer = optax.sgd(0.1)
    batches = jnp.arange(4, dtype=jnp.float32).reshape(2, 2)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        step = rnnjax.training.make_accumulating_step(loss_fn, optimizer)
        state = rnnjax.init_train_state(jax.random.key(0), jnp.float32(1.0), optimizer)
        state, _ = step(state, batches)
    # The mean over all rows of (x - w)^2 has the slope 2 (w - mean x).
    np.testing.assert_allclose(state.params, 1 - 0.1 * 2 * (1 - 1.5), rtol=1e-6)

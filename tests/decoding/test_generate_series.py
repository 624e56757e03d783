"""Series are drawn by their law, row by row, wherever the row stands."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

HEADS = {
    "ids": rnnjax.categorical_head(3),
    "keys": rnnjax.bernoulli_head(2),
    "strokes": rnnjax.joint_head(rnnjax.gaussian_mixture_head(2, 2), rnnjax.bernoulli_head(1)),
}
EVERY_HEAD = pytest.mark.parametrize("name", HEADS)
LENGTHS = np.array([4, 1, 2])
KEYS = jax.random.split(jax.random.key(3), 3)


def make(name):
    """A model whose draws depend much on what came before, and three prompts."""
    model = rnnjax.series_model(rnnjax.gru(4), HEADS[name])
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(0)))
    shape = (3, 4, *model.head.value_shape)
    prompt = np.random.default_rng(1).integers(0, 2, shape)
    return model, params, prompt if name == "ids" else prompt.astype("float32")


def write(name, rows=(0, 1, 2), count=5, **options):
    model, params, prompt = make(name)
    rows = np.array(rows)
    given = {"lengths": LENGTHS[rows], "key": KEYS[rows], **options}
    return rnnjax.generate_series(model, params, prompt[rows], max_new_steps=count, **given)


def test_strings_come_as_often_as_the_law_says():
    model, params, _ = make("ids")
    count, strings = 30_000, np.array(list(itertools.product(range(3), repeat=2)))
    whole = np.concatenate([np.full((9, 1), 1), strings], axis=1)
    _, scores = model.score(params, (whole[:, :-1], whole[:, 1:]))
    out = rnnjax.generate_series(
        model, params, np.full((count, 1), 1), max_new_steps=2, key=jax.random.key(7)
    )
    seen = np.bincount(np.asarray(out.values) @ [3, 1], minlength=9)
    expected = count * np.exp(np.asarray(scores, np.float64).sum(1))
    assert scipy.stats.chisquare(seen, expected * count / expected.sum()).pvalue > 1e-3


def test_a_layer_made_by_hand_need_not_take_a_context():
    """It is the recurrent layer with fewer arguments."""
    inner = rnnjax.recurrent(rnnjax.gru(4))

    def apply(params, xs, lengths=None, *, mask=None, resets=None, initial_carry=None, key=None):
        return inner.apply(
            params, xs, lengths, mask=mask, resets=resets, initial_carry=initial_carry, key=key
        )

    model, params, prompt = make("keys")
    by_hand = rnnjax.series_model(inner._replace(apply=apply), HEADS["keys"])
    found = by_hand.apply(params, prompt, LENGTHS)
    for a, b in zip(
        *map(jax.tree.leaves, (found, model.apply(params, prompt, LENGTHS))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["ids", "strokes"])
def test_a_row_depends_on_its_prompt_and_its_key_alone(name):
    model, params, prompt = make(name)
    together = write(name)
    for row, length in enumerate(LENGTHS[:2]):
        alone = rnnjax.generate_series(
            model, params, prompt[row, :length], max_new_steps=3, key=KEYS[row]
        )
        np.testing.assert_allclose(together.values[row, :3], alone.values, rtol=1e-5, atol=1e-5)
    back = write(name, (2, 1, 0))
    np.testing.assert_allclose(together.values[::-1], back.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["keys", "strokes"])
def test_the_padding_of_a_prompt_is_never_read(name):
    model, params, prompt = make(name)
    spoilt = np.where((np.arange(4) < LENGTHS[:, None])[..., None], prompt, np.nan)
    options = {"lengths": LENGTHS, "max_new_steps": 5, "key": KEYS}
    out = rnnjax.generate_series(model, params, spoilt, **options)
    np.testing.assert_array_equal(out.values, write(name).values)


@EVERY_HEAD
def test_log_probs_are_those_of_the_series_scored_again(name):
    model, params, prompt = make(name)
    out = write(name)
    for row, length in enumerate(LENGTHS):
        whole = np.concatenate([prompt[row, :length], np.asarray(out.values[row])])
        _, scores = jax.jit(model.score)(params, (whole[:-1], whole[1:]))
        np.testing.assert_allclose(out.log_probs[row], scores[length - 1 :], rtol=1e-4, atol=1e-5)


@EVERY_HEAD
def test_two_calls_write_what_one_would(name):
    model, params, _ = make(name)
    whole, first = write(name), write(name, count=2)
    second = rnnjax.generate_series(
        model,
        params,
        first.last[:, None],
        max_new_steps=3,
        key=first.keys,
        initial_carry=first.carry,
    )
    joined = np.concatenate([first.values, second.values], axis=1)
    np.testing.assert_allclose(joined, whole.values, rtol=1e-5, atol=1e-5)


def with_text(rows):
    """A model that reads a text of each row through a window."""
    window = rnnjax.window_cell(rnnjax.gru(4), 3, 2, speed=0.5)
    model = rnnjax.series_model(rnnjax.skip_stack(window, rnnjax.gru(4)), HEADS["strokes"])
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(0)))
    states = jax.random.normal(jax.random.key(1), (3, 4, 3))
    memory = rnnjax.Memory(states, rnnjax.lengths_to_mask([4, 1, 3], 4))
    context = jax.tree.map(lambda a: a[np.array(rows)], (memory, None))
    return model, params, np.zeros((len(rows), 1, 3), "float32"), context


@pytest.mark.full
def test_each_row_is_written_after_its_own_context():
    model, params, start, context = with_text([0, 1, 2])
    out = rnnjax.generate_series(model, params, start, max_new_steps=4, key=KEYS, context=context)
    whole = np.concatenate([start, out.values], axis=1)
    _, scores = jax.jit(model.score)(params, (whole[:, :-1], whole[:, 1:]), context=context)
    np.testing.assert_allclose(out.log_probs, scores, rtol=1e-4, atol=1e-5)
    # Another text, another series; and a row is what it is alone.
    model, params, start, context = with_text([2, 1])
    other = rnnjax.generate_series(
        model, params, start, max_new_steps=4, key=KEYS[:2], context=context
    )
    np.testing.assert_allclose(other.values[1], out.values[1], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(other.values[0] - out.values[0])) > 1e-3


def to_the_left(value):
    return value[0] < 0


@pytest.mark.full
def test_a_row_ends_with_the_first_value_that_stops_it():
    free, out = write("strokes", count=8), write("strokes", count=8, stop=to_the_left)
    assert len(set(out.lengths.tolist())) > 1
    for row, length in enumerate(np.asarray(out.lengths)):
        ends = np.flatnonzero(np.asarray(free.values[row, :, 0]) < 0)
        assert length == (ends[0] + 1 if len(ends) else 8)
        np.testing.assert_allclose(
            out.values[row, :length], free.values[row, :length], rtol=1e-5, atol=1e-5
        )
        assert not np.any(out.values[row, length:])
        assert not np.any(out.log_probs[row, length:])


BAD = {
    "model must be a rnnjax.SeriesModel, got int": lambda m, p: rnnjax.generate_series(
        3, p, np.zeros((1, 2)), max_new_steps=1, key=KEYS[0]
    ),
    r"prompt must have shape \[..., T, 2\] with T at least 1, got shape \(0, 2\)": lambda m, p: (
        rnnjax.generate_series(m, p, np.zeros((0, 2)), max_new_steps=1, key=KEYS[0])
    ),
    "lengths must be at least 1": lambda m, p: rnnjax.generate_series(
        m, p, np.zeros((1, 1, 2)), [0], max_new_steps=1, key=KEYS[0]
    ),
    "prompt must be an array of numbers, got str": lambda m, p: rnnjax.generate_series(
        m, p, "ab", max_new_steps=1, key=KEYS[0]
    ),
    r"stop must give True or False for a value, got 'bool\[2\]'": lambda m, p: (
        rnnjax.generate_series(
            m, p, np.zeros((1, 2)), max_new_steps=1, key=KEYS[0], stop=lambda value: value > 0
        )
    ),
    "stop must give True or False for a value, got None": lambda m, p: rnnjax.generate_series(
        m, p, np.zeros((1, 2)), max_new_steps=1, key=KEYS[0], stop=lambda value: None
    ),
    "initial_carry must be an array of numbers, got str": lambda m, p: rnnjax.generate_series(
        m, p, np.zeros((1, 2)), max_new_steps=1, key=KEYS[0], initial_carry="zeros"
    ),
    r"params must be SeriesModelParams\(layer, head\), got None": lambda m, p: m.score(
        None, (np.zeros((3, 2)), np.zeros((3, 2)))
    ),
    "stop must be a function": lambda m, p: rnnjax.generate_series(
        m, p, np.zeros((1, 2)), max_new_steps=1, key=KEYS[0], stop=3
    ),
    "prompt must be real, got dtype complex64": lambda m, p: rnnjax.generate_series(
        m, p, np.zeros((1, 2), "complex64"), max_new_steps=1, key=KEYS[0]
    ),
    "max_new_steps must be a positive integer": lambda m, p: rnnjax.generate_series(
        m, p, np.zeros((1, 2)), max_new_steps=0, key=KEYS[0]
    ),
    r"values must lie in \[0, 3\), got 3 at index \(0, 1\)": lambda m, p: rnnjax.generate_series(
        *make("ids")[:2], np.array([[0, 3]]), max_new_steps=1, key=KEYS[0]
    ),
    r"values must have shape \[..., T, 2\], got shape \(2,\)": lambda m, p: m.score(
        p, (np.zeros(2), np.zeros(2))
    ),
    r"values must have shape \[..., T, 2\], got shape \(3, 7\)": lambda m, p: m.apply(
        p, np.zeros((3, 7))
    ),
    r"pair \(values, targets\) must be a tuple of 2, got an array": lambda m, p: m.loss(
        p, np.zeros((2, 3, 2))
    ),
    "layer must not read ahead": lambda m, p: rnnjax.series_model(
        rnnjax.bidirectional(rnnjax.gru(2)), HEADS["keys"]
    ),
    "head must be one of rnnjax.heads": lambda m, p: rnnjax.series_model(rnnjax.gru(2), 88),
    "layer must be a rnnjax.Cell": lambda m, p: rnnjax.series_model(4, HEADS["keys"]),
    "dropout must be a rate": lambda m, p: rnnjax.series_model(
        rnnjax.gru(2), HEADS["keys"], dropout=1.0
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    model, params, _ = make("keys")
    with pytest.raises(ValueError, match=message):
        BAD[message](model, params)


@EVERY_HEAD
def test_a_row_whose_distribution_is_nan_ends_there(name):
    """Keys of a piano would be silent for ever, and every id the first that is NaN."""
    model, params, prompt = make(name)
    carry = jnp.zeros((3, 4)).at[1].set(jnp.nan)
    options = {"max_new_steps": 5, "key": KEYS, "initial_carry": carry}
    out = rnnjax.generate_series(model, params, prompt, LENGTHS, **options)
    assert out.lengths.tolist() == [5, 0, 5]
    assert not np.any(out.values[1])
    assert np.all(np.isfinite(out.log_probs))


def test_the_model_of_a_series_is_its_layer_and_its_head_with_lengths():
    model, params, values = make("keys")
    pair, lengths = (values[:, :-1], values[:, 1:]), LENGTHS - 1
    carry, (total, count) = model.loss(params, pair, lengths)
    expected = 0.0
    for row, length in enumerate(lengths):
        _, ys = rnnjax.unroll(rnnjax.gru(4), params.layer, values[row, :length])
        logits = np.asarray(ys, float) @ np.asarray(params.head.w, float)
        p = 1 / (1 + np.exp(-logits - np.asarray(params.head.bias)))
        targets = values[row, 1 : length + 1]
        expected -= np.log(np.where(targets == 1, p, 1 - p)).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert int(count) == lengths.sum()
    again, _ = model.step(params, model.initial_carry(params, (3,)), values[:, 0])
    np.testing.assert_allclose(again[2], carry[2], rtol=1e-6)  # a row of one step


def test_dropout_of_a_series_needs_a_key():
    model = rnnjax.series_model(rnnjax.gru(4), HEADS["keys"], dropout=0.5)
    _, params, values = make("keys")
    quiet, same = (model.apply(params, values)[1] for _ in range(2))
    np.testing.assert_array_equal(quiet, same)
    np.testing.assert_allclose(quiet, make("keys")[0].apply(params, values)[1], rtol=1e-6)
    assert not np.allclose(model.apply(params, values, key=KEYS[0])[1], quiet)


def test_a_batch_is_written_on_devices_with_explicit_axes():
    mesh = jax.make_mesh((1,), ("batch",))
    rows = jax.NamedSharding(mesh, jax.P("batch"))
    model, params, prompt = make("keys")
    out = rnnjax.generate_series(
        model, params, jax.device_put(jnp.asarray(prompt), rows), max_new_steps=3, key=KEYS
    )
    expected = rnnjax.generate_series(model, params, prompt, max_new_steps=3, key=KEYS)
    np.testing.assert_array_equal(out.values, expected.values)


def test_values_are_of_the_dtype_of_the_prompt_with_64_bits():
    with jax.enable_x64(True):
        model, params, prompt = make("keys")
        params = jax.tree.map(lambda a: a.astype("float64"), params)
        given = {"max_new_steps": 2, "key": jax.random.PRNGKey(0)}
        out = rnnjax.generate_series(model, params, prompt[:2].astype("float64"), **given)
        assert rnnjax.generate_series(model, params, prompt[:0], **given).values.shape[:2] == (0, 2)
    assert (out.values.dtype, out.log_probs.dtype) == (jnp.float64, jnp.float32)


def test_what_pads_a_row_of_ids_need_not_be_an_id():
    model, params, prompt = make("ids")
    real = rnnjax.lengths_to_mask(LENGTHS, 4)
    dirty = np.where(real, prompt, -1)
    written, expected = (
        rnnjax.generate_series(model, params, p, LENGTHS, max_new_steps=3, key=KEYS)
        for p in (dirty, prompt)
    )
    np.testing.assert_array_equal(written.values, expected.values)
    found, score = (model.score(params, (p, p), LENGTHS)[1] for p in (dirty, prompt))
    np.testing.assert_array_equal(found, score)
    assert np.all(np.isfinite(found))


def test_a_method_stops_a_series_by_what_its_object_holds_now():
    class Limit:
        least = -1e9

        def passed(self, value):
            return value[0] > self.least

    limit, model = Limit(), rnnjax.series_model(rnnjax.gru(2), rnnjax.gaussian_mixture_head(1))
    params, prompt = model.init(jax.random.key(0)), jnp.zeros((1, 1))

    def steps():
        options = {"max_new_steps": 3, "key": jax.random.key(1), "stop": limit.passed}
        return int(rnnjax.generate_series(model, params, prompt, **options).lengths)

    assert steps() == 1
    limit.least = 1e9
    assert steps() == 3

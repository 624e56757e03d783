"""Texts drawn by models that read before they write, held against their own `apply`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

V, START, STOP, N = 7, 5, 6, 6
WORDS = rnnjax.embedding(V, 4)
GRU = rnnjax.gru(5)
SOURCES, LENGTHS = np.array([[0, 1, 2], [3, 0, 0], [4, 4, 0]]), np.array([3, 1, 2])
PLACES = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
MODELS = {
    "no attention": rnnjax.sequence_to_sequence(WORDS, GRU, WORDS, GRU, start=START),
    "attention outside": rnnjax.sequence_to_sequence(
        WORDS,
        rnnjax.bidirectional(GRU),
        WORDS,
        rnnjax.lstm(5),
        start=START,
        attention=rnnjax.attention("general"),
    ),
    "attention inside": rnnjax.sequence_to_sequence(
        WORDS, GRU, WORDS, rnnjax.attention_cell(GRU, memory_size=5), start=START
    ),
    "layers above": rnnjax.sequence_to_sequence(
        WORDS,
        GRU,
        WORDS,
        rnnjax.attention_cell(GRU, memory_size=5),
        start=START,
        above=rnnjax.lstm(4),
        bridge="zeros",
    ),
    "a captioner": rnnjax.captioner(
        4, WORDS, rnnjax.attention_cell(GRU, memory_size=4), start=START
    ),
}


def made(name):
    """A model, its parameters, sources, and what it has read."""
    model = MODELS[name]
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(1)))
    sources = PLACES if model.source_ndim == 2 else SOURCES
    return model, params, sources, *model.encode(params, sources, LENGTHS)


def write(model, params, carry, memory, prompt=None, **options):
    if prompt is None:
        prompt = np.full((len(LENGTHS), 1), START)
    given = {"max_new_tokens": N, "key": jax.random.key(2), "stop": STOP, **options}
    return rnnjax.generate(model, params, prompt, initial_carry=carry, memory=memory, **given)


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_that_apply_gives_the_text(name):
    model, params, sources, carry, memory = made(name)
    out = write(model, params, carry, memory)
    assert len({tuple(row) for row in out.tokens.tolist()}) > 1
    logits, _ = model.apply(params, sources, LENGTHS, out.tokens, out.lengths)
    log_probs = jax.nn.log_softmax(np.asarray(logits, np.float64))
    expected = np.take_along_axis(log_probs, np.asarray(out.tokens)[..., None], -1)[..., 0]
    written = np.arange(N) < np.asarray(out.lengths)[:, None]
    np.testing.assert_allclose(out.log_probs, np.where(written, expected, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_texts_are_those_of_a_loop_over_steps(name):
    model, params, _, carry, memory = made(name)
    out = write(model, params, carry, memory, sampling=rnnjax.greedy(), key=None)
    token, ended = jnp.full(len(LENGTHS), START), np.zeros(len(LENGTHS), bool)
    for n in range(N):
        carry, logits, _ = model.step(params, carry, token, memory)
        token = jnp.argmax(logits, axis=-1)
        np.testing.assert_array_equal(out.tokens[:, n], np.where(ended, 0, token))
        ended |= np.asarray(token) == STOP


def test_first_words_are_drawn_by_their_probability():
    model, params, _, carry, memory = made("attention inside")
    _, logits, _ = model.step(params, carry, jnp.full(3, START), memory)
    draws, one = 4000, jax.tree.map(lambda a: a[:1], (carry, memory))
    many = jax.tree.map(lambda a: jnp.repeat(a, draws, axis=0), one)
    prompt = np.full((draws, 1), START)
    out = write(model, params, *many, prompt=prompt, max_new_tokens=1)
    found = np.bincount(np.asarray(out.tokens[:, 0]), minlength=V) / draws
    np.testing.assert_allclose(found, jax.nn.softmax(logits[0]), atol=0.03)


def test_ragged_prompts_are_the_words_that_a_text_begins_with():
    """A row is what it is alone, whatever pads its prompt, and its prompt is read as a target."""
    model, params, sources, carry, memory = made("attention outside")
    prompt, lengths = np.array([[START, 1, 2], [START, -1, -1], [START, 3, -1]]), [3, 1, 2]
    out = write(
        model, params, carry, memory, prompt, lengths=lengths, key=None, sampling=rnnjax.greedy()
    )
    for row, length in enumerate(lengths):
        own = jax.tree.map(lambda a, row=row: a[row], (carry, memory))
        alone = write(model, params, *own, prompt[row, :length], key=None, sampling=rnnjax.greedy())
        np.testing.assert_array_equal(out.tokens[row], alone.tokens)
        text = np.concatenate([prompt[row, 1:length], alone.tokens[:1]])
        source = sources[row, : LENGTHS[row]]
        logits, _ = model.apply(params, source, None, text)
        expected = jax.nn.log_softmax(logits[-1])[text[-1]]
        np.testing.assert_allclose(alone.log_probs[0], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (3, 1), (1, 3)])
def test_batches_of_any_axes(shape):
    model, params, _, carry, memory = made("attention outside")
    flat = write(model, params, carry, memory)
    if shape:
        read = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), (carry, memory))
    else:
        read = jax.tree.map(lambda a: a[0], (carry, memory))
        flat = write(model, params, carry, memory, key=jnp.repeat(jax.random.key(2)[None], 3))
    out = write(model, params, *read, prompt=np.full((*shape, 1), START))
    expected = flat.tokens.reshape(*shape, N) if shape else flat.tokens[0]
    np.testing.assert_array_equal(out.tokens, expected)


def test_going_on_writes_what_one_longer_call_does():
    model, params, _, carry, memory = made("layers above")
    whole = write(model, params, carry, memory, stop=None)
    first = write(model, params, carry, memory, stop=None, max_new_tokens=2)
    rest = write(
        model,
        params,
        first.carry,
        memory,
        first.last[:, None],
        stop=None,
        key=first.keys,
        max_new_tokens=N - 2,
    )
    tokens = np.concatenate([first.tokens, rest.tokens], axis=1)
    np.testing.assert_array_equal(tokens, whole.tokens)


REFUSED = {
    "no carry": (
        lambda carry, memory: (None, memory, {}),
        "initial_carry must be the carry that model.encode gave, got None",
    ),
    "no memory": (
        lambda carry, memory: (carry, None, {}),
        "memory must be what encode gave, got NoneType",
    ),
    "another batch": (
        lambda carry, memory: (carry, jax.tree.map(lambda a: a[:2], memory), {}),
        r"memory.states must have the batch shape of prompt, \(3,\)",
    ),
    "no word": (
        lambda carry, memory: (carry, memory, {"prompt": np.full((3, 1), V)}),
        r"prompt must lie in \[0, 7\), got 7",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named(case):
    change, words = REFUSED[case]
    model, params, _, carry, memory = made("attention outside")
    carry, memory, options = change(carry, memory)
    with pytest.raises(ValueError, match=words):
        write(model, params, carry, memory, **options)


def test_a_language_model_has_no_memory():
    *_, memory = made("attention outside")
    model = rnnjax.language_model(WORDS, GRU)
    with pytest.raises(ValueError, match="memory must be None for a language model, got Memory"):
        write(model, model.init(jax.random.key(0)), None, memory)

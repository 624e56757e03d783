"""What is written is what the law says, row by row, wherever the row stands."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import rnnjax
from rnnjax.decoding import History
from rnnjax.models import Features, LanguageModel

pytestmark = pytest.mark.usefixtures("quick_compile")

V = 3
# The logits of the next token after the two before it; a third row for "nothing yet".
TABLE = np.random.default_rng(0).normal(0.0, 1.5, (V + 1, V + 1, V)).astype(np.float32)


def trigram_model(table=TABLE):
    """A model whose law can be read off a table: its carry is the last two tokens."""
    vocabulary = table.shape[-1]

    def step(params, carry, token):
        carry = jnp.stack([carry[..., 1], token], axis=-1)
        return carry, params[carry[..., 0], carry[..., 1]]

    def initial_carry(params, batch_shape=()):
        return jnp.full((*batch_shape, 2), vocabulary, jnp.int32)

    def features(params, tokens, lengths=None, *, initial_carry=None, **_):
        batch, time = tokens.shape[:-1], tokens.shape[-1]
        carry = start(params, batch) if initial_carry is None else initial_carry
        lengths = jnp.full(batch, time) if lengths is None else jnp.asarray(lengths)
        outputs = []
        for t in range(time):
            new, logits = step(params, carry, tokens[..., t])
            carry = jnp.where((t < lengths)[..., None], new, carry)
            outputs.append(jnp.where((t < lengths)[..., None], logits, 0.0))
        ys = jnp.stack(outputs, axis=-2)
        return carry, Features(ys, ys)

    start = initial_carry
    return LanguageModel(
        init=None,
        apply=None,
        step=step,
        initial_carry=initial_carry,
        features=features,
        head=lambda params, hs: hs,
        head_weights=None,
        score=None,
        vocab_size=vocabulary,
    )


MODEL, PARAMS = trigram_model(), jnp.asarray(TABLE)
TRANSLATOR = rnnjax.sequence_to_sequence(
    rnnjax.one_hot(3), rnnjax.gru(2), rnnjax.one_hot(3), rnnjax.gru(2), start=0
)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


def law(prompt, text, change=lambda logits, history: logits):
    """The log probability of a text after a prompt, in NumPy float64.

    ``change`` is given the logits, and all tokens that are there.
    """
    total, history = 0.0, [V, V, *prompt]
    for token in text:
        logits = change(np.asarray(TABLE[history[-2], history[-1]], np.float64), history[2:])
        total += log_softmax(logits)[token]
        history.append(token)
    return total


def keep_top(logits, k):
    return np.where(logits >= np.sort(logits)[-k], logits, -np.inf)


def keep_nucleus(logits, p):
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(log_softmax(logits))[order]
    count = np.searchsorted(np.cumsum(probabilities), p) + 1
    kept = np.full_like(logits, -np.inf)
    kept[order[:count]] = logits[order[:count]]
    return kept


def keep_likely(logits, p):
    return np.where(logits >= logits.max() + np.log(p), logits, -np.inf)


def penalise(logits, seen, penalty):
    lowered = np.where(logits > 0, logits / penalty, logits * penalty)
    return np.where(np.isin(np.arange(V), seen), lowered, logits)


def without(logits, token):
    return np.where(np.arange(V) == token, -np.inf, logits)


SAMPLINGS = {
    "plain": (rnnjax.sample(), lambda logits, _: logits),
    "temperature": (rnnjax.sample(rnnjax.temperature(2.0)), lambda logits, _: logits / 2.0),
    "top_k": (rnnjax.sample(rnnjax.top_k(2)), lambda logits, _: keep_top(logits, 2)),
    "top_p": (rnnjax.sample(rnnjax.top_p(0.7)), lambda logits, _: keep_nucleus(logits, 0.7)),
    "min_p": (rnnjax.sample(rnnjax.min_p(0.3)), lambda logits, _: keep_likely(logits, 0.3)),
    "forbid": (rnnjax.sample(rnnjax.forbid([1])), lambda logits, _: without(logits, 1)),
    "both": (
        rnnjax.sample(rnnjax.temperature(0.5), rnnjax.top_k(2)),
        lambda logits, _: keep_top(logits / 0.5, 2),
    ),
    "repetition_penalty": (
        rnnjax.sample(rnnjax.repetition_penalty(1.8, window=3)),
        lambda logits, history: penalise(logits, history[-3:], 1.8),
    ),
    "min_length": (
        rnnjax.sample(rnnjax.min_length(2, [0])),
        lambda logits, history: without(logits, 0) if len(history) < 2 + 2 else logits,
    ),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_strings_come_as_often_as_the_law_says(name):
    sampling, change = SAMPLINGS[name]
    draws, prompt = 50_000, [2, 0]
    prompts = jnp.tile(jnp.array(prompt), (draws, 1))
    out = rnnjax.generate(
        MODEL, PARAMS, prompts, max_new_tokens=3, key=jax.random.key(1), sampling=sampling
    )
    strings = list(itertools.product(range(V), repeat=3))
    expected = draws * np.exp([law(prompt, text, change) for text in strings])
    codes = np.asarray(out.tokens) @ np.array([V * V, V, 1])
    seen = np.bincount(codes, minlength=V**3)
    possible = expected > 0
    assert seen[~possible].sum() == 0
    statistic = np.sum((seen[possible] - expected[possible]) ** 2 / expected[possible])
    assert statistic < scipy.stats.chi2.ppf(0.999, possible.sum() - 1)


PROMPTS = jnp.array([[0, 1, 2, 1], [2, 0, 0, 0], [1, 1, 0, 0]])
LENGTHS = [4, 1, 2]
KEYS = jax.random.split(jax.random.key(3), 3)


def write(rows=(0, 1, 2), count=6, keys=KEYS, lengths=LENGTHS, prompts=PROMPTS, **options):
    rows = list(rows)
    return rnnjax.generate(
        MODEL,
        PARAMS,
        prompts[jnp.array(rows)],
        lengths=[lengths[i] for i in rows],
        max_new_tokens=count,
        key=keys[jnp.array(rows)],
        **options,
    )


@pytest.mark.parametrize("stop", [None, 2])
def test_log_probs_are_those_of_the_text_scored_again(stop):
    out = write(stop=stop, sampling=rnnjax.sample(rnnjax.temperature(0.7), rnnjax.top_k(2)))
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        new = int(out.lengths[row])
        text = [int(t) for t in out.tokens[row, :new]]
        scored = law([int(t) for t in prompt[:length]], text)
        np.testing.assert_allclose(np.sum(out.log_probs[row]), scored, rtol=1e-5)
        assert not np.any(out.log_probs[row, new:])


def test_greedy_is_the_loop_of_steps_with_argmax():
    out = write(sampling=rnnjax.greedy())
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        history = [V, V, *(int(t) for t in prompt[:length])]
        for token in out.tokens[row]:
            assert int(token) == int(np.argmax(TABLE[history[-2], history[-1]]))
            history.append(int(token))


def test_a_very_low_temperature_is_greedy():
    cold = write(sampling=rnnjax.sample(rnnjax.temperature(1e-4)))
    np.testing.assert_array_equal(cold.tokens, write(sampling=rnnjax.greedy()).tokens)


@pytest.mark.parametrize(
    "transform",
    [rnnjax.top_k(V), rnnjax.top_p(1.0), rnnjax.repetition_penalty(1.0), rnnjax.temperature(1.0)],
)
def test_a_transformer_that_keeps_all_changes_nothing(transform):
    logits = jax.random.normal(jax.random.key(0), (5, V))
    history = History(jnp.zeros((5, 4), jnp.int32), jnp.full(5, 2), jnp.full(5, 1))
    np.testing.assert_array_equal(jax.vmap(transform)(logits, history), logits)


# Few tokens are compared with each other, many are sorted.
@pytest.mark.parametrize("vocabulary", [20, 300])
@pytest.mark.parametrize("k", [1, 7])
def test_the_k_largest_are_kept_and_what_is_equal_to_the_least_of_them(vocabulary, k):
    logits = np.random.default_rng(0).normal(size=(50, vocabulary)).round(1).astype(np.float32)
    kept = np.isfinite(jax.vmap(lambda row: rnnjax.top_k(k)(row, None))(jnp.asarray(logits)))
    np.testing.assert_array_equal(kept, logits >= np.sort(logits, axis=1)[:, -k, None])
    assert kept.sum() > 50 * k


@pytest.mark.parametrize("vocabulary", [20, 300])
@pytest.mark.parametrize("p", [1e-300, 0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_reaches_p_and_not_without_its_least_member(p, vocabulary):
    logits = jax.random.normal(jax.random.key(0), (200, vocabulary)) * 3
    kept = np.isfinite(jax.vmap(lambda row: rnnjax.top_p(p)(row, None))(logits))
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
    for row, mask in zip(probabilities, kept, strict=True):
        mass = row[mask].sum()
        assert mass >= p - 1e-6
        assert mass - row[mask].min() < p + 1e-6
        assert row[mask].min() >= row[~mask].max(initial=0.0)


@pytest.mark.parametrize("vocabulary", [8, 512])
def test_of_equal_tokens_the_nucleus_has_the_first_and_no_more_than_reach_p(vocabulary):
    kept = rnnjax.top_p(0.5)(jnp.zeros(vocabulary), History(jnp.zeros(1, int), 1, 0))
    np.testing.assert_array_equal(kept > -jnp.inf, np.arange(vocabulary) < vocabulary // 2)


def test_tokens_as_likely_as_the_likeliest_are_all_kept_by_a_min_p_of_1():
    kept = rnnjax.min_p(1.0)(jnp.array([0.3, 1.7, 1.7, -2.0]), History(jnp.zeros(1, int), 1, 0))
    np.testing.assert_array_equal(kept > -jnp.inf, [False, True, True, False])


def test_a_token_that_was_there_is_made_less_likely_and_no_other():
    logits = jnp.array([[2.0, -2.0, 1.0, -1.0], [2.0, -2.0, 1.0, -1.0]])
    history = History(jnp.array([[0, 1, 3], [2, 0, 1]]), jnp.array([2, 3]), jnp.array([0, 0]))
    penalised = jax.vmap(rnnjax.repetition_penalty(2.0))(logits, history)
    np.testing.assert_array_equal(penalised, [[1.0, -4.0, 1.0, -1.0], [1.0, -4.0, 0.5, -1.0]])
    last = jax.vmap(rnnjax.repetition_penalty(2.0, window=1))(logits, history)
    np.testing.assert_array_equal(last, [[2.0, -4.0, 1.0, -1.0], [2.0, -4.0, 1.0, -1.0]])


def test_forbidden_ids_never_come():
    prompts = jnp.zeros((20_000, 1), jnp.int32)
    sampling = rnnjax.sample(rnnjax.forbid([0, 2]))
    out = rnnjax.generate(
        MODEL, PARAMS, prompts, max_new_tokens=5, key=jax.random.key(0), sampling=sampling
    )
    assert np.all(np.asarray(out.tokens) == 1)


def test_no_stop_comes_before_the_least_length():
    prompts = jnp.zeros((500, 1), jnp.int32)
    sampling = rnnjax.sample(rnnjax.min_length(3, [1]))
    out = rnnjax.generate(
        MODEL, PARAMS, prompts, max_new_tokens=8, key=jax.random.key(0), sampling=sampling, stop=1
    )
    assert int(out.lengths.min()) == 4
    assert not np.any(np.asarray(out.tokens)[:, :3] == 1)


def same_rows(one, other, rows, count=None):
    """Whether ``one`` holds what ``other`` holds in ``rows``, as far as ``count`` tokens."""
    for mine, row in enumerate(rows):
        np.testing.assert_array_equal(one.tokens[mine, :count], other.tokens[row, :count])
        np.testing.assert_array_equal(one.log_probs[mine, :count], other.log_probs[row, :count])


def test_neighbours_order_padding_and_the_most_tokens_leave_a_row_as_it_was():
    out = write()
    same_rows(write(rows=(2, 0)), out, (2, 0))
    same_rows(write(rows=(1,)), out, (1,))
    same_rows(write(count=11), out, (0, 1, 2), count=6)
    wider = jnp.concatenate([PROMPTS, jnp.ones((3, 5), jnp.int32)], axis=1)
    same_rows(write(prompts=wider), out, (0, 1, 2))


def test_a_prompt_by_itself_is_the_prompt_in_a_batch():
    out = write()
    for row, length in enumerate(LENGTHS):
        alone = rnnjax.generate(
            MODEL, PARAMS, PROMPTS[row, :length], max_new_tokens=6, key=KEYS[row]
        )
        np.testing.assert_array_equal(alone.tokens, out.tokens[row])


def test_two_calls_write_what_one_longer_call_writes():
    whole, first = write(count=9), write(count=4)
    second = rnnjax.generate(
        MODEL,
        PARAMS,
        first.last[:, None],
        max_new_tokens=5,
        key=first.keys,
        initial_carry=first.carry,
    )
    both = np.concatenate([first.tokens, second.tokens], axis=1)
    np.testing.assert_array_equal(both, whole.tokens)
    np.testing.assert_array_equal(second.carry, whole.carry)


def test_a_prompt_in_two_pieces_is_the_prompt_in_one():
    carry, _ = MODEL.features(PARAMS, PROMPTS[:, :1])
    rest = rnnjax.generate(
        MODEL, PARAMS, PROMPTS[:, 1:], max_new_tokens=5, key=KEYS, initial_carry=carry
    )
    whole = rnnjax.generate(MODEL, PARAMS, PROMPTS, max_new_tokens=5, key=KEYS)
    np.testing.assert_array_equal(rest.tokens, whole.tokens)


@pytest.mark.parametrize(("stop", "pad"), [(1, 2), (2, 1)])
def test_behind_a_stop_there_is_padding_and_the_carry_is_held(stop, pad):
    """At stop 2 one row goes on for eleven tokens after the others have ended."""
    out, free = write(count=30, stop=stop, pad=pad), write(count=30)
    for row in range(3):
        new = int(out.lengths[row])
        assert out.tokens[row, new - 1] == stop
        assert not np.any(np.asarray(out.tokens[row, : new - 1]) == stop)
        np.testing.assert_array_equal(out.tokens[row, new:], np.full(30 - new, pad))
        np.testing.assert_array_equal(out.tokens[row, :new], free.tokens[row, :new])
        assert int(out.last[row]) == stop
        history = [V, V, *PROMPTS[row, : LENGTHS[row]].tolist(), *out.tokens[row, :new].tolist()]
        # The carry has read all but the last token.
        np.testing.assert_array_equal(out.carry[row], history[-3:-1])
    # Its key, too, is what it was at its end, however long the others went on.
    first = int(np.argmin(out.lengths))
    assert out.lengths[first] < out.lengths.max()
    alone = write((first,) * 3, count=30, stop=stop, pad=pad)
    assert alone.keys[0] == out.keys[first]


def test_the_loop_ends_when_all_rows_have():
    steps = []

    def counted(params, carry, token):
        jax.debug.callback(lambda: steps.append(1))
        return MODEL.step(params, carry, token)

    out = rnnjax.generate(
        MODEL._replace(step=counted),
        PARAMS,
        PROMPTS,
        LENGTHS,
        max_new_tokens=1_000,
        key=KEYS,
        stop=[0, 1],
    )
    jax.effects_barrier()
    assert len(steps) == int(out.lengths.max()) - 1 < 50


def test_a_stop_that_never_comes_gives_the_most_tokens():
    out = write(count=5, stop=0, sampling=rnnjax.sample(rnnjax.forbid([0])))
    assert out.lengths.tolist() == [5, 5, 5]


def nothing_after_two(logits, history):
    return jnp.where(history.new == 2, -jnp.inf, logits)


@pytest.mark.parametrize("rows", [(0, 1, 2), (1,)])
def test_a_row_without_a_token_left_ends(rows):
    out = write(rows, count=5, sampling=rnnjax.sample(nothing_after_two))
    assert out.lengths.tolist() == [2] * len(rows)
    assert not np.any(out.log_probs[:, 2:])
    np.testing.assert_array_equal(out.last, out.tokens[:, 1])
    # As behind a stop, the carry has read all but the last token.
    before = [int(PROMPTS[row, LENGTHS[row] - 1]) for row in rows]
    np.testing.assert_array_equal(out.carry, np.stack([before, out.tokens[:, 0]], axis=1))


def stream(block_size, *transforms, **options):
    sampling = rnnjax.sample(*transforms)
    given = {"max_new_tokens": 11, "key": KEYS[0], "sampling": sampling, **options}
    blocks = rnnjax.stream_text(MODEL, PARAMS, PROMPTS[0], block_size=block_size, **given)
    return list(blocks), rnnjax.generate(MODEL, PARAMS, PROMPTS[0], **given)


@pytest.mark.parametrize("block_size", [1, 3])
def test_a_stream_without_a_token_left_ends(block_size):
    blocks, whole = stream(block_size, nothing_after_two)
    assert int(whole.lengths) == 2
    np.testing.assert_array_equal(np.concatenate(blocks), whole.tokens[:2])
    nothing, _ = stream(block_size, lambda logits, history: jnp.full_like(logits, -jnp.inf))
    assert nothing == []


def test_a_stream_remembers_what_was_written_before_the_block():
    penalty = rnnjax.repetition_penalty(20.0, window=5)
    blocks, whole = stream(2, penalty, rnnjax.min_length(5, [1]), stop=1)
    length = int(whole.lengths)
    assert length > 5
    np.testing.assert_array_equal(np.concatenate(blocks), whole.tokens[:length])
    forgetful, _ = stream(2, rnnjax.repetition_penalty(20.0, window=1), stop=1)
    assert np.concatenate(forgetful).tolist() != whole.tokens[:length].tolist()


def test_a_stream_gives_the_tokens_of_one_call():
    options = {"max_new_tokens": 11, "key": jax.random.key(5)}
    whole = rnnjax.generate(MODEL, PARAMS, PROMPTS[0], **options)
    blocks = list(rnnjax.stream_text(MODEL, PARAMS, PROMPTS[0], block_size=4, **options))
    assert [len(block) for block in blocks] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(blocks), whole.tokens)
    stopped = list(rnnjax.stream_text(MODEL, PARAMS, PROMPTS[0], stop=2, block_size=2, **options))
    text = whole.tokens[: int(np.argmax(np.asarray(whole.tokens) == 2)) + 1]
    np.testing.assert_array_equal(np.concatenate(stopped), text)


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 4, 1]), (12, [4, 4, 4]), (3, [3])])
def test_all_blocks_of_a_stream_but_the_first_are_one_program(count, sizes):
    model, traced, programs = trigram_model(), [], []

    def counted(*arguments):
        traced.append(arguments)  # once a program, and not when that runs
        return MODEL.step(*arguments)

    model = model._replace(step=counted)
    options = {"max_new_tokens": count, "key": KEYS[0]}
    blocks = []
    for block in rnnjax.stream_text(model, PARAMS, PROMPTS[0], block_size=4, **options):
        blocks.append(block)
        programs.append(len(traced))
    assert [len(block) for block in blocks] == sizes
    assert len(set(programs[1:])) <= 1
    whole = rnnjax.generate(MODEL, PARAMS, PROMPTS[0], **options)
    np.testing.assert_array_equal(np.concatenate(blocks), whole.tokens)


def test_it_runs_inside_jit_and_equal_samplers_are_one_program():
    calls = []

    @jax.jit
    def outer(key):
        calls.append(1)
        sampling = rnnjax.sample(rnnjax.temperature(0.5))
        return rnnjax.generate(
            MODEL, PARAMS, PROMPTS, max_new_tokens=4, key=key, sampling=sampling
        ).tokens

    inside = outer(jax.random.key(0))
    outer(jax.random.key(1))
    outside = rnnjax.generate(
        MODEL,
        PARAMS,
        PROMPTS,
        max_new_tokens=4,
        key=jax.random.key(0),
        sampling=rnnjax.sample(rnnjax.temperature(0.5)),
    )
    np.testing.assert_array_equal(inside, outside.tokens)
    assert len(calls) == 1
    assert rnnjax.sample(rnnjax.top_k(3)) == rnnjax.sample(rnnjax.top_k(3))
    assert rnnjax.temperature(0.5) != rnnjax.top_p(0.5)


OF_ROWS = {
    "temperature": (rnnjax.temperature, [0.5, 1.0, 2.0]),
    "top_p": (rnnjax.top_p, [0.4, 0.8, 1.0]),
    "min_p": (rnnjax.min_p, [0.1, 0.5, 1.0]),
    "repetition_penalty": (rnnjax.repetition_penalty, [1.0, 1.5, 3.0]),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_row_with_a_number_of_its_own_writes_what_it_does_alone(name):
    rule, numbers = OF_ROWS[name]
    drawn = write(sampling=rnnjax.sample(rule(np.array(numbers)), rnnjax.top_k(2)))
    for row, number in enumerate(numbers):
        alone = write([row], sampling=rnnjax.sample(rule(number), rnnjax.top_k(2)))
        np.testing.assert_array_equal(drawn.tokens[row], alone.tokens[0])


def test_a_traced_number_is_that_number():
    tokens = jax.jit(lambda t: write(sampling=rnnjax.sample(rnnjax.temperature(t))).tokens)
    for number in (0.3, 2.0):
        known = write(sampling=rnnjax.sample(rnnjax.temperature(number))).tokens
        np.testing.assert_array_equal(tokens(number), known)


def test_a_nucleus_of_everything_keeps_everything_in_a_row_of_its_own():
    logits = jax.random.normal(jax.random.key(0), (2, 300)) * 20
    kept = jax.vmap(lambda p, row: rnnjax.top_p(p)(row, None))(jnp.array([1.0, 0.5]), logits)
    assert np.isfinite(kept[0]).all()
    assert not np.isfinite(kept[1]).all()


def call(params=PARAMS, **options):
    given = {"prompt": PROMPTS, "max_new_tokens": 3, "key": jax.random.key(0), **options}
    return rnnjax.generate(MODEL, params, **given)


BAD = {
    "an empty prompt": (lambda: call(prompt=jnp.zeros((2, 0), int)), "prompt", "start token"),
    "a carry in words": (lambda: call(initial_carry="zeros"), "initial_carry", "got str"),
    "a transform of fewer logits": (
        lambda: call(sampling=rnnjax.greedy(lambda logits, history: logits[:2])),
        "a transform must give logits of shape (3,)",
        "shape (2,)",
    ),
    "a transform of nothing": (
        lambda: call(sampling=rnnjax.greedy(lambda logits, history: None)),
        "a transform must give logits",
        "got None",
    ),
    "a prompt of no tokens": (lambda: call(lengths=[1, 0, 2]), "lengths", "index (1,)"),
    "an id outside": (lambda: call(prompt=jnp.array([[0, 3]])), "prompt", "[0, 3)"),
    "floats": (lambda: call(prompt=jnp.ones((1, 2))), "prompt", "integers"),
    "no key": (lambda: call(key=None), "key", "greedy()"),
    "no tokens wanted": (lambda: call(max_new_tokens=0), "max_new_tokens", "positive integer"),
    "a stop outside": (lambda: call(stop=[5]), "stop", "[0, 3)"),
    "a name for a sampler": (lambda: call(sampling="greedy"), "sampling", "greedy()"),
    "temperature 0": (lambda: rnnjax.temperature(0.0), "temperature", "greedy()"),
    "temperature below 0": (lambda: rnnjax.temperature(-1.0), "temperature", "at least 1e-30"),
    "temperature near 0": (lambda: rnnjax.temperature(1e-38), "temperature", "got 1e-38"),
    "temperature NaN": (lambda: rnnjax.temperature(float("nan")), "temperature", "nan"),
    "top_k of 0": (lambda: rnnjax.top_k(0), "k", "positive integer"),
    "temperatures, one of them 0": (
        lambda: rnnjax.temperature([1.0, 0.0]),
        "temperature",
        "got 0.0 at index (1,)",
    ),
    "temperatures of flags": (
        lambda: rnnjax.temperature(np.array([True])),
        "temperature",
        "got dtype bool",
    ),
    "temperatures of more rows": (
        lambda: call(sampling=rnnjax.sample(rnnjax.temperature(np.ones(4)))),
        "value of Temperature",
        "batch's shape, (3,), got shape (4,)",
    ),
    "top_p of 0": (lambda: rnnjax.top_p(0.0), "p", "(0, 1]"),
    "top_p above 1": (lambda: rnnjax.top_p(1.5), "p", "(0, 1]"),
    "min_p of a word": (lambda: rnnjax.min_p("a"), "p", "number"),
    "a penalty below 1": (lambda: rnnjax.repetition_penalty(0.5), "penalty", "at least 1"),
    "forbid nothing": (lambda: rnnjax.forbid([]), "ids", "at least one"),
    "all forbidden": (
        lambda: call(sampling=rnnjax.sample(rnnjax.forbid([0, 1, 2]))),
        "forbid",
        "all 3 ids",
    ),
    "forbidden outside": (
        lambda: call(sampling=rnnjax.sample(rnnjax.forbid([3]))),
        "[0, 3)",
        "got 3",
    ),
    "no function": (lambda: rnnjax.sample(0.8), "transforms", "0.8"),
    "a rule without its number": (
        lambda: rnnjax.sample(rnnjax.top_k),
        "transforms must be what rnnjax.top_k(...) gives",
        "got the function itself",
    ),
    "a temperature in words": (lambda: rnnjax.temperature("1"), "temperature", "got '1'"),
    "a share that is a flag": (lambda: rnnjax.top_p(True), "p must be", "got True"),
    "a stop in words": (lambda: call(stop="1"), "stop must be a token id", "[0, 3)"),
    "two pads": (lambda: call(pad=[1, 2]), "pad must be a token id", "[1, 2]"),
    "parameters first": (
        lambda: rnnjax.generate(PARAMS, MODEL, PROMPTS, max_new_tokens=2),
        "model must be",
        "got ArrayImpl",
    ),
    "a stream of a translator": (
        lambda: rnnjax.stream_text(TRANSLATOR, PARAMS, PROMPTS[0], max_new_tokens=2),
        "model must be a rnnjax.language_model(...), got SequenceToSequence",
        "rnnjax.generate writes with it",
    ),
    "a batch to stream": (
        lambda: rnnjax.stream_text(MODEL, PARAMS, PROMPTS, max_new_tokens=2, key=jax.random.key(0)),
        "prompt",
        "[T]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, *words = BAD[case]
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        run()
    assert words[1] in str(caught.value)


def test_traced_lengths_of_prompts_are_clipped():
    tokens = jax.jit(lambda lengths: call(lengths=lengths).tokens)
    np.testing.assert_array_equal(tokens(np.array([9, 0, 2])), tokens(np.array([4, 1, 2])))


def test_what_pads_a_prompt_need_not_be_an_id():
    lengths = np.array([1, 2, 3])
    dirty = np.where(rnnjax.lengths_to_mask(lengths, PROMPTS.shape[1]), PROMPTS, -1)
    np.testing.assert_array_equal(
        call(prompt=dirty, lengths=lengths).tokens, call(lengths=lengths).tokens
    )


def test_keys_of_either_kind_one_or_one_a_row_draw_the_same():
    """One old key is two numbers, as many as there are rows."""
    two = PROMPTS[:2]
    np.testing.assert_array_equal(
        call(prompt=two, key=jax.random.PRNGKey(7)).tokens,
        call(prompt=two, key=jax.random.key(7)).tokens,
    )
    new, old = (jax.random.split(kind(7), 2) for kind in (jax.random.key, jax.random.PRNGKey))
    np.testing.assert_array_equal(
        call(prompt=two, key=old).tokens, call(prompt=two, key=new).tokens
    )
    with pytest.raises(ValueError, match="key must be one key"):
        call(prompt=two, key=jax.random.split(jax.random.key(7), 3))


@pytest.mark.parametrize("kind", [int, np.int8, np.array, jnp.asarray])
def test_ids_are_integers_of_any_kind(kind):
    expected = call(stop=1, pad=2, max_new_tokens=4).tokens
    for stop in (kind(1), [kind(1)]):
        found = call(stop=stop, pad=kind(2), max_new_tokens=kind(4)).tokens
        np.testing.assert_array_equal(found, expected)
    assert rnnjax.forbid(kind(1)) == rnnjax.forbid([1])


def test_sums_of_logits_of_16_bits_are_taken_in_32():
    """Of 512 equal tokens each has the same share, which bfloat16 rounds when it adds them up."""
    logits, history = jnp.zeros(512, jnp.bfloat16), History(jnp.zeros(1, int), 1, 0)
    assert jnp.sum(rnnjax.top_p(0.75)(logits, history) > -jnp.inf) == 0.75 * 512
    logits = jnp.linspace(0, 8, 512).astype(jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 2000)
    narrow, wide = (
        jax.vmap(lambda key, a=a: rnnjax.sample()(key, a, history))(keys)
        for a in (logits, logits.astype(jnp.float32))
    )
    np.testing.assert_array_equal(narrow, wide)


def test_log_probs_of_logits_of_16_bits_are_taken_in_32():
    table = jnp.asarray(TABLE, jnp.bfloat16)
    found = call(table, prompt=[0], max_new_tokens=1, sampling=rnnjax.greedy()).log_probs
    expected = log_softmax(table[V, 0].astype(jnp.float32)).max()
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("certain", [[2], [0, 3]])
def test_a_logit_of_infinity_is_certain(size, certain):
    """And of several ones each is as likely; they are the largest for every transformer, too."""
    logits = jnp.linspace(0.0, 1.0, size).at[jnp.array(certain)].set(jnp.inf)
    history, keys = History(jnp.zeros(1, int), 1, 0), jax.random.split(jax.random.key(0), 400)
    cuts = (), (rnnjax.temperature(2.0),), (rnnjax.top_k(3),), (rnnjax.top_p(0.9),)
    for cut in (*cuts, (rnnjax.min_p(0.5),)):
        drawn = jax.vmap(lambda key, cut=cut: rnnjax.sample(*cut)(key, logits, history))(keys)
        shares = np.bincount(drawn, minlength=size) / len(keys)
        np.testing.assert_allclose(shares[certain], 1 / len(certain), atol=0.1)
        assert np.sum(shares[certain]) == 1
        assert rnnjax.greedy(*cut)(keys[0], logits, history) == certain[0]


def test_a_text_of_certain_tokens_has_the_probability_1():
    table = TABLE.copy()
    table[V, 0, 2] = table[0, 2, 1] = np.inf
    for sampling in (rnnjax.sample(), rnnjax.greedy()):
        found = call(jnp.asarray(table), prompt=[0], max_new_tokens=2, sampling=sampling)
        assert found.tokens.tolist() == [2, 1]
        assert found.log_probs.tolist() == [0, 0]


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_a_token_without_probability_is_not_drawn_whatever_the_random_bits(word, monkeypatch):
    """The least and the largest number: a waiting time of 0 or infinity would be that of any."""
    bits = lambda key, shape, dtype: jnp.full(shape, word, dtype)  # noqa: E731
    monkeypatch.setattr(jax.random, "bits", bits)
    logits = jnp.array([-jnp.inf, -jnp.inf, 0.3, -jnp.inf])
    assert rnnjax.sample()(jax.random.key(0), logits, History(jnp.zeros(1, int), 1, 0)) == 2


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("place", [0, 2])
def test_no_token_is_chosen_among_logits_of_which_one_is_nan(size, place):
    logits, history = jnp.zeros(size).at[place].set(jnp.nan), History(jnp.zeros(1, int), 1, 0)
    cuts = (), (rnnjax.top_k(3),), (rnnjax.top_p(0.5),), (rnnjax.min_p(0.5),)
    for cut in cuts:
        for sampling in (rnnjax.sample(*cut), rnnjax.greedy(*cut)):
            assert sampling(jax.random.key(0), logits, history) == -1


@pytest.mark.parametrize("x64", [False, True])
def test_writing_promotes_no_dtype(x64):
    every = (rnnjax.repetition_penalty(1.2, 3), rnnjax.temperature(0.5), rnnjax.top_k(2))
    some = (rnnjax.top_p(0.9), rnnjax.min_p(0.01), rnnjax.min_length(2, [1]))
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        out = call(stop=1, sampling=rnnjax.sample(*every, *some))
    assert out.tokens.dtype == out.lengths.dtype == out.last.dtype == jnp.int32
    assert out.log_probs.dtype == jnp.float32


def test_a_stream_is_checked_when_it_is_made_and_ends_where_no_token_is_left():
    with pytest.raises(ValueError, match="key must be given"):
        rnnjax.stream_text(MODEL, PARAMS, [0], max_new_tokens=2)

    def three(logits, history):
        return jnp.where(history.new < 3, logits, -jnp.inf)

    def blocks(change):
        options = {"max_new_tokens": 9, "block_size": 4, "sampling": rnnjax.greedy(change)}
        return [len(block) for block in rnnjax.stream_text(MODEL, PARAMS, [0, 1], **options)]

    assert blocks(three) == [3]
    assert blocks(lambda logits, history: logits * jnp.nan) == []


class Rule:
    """A rule that may change, as one that is learned."""

    def __init__(self, token):
        self.token = token

    def favour(self, logits, history):
        return logits.at[self.token].set(1e9)

    __call__ = favour


@dataclasses.dataclass
class Plain(Rule):
    """As ``dataclass`` makes it, it cannot be hashed."""

    token: int


@pytest.mark.parametrize("use", [lambda rule: rule.favour, lambda rule: rule], ids=["method", "it"])
@pytest.mark.parametrize("make", [Rule, Plain])
def test_a_rule_is_what_it_holds_now(make, use):
    rule = make(1)

    def written(how):
        options = {"max_new_tokens": 2, "sampling": rnnjax.greedy(use(rule))}
        if how == "generate":
            return rnnjax.generate(MODEL, PARAMS, jnp.array([0]), **options).tokens
        return np.concatenate([*rnnjax.stream_text(MODEL, PARAMS, jnp.array([0]), **options)])

    def found():
        carry = MODEL.initial_carry(PARAMS, (1,))
        options = {"stop": 0, "beam_size": 1, "max_length": 2, "transforms": (use(rule),)}
        return rnnjax.beam_search(MODEL.step, PARAMS, carry, [0], **options).tokens[0, 0]

    for rule.token in (1, 2):
        for tokens in (written("generate"), written("stream"), found()):
            np.testing.assert_array_equal(tokens, [rule.token] * 2)

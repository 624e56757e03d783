"""Beam search finds what a search of all texts finds, and mixes up nothing on the way."""

import functools
import importlib
import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

# The module: in the package the name is that of the function.
beam_search = importlib.import_module("rnnjax.decoding.beam_search")

pytestmark = pytest.mark.usefixtures("quick_compile")

V, N, STOP = 3, 4, 1
TABLES = np.random.default_rng(0).normal(0.0, 1.5, (2, V + 1, V, V)).astype(np.float32)


def step(params, carry, token):
    """The logits after the last two tokens; the carry is the last one."""
    return token, params[carry, token]


def law(table, start, text, before=V):
    """The log probability of a text, in float64."""
    total, last = 0.0, start
    for token in text:
        logits = np.asarray(table[before, last], np.float64)
        total += logits[token] - np.log(np.sum(np.exp(logits)))
        before, last = last, token
    return total


def all_texts(length):
    """Every text that ends with the stop, and those that are cut."""
    for n in range(1, length + 1):
        for text in itertools.product(range(V), repeat=n):
            if STOP not in text[:-1] and (text[-1] == STOP or n == length):
                yield text


def brute_force(table, start, alpha):
    scored = [
        (law(table, start, text) / ((5 + len(text)) / 6) ** alpha, text) for text in all_texts(N)
    ]
    return sorted(scored, reverse=True)


def search(table, start, beam_size, alpha=0.6, length=N, **options):
    start = jnp.asarray(start)
    return rnnjax.beam_search(
        step,
        jnp.asarray(table),
        jnp.full(start.shape, V),
        start,
        stop=STOP,
        beam_size=beam_size,
        max_length=length,
        length_penalty=alpha,
        **options,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("table", TABLES)
def test_a_beam_as_wide_as_all_texts_finds_them_in_order(table, alpha):
    expected = brute_force(table, 0, alpha)
    beams = search(table, 0, beam_size=V**N, alpha=alpha, pad=2)
    for k, (score, text) in enumerate(expected):
        assert beams.tokens[k].tolist() == [*text, *[2] * (N - len(text))]
        assert beams.lengths[k] == len(text)
        np.testing.assert_allclose(beams.scores[k], score, rtol=1e-5)
        np.testing.assert_allclose(beams.log_probs[k], law(table, 0, text), rtol=1e-5)
        assert bool(beams.ended[k]) == (text[-1] == STOP)
    assert not np.any(np.isfinite(beams.scores[len(expected) :]))
    assert not np.any(beams.lengths[len(expected) :])
    assert not np.any(beams.ended[len(expected) :])
    assert np.all(beams.tokens[len(expected) :] == 2)


def test_a_beam_of_one_is_greedy_while_that_can_win():
    starts = jnp.array([0, 2])
    beams = search(TABLES[0], starts, beam_size=1, alpha=0.0, length=6)
    for row, start in enumerate(starts.tolist()):
        text, before, last = [], V, start
        while (len(text) < 6 and last != STOP) or not text:
            before, last = last, int(np.argmax(TABLES[0][before, last]))
            text.append(last)
        length = int(beams.lengths[row, 0])
        assert beams.tokens[row, 0, :length].tolist() == text[:length]


def test_every_hypothesis_has_the_carry_of_its_own_tokens():
    def hashed(params, carry, token):
        """Logits that depend on the whole history, and a carry that writes it down."""
        history, count = carry
        history = history.at[jnp.arange(len(token)), count].set(token)
        count = count + 1
        code = jnp.sum(history * (jnp.arange(history.shape[1])[None] + 2) ** 2, axis=1)
        return (history, count), jnp.sin(code[:, None] * params[None])

    params = jnp.array([1.3, 2.7, 0.9])
    carry = (jnp.zeros((2, 8), jnp.int32), jnp.zeros(2, jnp.int32))
    beams = rnnjax.beam_search(
        hashed, params, carry, jnp.array([0, 2]), stop=STOP, beam_size=4, max_length=6
    )
    for row, start in enumerate((0, 2)):
        for k in range(4):
            text = beams.tokens[row, k, : int(beams.lengths[row, k])].tolist()
            total, history = 0.0, [start]
            for token in text:
                code = sum(t * (i + 2) ** 2 for i, t in enumerate(history))
                logits = np.sin(code * np.asarray(params, np.float64))
                total += logits[token] - np.log(np.sum(np.exp(logits)))
                history.append(token)
            np.testing.assert_allclose(beams.log_probs[row, k], total, rtol=1e-4)


def test_hypotheses_are_sorted_and_none_is_there_twice():
    beams = search(TABLES[1], jnp.array([0, 2, 0]), beam_size=5, length=6)
    assert np.all(np.diff(beams.scores, axis=1) <= 0)
    for row in range(3):
        texts = {tuple(text.tolist()) for text in beams.tokens[row]}
        assert len(texts) == 5
        for k in range(5):
            text = beams.tokens[row, k, : int(beams.lengths[row, k])].tolist()
            assert STOP not in text[:-1]
            assert bool(beams.ended[row, k]) == (text[-1] == STOP)


def test_a_row_finds_by_itself_what_it_finds_among_others():
    starts = jnp.array([0, 2, 2, 0])
    together = search(TABLES[0], starts, beam_size=3)
    for row, start in enumerate(starts):
        alone = search(TABLES[0], start, beam_size=3)
        np.testing.assert_array_equal(alone.tokens, together.tokens[row])
        np.testing.assert_allclose(alone.scores, together.scores[row], rtol=1e-6)


def test_a_hypothesis_that_is_none_holds_nothing():
    """With one token there are fewer texts than places, and the places are filled all the same."""

    def alone(params, carry, token):
        return carry, params[token]

    table = jnp.zeros((2, 2)).at[:, STOP].set(-jnp.inf)
    options = {"stop": STOP, "beam_size": 4, "max_length": 2, "pad": 1}
    beams = rnnjax.beam_search(alone, table, jnp.zeros(()), jnp.array(0), **options)
    assert beams.lengths.tolist() == [2, 0, 0, 0]
    assert beams.tokens.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]
    assert beams.log_probs.tolist() == beams.scores.tolist() == [0, *[-np.inf] * 3]
    assert not np.any(beams.ended)


def test_a_model_that_never_stops_is_cut_and_says_so():
    table = TABLES[0].copy()
    table[..., STOP] = -1e9
    beams = search(table, jnp.array([0, 2]), beam_size=2)
    assert beams.lengths.tolist() == [[N, N], [N, N]]
    assert not np.any(beams.ended)


def test_the_loop_ends_when_nothing_can_win_any_more():
    table = TABLES[0].copy()
    table[..., STOP] = 30.0
    calls = []

    def counted(params, carry, token):
        jax.debug.callback(lambda: calls.append(1))
        return step(params, carry, token)

    start = jnp.array([0])
    rnnjax.beam_search(
        counted,
        jnp.asarray(table),
        jnp.full((1,), V),
        start,
        stop=STOP,
        beam_size=1,
        max_length=500,
    )
    jax.effects_barrier()
    assert len(calls) < 10


def test_the_loop_goes_on_while_a_longer_text_could_win():
    """The stop is likeliest, but what follows it is divided by more; the other row has ended."""
    table = np.full((V + 1, V, V), -30.0, np.float32)
    table[V, 0] = np.log([0.35, 0.40, 0.25])
    table[0, 0, 2] = table[0, 2, STOP] = table[V, 2, STOP] = 0.0
    beams = search(table, [0, 2], beam_size=1, alpha=1.0)
    assert beams.lengths.tolist() == [[3], [1]]
    assert beams.tokens[0, 0, :3].tolist() == [0, 2, STOP]
    np.testing.assert_allclose(beams.scores[0, 0], np.log(0.35) / (8 / 6), rtol=1e-5)


def test_coverage_prefers_the_text_that_looks_everywhere():
    # Token 0 looks at the first place again and again, token 2 at the second.
    def looking(params, carry, token, memory):
        carry, logits = step(params, carry, token)
        return carry, logits, jax.nn.one_hot(token // 2, 2) * memory

    table = np.zeros((V + 1, V, V), np.float32)
    found = {}
    for coverage in (0.0, 5.0):
        found[coverage] = rnnjax.beam_search(
            looking,
            jnp.asarray(table),
            jnp.full((1,), V),
            jnp.array([0]),
            jnp.ones((1, 1)),
            stop=STOP,
            beam_size=27,
            max_length=3,
            coverage=coverage,
        )
    assert 2 in found[5.0].tokens[0, 0, :2]
    seen = 0
    for k, score in enumerate(found[5.0].scores[0]):
        length = int(found[5.0].lengths[0, k])
        if length:
            looks = [0, *found[5.0].tokens[0, k, : length - 1].tolist()]
            covered = [np.clip(sum(t // 2 == s for t in looks), 1e-6, 1) for s in range(2)]
            expected = -length * np.log(3.0) / ((5 + length) / 6) ** 0.6
            np.testing.assert_allclose(score, expected + 5 * np.log(covered).sum(), rtol=1e-5)
            seen += 1
    assert seen == len(list(all_texts(3)))
    assert found[0.0].lengths[0, 0] == 1


@pytest.mark.parametrize(
    ("transform", "may_be"),
    [
        (rnnjax.forbid([2]), lambda text: 2 not in text),
        (rnnjax.min_length(2, [STOP]), lambda text: STOP not in text[:2]),
    ],
)
def test_what_a_transform_forbids_is_in_no_hypothesis_and_the_rest_keeps_its_law(transform, may_be):
    expected = [pair for pair in brute_force(TABLES[0], 0, 0.6) if may_be(pair[1])]
    beams = search(TABLES[0], 0, beam_size=V**N, transforms=(transform,))
    for k, (score, text) in enumerate(expected):
        assert beams.tokens[k, : int(beams.lengths[k])].tolist() == list(text)
        np.testing.assert_allclose(beams.scores[k], score, rtol=1e-5)
    assert not np.any(beams.lengths[len(expected) :])


def test_the_score_is_of_the_log_probabilities_as_a_transform_leaves_them():
    """Those of tokens that were written before count twice; beside a search of all texts."""

    def changed(text):
        total, before, last = 0.0, V, 0
        for place, token in enumerate(text):
            own = law(TABLES[0], last, [token], before)
            total += own * (2.0 if token in text[:place] else 1.0)
            before, last = last, token
        return total

    scored = sorted(
        ((changed(t) / ((5 + len(t)) / 6) ** 0.6, t) for t in all_texts(N)), reverse=True
    )
    beams = search(TABLES[0], 0, V**N, transforms=(rnnjax.repetition_penalty(2.0),))
    for k, (score, text) in enumerate(scored):
        assert beams.tokens[k, : int(beams.lengths[k])].tolist() == list(text)
        np.testing.assert_allclose(beams.scores[k], score, rtol=1e-5)
        np.testing.assert_allclose(beams.log_probs[k], law(TABLES[0], 0, text), rtol=1e-5)
    raised = search(TABLES[0], 0, 2, transforms=(lambda log_probs, history: log_probs + 100.0,))
    assert not np.any(raised.scores)


def test_a_beam_of_one_may_end_by_a_stop_that_is_second_likeliest():
    table = np.full((V + 1, V, V), np.log([0.05, 0.35, 0.6]), np.float32)
    beams = search(table, 0, 1, alpha=0.0)
    assert beams.tokens[0].tolist() == [STOP, 0, 0, 0]
    np.testing.assert_allclose(beams.log_probs, np.log([0.35]), rtol=1e-6)


def run(step):
    return rnnjax.beam_search(
        step, (), jnp.zeros(2, int), jnp.zeros(2, int), stop=1, beam_size=2, max_length=3
    )


BAD = {
    "no beam": (lambda: search(TABLES[0], 0, beam_size=0), "beam_size must be a positive integer"),
    "no length": (lambda: search(TABLES[0], 0, 2, length=0), "max_length must be a positive"),
    "a penalty below 0": (lambda: search(TABLES[0], 0, 2, alpha=-1.0), "length_penalty must be"),
    "a penalty beyond float32": (
        lambda: search(TABLES[0], 0, 2, alpha=1000.0),
        f"length_penalty must be at most 170 for a max_length of {N}, .* got 1000.0",
    ),
    "coverage without weights": (lambda: search(TABLES[0], 0, 2, coverage=1.0), "coverage needs"),
    "a pad outside": (lambda: search(TABLES[0], 0, 2, pad=7), r"integer in \[0, 3\), got 7"),
    "a start outside": (lambda: search(TABLES[0], [0, 3], 2), r"start must lie in \[0, 3\), got 3"),
    "a start below 0": (lambda: search(TABLES[0], -1, 2), r"start must lie in \[0, 3\), got -1"),
    "a penalty in words": (lambda: search(TABLES[0], 0, 2, alpha="1"), "length_penalty must be"),
    "a coverage of None": (lambda: search(TABLES[0], 0, 2, coverage=None), "coverage must be"),
    "one function": (
        lambda: search(TABLES[0], 0, 2, transforms=rnnjax.forbid(1)),
        "transforms must be a tuple",
    ),
    "logits of other rows": (
        lambda: run(lambda params, carry, token: (carry, jnp.zeros(V))),
        r"step must give logits \[..., V\] for tokens of shape \(2,\), got shape \(3,\)",
    ),
    "logits alone": (
        lambda: run(lambda params, carry, token: jnp.zeros((2, V))),
        r"step must give \(carry, logits\), got an array of shape \(2, 3\)",
    ),
    "a step that takes a memory": (
        lambda: run(lambda params, carry, token, memory: (carry, jnp.zeros((2, V)))),
        r"step must take \(params, carry, token\) where no memory is given",
    ),
    "a step that takes no memory": (
        lambda: rnnjax.beam_search(
            step, (), jnp.zeros(2, int), [0, 0], jnp.zeros(2), stop=1, beam_size=2, max_length=3
        ),
        r"step must take \(params, carry, token, memory\) where a memory is given",
    ),
    "a carry that changes its dtype": (
        lambda: run(lambda params, carry, token: (carry.astype(float), jnp.zeros((2, V)))),
        r"step must give a carry of the same .* int32\[2\], got float32\[2\]",
    ),
    "a transform of fewer logits": (
        lambda: search(TABLES[0], 0, 2, transforms=(lambda logits, history: logits[1:],)),
        r"a transform must give logits of shape \(3,\), got an array of shape \(2,\)",
    ),
    "no carry": (
        lambda: rnnjax.beam_search(step, TABLES[0], None, [0], stop=1, beam_size=1, max_length=1),
        "carry must be the one before start",
    ),
    "a batch of another shape": (
        lambda: rnnjax.beam_search(
            step,
            jnp.asarray(TABLES[0]),
            jnp.zeros(3, int),
            jnp.zeros(2, int),
            stop=1,
            beam_size=2,
            max_length=3,
        ),
        r"carry must have the batch shape of start, \(2,\), got shape \(3,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()


def test_one_start_for_several_rows_is_named():
    table, cell = rnnjax.one_hot(3), rnnjax.gru(3)
    model = rnnjax.sequence_to_sequence(
        table, cell, table, cell, start=0, attention=rnnjax.attention("dot")
    )
    params = model.init(jax.random.key(0))
    carry, memory = model.encode(params, jnp.array([[0, 1], [2, 1]]))

    def find(start, memory):
        return rnnjax.beam_search(
            model.step, params, carry, start, memory, stop=1, beam_size=2, max_length=3
        )

    with pytest.raises(ValueError, match=r"^start must have the batch shape .*, \(2,\), got shape"):
        find(0, memory)
    # What is wrong in any case is not put on the start.
    with pytest.raises(ValueError, match="memory must be what encode gave"):
        find(0, jnp.zeros(2))
    assert find([0, 0], memory).tokens.shape == (2, 2, 3)


def test_a_batch_of_no_rows_has_no_texts():
    beams = search(TABLES[0], np.zeros(0, int), beam_size=2)
    assert beams.tokens.shape == (0, 2, N)


def test_logits_of_nan_have_no_texts():
    beams = search(TABLES[0] * np.nan, np.zeros(2, int), beam_size=2, pad=2)
    assert not np.any(beams.lengths)
    assert not np.any(beams.ended)
    assert np.all(beams.tokens == 2)
    assert np.all(beams.scores == -np.inf)
    assert np.all(beams.log_probs == -np.inf)


def test_a_dead_end_of_a_grammar_is_in_no_hypothesis():
    """The mask is in the step: behind the likelier of two tokens there is nothing at all."""
    table = np.full((4, 4), -np.inf, np.float32)
    table[0, 1:3], table[1, 3] = np.log([0.3, 0.7]), 0.0

    def find(beam_size):
        return rnnjax.beam_search(
            lambda params, carry, token: (carry, params[token]),
            jnp.asarray(table),
            (),
            jnp.array(0),
            stop=3,
            beam_size=beam_size,
            max_length=4,
            length_penalty=0.0,
        )

    beams = find(3)
    assert beams.tokens.tolist() == [[1, 3, 0, 0], [0] * 4, [0] * 4]
    assert beams.lengths.tolist() == [2, 0, 0]
    assert beams.ended.tolist() == [True, False, False]
    np.testing.assert_allclose(beams.log_probs, [np.log(0.3), -np.inf, -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(beams.scores, beams.log_probs)
    # Like greedy generation, a beam of one has gone on with the likelier token alone.
    for one, expected in zip(find(1), ([[0] * 4], [0], [-np.inf], [-np.inf], [False]), strict=True):
        np.testing.assert_array_equal(one, expected)


def test_logits_of_16_bits_have_the_scores_of_their_numbers():
    table = jnp.asarray(TABLES[0], jnp.bfloat16)
    beams = search(table, 0, beam_size=V**N)
    expected = [score for score, _ in brute_force(table.astype(jnp.float32), 0, 0.6)]
    np.testing.assert_allclose(beams.scores[: len(expected)], expected, rtol=1e-5)


def test_a_logit_of_infinity_is_certain():
    table = TABLES[0].copy()
    table[V, 0] = [0.0, 0.0, np.inf]
    beams = search(table, 0, beam_size=V**N, alpha=0.0)
    certain = sorted(
        ((law(table, 2, text, before=0), (2, *text)) for text in all_texts(N - 1)),
        reverse=True,
    )
    for k, (score, text) in enumerate(certain):
        assert beams.tokens[k, : len(text)].tolist() == list(text)
        np.testing.assert_allclose(beams.log_probs[k], score, rtol=1e-5)
    assert not np.any(beams.lengths[len(certain) :])


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000])
@pytest.mark.parametrize("size", [4, 300])
@pytest.mark.parametrize("transforms", [(), (lambda logits, history: jnp.nan_to_num(logits),)])
def test_a_text_whose_logits_are_nan_takes_no_place_from_the_others(bits, size, transforms):
    """Behind the likeliest token; NaN of either sign, and with so many tokens also in blocks."""
    table = np.full((size, size), -9.0, np.float32)
    table[0, :4] = np.log([0.1, 0.1, 0.5, 0.3])
    table[3, :4] = np.log([0.05, 0.8, 0.1, 0.05])
    table[2] = np.array(bits, np.uint32).view(np.float32)
    first, last = (table[k] - np.log(np.exp(table[k].astype(float)).sum()) for k in (0, 3))

    def after(params, carry, token):
        return carry, params[token]

    options = {"stop": 1, "beam_size": 2, "max_length": N, "length_penalty": 0.0}
    options["transforms"] = transforms
    found = rnnjax.beam_search(after, jnp.asarray(table), jnp.zeros(1), jnp.array(0), **options)
    assert found.tokens.tolist() == [[3, 1, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(found.scores, [first[3] + last[1], first[1]], rtol=1e-6)


def test_a_start_of_64_bits_is_looked_at_before_it_is_cut_to_32():
    with jax.enable_x64(True):
        for start in (np.array(2**32 + 2), jnp.array(2**32 + 2)):
            with pytest.raises(ValueError, match=r"start must lie in \[0, 3\), got 4294967298"):
                search(TABLES[0], start, beam_size=2)
        found = jax.jit(lambda start: search(TABLES[0], start, beam_size=2))(jnp.array(2**32))
        expected = search(TABLES[0], V - 1, beam_size=2)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_dtypes_are_the_same_with_64_bits():
    expected = search(TABLES[0], [0, 2], beam_size=2)
    with jax.enable_x64(True):
        found = search(TABLES[0], [0, 2], beam_size=2)
    assert [a.dtype for a in found] == [a.dtype for a in expected]
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_attention_of_16_bits_is_added_up_in_32():
    """600 looks of 1/600 at the only place: in bfloat16 their sum would stand still at 0.5."""
    length, weight = 600, jnp.bfloat16(1 / 600)

    def looking(params, carry, token, memory):
        logits = jnp.broadcast_to(jnp.array([0.0, -jnp.inf]), (*token.shape, 2))
        return carry, logits, jnp.full((*token.shape, 1), weight)

    beams = rnnjax.beam_search(
        looking,
        (),
        (),
        jnp.array([0]),
        jnp.zeros((1, 1)),
        stop=1,
        beam_size=1,
        max_length=length,
        coverage=1.0,
        length_penalty=0.0,
    )
    np.testing.assert_allclose(beams.scores[0, 0], np.log(length * float(weight)), atol=1e-4)


def test_equal_models_are_one_program_and_are_forgotten():
    """A server that builds its model for every request must not compile it for each."""

    def make(size=2):
        return rnnjax.language_model(rnnjax.embedding(V, 2), rnnjax.gru(size))

    first = make()
    params = first.init(jax.random.key(0))

    def write(model, params):
        carry = model.initial_carry(params, (1,))
        return rnnjax.beam_search(
            model.step, params, carry, [0], stop=STOP, beam_size=2, max_length=2
        )

    expected, programs = write(first, params), beam_search._search._cache_size()
    again = make()
    np.testing.assert_array_equal(write(again, params).tokens, expected.tokens)
    assert beam_search._search._cache_size() == programs
    write(make(3), make(3).init(jax.random.key(0)))
    assert beam_search._search._cache_size() == programs + 1
    gone = weakref.ref(again.step)
    del again
    assert gone() is None


def test_partials_with_equal_arguments_are_one_program():
    def scaled(scale, params, carry, token):
        return token, scale["of"] * params[carry, token]

    def found(scale):
        part, carry = functools.partial(scaled, {"of": np.array(scale)}), jnp.full(1, V)
        options = {"stop": STOP, "beam_size": 2, "max_length": N}
        return rnnjax.beam_search(part, jnp.asarray(TABLES[0]), carry, jnp.zeros(1, int), **options)

    first, programs = found([[2.0]]), beam_search._search._cache_size()
    np.testing.assert_array_equal(found([[2.0]]).log_probs, first.log_probs)
    assert beam_search._search._cache_size() == programs
    assert not np.array_equal(found([[1.0]]).log_probs, first.log_probs)


METHODS = ("of Python", "of Equinox", "of a partial", "given to a partial")


@pytest.mark.parametrize("kind", [*METHODS, "an object that is called"])
def test_a_method_is_searched_with_what_its_object_holds_now(kind):
    """Two bound methods of one object are equal, though its weights are others by then."""

    class Writer:
        def step(self, _, carry, token):
            return step(self.table, carry, token)

        __call__ = step

    class Bound:  # an object with fields, none of which can be hashed
        def __init__(self, writer):
            self.__self__, self.__func__ = writer, Writer.step
            self.table = writer.table

        def __call__(self, *args):
            return self.__func__(self.__self__, *args)

        __hash__ = None

    writer, start = Writer(), jnp.zeros(1, int)
    options = {"stop": STOP, "beam_size": 2, "max_length": N}
    for table in TABLES:
        writer.table = jnp.asarray(table)
        method = {
            "of Python": writer.step,
            "of Equinox": Bound(writer),
            "of a partial": functools.partial(writer.step),
            "given to a partial": functools.partial(lambda f, *args: f(*args), writer.step),
            "an object that is called": writer,
        }[kind]
        carry = jnp.full(1, V)
        found = rnnjax.beam_search(method, None, carry, start, **options)
        expected = rnnjax.beam_search(step, writer.table, carry, start, **options)
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)

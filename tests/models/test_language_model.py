"""A language model's logits, its one step, its tied table, and what it can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.data import contiguous
from rnnjax.metrics import cross_entropy, perplexity
from rnnjax.models import Features, activation_penalty, locked_dropout
from rnnjax.models._dropout import drop_words

V, E, H, B, T = 7, 4, 4, 3, 6
TOKENS = jax.random.randint(jax.random.key(0), (B, T), 0, V)
LENGTHS = jnp.array([6, 2, 0])


def make(tie=False, **options):
    model = rnnjax.language_model(rnnjax.embedding(V, E), rnnjax.lstm(H), tie=tie, **options)
    return model, model.init(jax.random.key(1))


def numpy_logits(params, tokens):
    """An LSTM language model over one text, in NumPy float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    w = p.embedding.vectors.T if params.head.w is None else p.head.w
    h = c = np.zeros(H)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    logits = []
    for token in np.asarray(tokens):
        gates = p.embedding.vectors[token] @ p.layer.w_ih + h @ p.layer.w_hh + p.layer.bias
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        logits.append(h @ w + p.head.bias)
    return np.array(logits)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.kept
def test_logits_are_those_of_a_loop_in_numpy(tie):
    model, params = make(tie)
    bias = jnp.arange(V, dtype=jnp.float32)
    params = params._replace(head=params.head._replace(bias=bias))
    _, logits = model.apply(params, TOKENS, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        expected = numpy_logits(params, TOKENS[row, :length]).reshape(-1, V)
        np.testing.assert_allclose(logits[row, :length], expected, rtol=2e-5, atol=2e-5)
        behind = jnp.broadcast_to(bias, (T - length, V))
        np.testing.assert_array_equal(logits[row, length:], behind)


def test_steps_give_the_logits_of_apply():
    model, params = make()
    end, logits = model.apply(params, TOKENS)
    carry = None
    for t in range(T):
        carry, one = model.step(params, carry, TOKENS[:, t])
        np.testing.assert_allclose(one, logits[:, t], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry, end)


@pytest.mark.parametrize("softmax", [None, rnnjax.adaptive_softmax(H, V, [3])])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("quick_compile")
def test_a_score_reads_no_target_of_a_masked_step_and_is_0_there(compiled, softmax):
    model, params = make(softmax=softmax)
    targets = np.asarray(TOKENS + 1) % V
    masked = np.arange(T) >= np.asarray(LENGTHS)[:, None]
    dirty = np.where(masked, -1, targets)

    def total(params, dirty):
        scores = model.score(params, (TOKENS, dirty), LENGTHS)[1]
        return jnp.sum(scores), scores

    run = jax.value_and_grad(total, has_aux=True)
    with jax.debug_nans(True):
        (_, scores), gradient = (jax.jit(run) if compiled else run)(params, dirty)
        by_mask = model.score(params, (TOKENS, dirty), mask=jnp.asarray(~masked))[1]
    assert not np.any(np.asarray(scores)[masked])
    np.testing.assert_allclose(by_mask, scores, rtol=1e-5)
    for row, length in enumerate(LENGTHS):
        alone = model.score(params, (TOKENS[row, :length], targets[row, :length]))[1]
        np.testing.assert_allclose(scores[row, :length], alone, rtol=1e-5)

    def of_real_steps(params):
        real = [(TOKENS[b, : LENGTHS[b]], targets[b, : LENGTHS[b]]) for b in range(B)]
        return sum(jnp.sum(model.score(params, pair)[1]) for pair in real)

    for a, b in zip(
        *map(jax.tree.leaves, (gradient, jax.grad(of_real_steps)(params))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_known_target_that_is_no_token_is_refused_at_a_real_step():
    model, params = make()
    for wrong in (-1, V):
        targets = np.asarray(TOKENS).copy()
        targets[1, 1] = wrong
        message = rf"targets must lie in \[0, {V}\), got {wrong} at index \(1, 1\)"
        with pytest.raises(ValueError, match=message):
            model.score(params, (TOKENS, targets), LENGTHS)
        run = jax.jit(lambda targets: model.score(params, (TOKENS, targets), LENGTHS)[1])
        with pytest.raises(ValueError, match=message):
            rnnjax.checked(run)(targets)
        targets[1, 1], targets[1, 2] = 0, wrong  # behind the end
        model.score(params, (TOKENS, targets), LENGTHS)
        rnnjax.checked(run)(targets)


@pytest.mark.usefixtures("quick_compile")
def test_a_score_is_the_log_probability_of_the_target_and_nan_where_that_is_none():
    model, params = make()
    run = jax.jit(lambda t: (model.apply(params, TOKENS), model.score(params, (TOKENS, t))))
    right = (TOKENS + 1) % V
    every = np.array(run(right)[0][1], np.float64)
    every -= np.log(np.exp(every).sum(-1, keepdims=True))
    expected = np.take_along_axis(every, np.asarray(right)[..., None], -1)[..., 0]
    for wrong in (-1, -V, V, 2**31 - 1):
        targets = right.at[0, 2].set(wrong)
        found = np.array(run(targets)[1][1])
        assert np.flatnonzero(np.isnan(found)).tolist() == [2]
        found[0, 2] = expected[0, 2]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_text_in_pieces_or_in_rows_costs_what_it_costs_in_one_pass():
    model, params = make()
    text = np.random.default_rng(0).integers(0, V, 25)
    start = model.initial_carry(params)

    @jax.jit
    def score(tokens, targets, carry, resets):
        carry, logits = model.apply(params, tokens, initial_carry=carry, resets=resets)
        return carry, cross_entropy(logits, targets)

    _, whole = score(text[:-1], text[1:], start, np.zeros(24, bool))
    _, parts = score(text[:-1], text[1:], start, np.arange(24) % 8 == 0)
    carry, one_by_one, anew = start, 0.0, 0.0
    for begin in (0, 8, 16):
        piece = text[begin : begin + 8], text[begin + 1 : begin + 9]
        carry, loss = score(*piece, carry, np.zeros(8, bool))
        one_by_one += loss.total
        anew += score(*piece, start, np.zeros(8, bool))[1].total
    np.testing.assert_allclose(one_by_one, whole.total, rtol=1e-6)
    np.testing.assert_allclose(anew, parts.total, rtol=1e-6)
    rows = contiguous(text, 3)
    rows_start = model.initial_carry(params, (3,))
    _, by_rows = score(rows.tokens, rows.targets, rows_start, np.zeros((3, 8), bool))
    np.testing.assert_allclose(by_rows.total, parts.total, rtol=1e-6)
    assert whole.count == parts.count == by_rows.count == 24


@pytest.mark.usefixtures("quick_compile")
def test_a_model_of_counts_alone_has_the_perplexity_of_the_counts():
    model, params = make()
    ids = np.array([0, 1, 1, 2, 2, 2, 2, 6])
    counts = np.bincount(ids, minlength=V)
    with np.errstate(divide="ignore"):
        bias = np.log(counts / 8)
    head = params.head._replace(w=jnp.zeros((H, V)), bias=jnp.asarray(bias, jnp.float32))
    _, logits = model.apply(params._replace(head=head), jnp.zeros(8, int))
    # Chances of 1/2, 1/4, 1/8 and 1/8: 1.75 bits a token.
    assert perplexity(cross_entropy(logits, ids)).item() == pytest.approx(2**1.75, rel=1e-6)
    uniform = head._replace(bias=jnp.zeros(V))
    _, logits = model.apply(params._replace(head=uniform), jnp.zeros(8, int))
    assert perplexity(cross_entropy(logits, ids)).item() == pytest.approx(V, rel=1e-6)


def test_the_tables_gradient_is_the_sum_of_both_its_uses(float64):
    model, params = make(tie=True)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    targets = jnp.roll(TOKENS, -1, axis=1)

    def loss(table):
        tied = params._replace(embedding=params.embedding._replace(vectors=table))
        _, logits = model.apply(tied, TOKENS)
        return cross_entropy(logits, targets).value

    table = params.embedding.vectors
    gradient = jax.grad(loss)(table)
    for place in ((0, 0), (3, 2), (6, 3)):
        nudge = jnp.zeros_like(table).at[place].set(1e-5)
        slope = (loss(table + nudge) - loss(table - nudge)) / 2e-5
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-7, atol=1e-11)


def test_locked_dropout_drops_the_same_features_at_all_steps():
    xs = jnp.ones((5, 20, 40))
    dropped = np.asarray(locked_dropout(jax.random.key(0), xs, 0.4))
    assert np.all(dropped == dropped[:, :1])
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1 / 0.6], rtol=1e-6)
    assert not np.all(dropped[0] == dropped[1])
    np.testing.assert_array_equal(locked_dropout(None, xs, 0.4), xs)


def test_words_inputs_and_outputs_are_dropped_by_draws_apart():
    """As many flags each: of one key they would be the same."""
    size, words = 8, 64
    shown = rnnjax.Cell(
        output_size=size,
        init=lambda key, input_size: (),
        initial_carry=lambda params: jnp.zeros(1),
        project=lambda params, x: (x,),
        update=lambda params, carry, x_proj, h_proj: (carry, x_proj[0]),
    )
    table = rnnjax.embedding(words, vectors=np.ones((words, size)))
    model = rnnjax.language_model(table, shown, dropout=0.5, word_dropout=0.5)
    params, tokens = model.init(jax.random.key(0)), jnp.arange(words).reshape(size, size)
    _, outputs = jax.jit(model.features)(params, tokens, key=jax.random.key(1))
    raw, dropped = (np.asarray(a) for a in outputs)
    assert set(np.unique(raw)) == {0.0, 4.0}
    assert set(np.unique(dropped)) == {0.0, 8.0}
    kept_words, kept_inputs, kept = raw.any(2), raw.any(1), dropped.any(1)
    assert 0.25 < np.mean(kept_words == kept_inputs) < 0.75
    assert 0.25 < np.mean(kept[kept_inputs]) < 0.75


def test_a_dropped_word_is_dropped_wherever_it_stands():
    model, params = make(word_dropout=0.5)
    vectors = params.embedding.vectors
    seen = {}

    def watch(params, xs, *rest, **options):
        seen["xs"] = xs
        return layer_apply(params, xs, *rest, **options)

    layer = rnnjax.recurrent(rnnjax.lstm(H))
    layer_apply = layer.apply
    watched = rnnjax.language_model(
        rnnjax.embedding(V, E), layer._replace(apply=watch), word_dropout=0.5
    )
    watched.apply(params, TOKENS, key=jax.random.key(3))
    kept = {}
    for token, x in zip(TOKENS.reshape(-1), seen["xs"].reshape(-1, E), strict=True):
        is_kept = bool(jnp.any(x != 0))
        if is_kept:
            np.testing.assert_allclose(x, vectors[token] * 2, rtol=1e-6)
        assert kept.setdefault(int(token), is_kept) == is_kept
    assert set(kept.values()) == {True, False}
    del model


def test_what_word_dropout_keeps_of_16_bits_is_rounded_once():
    tokens = jnp.arange(200)[None]
    xs = jax.random.uniform(jax.random.key(0), (1, 200, 3), minval=1, maxval=2).astype("bfloat16")
    dropped = drop_words(jax.random.key(1), tokens, xs, 200, 0.4)
    assert dropped.dtype == xs.dtype
    kept, exact = np.asarray(dropped, float), np.asarray(xs, float) / 0.6
    half_a_unit = 2.0 ** (np.floor(np.log2(exact)) - 8)
    assert np.all((abs(kept - exact) < 1.0001 * half_a_unit) | (kept == 0))
    assert 0.4 < np.mean(kept != 0) < 0.8


def test_the_penalty_of_more_numbers_than_32_bits_count_is_that_of_few():
    @jax.jit
    def penalty(value):
        hs = jnp.broadcast_to(value, (512, 1024, 4096))  # 2^31 of them, none of which is kept
        return activation_penalty(Features(hs, hs), activity=2.0)

    assert float(penalty(jnp.float32(1))) == pytest.approx(2.0, rel=1e-5)


def test_the_penalty_is_that_of_its_formula():
    raw = np.random.default_rng(0).normal(size=(2, 5, 3))
    dropped, mask = raw * 2, np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)
    size = np.mean(dropped[mask] ** 2)
    runs = raw[0, :3], raw[1, 2:]  # neighbours on both sides of a hole are none
    change = np.mean(np.concatenate([np.diff(run, axis=0) for run in runs]) ** 2)
    value = activation_penalty(
        Features(jnp.asarray(raw), jnp.asarray(dropped)), mask, activity=2.0, change=3.0
    )
    np.testing.assert_allclose(value, 2 * size + 3 * change, rtol=1e-6)
    features = Features(jnp.asarray(raw), jnp.asarray(dropped))
    of_weights = jax.jit(lambda a, b: activation_penalty(features, mask, activity=a, change=b))
    np.testing.assert_allclose(of_weights(2.0, 3.0), 2 * size + 3 * change, rtol=1e-6)
    nothing = activation_penalty(Features(jnp.asarray(raw), jnp.asarray(dropped)), mask & False)
    assert nothing == 0


def test_it_learns_a_markov_chain_to_its_entropy_and_writes_it():
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.ones(4) * 0.5, size=4)
    tokens = [0]
    for draw in rng.random(40_000):
        tokens.append(min(int(np.searchsorted(np.cumsum(chain[tokens[-1]]), draw)), 3))
    ids = np.array(tokens)
    held_out = ids[32_000:]
    rows = contiguous(ids[:32_000], 32)
    model = rnnjax.language_model(rnnjax.embedding(4, 8), rnnjax.gru(16))
    # The rate falls to nothing, so that the last steps leave no noise of their own.
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 6 * 49))

    @jax.jit
    def train(params):
        def update(held, piece):
            params, state = held
            xs, ys = piece
            loss = lambda p: cross_entropy(model.apply(p, xs)[1], ys).value  # noqa: E731
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        pieces = [np.stack(np.split(a[:, :980], 49, axis=1)) for a in (rows.tokens, rows.targets)]
        pieces = [np.tile(a, (6, 1, 1)) for a in pieces]
        return jax.lax.scan(update, (params, optimizer.init(params)), pieces)[0][0]

    params = train(model.init(jax.random.key(0)))
    _, logits = model.apply(params, held_out[:-1])
    loss = float(cross_entropy(logits, held_out[1:]).value)
    # The entropy of the very same transitions, under the law that made them.
    entropy = -np.mean(np.log(chain[held_out[:-1], held_out[1:]]))
    assert entropy - 1e-3 < loss < 1.02 * entropy

    written = rnnjax.generate(
        model, params, jnp.zeros((64, 1), int), max_new_tokens=300, key=jax.random.key(1)
    )
    text = np.concatenate([np.zeros((64, 1), int), written.tokens], axis=1)
    counts = np.zeros((4, 4))
    np.add.at(counts, (text[:, :-1].reshape(-1), text[:, 1:].reshape(-1)), 1)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), chain, atol=0.05)


def backwards():
    return rnnjax.recurrent(rnnjax.lstm(H), reverse=True)


def score(*pair):
    model, params = make()
    return model.score(params, pair)


HS = np.ones((1, 3, 2), np.float32)
BAD = {
    "tied of other sizes": (
        lambda: rnnjax.language_model(rnnjax.embedding(V, 5), rnnjax.lstm(H), tie=True),
        "tie=True needs the layer's output size to be 5, the size of .* of embedding, got 4",
    ),
    "tied one-hot": (
        lambda: rnnjax.language_model(rnnjax.one_hot(V), rnnjax.lstm(V), tie=True),
        "tie=True needs embedding to have a table",
    ),
    "tied by a word": (
        lambda: rnnjax.language_model(rnnjax.embedding(V, H), rnnjax.lstm(H), tie="no"),
        "tie must be True or False, got 'no'",
    ),
    "reading ahead": (
        lambda: rnnjax.language_model(rnnjax.embedding(V, E), backwards()),
        "layer must not read ahead",
    ),
    "a rate of 1": (
        lambda: rnnjax.language_model(rnnjax.embedding(V, E), rnnjax.lstm(H), dropout=1.0),
        "dropout",
    ),
    "no embedding": (lambda: rnnjax.language_model(3, rnnjax.lstm(H)), "embedding must be"),
    "no layer": (lambda: rnnjax.language_model(rnnjax.embedding(V, E), 3), "layer must be"),
    "targets of one step for all": (
        lambda: score(TOKENS, TOKENS[:, :1]),
        r"targets must have the shape of tokens, \(3, 6\), got shape \(3, 1\)",
    ),
    "targets of one row for all": (lambda: score(TOKENS, TOKENS[:1]), r"got shape \(1, 6\)"),
    "three where a pair is": (
        lambda: score(TOKENS, TOKENS, TOKENS),
        r"pair \(tokens, targets\) must be a tuple of 2, got a tuple of 3",
    ),
    "no parameters": (
        lambda: make()[0].apply(None, TOKENS),
        r"params must be LanguageModelParams\(embedding, layer, head\), got None",
    ),
    "a step without parameters": (
        lambda: make()[0].step({"w": 1}, None, TOKENS[:, 0]),
        "params must be LanguageModelParams.*, got a dict of w",
    ),
    "a text without parameters": (
        lambda: rnnjax.generate(make()[0], None, TOKENS, max_new_tokens=1, key=jax.random.key(0)),
        "params must be LanguageModelParams.*, got None",
    ),
    "a mask of numbers": (
        lambda: activation_penalty(Features(HS, HS), np.array([[1, 2, 0]])),
        "mask must be of dtype bool, got dtype int64",
    ),
    "a mask of one row": (
        lambda: activation_penalty(Features(HS, HS), np.ones(3, bool)),
        r"mask must have shape \(1, 3\), got shape \(3,\)",
    ),
    "no features": (
        lambda: activation_penalty(3),
        r"the pair \(raw, dropped\) must be a tuple of 2, got int 3",
    ),
    "outputs of another shape": (
        lambda: activation_penalty((HS, HS[:, :1])),
        r"dropped must have the shape of raw, \(1, 3, 2\), got \(1, 1, 2\)",
    ),
    "a penalty below 0": (
        lambda: activation_penalty(Features(HS, HS), activity=-1),
        "activity must be finite and at least 0, got -1",
    ),
    "integers to drop": (
        lambda: locked_dropout(jax.random.key(0), HS.astype(int), 0.5),
        "xs must be of floating dtype",
    ),
    "features of no steps": (
        lambda: locked_dropout(jax.random.key(0), HS[0, 0], 0.5),
        r"xs must have shape \[\.\.\., T, H\], got shape \(2,\)",
    ),
    "a rate of dropout above 1": (
        lambda: locked_dropout(jax.random.key(0), HS, 1.5),
        r"rate must be a rate in \[0, 1\), got 1.5",
    ),
    "a key that is a number": (lambda: locked_dropout(0, HS, 0.5), "key must be one key"),
    "ids outside": (lambda: make()[0].apply(make()[1], jnp.array([[V]])), r"\[0, 7\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()


def test_a_tied_head_leaves_a_frozen_table_as_it_is():
    vectors = np.arange(V * E, dtype=np.float32).reshape(V, E) / 10
    table = rnnjax.embedding(V, vectors=vectors, frozen=True)
    model = rnnjax.language_model(table, rnnjax.lstm(E), tie=True)
    params = model.init(jax.random.key(0))

    def loss(params):
        return -model.score(params, (TOKENS[:, :-1], TOKENS[:, 1:]))[1].sum()

    optimizer = optax.masked(optax.sgd(0.1), rnnjax.trainable)
    grads = jax.grad(loss)(params)
    moved = optax.apply_updates(params, optimizer.update(grads, optimizer.init(params), params)[0])
    np.testing.assert_array_equal(moved.embedding.vectors, vectors)
    assert not np.array_equal(moved.head.bias, params.head.bias)


def test_the_penalty_runs_where_promotion_is_strict():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.bfloat16):
            found = activation_penalty(Features(HS.astype(dtype), HS.astype(dtype)))
            assert found.dtype == jnp.float32


def test_a_head_takes_lists_and_any_byte_order():
    model, params = make()
    hs = np.arange(8, dtype=np.float32).reshape(2, H)
    expected = hs @ np.asarray(params.head.w) + np.asarray(params.head.bias)
    for given in (hs, hs.tolist(), hs.astype(">f4")):
        np.testing.assert_allclose(model.head(params, given), expected, rtol=1e-5, atol=1e-6)

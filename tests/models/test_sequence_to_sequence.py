"""Encoder, decoder and attention between them: what is taught is what is written step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

V_IN, V_OUT, E, H, START, STOP = 7, 6, 3, 4, 2, 3
SOURCE = np.array([[4, 5, 6], [1, 3, 9], [9, 9, 9]])  # 9 is no id: it stands where nothing is
SOURCES = np.array([3, 2, 0])
TARGET, TARGETS = np.array([[4, 5, STOP], [5, STOP, 9], [1, 9, 9]]), np.array([3, 2, 1])


def make_of(decoder, attention, **options):
    return rnnjax.sequence_to_sequence(
        rnnjax.embedding(V_IN, E, scale=1.0),
        rnnjax.bidirectional(rnnjax.gru(3)),
        rnnjax.embedding(V_OUT, E, scale=1.0),
        decoder,
        attention=attention,
        start=START,
        **options,
    )


def make(kind, **options):
    decoder, attention = rnnjax.gru(H), None
    if kind == "outside":
        attention, decoder = (
            rnnjax.attention("general"),
            rnnjax.stack(rnnjax.gru(5), rnnjax.lstm(H)),
        )
    elif kind == "inside":
        decoder = rnnjax.attention_cell(rnnjax.lstm(H), 6)
    elif kind == "feeding":
        decoder = rnnjax.attention_cell(rnnjax.gru(H), 6, input_feeding=True)
    return make_of(decoder, attention, **options)


KINDS = ("none", "outside", "inside", "feeding")


def stepwise(model, params, source, target):
    """One sequence without padding: the steps of its tokens, in a Python loop."""
    carry, memory = jax.jit(model.encode)(params, jnp.asarray(source))
    logits, weights, token, step = [], [], START, jax.jit(model.step)
    for after in target:
        carry, row, seen = step(params, carry, jnp.asarray(token), memory)
        logits.append(row)
        weights.append(seen)
        token = after
    return jnp.stack(logits), None if weights[0] is None else jnp.stack(weights)


def close(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 100),
        found,
        expected,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.kept
def test_what_is_taught_is_each_row_alone_step_by_step(kind):
    model = make(kind, head_size=5)
    params = model.init(jax.random.key(0))
    logits, weights = jax.jit(model.apply)(params, SOURCE, SOURCES, TARGET, TARGETS)
    assert logits.shape == (3, 3, V_OUT)
    for row in (1, 2):
        places, steps = SOURCES[row], TARGETS[row]
        alone, seen = stepwise(model, params, SOURCE[row, :places], TARGET[row, :steps])
        close(logits[row, :steps], alone, 1e-5)
        if kind == "none":
            assert weights is seen is None
            continue
        close(weights[row, :steps, :places], seen, 1e-5)
        assert not np.any(weights[row, :, places:])
        assert not np.any(weights[row, steps:])


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "inside" else pytest.mark.full) for k in KINDS]
)
def test_gradients_are_those_of_the_steps_in_a_loop(kind, float64):
    model = make(kind, bridge="tanh")
    params = jax.tree.map(lambda a: a.astype(jnp.float64), model.init(jax.random.key(0)))

    def of_second_row(params):
        logits, _ = model.apply(params, SOURCE[:2], SOURCES[:2], TARGET[:2], TARGETS[:2])
        return jnp.sum(logits[1, : TARGETS[1]] ** 2)

    def alone(params):
        logits, _ = stepwise(model, params, SOURCE[1, : SOURCES[1]], TARGET[1, : TARGETS[1]])
        return jnp.sum(logits**2)

    close(jax.jit(jax.grad(of_second_row))(params), jax.jit(jax.grad(alone))(params), 1e-8)


@pytest.mark.full
def test_a_source_without_tokens_has_finite_gradients():
    model = make("inside")

    def loss(params):
        logits, weights = model.apply(params, SOURCE, np.zeros(3, int), TARGET, TARGETS)
        return jnp.sum(logits**2) + jnp.sum(weights)

    value, gradients = jax.jit(jax.value_and_grad(loss))(model.init(jax.random.key(0)))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def greedy(model, params, source, length):
    carry, memory = jax.jit(model.encode)(params, jnp.asarray(source))
    text, token, step = [], START, jax.jit(model.step)
    while len(text) < length and token != STOP:
        carry, logits, _ = step(params, carry, jnp.asarray(token), memory)
        token = int(jnp.argmax(logits))
        text.append(token)
    return text


@pytest.mark.parametrize("kind", [pytest.param("outside", marks=pytest.mark.full), "inside"])
def test_a_beam_of_one_is_greedy(kind):
    model = make(kind)
    params = jax.tree.map(lambda a: a * 3, model.init(jax.random.key(1)))
    carry, memory = model.encode(params, SOURCE, SOURCES)
    beams = rnnjax.beam_search(
        model.step,
        params,
        carry,
        jnp.full(3, START),
        memory,
        stop=STOP,
        beam_size=1,
        max_length=5,
        length_penalty=0.0,
    )
    for row, places in enumerate(SOURCES[:2]):
        length = int(beams.lengths[row, 0])
        expected = greedy(model, params, SOURCE[row, :places], 5)
        assert beams.tokens[row, 0, :length].tolist() == expected


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_decoder_that_reads_its_own_tokens_writes_as_greedy_search_does(rate):
    model = make("inside")
    params = jax.tree.map(lambda a: a * 3, model.init(jax.random.key(1)))
    run = jax.jit(
        lambda rate: rnnjax.scheduled_sampling(
            model,
            params,
            SOURCE[:2],
            SOURCES[:2],
            TARGET[:2],
            TARGETS[:2],
            rate=rate,
            key=jax.random.key(0),
        )
    )
    logits, weights = run(rate)
    for row in range(2):
        n, read = TARGETS[row], TARGET[row]
        if rate:  # every token but the first is read as the model has just written it
            read = np.argmax(logits[row], axis=-1)
        expected, seen = stepwise(model, params, SOURCE[row, : SOURCES[row]], read[:n])
        close(logits[row, :n], expected, 1e-5)
        close(weights[row, :n, : SOURCES[row]], seen, 1e-5)
        assert not np.any(logits[row, n:])
        assert not np.any(weights[row, n:])
        if rate:
            assert read[:n].tolist() != TARGET[row, :n].tolist()


def test_its_own_tokens_are_drawn_by_the_law_and_apart_at_every_step():
    """A step that shows, in the place of weights, the token it has read."""
    law = np.array([0.5, 0.3, 0.2])

    def step(params, carry, token, memory):
        shown = jax.nn.one_hot(token, 3)
        return carry, jnp.broadcast_to(jnp.log(law), shown.shape), shown

    model = make("none")._replace(encode=lambda *_, **__: ((), None), step=step)
    target = np.zeros((4000, 3), int)
    options = {"rate": 1.0, "key": jax.random.key(0), "draw": True}
    _, read = rnnjax.scheduled_sampling(model, (), target[:, :1], None, target, **options)
    pairs = np.einsum("bi, bj -> ij", read[:, 1], read[:, 2]) / len(target)
    np.testing.assert_allclose(pairs, np.outer(law, law), atol=0.03)


def test_no_gradient_goes_through_its_own_tokens():
    model = make("none")
    params = model.init(jax.random.key(0))

    def last(vectors, rate):
        changed = params._replace(target=params.target._replace(vectors=vectors))
        options = {"rate": rate, "key": jax.random.key(0), "draw": True}
        logits, _ = rnnjax.scheduled_sampling(
            model, changed, SOURCE[:1], None, np.array([[4, 5]]), **options
        )
        return jnp.sum(logits[0, 1])

    taught = jax.jit(jax.grad(last))(params.target.vectors, 0.0)
    assert np.flatnonzero(np.any(taught, axis=1)).tolist() == [START, 4]
    own = jax.jit(jax.grad(last))(params.target.vectors, 1.0)
    assert START in np.flatnonzero(np.any(own, axis=1)).tolist()
    assert len(np.flatnonzero(np.any(own, axis=1))) <= 2
    with pytest.raises(ValueError, match=r"rate must be a rate in \[0, 1\]"):
        last(params.target.vectors, 1.5)
    with pytest.raises(ValueError, match=r"rate must be one number, got shape \(2,\)"):
        jax.jit(last)(params.target.vectors, jnp.array([0.5, 0.1]))


def test_arguments_have_the_names_that_are_written():
    model = make("none")
    params = model.init(jax.random.key(0))
    expected = model.apply(params, SOURCE, SOURCES, TARGET, TARGETS)[0]
    named = {"source": SOURCE, "source_lengths": SOURCES}
    named |= {"target": TARGET, "target_lengths": TARGETS}
    assert jnp.all(model.apply(params, **named)[0] == expected)
    assert jnp.all(model.teach(params, **named)[0] == expected)
    carry, _ = model.encode(params, source=SOURCE, lengths=SOURCES)
    assert carry.shape == (3, H)


def test_a_copied_carry_begins_the_decoder():
    cell = rnnjax.stack(rnnjax.lstm(H), rnnjax.gru(3))
    model = rnnjax.sequence_to_sequence(
        rnnjax.embedding(V_IN, E), cell, rnnjax.embedding(V_OUT, E), cell, bridge="copy", start=2
    )
    params = model.init(jax.random.key(0))
    carry, memory = model.encode(params, SOURCE, SOURCES)
    clean = np.where(SOURCE == 9, 0, SOURCE)
    ends, _ = cell.apply(params.encoder, params.source.vectors[clean], SOURCES)
    close(carry, ends, 1e-6)
    assert memory is None


def large(kind, **options):
    """One with so large a memory, 16 numbers a place, that a search is given logits of places."""
    decoders = {
        "outside": rnnjax.gru(H),
        "inside": rnnjax.attention_cell(rnnjax.lstm(H), 16, selector=True),
        "feeding": rnnjax.attention_cell(rnnjax.gru(H), 16, input_feeding=True),
    }
    return rnnjax.sequence_to_sequence(
        rnnjax.embedding(V_IN, E, scale=1.0),
        rnnjax.bidirectional(rnnjax.gru(8)),
        rnnjax.embedding(V_OUT, E, scale=1.0),
        decoders[kind],
        attention=rnnjax.attention("additive") if kind == "outside" else None,
        start=START,
        **options,
    )


@pytest.mark.parametrize("kind", ["outside", "inside", "feeding"])
def test_logits_of_places_give_the_logits_that_are_taught(kind, float64):
    model = large(kind)
    params = jax.tree.map(lambda a: a.astype("float64"), model.init(jax.random.key(0)))
    source, target = np.array([[4, 5, 9, 9]]), np.array([[4, 5, STOP]])
    expected, _ = jax.jit(model.apply)(params, source, jnp.array([2]), target)
    carry, memory = jax.jit(model.encode)(params, source, jnp.array([2]))
    w, _ = model.head_weights(params)
    # The rows of the head that meet what was read, by NumPy; of padding nothing is known.
    close(memory.logits[0], np.asarray(memory.states[0]) @ np.asarray(w)[H : H + 16], 1e-12)
    assert not np.any(memory.logits[0, 2:])
    for each in (memory, memory._replace(logits=None)):
        state, token, step = carry, jnp.array([START]), jax.jit(model.step)
        for t, after in enumerate(target[0]):
            state, logits, _ = step(params, state, token, each)
            close(logits[0], expected[0, t], 1e-12)
            token = jnp.array([after])


def test_a_beam_finds_the_same_with_and_without_logits_of_places():
    model = large("inside")
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(1)))
    carry, memory = jax.jit(model.encode)(params, np.array([[4, 5, 6, 1]]))
    one, two = (
        rnnjax.beam_search(
            model.step, params, carry, [START], each, stop=STOP, beam_size=3, max_length=5
        )
        for each in (memory, memory._replace(logits=None))
    )
    assert memory.logits is not None
    np.testing.assert_array_equal(one.tokens, two.tokens)
    close(one.scores, two.scores, 1e-5)


@pytest.mark.parametrize("kind", ["inside", "outside"])
def test_outputs_of_16_bits_meet_what_was_read_in_32_without_a_promotion(kind):
    """The states that are read are those of the encoder, whose dtypes are its own."""
    cell = rnnjax.gru(H)
    decoder = rnnjax.attention_cell(cell, 6) if kind == "inside" else cell
    attention = None if kind == "inside" else rnnjax.attention("general")
    narrow = rnnjax.with_policy(decoder, rnnjax.Policy(state="bfloat16"))
    wide, model = (make_of(part, attention) for part in (decoder, narrow))
    params = model.init(jax.random.key(0))
    expected, _ = wide.apply(params, SOURCE, SOURCES, TARGET, TARGETS)
    with jax.numpy_dtype_promotion("strict"):
        logits, _ = model.apply(params, SOURCE, SOURCES, TARGET, TARGETS)
        carry, memory = model.encode(params, SOURCE, SOURCES)
        _, first, _ = model.step(params, carry, jnp.full(len(SOURCE), START), memory)
    np.testing.assert_allclose(logits, expected, atol=0.02)
    np.testing.assert_allclose(first, expected[:, 0], atol=0.02)


def test_only_few_places_are_given_logits():
    def logits(model, *source):
        given = jax.eval_shape(model.init, jax.random.key(0)), *source
        return jax.eval_shape(model.encode, *given)[1].logits

    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    assert logits(large("inside"), ids).shape == (1, 4, V_OUT)
    assert logits(large("inside"), jax.ShapeDtypeStruct((1, 5), jnp.int32)) is None
    assert logits(large("inside"), jax.ShapeDtypeStruct((2, 4), jnp.int32)) is None
    assert logits(large("inside", head_size=5), ids) is None
    rows = jax.export.symbolic_shape("b, 4")
    assert logits(large("inside"), jax.ShapeDtypeStruct(rows, jnp.int32)) is None
    picture = rnnjax.captioner(
        16, rnnjax.embedding(V_OUT, E), rnnjax.attention_cell(rnnjax.gru(H), 16), start=START
    )
    assert logits(picture, jax.ShapeDtypeStruct((1, 4, 16), jnp.float32)) is None


def test_dropout_is_drawn_in_training_alone():
    model = make("none", dropout=0.5)
    params = model.init(jax.random.key(0))
    arguments = (params, SOURCE[:1], None, TARGET[:1])
    run = jax.jit(lambda key: model.apply(*arguments, key=key)[0])
    one, two = map(run, (jax.random.key(1), jax.random.key(2)))
    assert np.any(one != two)
    close(model.apply(*arguments)[0], make("none").apply(*arguments)[0], 1e-6)


@pytest.mark.parametrize(
    "parts",
    [
        {"decoder": rnnjax.attention_cell(rnnjax.gru(H), H)},
        {"decoder": rnnjax.attention_cell(rnnjax.gru(H), H), "above": rnnjax.gru(H)},
        {"decoder": rnnjax.gru(H), "attention": rnnjax.attention("general")},
    ],
    ids=["inside", "above", "outside"],
)
def test_nothing_is_attended_to_and_nothing_comes_out_behind_the_end_of_a_target(parts):
    model = build(**parts)
    params = model.init(jax.random.key(0))
    read, attended = model.features(params, SOURCE, SOURCES, TARGET, TARGETS)
    real = np.arange(TARGET.shape[1]) < TARGETS[:, None]
    assert not np.any(np.asarray(read)[~real])
    assert not np.any(np.asarray(attended.output)[~real])
    assert not np.any(np.asarray(attended.weights)[~real])
    assert np.all(np.any(np.asarray(attended.output)[real] != 0, axis=-1))
    np.testing.assert_allclose(attended.weights[:2].sum(-1), real[:2], rtol=1e-6)


NOISY = rnnjax.variational_dropout(rnnjax.gru(H), inputs=0.5, hidden=0.5)


@pytest.mark.parametrize(
    "noisy",
    [
        {"encoder": NOISY},
        {"decoder": NOISY},
        {"decoder": rnnjax.attention_cell(NOISY, H)},
        {"decoder": rnnjax.attention_cell(rnnjax.gru(H), H), "above": NOISY},
    ],
    ids=["encoder", "decoder", "inside", "above"],
)
def test_every_part_draws_its_noise_in_training(noisy):
    model = build(**noisy)
    params = model.init(jax.random.key(0))
    run = jax.jit(lambda key: model.apply(params, SOURCE, SOURCES, TARGET, TARGETS, key=key)[0])
    one, two = map(run, (jax.random.key(1), jax.random.key(2)))
    assert np.any(one != two)
    np.testing.assert_array_equal(run(jax.random.key(1)), one)


NOISE_INSIDE = {
    "one": NOISY,
    "two": rnnjax.variational_dropout(rnnjax.zoneout(rnnjax.gru(H), 0.37), hidden=0.5),
    "every step": rnnjax.zoneout(rnnjax.lstm(H), 0.37),
}


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("inside", NOISE_INSIDE)
def test_no_two_draws_of_noise_are_of_one_key(inside, hard, monkeypatch):
    keys = []

    def noting(draw):
        def noted(key, *args, **options):
            data = jax.random.key_data(key)
            jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), data)
            return draw(key, *args, **options)

        return noted

    attending = rnnjax.attention_cell(NOISE_INSIDE[inside], H, hard=hard)
    model = build(encoder=NOISY, decoder=attending, above=NOISY, dropout=0.37)
    params = model.init(jax.random.key(0))
    jax.clear_caches()  # what was traced before notes its keys elsewhere
    for name in ("bernoulli", "uniform"):
        monkeypatch.setattr(jax.random, name, noting(getattr(jax.random, name)))
    model.apply(params, SOURCE, SOURCES, TARGET, TARGETS, key=jax.random.key(1))
    jax.effects_barrier()
    rows = len(SOURCE)
    assert len(keys) == len(set(keys)) >= 3 + 3 * 2 * rows  # three dropouts, three noisy cells


@pytest.mark.parametrize("feeding", [False, True])
def test_layers_above_start_apart_from_the_attention_below(feeding):
    attending = rnnjax.attention_cell(rnnjax.lstm(8), 8, input_feeding=feeding)
    model = build(encoder=rnnjax.gru(8), decoder=attending, above=rnnjax.lstm(8))
    decoder = model.init(jax.random.key(0)).decoder
    attention = decoder.attending.attention
    for matrix in (attention.query, attention.key):
        for gate in jnp.split(decoder.above.w_ih, 4, axis=-1):
            assert abs(np.corrcoef(matrix.ravel()[:64], gate.ravel()[:64])[0, 1]) < 0.7


def test_dropout_is_of_both_embeddings_and_of_what_the_head_reads():
    """Of a vector that goes through two of them, one number in four is left."""
    outputs, size, rate = 300, 400, 0.5
    target = rnnjax.embedding(V_OUT, size)
    model = build(target=target, decoder=rnnjax.gru(outputs), dropout=rate)
    params = model.init(jax.random.key(0))
    given = (SOURCE, SOURCES, TARGET, TARGETS)
    found, _ = model.features(params, *given, key=jax.random.key(1))
    left = np.asarray(found[0] != 0)
    np.testing.assert_array_equal(left, np.repeat(left[:1], 3, axis=0))  # the same at all steps
    np.testing.assert_allclose(left[0, :outputs].mean(), 1 - rate, atol=0.1)
    np.testing.assert_allclose(left[0, outputs:].mean(), (1 - rate) ** 2, atol=0.1)
    vectors, _ = model.features(params, *given)
    kept = left[:, outputs:]
    expected = np.where(kept, vectors[0, :, outputs:] / (1 - rate) ** 2, 0)
    np.testing.assert_allclose(found[0, :, outputs:], expected, rtol=1e-5)
    carry, _ = model.encode(params, SOURCE, SOURCES)
    dropped, _ = model.encode(params, SOURCE, SOURCES, key=jax.random.key(1))
    assert np.any(carry[0] != dropped[0])
    np.testing.assert_array_equal(carry[2], dropped[2])  # of no tokens there is nothing to drop


def test_a_tied_head_multiplies_by_the_table():
    model = make("none", tie=True, head_size=E)
    params = model.init(jax.random.key(0))
    assert params.head.output.w is None
    plain = make("none", head_size=E)
    same = params._replace(
        head=params.head._replace(output=params.head.output._replace(w=params.target.vectors.T))
    )
    arguments = (SOURCE[:1], None, TARGET[:1])
    close(model.apply(params, *arguments)[0], plain.apply(same, *arguments)[0], 1e-6)


def test_weights_of_pytorch_give_its_logits_and_its_greedy_text():
    """The usual translator of PyTorch: bidirectional GRU, additive attention inside the loop."""
    torch = pytest.importorskip("torch")
    cell = rnnjax.attention_cell(rnnjax.gru(H), 6)
    model = rnnjax.sequence_to_sequence(
        rnnjax.embedding(V_IN, E, scale=1.0),
        rnnjax.bidirectional(rnnjax.gru(3)),
        rnnjax.embedding(V_OUT, E, scale=1.0),
        cell,
        start=START,
    )
    params = jax.tree.map(lambda a: a * 2, model.init(jax.random.key(3)))
    params = params._replace(bridge=tuple(p._replace(bias=p.bias + 0.1) for p in params.bridge))

    def tensor(a):
        return torch.from_numpy(np.array(a))

    def fill(gru, p, layer=""):
        zeros = torch.zeros(2 * len(p.hidden_bias))
        with torch.no_grad():
            getattr(gru, f"weight_ih{layer}").copy_(tensor(p.w_ih.T))
            getattr(gru, f"weight_hh{layer}").copy_(tensor(p.w_hh.T))
            getattr(gru, f"bias_ih{layer}").copy_(tensor(p.bias))
            getattr(gru, f"bias_hh{layer}").copy_(torch.cat([zeros, tensor(p.hidden_bias)]))

    encoder = torch.nn.GRU(E, 3, bidirectional=True)
    fill(encoder, params.encoder.forward, "_l0")
    fill(encoder, params.encoder.backward, "_l0_reverse")
    inner = params.decoder.cell
    decoder = torch.nn.GRUCell(E + 6, H)
    fill(decoder, inner._replace(w_ih=jnp.concatenate([inner.w_ih, params.decoder.context])))
    attention, bridge = params.decoder.attention, params.bridge[0]
    w, bias = map(tensor, model.head_weights(params))

    def read(source):
        states, final = encoder(tensor(params.source.vectors)[source])
        both = torch.cat([final[0], final[1]])
        return states, torch.tanh(both @ tensor(bridge.w) + tensor(bridge.bias))

    def write(states, h, token):
        x = tensor(params.target.vectors)[token]
        energy = torch.tanh(h @ tensor(attention.query) + states @ tensor(attention.key))
        weights = torch.softmax(energy @ tensor(attention.v), 0)
        context = weights @ states
        h = decoder(torch.cat([x, context])[None], h[None])[0]
        logits = torch.cat([h, context, x]) @ w + bias
        return h, logits

    source, target = [4, 5, 6, 1], [4, 1, 5, STOP]
    with torch.no_grad():
        states, h = read(source)
        expected, token = [], START
        for after in target:
            h, logits = write(states, h, token)
            expected.append(logits.numpy())
            token = after
        states, h = read(source)
        text, token = [], START
        while len(text) < 8 and token != STOP:
            h, logits = write(states, h, token)
            token = int(logits.argmax())
            text.append(token)
    logits, _ = model.apply(params, jnp.array(source), None, jnp.array(target))
    np.testing.assert_allclose(logits, np.stack(expected), rtol=1e-5, atol=1e-5)
    assert greedy(model, params, source, 8) == text


def build(**changes):
    parts = {
        "source": rnnjax.embedding(V_IN, E),
        "encoder": rnnjax.gru(H),
        "target": rnnjax.embedding(V_OUT, E),
        "decoder": rnnjax.gru(H),
        "start": START,
    }
    return rnnjax.sequence_to_sequence(**{**parts, **changes})


def run(source=SOURCE, sources=SOURCES, target=TARGET, targets=TARGETS):
    model = make("inside")
    return model.apply(model.init(jax.random.key(0)), source, sources, target, targets)


def step(model, **changes):
    params = model.init(jax.random.key(0))
    carry, memory = model.encode(params, SOURCE, SOURCES)
    given = {"carry": carry, "token": jnp.full(len(SOURCE), START), "memory": memory}
    return model.step(params, **{**given, **changes})


BAD = {
    "no embedding": (lambda: build(source=rnnjax.gru(4)), "source must be a rnnjax.Embedding"),
    "no decoder": (lambda: build(decoder=None), "decoder must be a rnnjax.Cell or a rnnjax.Layer"),
    "a decoder that reads ahead": (
        lambda: build(decoder=rnnjax.bidirectional(rnnjax.gru(4))),
        "decoder must not read ahead",
    ),
    "attention twice": (
        lambda: build(
            decoder=rnnjax.attention_cell(rnnjax.gru(4), 4), attention=rnnjax.attention("dot")
        ),
        "attention must be None",
    ),
    "attention inside a stack": (
        lambda: build(decoder=rnnjax.stack(rnnjax.attention_cell(rnnjax.gru(4), 4), rnnjax.gru(4))),
        r"decoder must be the attention_cell alone, got rnnjax.stack\(.* as above=",
    ),
    "a decoder that does not say what it read": (
        lambda: build(decoder=rnnjax.window_cell(rnnjax.gru(H), H), above=rnnjax.gru(H)),
        "decoder must give rnnjax.Attended where it takes a context",
    ),
    "a bridge from nothing": (
        lambda: build(encoder=rnnjax.causal_convolution(E, 1), bridge="tanh"),
        "bridge='tanh' needs an encoder whose carry has numbers, .* give bridge='zeros'",
    ),
    "an unknown bridge": (lambda: build(bridge="rope"), "bridge must be one of tanh, copy, zeros"),
    "a carry of another kind": (
        lambda: build(bridge="copy", decoder=rnnjax.lstm(4)),
        r"the carry of the encoder \(bridge='copy'\) must be LSTMCarry",
    ),
    "a start that is no id": (
        lambda: build(start=6),
        r"start must be a token id, an integer in \[0, 6\), got 6",
    ),
    "a tied head of another size": (lambda: build(tie=True, head_size=9), "head_size to be 3"),
    "ids of no source": (lambda: run(sources=[3, 3, 3]), r"source must .*\[0, 7\)"),
    "ids of no target": (lambda: run(targets=[3, 3, 3]), r"target must .*\[0, 6\)"),
    "sources too long": (lambda: run(sources=[4, 1, 1]), "source_lengths must"),
    "targets too long": (lambda: run(targets=[4, 1, 1]), "target_lengths must"),
    "another batch": (lambda: run(target=TARGET[:2], targets=TARGETS[:2]), "batch axes of source"),
    "a memory that is none": (
        lambda: make("inside").step(
            make("inside").init(jax.random.key(0)), None, jnp.array(START), jnp.ones(3)
        ),
        "memory must be what encode gave",
    ),
    "a memory of other sources": (
        lambda: step(make("inside"), token=jnp.array([START])),
        r"memory must have the batch axes of token, \(1,\), got states of shape \(3, 3, 6\)",
    ),
    "a carry of no source": (
        lambda: step(make("none"), carry=None),
        "carry must be what encode gave, got None",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["none", "outside"])
def test_lists_are_taken_and_batches_of_no_rows(kind):
    model = make(kind)
    params = model.init(jax.random.key(0))
    given = [[4, 5, 6], [1, 3, 0]], [3, 2], [[4, 5], [5, STOP]], [2, 1]
    found, _ = model.apply(params, *given)
    np.testing.assert_array_equal(found, model.apply(params, *map(np.array, given))[0])
    empty = np.zeros((0, 3), int)
    logits, weights = model.apply(params, empty, None, empty)
    assert logits.shape == (0, 3, V_OUT)
    assert weights is None or weights.shape == (0, 3, 3)


def test_a_tied_head_leaves_a_frozen_table_as_it_is():
    vectors = np.arange(V_OUT * E, dtype=np.float32).reshape(V_OUT, E) / 10
    target = rnnjax.embedding(V_OUT, vectors=vectors, frozen=True)
    model = rnnjax.sequence_to_sequence(
        rnnjax.embedding(V_IN, E),
        rnnjax.gru(H),
        target,
        rnnjax.gru(H),
        start=START,
        tie=True,
        head_size=E,
    )
    params = model.init(jax.random.key(0))

    def loss(params):
        return model.apply(params, SOURCE, SOURCES, TARGET, TARGETS)[0][..., 0].sum()

    grads = jax.grad(loss)(params)
    np.testing.assert_array_equal(grads.target.vectors, np.zeros((V_OUT, E)))
    assert np.any(grads.source.vectors)


def test_a_head_that_reads_the_output_alone_is_one_whose_other_rows_are_zeros():
    """As the guide to other libraries has it: so they are, and have no gradient."""
    model = make("none")
    params = model.init(jax.random.key(0))

    def logits(params):
        output = params.head.output
        output = output._replace(w=output.w.at[H:].set(0))
        params = params._replace(head=params.head._replace(output=output))
        return model.apply(params, SOURCE[:1], None, TARGET[:1])[0]

    _, states = rnnjax.unroll(
        rnnjax.gru(H),
        params.decoder,
        rnnjax.embedding(V_OUT, E).apply(params.target, jnp.array([[START, *TARGET[0, :-1]]])),
        initial_carry=model.encode(params, jnp.asarray(SOURCE[:1]))[0],
    )
    w, bias = params.head.output
    expected = np.asarray(states) @ np.asarray(w[:H]) + np.asarray(bias)
    np.testing.assert_allclose(logits(params), expected, rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda params: jnp.sum(logits(params) ** 2))(params).head.output.w
    assert np.any(grads[:H])
    assert not np.any(grads[H:])

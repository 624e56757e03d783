"""From the places of a picture to a text, and layers above the one that attends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

V, E, H, M, START, STOP = 6, 3, 4, 3, 2, 3
PLACES = np.array([4, 2, 0])
TARGET, TARGETS = np.array([[4, 5, STOP], [5, STOP, 9], [1, 9, 9]]), np.array([3, 2, 1])
PICTURE = np.random.default_rng(0).normal(size=(3, 4, M)).astype(np.float32)
PICTURE[np.arange(4) >= PLACES[:, None]] = np.nan


def make(kind, **options):
    cell = rnnjax.attention_cell(
        rnnjax.lstm(H),
        M,
        selector=kind == "hard",
        hard=kind == "hard",
        input_feeding=kind == "feeding",
    )
    decoder = rnnjax.gru(H) if kind == "mean" else cell
    above = {"hard": rnnjax.gru(5), "feeding": rnnjax.stack(rnnjax.lstm(5))}.get(kind)
    return rnnjax.captioner(
        M, rnnjax.embedding(V, E, scale=1.0), decoder, above=above, start=START, **options
    )


def stepwise(model, params, places, target):
    """One picture by itself: the steps of its tokens, in a Python loop."""
    carry, memory = model.encode(params, places)
    logits, weights, token = [], [], START
    for after in target:
        carry, row, seen = model.step(params, carry, jnp.asarray(token), memory)
        logits.append(row)
        weights.append(jnp.zeros(len(places)) if seen is None else seen)
        token = after
    return jnp.stack(logits), jnp.stack(weights)


@pytest.mark.parametrize(
    "kind", ["hard", *(pytest.param(k, marks=pytest.mark.full) for k in ("feeding", "mean"))]
)
def test_a_batch_with_padding_is_each_picture_alone_step_by_step(kind, float64):
    model = make(kind, head_size=5)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (model.init(jax.random.key(0)), PICTURE))

    def together(params, picture):
        logits, weights = model.apply(params, picture, PLACES, TARGET, TARGETS)
        weights = jnp.zeros((3, 3, 4)) if weights is None else weights
        assert logits.shape == (3, 3, V)
        return logits[1, : TARGETS[1]], weights[1, : TARGETS[1], : PLACES[1]]

    def alone(params, picture):
        return stepwise(model, params, picture[1, : PLACES[1]], TARGET[1, : TARGETS[1]])

    def with_gradients(run):
        def total(params, picture):
            found = run(params, picture)
            return sum(jnp.sum(jnp.sin(a)) for a in found), found

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*wide)

    assert_trees_equal(with_gradients(together), with_gradients(alone))


def test_a_picture_without_places_is_finite_and_attends_to_nothing():
    model = make("hard")
    params = model.init(jax.random.key(0))
    logits, attended = jax.jit(model.teach)(
        params, PICTURE, PLACES, TARGET, TARGETS, key=jax.random.key(1)
    )
    assert np.isfinite(logits).all()
    assert not np.any(attended.weights[2])
    assert not np.any(attended.drawn[2])


def test_the_mean_of_places_of_16_bits_is_taken_in_32():
    model, picture = make("mean"), jax.random.normal(jax.random.key(1), (300, M), jnp.bfloat16)
    params = model.init(jax.random.key(0))
    found, expected = (model.encode(params, a)[0] for a in (picture, picture.astype(jnp.float32)))
    assert_trees_equal(found, expected, rtol=1e-6, atol=1e-6)


def test_a_beam_of_one_is_greedy_and_taught_by_its_own_tokens_is_what_it_writes():
    model = make("hard")
    params = jax.tree.map(lambda a: a * 3, model.init(jax.random.key(1)))
    picture = jnp.nan_to_num(PICTURE[:1])
    carry, memory = model.encode(params, picture)
    beams = rnnjax.beam_search(
        model.step, params, carry, jnp.array([START]), memory,
        stop=STOP, beam_size=1, max_length=4, length_penalty=0.0,
    )  # fmt: skip
    text, token, step = [], START, jax.jit(model.step)
    while len(text) < 4 and token != STOP:
        carry, logits, _ = step(params, carry, jnp.array([token]), memory)
        token = int(jnp.argmax(logits))
        text.append(token)
    assert beams.tokens[0, 0, : len(text)].tolist() == text
    own, _ = rnnjax.scheduled_sampling(
        model, params, picture, None, beams.tokens[:, 0], rate=1.0, key=jax.random.key(2)
    )
    taught, _ = model.apply(params, picture, None, beams.tokens[:, 0])
    count = len(text)
    np.testing.assert_allclose(own[:, :count], taught[:, :count], rtol=1e-5, atol=1e-6)


def apply_with(picture, lengths=None, target=TARGET):
    model = make("mean")
    return model.apply(model.init(jax.random.key(0)), picture, lengths, target)


BAD = {
    "places of another size": (
        lambda: apply_with(np.ones((3, 4, M + 1))),
        "source must have shape",
    ),
    "places that are integers": (lambda: apply_with(np.ones((3, 4, M), int)), "source"),
    "more places than there are": (lambda: apply_with(PICTURE, [5, 1, 1]), "source_lengths"),
    "texts of other pictures": (
        lambda: apply_with(PICTURE, target=np.full((2, 3), 4)),
        r"batch axes of source, \(3,\)",
    ),
    "a carry to copy": (lambda: make("mean", bridge="copy"), "bridge must be one of tanh, zeros"),
    "layers above no attention": (
        lambda: rnnjax.captioner(
            M, rnnjax.embedding(V, E), rnnjax.gru(H), above=rnnjax.gru(H), start=START
        ),
        "above must be None",
    ),
    "layers above that read ahead": (
        lambda: rnnjax.captioner(
            M,
            rnnjax.embedding(V, E),
            rnnjax.attention_cell(rnnjax.gru(H), M),
            above=rnnjax.recurrent(rnnjax.gru(H), reverse=True),
            start=START,
        ),
        "above must not read ahead",
    ),
    "a memory of another size": (
        lambda: rnnjax.captioner(
            M + 1, rnnjax.embedding(V, E), rnnjax.attention_cell(rnnjax.gru(H), M), start=START
        ),
        "context.states must have shape",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()

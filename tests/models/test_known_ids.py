"""Ids that are known while a program is traced are refused there as they are outside of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

BAD = np.array([[1, 9, 0], [1, 2, 3]])
GOOD = np.where(BAD == 9, 2, BAD)
DIRTY = GOOD + np.array([[0, 0, 9], [0, 0, 0]])  # where no token is
MASK = np.array([[True, True, False], [True, True, True]])
SEGMENTS = MASK.astype(int)

WORDS = rnnjax.embedding(5, 2)
LANGUAGE_MODEL = rnnjax.language_model(WORDS, rnnjax.lstm(2))
CLASSIFIER = rnnjax.classifier(WORDS, rnnjax.gru(2), 2)
TAGGER = rnnjax.tagger(WORDS, rnnjax.gru(2), 2)
TRANSLATOR = rnnjax.sequence_to_sequence(WORDS, rnnjax.gru(2), WORDS, rnnjax.gru(2), start=1)
SERIES = rnnjax.series_model(rnnjax.lstm(2), rnnjax.categorical_head(5))


def generate(params, ids):
    return rnnjax.generate(
        LANGUAGE_MODEL, params, ids, [2, 3], max_new_tokens=1, sampling=rnnjax.greedy()
    )


def continue_series(params, ids):
    return rnnjax.generate_series(
        SERIES, params, ids, [2, 3], max_new_steps=1, key=jax.random.key(0)
    )


READERS = {
    "generate": (LANGUAGE_MODEL, "prompt", generate),
    "generate_series": (SERIES, "values", continue_series),
    "values of a series": (SERIES, "values", lambda p, ids: SERIES.apply(p, ids, [2, 3])),
    "lengths": (LANGUAGE_MODEL, "tokens", lambda p, ids: LANGUAGE_MODEL.apply(p, ids, [2, 3])),
    "a mask": (LANGUAGE_MODEL, "tokens", lambda p, ids: LANGUAGE_MODEL.apply(p, ids, mask=MASK)),
    "segments": (
        CLASSIFIER,
        "tokens",
        lambda p, ids: CLASSIFIER.apply(p, ids, segment_ids=SEGMENTS, num_segments=1),
    ),
    "a tagger's segments": (
        TAGGER,
        "tokens",
        lambda p, ids: TAGGER.apply(p, ids, segment_ids=SEGMENTS),
    ),
    "a source": (TRANSLATOR, "source", lambda p, ids: TRANSLATOR.encode(p, ids, [2, 3])),
    "a target": (TRANSLATOR, "target", lambda p, ids: TRANSLATOR.apply(p, GOOD, None, ids, [2, 3])),
}


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.ndarray.tolist])
@pytest.mark.parametrize("reader", READERS)
def test_ids_known_while_a_program_is_traced_are_refused_and_their_padding_is_not(reader, kind):
    model, name, read = READERS[reader]
    params = jax.eval_shape(model.init, jax.random.key(0))
    dirty, bad = kind(DIRTY), kind(BAD)
    jax.eval_shape(lambda p: read(p, dirty), params)
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 5\), got 9 at index \(0, 1\)"):
        jax.eval_shape(lambda p: read(p, bad), params)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_segment_ids_known_while_a_program_is_traced_are_refused(kind):
    params = jax.eval_shape(CLASSIFIER.init, jax.random.key(0))
    segments = {"segment_ids": kind(SEGMENTS * 3), "num_segments": 2}
    with pytest.raises(ValueError, match=r"segment_ids must lie in \[0, 2\].*got 3 at index"):
        jax.eval_shape(lambda p: CLASSIFIER.apply(p, GOOD, **segments), params)

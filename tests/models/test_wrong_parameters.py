"""Parameters that are a dict where a tuple was, as some files give them back, are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

V, H, KEY = 7, 4, jax.random.key(0)
TOKENS = np.zeros((2, 3), int)
TABLE = rnnjax.embedding(V, H)
SOFTMAX = rnnjax.adaptive_softmax(H, V, [3])
CLASSIFIER = rnnjax.classifier(TABLE, rnnjax.gru(H), 2)
TAGGER = rnnjax.tagger(TABLE, rnnjax.gru(H), 2)
WRITER = rnnjax.language_model(TABLE, rnnjax.gru(H))
TRANSLATOR = rnnjax.sequence_to_sequence(
    TABLE, rnnjax.gru(H), TABLE, rnnjax.gru(H), start=0, head_size=5
)
BERNOULLI = rnnjax.bernoulli_head(3)
SERIES = rnnjax.series_model(rnnjax.gru(H), BERNOULLI)

RUNS = {
    "embedding": (TABLE.init, TABLE.apply, TOKENS),
    "classifier": (CLASSIFIER.init, CLASSIFIER.apply, TOKENS),
    "tagger": (TAGGER.init, TAGGER.apply, TOKENS),
    "language model": (WRITER.init, WRITER.apply, TOKENS),
    "series model": (SERIES.init, SERIES.apply, np.zeros((2, 3, 3))),
    "head": (lambda key: BERNOULLI.init(key, H), BERNOULLI.apply, jnp.zeros((2, H))),
    "softmax": (SOFTMAX.init, SOFTMAX.log_probs, jnp.zeros((2, H))),
    "translator": (TRANSLATOR.init, lambda p, x: TRANSLATOR.apply(p, x, None, x), TOKENS),
}


def dicts_in_turn(tree):
    """``tree`` with each of the tuples in it as a dict, and the name of that tuple."""
    if hasattr(tree, "_fields"):
        yield type(tree).__name__, tree._asdict()
        for name, part in zip(tree._fields, tree, strict=True):
            yield from ((kind, tree._replace(**{name: new})) for kind, new in dicts_in_turn(part))


CASES = {
    f"{name}, {kind}": (name, kind, wrong)
    for name, (init, _, _) in RUNS.items()
    for kind, wrong in dicts_in_turn(init(KEY))
}


@pytest.mark.parametrize("case", CASES)
def test_a_dict_in_place_of_a_tuple_of_parameters_is_named(case):
    name, kind, wrong = CASES[case]
    _, run, given = RUNS[name]
    with pytest.raises(ValueError, match=rf"params.* must .*{kind}.*, got "):
        run(wrong, given)


def test_a_softmax_has_one_cluster_for_each_cutoff():
    params = SOFTMAX.init(KEY)
    with pytest.raises(ValueError, match=r"params\.clusters must be 1, one for each of cutoffs"):
        SOFTMAX.log_probs(params._replace(clusters=()), jnp.zeros(H))


@pytest.mark.parametrize("name", RUNS)
def test_parameters_and_inputs_of_another_byte_order_are_the_numbers_they_are(name):
    init, run, given = RUNS[name]
    params = init(KEY)
    swapped = jax.tree.map(lambda a: np.asarray(a).astype(">f4"), params)
    foreign = np.asarray(given).astype(np.asarray(given).dtype.newbyteorder(">"))
    jax.tree.map(np.testing.assert_array_equal, run(swapped, foreign), run(params, given))

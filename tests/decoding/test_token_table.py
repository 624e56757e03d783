"""A step that looks up the first product of a token is the step that takes it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases import CELLS

import rnnjax
from rnnjax.models._token_table import step_with_table, token_table

pytestmark = pytest.mark.usefixtures("quick_compile")

V, E = 9, 4
BFLOAT16 = rnnjax.Policy(compute="bfloat16")
LAYERS = {
    "lstm": rnnjax.lstm(5),
    "a product in the step": rnnjax.gru(5, reset_after=False),
    "pieces that are trees": CELLS["users_own"],
    "a stack": rnnjax.stack(rnnjax.gru(5), rnnjax.residual(rnnjax.gru(5)), dropout=0.5),
    "a policy": rnnjax.stack(rnnjax.lstm(5), rnnjax.gru(3), policy=BFLOAT16),
}


def make(layer, embedding=None, **options):
    embedding = embedding or rnnjax.embedding(V, E)
    model = rnnjax.language_model(embedding, layer, **options)
    return model, model.init(jax.random.key(0))


@pytest.mark.parametrize("name", LAYERS)
def test_steps_with_the_table_are_steps_without_it(name):
    model, params = make(LAYERS[name], dropout=0.3)
    table = token_table(model, params)
    assert {a.shape[0] for a in jax.tree.leaves(table)} == {V}
    mine = theirs = model.initial_carry(params, (2,))
    for token in jnp.array([[3, 8], [0, 3], [3, 1]]):
        mine, logits = step_with_table(model, params, table, mine, token)
        theirs, expected = model.step(params, theirs, token)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def by_hand(layer):
    return layer._replace(apply=lambda *args, **options: layer.apply(*args, **options))


WITHOUT = {
    "a layer made by hand": lambda: make(by_hand(rnnjax.recurrent(rnnjax.lstm(5)))),
    "a first layer that adds its input": lambda: make(
        rnnjax.stack(rnnjax.residual(rnnjax.gru(E)), rnnjax.gru(5))
    ),
    "many tokens": lambda: make(rnnjax.lstm(2), rnnjax.embedding(2_000, 2)),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_cannot_be_divided_has_no_table_and_takes_its_own_step(name):
    model, params = WITHOUT[name]()
    assert token_table(model, params) is None
    carry = model.initial_carry(params, (2,))
    token = jnp.array([3, 8])
    found = step_with_table(model, params, None, carry, token)
    expected = model.step(params, carry, token)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("embedding", [rnnjax.embedding(V, E), rnnjax.one_hot(V)])
def test_what_is_written_is_what_a_loop_of_steps_writes(embedding):
    model, params = make(rnnjax.lstm(5), embedding)
    params = jax.tree.map(lambda a: a * 3, params)
    prompt = jnp.array([[1, 5, 2], [7, 0, 0]])
    out = rnnjax.generate(
        model, params, prompt, [3, 1], max_new_tokens=8, sampling=rnnjax.greedy(), stop=4
    )
    for row, length in enumerate([3, 1]):
        carry, logits = model.initial_carry(params), None
        for token in prompt[row, :length]:
            carry, logits = model.step(params, carry, token)
        for place in range(int(out.lengths[row])):
            token = jnp.argmax(logits)
            assert int(out.tokens[row, place]) == int(token)
            scored = jax.nn.log_softmax(logits)[token]
            np.testing.assert_allclose(out.log_probs[row, place], scored, rtol=1e-5)
            carry, logits = model.step(params, carry, token)


def test_texts_of_a_network_come_as_often_as_its_logits_say():
    model = rnnjax.language_model(rnnjax.embedding(3, 4), rnnjax.lstm(4))
    params = jax.tree.map(lambda a: a * 4, model.init(jax.random.key(0)))
    draws, prompts, lengths = 10_000, np.array([[1, 0, 2], [2, 0, 0]]), [3, 1]
    out = rnnjax.generate(
        model,
        params,
        np.repeat(prompts, draws, axis=0),
        np.repeat(lengths, draws),
        max_new_tokens=3,
        key=jax.random.key(1),
    )
    strings = np.array(list(itertools.product(range(3), repeat=3)))
    codes = np.asarray(out.tokens) @ [9, 3, 1]
    for row, length in enumerate(lengths):
        texts = np.concatenate([np.tile(prompts[row, :length], (27, 1)), strings], axis=1)
        _, scores = model.score(params, (texts[:, :-1], texts[:, 1:]))
        scores = np.asarray(scores[:, length - 1 :], np.float64)
        mine = slice(row * draws, (row + 1) * draws)
        np.testing.assert_allclose(out.log_probs[mine], scores[codes[mine]], rtol=1e-5, atol=1e-6)
        expected = draws * np.exp(scores.sum(axis=1))
        seen = np.bincount(codes[mine], minlength=27)
        statistic = np.sum((seen - expected) ** 2 / expected)
        assert statistic < scipy.stats.chi2.ppf(0.999, 26)

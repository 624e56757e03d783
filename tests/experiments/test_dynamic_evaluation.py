"""Weights that follow a text: each window is predicted before it is learned from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.measurements import dynamic_evaluation
from experiments.measurements.dynamic_evaluation import Squares, follow, hold, read
from experiments.write import command

pytestmark = pytest.mark.usefixtures("quick_compile")

V, WINDOW = 5, 4
IDS = np.random.default_rng(0).integers(0, V, 1 + 2 * WINDOW)


def make():
    model = rnnjax.language_model(rnnjax.embedding(V, 3), rnnjax.gru(4))
    return model, model.init(jax.random.key(0))


def test_a_window_is_read_with_what_was_learned_from_those_before_it():
    model, params = make()
    rate = 0.05
    squares = Squares(jax.tree.map(lambda a: jnp.full_like(a, 8.0), params), jnp.array(2))
    found, _ = read(model, params, IDS, follow(params, squares, rate, 0.3), WINDOW)
    held, after = read(model, params, IDS, hold(), WINDOW)

    def loss(params, carry, begin):
        text = jax.lax.dynamic_slice_in_dim(jnp.asarray(IDS), begin, WINDOW + 1)
        carry, log_probs = model.score(params, (text[:-1], text[1:]), initial_carry=carry)
        return -jnp.mean(log_probs), carry

    at = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (first, carry), grads = at(params, model.initial_carry(params), 0)
    # The root of 8 / 2 is 2, in every weight; so far there is nothing to go back from.
    moved = jax.tree.map(lambda p, g: p - rate * g / (2 + 1e-3), params, grads)
    (second, _), _ = at(moved, carry, WINDOW)
    (without, _), more = at(params, carry, WINDOW)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-6)
    np.testing.assert_allclose(held, (first + without) / 2, rtol=1e-6)
    assert int(after.gradients) == 2
    np.testing.assert_allclose(
        after.total.head.bias, grads.head.bias**2 + more.head.bias**2, rtol=1e-5
    )


def test_weights_go_back_by_their_share_and_no_further():
    trained = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    total = {"a": jnp.full(2, 1.0), "b": jnp.full(2, 9.0)}  # roots 1 and 3, their mean 2
    optimizer = follow(trained, Squares(total, jnp.array(1)), 1.0, 0.5)
    weights, nothing = jax.tree.map(jnp.ones_like, trained), jax.tree.map(jnp.zeros_like, trained)
    steps, _ = optimizer.update(nothing, optimizer.init(weights), weights)
    np.testing.assert_allclose(steps["a"], -0.25)
    np.testing.assert_allclose(steps["b"], -0.75)
    far = follow(trained, Squares(total, jnp.array(1)), 1.0, 50.0)
    steps, _ = far.update(nothing, far.init(weights), weights)
    np.testing.assert_allclose(steps["b"], -1.0)


def test_a_text_of_one_token_has_nothing_to_foretell(tmp_path, capsys):
    assert dynamic_evaluation.main([str(tmp_path), "--take", "1"]) == 2
    assert "--take must be a whole number from 2 up, got 1" in capsys.readouterr().err
    assert dynamic_evaluation.main([str(tmp_path), "--decay", "nan"]) == 2
    assert "--decay must be a finite number from 0 up, got nan" in capsys.readouterr().err


@pytest.mark.full
def test_a_run_reads_a_text_of_other_habits_better_when_it_follows(tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("the cat sat on the mat.\n" * 90 + "zz top is hot, ah.\n" * 40)
    folder = tmp_path / "run"
    quick = ["--hidden-size", "16", "--embedding-size", "8", "--rows", "4", "--window", "16"]
    quick += ["--epochs", "4", "--learning-rate", "0.02"]
    assert command.main(["--dataset", str(book), "--out", str(folder), *quick]) == 0
    capsys.readouterr()
    assert dynamic_evaluation.main([str(folder), "--rate", "0.01"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["text", "tokens"]
    held, followed = map(float, row.split()[-2:])
    assert followed < held

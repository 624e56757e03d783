"""The ensemble experiment: members side by side are members alone, and it learns."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.ensemble import (
    Settings,
    build_model,
    ensemble_logits,
    init_members,
    main,
    make_step,
)
from experiments.running.classifier_fitting import classification_loss
from rnnjax.data.batching import Batch
from rnnjax.training import init_train_state, make_train_step

SETTINGS = Settings(hidden_size=4, embedding_size=4)
GOOD, BAD = ("warm", "funny", "kind"), ("cold", "dull", "grim")


def write_rows(path, count, seed):
    chance = random.Random(seed)
    rows = (f"a {chance.choice(GOOD if i % 2 else BAD)} film,{i % 2}" for i in range(count))
    path.write_text("\n".join(["text,label", *rows]) + "\n")


def batch(seed):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(2, 9, (6, 5)).astype(np.int32)
    lengths = np.array([5, 3, 1, 4, 2, 0], np.int32)
    return Batch(tokens, lengths, np.arange(6, dtype=np.int32) % 2, np.ones(6, np.float32))


@pytest.mark.full
def test_members_trained_at_once_are_each_trained_alone():
    model, optimizer = build_model(SETTINGS, 9, 2), optax.adam(0.01)
    loss_fn = classification_loss(model, 0.2)
    keys = jax.random.split(jax.random.key(0), 2)
    states, step = init_members(model, optimizer, keys), make_step(loss_fn, optimizer)
    alone = make_train_step(loss_fn, optimizer)
    singles = []
    for key in keys:
        init_key, step_key = jax.random.split(key)
        singles.append(init_train_state(step_key, model.init(init_key), optimizer))
    for seed in range(3):
        states, metrics = step(states, batch(seed))
        outcomes = [alone(state, batch(seed)) for state in singles]
        singles = [state for state, _ in outcomes]
        losses = [float(m["loss"].total / m["loss"].count) for _, m in outcomes]
        together = metrics["loss"].total / metrics["loss"].count
        np.testing.assert_allclose(together, losses, rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3
    for i, state in enumerate(singles):
        for a, b in zip(jax.tree.leaves(states.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_the_ensemble_is_the_mean_of_the_probabilities():
    model = build_model(SETTINGS, 9, 3)
    params = jax.vmap(model.init)(jax.random.split(jax.random.key(1), 4))
    params = jax.tree.map(lambda a: 3 * a, params)
    given = batch(0)
    logits = ensemble_logits(model, params, given.tokens, given.lengths)
    assert logits.shape == (5, 6, 3)
    exponents = np.exp(np.asarray(logits, np.float64))
    chances = exponents / exponents.sum(-1, keepdims=True)
    np.testing.assert_allclose(chances[4], chances[:4].mean(0), rtol=1e-5)
    one = jax.tree.map(lambda a: a[2], params)
    np.testing.assert_allclose(
        logits[2], model.apply(one, jnp.asarray(given.tokens), given.lengths), rtol=1e-5, atol=1e-6
    )


@pytest.fixture
def data_dir(tmp_path):
    write_rows(tmp_path / "train.csv", 120, seed=0)
    write_rows(tmp_path / "test.csv", 20, seed=1)
    return tmp_path


@pytest.mark.full
def test_it_learns_and_prints_every_member_and_all_together(data_dir, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--members", "2"]
    small = ["--hidden-size", "4", "--embedding-size", "8", "--buckets", "1", "--epochs", "6"]
    quick = ["--dropout", "0.0", "--word-dropout", "0.0", "--learning-rate", "0.05"]
    assert main([*arguments, *small, *quick]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == [f"epoch {i}" for i in range(1, 7)]
    names = ("member 1", "member 2", "ensemble")
    assert lines[6:] == [f"{name}: test accuracy 1.0000" for name in names]


@pytest.mark.full
@pytest.mark.usefixtures("quick_compile")
def test_members_that_take_no_step_end_the_program(data_dir, capsys):
    arguments = ["--dataset", "local", "--data-dir", str(data_dir), "--members", "2"]
    small = ["--hidden-size", "4", "--embedding-size", "8", "--buckets", "1", "--epochs", "2"]
    assert main([*arguments, *small, "--learning-rate", "1e30"]) == 2
    said = capsys.readouterr()
    assert "every member must have finite steps in epoch 2, got none of member 1, 2" in said.err
    assert "nan" not in said.out


def test_no_members_are_refused(capsys):
    assert main(["--members", "0"]) == 2
    assert capsys.readouterr().err == (
        "error: --members must be a whole number from 1 to 1,000, got 0\n"
    )

"""Several recurrent classifiers trained at once by ``jax.vmap``, and what they know together.

Run:     python -m experiments.ensemble
Expect:  test accuracy 0.7612 ± 0.0159 of four members together over seeds 0, 1 and 2, where one
         member alone has 0.7560 on average
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.running.advancing import take_steps
from experiments.running.classifier_fitting import classification_loss
from experiments.running.console import exit_code
from experiments.running.parsing import parse
from experiments.running.room import require_room
from experiments.running.setting_checks import check_settings, whole
from experiments.running.text import read_batches
from rnnjax.metrics import accuracy, compute, evaluate, merge
from rnnjax.training import (
    CompiledStep,
    NonFiniteError,
    TrainState,
    init_train_state,
    make_train_step,
)

MEMBERS = whole(1, 1_000)


@dataclass(frozen=True)
class Settings:
    """Train several recurrent classifiers of texts at once."""

    dataset: str = "rotten_tomatoes"
    """rotten_tomatoes needs no network, as its sentences come inside a package; a path such as
    own.csv is your own file, with the columns text and label."""
    data_dir: Path | None = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    take: int | None = None
    """Train on this many examples only."""
    members: int = 4
    """Models in the ensemble; they differ in their initial weights and their dropout."""
    hidden_size: int = 32
    """Units in each direction."""
    embedding_size: int = 64
    """Size of a word vector, learned from nothing."""
    dropout: float = 0.6
    """High, since a few thousand sentences are soon learned by heart."""
    word_dropout: float = 0.2
    """Share of words read as the unknown word in training, for the same reason."""
    batch_size: int = 32
    """Rows in a batch; all members see the same batches."""
    buckets: int = 3
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    epochs: int = 6
    """After these, validation accuracy rises no more; nothing is chosen by the test set."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Decides the split, the order of examples, and the members."""


def build_model(settings: Settings, vocab_size: int, num_classes: int) -> rnnjax.Model:
    """One member."""
    return rnnjax.classifier(
        rnnjax.embedding(vocab_size, settings.embedding_size),
        rnnjax.bidirectional(rnnjax.gru(settings.hidden_size)),
        num_classes,
        pooling="max",
        dropout=settings.dropout,
    )


def init_members(
    model: rnnjax.Model, optimizer: optax.GradientTransformation, keys: jax.Array
) -> TrainState:
    """The states of all members, stacked: every leaf has the members as its first axis."""

    def init(key: jax.Array) -> TrainState:
        init_key, step_key = jax.random.split(key)
        return init_train_state(step_key, model.init(init_key), optimizer)

    return jax.vmap(init)(keys)


def make_step(loss_fn: Callable, optimizer: optax.GradientTransformation) -> CompiledStep:
    """A training step of one member, mapped over all of them on the same batch."""

    every = jax.vmap(make_train_step(loss_fn, optimizer), in_axes=(0, None))
    return CompiledStep("train step", every, donate_state=True, on_compile=None)


def ensemble_logits(model: rnnjax.Model, params: Any, tokens: Any, lengths: Any) -> jax.Array:
    """The logits [N, B, C] of each member, and after them those of the mean of their
    probabilities: [N + 1, B, C]."""
    logits = jax.vmap(model.apply, in_axes=(0, None, None))(params, tokens, lengths)
    chances = jax.nn.log_softmax(logits, axis=-1)
    together = jax.nn.logsumexp(chances, axis=0) - jnp.log(len(chances))
    return jnp.concatenate([logits, together[None]])


def names(members: int) -> list[str]:
    """What the rows of ``ensemble_logits`` are called."""
    return [*(f"member {i + 1}" for i in range(members)), "ensemble"]


def make_evaluation(model: rnnjax.Model, members: int) -> Callable:
    """The accuracy of every member, and of the ensemble, on one batch."""

    @jax.jit
    def step(params: Any, batch: Any) -> dict:
        logits = ensemble_logits(model, params, batch.tokens, batch.lengths)
        labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)
        rows = zip(names(members), logits, strict=True)
        return {name: accuracy(row, labels, weights) for name, row in rows}

    return step


def train(settings: Settings) -> dict[str, float]:
    """Train the members; the test accuracy of each, and of the ensemble."""
    check_settings(settings, members=MEMBERS)
    splits, *sizes = read_batches(settings, vocabulary_size=20_000, max_length=400)
    model = build_model(settings, *sizes)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(settings.learning_rate))
    require_room(model.init, settings.members)
    keys = jax.random.split(jax.random.key(settings.seed), settings.members)
    states = init_members(model, optimizer, keys)
    step = make_step(classification_loss(model, settings.word_dropout), optimizer)
    evaluation = make_evaluation(model, settings.members)
    for epoch in range(1, settings.epochs + 1):
        began = time.perf_counter()
        states, metrics = take_steps(step, states, splits.train.epoch(epoch))
        totals = functools.reduce(merge, metrics)
        _require_steps(totals, epoch)
        validation = evaluate(evaluation, states.params, splits.validation.epoch(0))
        loss = compute(jax.tree.map(jnp.sum, totals))["loss"]
        seconds = time.perf_counter() - began
        together = validation["ensemble"]
        print(
            f"epoch {epoch}: loss {loss:.4f}, validation accuracy {together:.4f}, {seconds:.1f} s",
            flush=True,
        )
    return evaluate(evaluation, states.params, splits.test.epoch(0))


def _require_steps(totals: Any, epoch: int) -> None:
    """Refuse an epoch in which a member took no step, as a step that is not finite is none.

    Raises:
        NonFiniteError: naming the members.
    """
    counts = np.asarray(totals["loss"].count)
    if lost := [str(member + 1) for member in np.flatnonzero(counts == 0)]:
        raise NonFiniteError(
            f"every member must have finite steps in epoch {epoch}, got none of member "
            f"{', '.join(lost)}: a smaller --learning-rate may help"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.ensemble", arguments)
    return exit_code(lambda: report(settings))


def report(settings: Settings) -> None:
    """Trains the members, and prints how good each became."""
    accuracies = train(settings)
    for name in names(settings.members):
        print(f"{name}: test accuracy {accuracies[name]:.4f}")


if __name__ == "__main__":
    sys.exit(main())

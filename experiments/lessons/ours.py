"""The training of a recipe by rnnjax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import NDArray

from experiments.lessons.recipes import Corpus, Encoded, Recipe, Totals, build
from experiments.running.prefetching import prefetched
from rnnjax.models import ClassifierParams, EmbeddingParams
from rnnjax.training import (
    CompiledStep,
    LazyAdamState,
    init_lazy_adam,
    lazy_adam_params,
    make_lazy_adam_step,
)


class Batch(NamedTuple):
    """A batch whose tokens are places in ``rows``, the distinct ids that it holds."""

    rows: NDArray[np.int32]  # [U], sorted; behind the real ones come ids outside the table
    tokens: NDArray[np.int32]  # [B, T]
    lengths: NDArray[np.int32]  # [B], of what the network is shown
    labels: NDArray[np.int32]  # [B]
    weights: NDArray[np.float32]  # [B], 0 for a row that only fills a short batch


class State(NamedTuple):
    """All that a step reads and writes; the table in ``adam`` has the vectors."""

    adam: LazyAdamState
    key: Array
    totals: Array  # [2], sums of mean losses and of hits


class Programs(NamedTuple):
    """What is compiled for a recipe."""

    step: CompiledStep
    answers: CompiledStep
    settle: Any


def programs(recipe: Recipe, vocab_size: int, capacity: int) -> Programs:
    """The programs of a recipe, shared by all trainings that differ in their batches alone.

    A program fits one shape of its state: a vocabulary, and tables for so many steps.
    """
    same = {"batch_size": 1, "multiple": 1, "epochs": 1, "reads_padding": False, "shuffle": False}
    one = dataclasses.replace(recipe, **same, vectors="uniform")
    return _programs(one, vocab_size, capacity)


@functools.cache
def _programs(recipe: Recipe, vocab_size: int, capacity: int) -> Programs:
    del vocab_size, capacity  # keys of the cache
    return Programs(
        CompiledStep("train step", make_step(recipe), donate_state=True, on_compile=None),
        CompiledStep("answers", make_answers(recipe), donate_state=False, on_compile=None),
        jax.jit(make_settle(recipe)),
    )


class Ours:
    """A contestant: see `experiments.lessons.contest.Contestant`."""

    def __init__(self, recipe: Recipe, corpus: Corpus) -> None:
        self._recipe = recipe
        self._corpus = corpus
        self._compile_seconds = 0.0

    @property
    def compile_seconds(self) -> float:
        """All that was spent on compiling training steps."""
        return self._compile_seconds

    def begin(self, params: ClassifierParams, steps: int, seed: int) -> None:
        """Starts anew from these parameters."""
        capacity = 1 << max(steps, 1023).bit_length()
        self._programs = programs(self._recipe, self._corpus.vocab_size, capacity)
        params = jax.tree.map(jnp.array, params)  # copies, as a step gives its state away
        rest, form = params._replace(embedding=()), self._recipe.form
        adam = init_lazy_adam(params.embedding.vectors, rest, max_steps=capacity, form=form)
        self._state = State(adam, jax.random.key(seed + 1), jnp.zeros(2))

    def prepare(self, batches: Sequence[NDArray[np.int64]]) -> None:
        """Nothing: a step is compiled, and timed apart, when its shape comes for the first time."""

    def advance(self, batches: Sequence[NDArray[np.int64]]) -> Totals:
        """Trains on these batches."""
        compiled = self._programs.step.compilations
        before = len(compiled)
        state = self._state._replace(totals=jnp.zeros(2))
        for batch in self._batches(self._corpus.train, batches):
            state = self._programs.step(state, batch)
        self._state = state
        self._compile_seconds += sum(made.seconds for made in compiled[before:])
        losses, hits = jax.device_get(state.totals).tolist()
        return Totals(losses, hits)

    @property
    def params(self) -> ClassifierParams:
        """The parameters as they are now."""
        return self._programs.settle(self._state)

    def accuracy(self, batches: Sequence[NDArray[np.int64]]) -> float:
        """The share of right answers on these batches of the test texts."""
        params, hits = self.params, []
        for batch in self._batches(self._corpus.test, batches):
            tokens = batch.rows[batch.tokens]
            batch = batch._replace(rows=tokens[:0, 0], tokens=tokens)
            hits.append(self._programs.answers(params, batch))
        return sum(map(float, jax.device_get(hits))) / sum(map(len, batches))

    def _batches(self, encoded: Encoded, batches: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        made = (
            make_batch(self._recipe, encoded, rows, self._corpus.vocab_size) for rows in batches
        )
        return prefetched(made, 4)


def make_batch(
    recipe: Recipe, encoded: Encoded, chosen: NDArray[np.int64], vocab_size: int
) -> Batch:
    """The batch of these texts, padded to a length and a number of rows that few batches differ in.

    Where the network is shown the padding, it is shown as much of it as in the lesson: to the
    longest text of the batch. What lies behind is never read.
    """
    shown = encoded.width(chosen)
    time = -(-shown // recipe.multiple) * recipe.multiple
    tokens = encoded.ragged.padded(chosen, time)
    filler = recipe.batch_size - len(chosen)
    lengths = (
        np.full(len(chosen), shown, np.int32) if recipe.reads_padding else encoded.lengths[chosen]
    )
    ids, places = np.unique(tokens, return_inverse=True)
    size = recipe.batch_size * time
    rows = np.arange(vocab_size, vocab_size + size, dtype=np.int32)
    rows[: len(ids)] = ids
    return Batch(
        rows,
        np.pad(places.reshape(tokens.shape).astype(np.int32), ((0, filler), (0, 0))),
        np.pad(lengths, (0, filler)),
        np.pad(encoded.labels[chosen], (0, filler)),
        np.pad(np.ones(len(chosen), np.float32), (0, filler)),
    )


def make_step(recipe: Recipe) -> Any:
    """A training step: state and batch to state."""
    noisy = recipe.dropout > 0 or recipe.recurrent_dropout > 0

    def loss_of(vectors: Array, rest: ClassifierParams, batch: Batch, key: Any) -> tuple:
        params = rest._replace(embedding=EmbeddingParams(vectors))
        model = build(recipe, len(vectors))
        logits = model.apply(params, batch.tokens, lengths=batch.lengths, key=key)
        return loss_and_hits(logits, batch)

    advance = make_lazy_adam_step(
        loss_of,
        recipe.learning_rate,
        form=recipe.form,
        rates=functools.partial(learning_rates, recipe),
    )

    def step(state: State, batch: Batch) -> State:
        key = jax.random.fold_in(state.key, state.adam.step) if noisy else None
        adam, figures = advance(state.adam, batch.rows, batch, key)
        return state._replace(adam=adam, totals=state.totals + jnp.stack(figures))

    return step


def make_answers(recipe: Recipe) -> Any:
    """Parameters and a batch, its tokens ids, to the number of right answers."""

    def answers(params: ClassifierParams, batch: Batch) -> Array:
        model = build(recipe, len(params.embedding.vectors))
        logits = model.apply(params, batch.tokens, lengths=batch.lengths)
        return loss_and_hits(logits, batch)[1]

    return answers


def make_settle(recipe: Recipe) -> Any:
    """A state to its parameters, every row up to date."""

    def settle(state: State) -> ClassifierParams:
        vectors, rest = lazy_adam_params(state.adam, recipe.learning_rate, form=recipe.form)
        return rest._replace(embedding=EmbeddingParams(vectors))

    return settle


def loss_and_hits(logits: Array, batch: Batch) -> tuple[Array, Array]:
    """The mean cross entropy of the real rows, and how many of them are right."""
    labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)
    if logits.shape[-1] == 1:
        logits = logits[:, 0]
        losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
        right = (logits > 0) == (labels == 1)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = logits.argmax(-1) == labels
    return (losses * weights).sum() / weights.sum(), (right * weights).sum()


def learning_rates(recipe: Recipe, rest: ClassifierParams) -> Any:
    """A learning rate for each parameter outside the table.

    PyTorch's cells have two biases, of which only the sum acts. Both have the same gradient, so
    that Adam moves their sum, the bias here, twice as far.
    """
    twice = 2.0 if recipe.form == "pytorch" else 1.0

    def rate(path: Any, leaf: Array) -> float:
        del leaf
        names = [getattr(entry, "name", "") for entry in path]
        is_cell_bias = names[0] == "encoder" and names[-1] == "bias"
        return recipe.learning_rate * (twice if is_cell_bias else 1.0)

    return jax.tree.map_with_path(rate, rest)

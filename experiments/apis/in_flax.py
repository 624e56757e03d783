"""The classifier as modules of ``flax.nnx`` and of ``flax.linen``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from flax import nnx
from flax.training.train_state import TrainState
from jax import Array

import rnnjax
from experiments.apis.settings import Metrics, Settings, Sizes
from experiments.running.classifier_fitting import classification_loss
from rnnjax import modules
from rnnjax.data import Batch
from rnnjax.masking import mean_pool

# In flax.nnx: the module holds its parameters.


class NnxClassifier(nnx.Module):
    """Embedding, recurrent layer, mean over valid steps, linear head."""

    def __init__(self, settings: Settings, sizes: Sizes, *, rngs: nnx.Rngs) -> None:
        make_cell = {"lstm": modules.nnx.LSTMCell, "gru": modules.nnx.GRUCell}[settings.cell]
        cell = make_cell(settings.embedding_size, settings.hidden_size, rngs=rngs)
        self.embed = nnx.Embed(sizes.vocabulary, settings.embedding_size, rngs=rngs)
        self.rnn = modules.nnx.RNN(cell)
        self.head = nnx.Linear(settings.hidden_size, sizes.classes, rngs=rngs)

    def __call__(self, tokens: Array, lengths: Array) -> Array:
        ys = self.rnn(self.embed(tokens), seq_lengths=lengths)
        return self.head(mean_pool(ys, rnnjax.lengths_to_mask(lengths, tokens.shape[1])))


class Nnx:
    """The module and its optimizer change in place."""

    def __init__(self, settings: Settings, sizes: Sizes, params: Any) -> None:
        self._model = NnxClassifier(settings, sizes, rngs=nnx.Rngs(settings.seed))
        cell = {"params": params.encoder._asdict()}
        nnx.update(self._model, flax_weights(params, cell))
        optimizer = optax.adam(settings.learning_rate)
        self._optimizer = nnx.Optimizer(self._model, optimizer, wrt=nnx.Param)

    def step(self, batch: Batch) -> Metrics:
        return _nnx_step(self._model, self._optimizer, batch)

    def measure(self, batch: Batch) -> Metrics:
        return _nnx_loss(self._model, batch)[1]


@nnx.jit
def _nnx_loss(model: NnxClassifier, batch: Batch) -> tuple[Array, Metrics]:
    return _loss_of_call(lambda tokens, lengths: model(tokens, lengths), batch)


@nnx.jit
def _nnx_step(model: NnxClassifier, optimizer: nnx.Optimizer, batch: Batch) -> Metrics:
    grads, metrics = nnx.grad(_nnx_loss, has_aux=True)(model, batch)
    optimizer.update(model, grads)
    return metrics


# In flax.linen: parameters in a tree of variables, the module a description.


class LinenClassifier(nn.Module):
    """Embedding, recurrent layer, mean over valid steps, linear head."""

    settings: Settings
    sizes: Sizes

    def setup(self) -> None:
        settings = self.settings
        make_cell = {"lstm": modules.linen.LSTMCell, "gru": modules.linen.GRUCell}[settings.cell]
        self.embed = nn.Embed(self.sizes.vocabulary, settings.embedding_size)
        self.rnn = modules.linen.RNN(make_cell(settings.hidden_size))
        self.head = nn.Dense(self.sizes.classes)

    def __call__(self, tokens: Array, lengths: Array) -> Array:
        ys = self.rnn(self.embed(tokens), seq_lengths=lengths)
        return self.head(mean_pool(ys, rnnjax.lengths_to_mask(lengths, tokens.shape[1])))


class Linen:
    """Flax's ``TrainState`` passes through a jitted step."""

    def __init__(self, settings: Settings, sizes: Sizes, params: Any) -> None:
        model = LinenClassifier(settings, sizes)
        weights = flax_weights(params, params.encoder._asdict())
        optimizer = optax.adam(settings.learning_rate)
        self._state = TrainState.create(apply_fn=model.apply, params=weights, tx=optimizer)

    def step(self, batch: Batch) -> Metrics:
        self._state, metrics = _linen_step(self._state, batch)
        return metrics

    def measure(self, batch: Batch) -> Metrics:
        return _linen_loss(self._state.params, self._state, batch)[1]


@jax.jit
def _linen_loss(params: Any, state: TrainState, batch: Batch) -> tuple[Array, Metrics]:
    return _loss_of_call(lambda *inputs: state.apply_fn({"params": params}, *inputs), batch)


@jax.jit
def _linen_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    grads, metrics = jax.grad(_linen_loss, has_aux=True)(state.params, state, batch)
    return state.apply_gradients(grads=grads), metrics


def _loss_of_call(call: Callable[[Any, Any], Array], batch: Batch) -> tuple[Array, Metrics]:
    def apply(params: None, tokens: Array, lengths: Array, key: None) -> Array:
        return call(tokens, lengths)

    model = rnnjax.Model(init=lambda key: None, apply=apply)
    return classification_loss(model, word_dropout=0.0)(None, batch, None)


def flax_weights(params: Any, cell: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the functional classifier under Flax's names, those of ``cell`` given."""
    return {
        "embed": {"embedding": params.embedding.vectors},
        "rnn": {"cell": cell},
        "head": {"kernel": params.head.w, "bias": params.head.bias},
    }

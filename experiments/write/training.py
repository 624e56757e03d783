"""Training by truncated backpropagation along one long text, epoch after epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.running.checkpoints import Saver, Snapshot
from experiments.running.devices import Devices
from experiments.running.fitting import Fitting
from experiments.running.processes import is_first
from experiments.running.run_folder import RunFolder
from experiments.running.session import Session, go_on
from experiments.write.layout import indented
from experiments.write.settings import Settings
from rnnjax._numerics import key_apart
from rnnjax.data import DataError, contiguous
from rnnjax.metrics import compute, linear_cross_entropy, merge
from rnnjax.models import Features
from rnnjax.training import (
    EarlyStopping,
    Sequences,
    TruncatedStep,
    init_train_state,
    make_truncated_step,
)

# Updates in one call of the compiled step: enough that calls cost nothing beside the work.
_UPDATES_A_CALL = 8
# The share of rows that start anew at the beginning of a piece. With none, a network knows the
# state before a text from the first step of an epoch alone: in validation, which begins there, cell
# states of an LSTM then ran away (3.42 nats a character where 1.68 were learned).
_NEW_STARTS = 1 / 8
# Rows and steps of a validation piece. Each row starts without context, so there are few.
_VALIDATION_ROWS, _VALIDATION_STEPS = 16, 256


class Piece(NamedTuple):
    """A stretch of all rows of a text, [B, n]; ``mask`` is False behind the end of the text."""

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


def cut(ids: np.ndarray, rows: int, steps: int) -> list[Piece]:
    """A text in rows, and these in pieces of equal length, in the order they are read; no longer
    than the rows are.

    Raises:
        DataError: the text is shorter than the rows.
    """
    stream = contiguous(ids, rows)
    length = stream.tokens.shape[1]
    steps = min(steps, length)
    missing = -length % steps
    widths = ((0, 0), (0, missing))
    mask = np.pad(np.ones((rows, length), bool), widths)
    tokens, targets = np.pad(stream.tokens, widths), np.pad(stream.targets, widths)
    return [
        Piece(*(part[:, begin : begin + steps] for part in (tokens, targets, mask)))
        for begin in range(0, length + missing, steps)
    ]


def new_starts(shape: tuple[int, int], seed: tuple[int, ...]) -> np.ndarray:
    """Flags [B, n], True at the first step of the rows that start anew there."""
    starts = np.zeros(shape, bool)
    starts[:, 0] = np.random.default_rng(seed).random(shape[0]) < _NEW_STARTS
    return starts


def next_token_loss(head: tuple[Any, Any, Any], targets: Any, mask: Any) -> tuple[jax.Array, dict]:
    """Cross entropy of the next token in nats, as a sum and a count."""
    loss, _ = linear_cross_entropy(*head, targets, mask)
    return loss.value, {"loss": loss}


def make_step(
    model: rnnjax.LanguageModel,
    optimizer: optax.GradientTransformation,
    window: int,
    **options: Any,
) -> TruncatedStep:
    """Training with an update every ``window`` steps, without the logits of all tokens at once."""
    head = functools.partial(_head, model)
    return make_truncated_step(
        model.features, next_token_loss, optimizer, k1=window, head=head, **options
    )


def _head(model: rnnjax.LanguageModel, params: Any, features: Features) -> tuple[Any, Any, Any]:
    """What the loss of the next token is made of, in place of its logits."""
    return (features.dropped, *model.head_weights(params))


@functools.partial(jax.jit, static_argnums=0)
def _score(model: Any, params: Any, carry: Any, piece: Piece) -> tuple[Any, dict]:
    carry, features = model.features(params, piece.tokens, mask=piece.mask, initial_carry=carry)
    head = _head(model, params, features)
    return carry, next_token_loss(head, jnp.asarray(piece.targets), piece.mask)[1]


def score(model: rnnjax.LanguageModel, params: Any, ids: np.ndarray, devices: Devices) -> float:
    """The mean nats a token of a text, read once with the carry handed on.

    The devices divide its rows; rows without a token fill up what they cannot divide evenly.
    """
    rows = min(_VALIDATION_ROWS, len(ids) - 1)
    empty = -rows % devices.number
    carry, totals = devices.place_batch(model.initial_carry(params, (rows + empty,))), None
    for piece in cut(ids, rows, _VALIDATION_STEPS):
        filled = Piece(*(np.pad(part, ((0, empty), (0, 0))) for part in piece))
        carry, figures = _score(model, params, carry, devices.place_batch(filled))
        totals = figures if totals is None else merge(totals, figures)
    if totals is None:
        raise DataError(f"a text to score must have at least 2 tokens, got {len(ids)}")
    return compute(totals)["loss"]


class Fitted(NamedTuple):
    """The best parameters of a run, their epoch, and their nats a token on validation and test."""

    params: Any
    epoch: int
    validation: float
    test: float | None


class Texts(NamedTuple):
    """What is read in training, and what is scored."""

    train: list[Piece]
    validation: np.ndarray
    test: np.ndarray


def fit(
    model: rnnjax.LanguageModel,
    params: Any,
    texts: Texts,
    settings: Settings,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
    show: Callable[[Any], str],
) -> Fitted:
    """Train until the validation loss has not fallen for some epochs, or all are done.

    Goes on from the newest good checkpoint of the run, with the bits it would have had.

    Args:
        model: what to train.
        params: where it starts.
        texts: see there.
        settings: how.
        run: the folder of records.
        saver: keeps checkpoints.
        devices: which of them divide the rows among them.
        show: gives a sample from some parameters, for the console and the records.

    Raises:
        Interrupted: SIGTERM or Ctrl-C came; what was done so far is saved.
        NonFiniteError: too many updates in a row were not finite.
    """
    optimizer = make_optimizer(settings, texts.train)
    key = key_apart(jax.random.key(settings.seed))  # its splits drew the first weights
    carry = devices.place_batch(model.initial_carry(params, (settings.rows,)))
    zeros = {"loss": (jnp.zeros(()), jnp.zeros(()))}
    # In the form of merged sums, as a checkpoint after some pieces has them.
    train, totals = devices.place_state(
        (init_train_state(key, params, optimizer), merge(zeros, zeros))
    )
    stopping = EarlyStopping("loss", mode="min", patience=settings.patience)
    begin = Snapshot(train, stopping, (totals, carry))
    epochs, steps = settings.epochs, len(texts.train)
    with go_on(run, saver, begin, epochs, steps) as (session, begin):
        what = (model, optimizer, texts, settings, devices, show)
        fitted = _Fitting(*what, session, begin).go_on()
    if fitted.test is not None:
        run.write({"kind": "test", "epoch": fitted.epoch, "loss": fitted.test})
    return fitted


def make_optimizer(settings: Settings, pieces: Sequence[Piece]) -> optax.GradientTransformation:
    """Adam with a rate that falls along a cosine, and gradients of bounded norm."""
    # A window that lies wholly behind the text takes no step.
    windows = sum(-(-int(piece.mask[0].sum()) // settings.window) for piece in pieces)
    updates = settings.epochs * windows
    updates = min(max(1, updates), 2**31 - 1)  # JAX counts them in 32 bits
    rate = optax.cosine_decay_schedule(settings.learning_rate, updates, alpha=0.01)
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate))


def piece_steps(settings: Settings) -> int:
    """Steps of one call of the compiled training step."""
    return settings.window * _UPDATES_A_CALL


class _Fitting(Fitting[Piece, Fitted]):
    """A run under way, of a language model."""

    def __init__(
        self,
        model: rnnjax.LanguageModel,
        optimizer: optax.GradientTransformation,
        texts: Texts,
        settings: Settings,
        devices: Devices,
        show: Callable[[Any], str],
        session: Session,
        begin: Snapshot,
    ) -> None:
        super().__init__(session, begin, settings.epochs)
        self._model = model
        self._texts = texts
        self._settings = settings
        self._devices = devices
        self._show = show
        window = min(settings.window, texts.train[0].mask.shape[1])
        self._train_step = make_step(model, optimizer, window, on_compile=session.compiled)

    def _left(self) -> Iterator[Piece]:
        return iter(self._texts.train[self._snapshot.batch :])

    def _step(self, batch: Piece) -> None:
        now = self._snapshot
        totals, carry = now.totals
        starts = new_starts(batch.mask.shape, (self._settings.seed, now.epoch, now.batch))
        sequences = Sequences(batch.tokens, batch.targets, batch.mask, starts)
        placed = self._devices.place_batch(sequences)
        train, carry, metrics = self._train_step(now.train, placed, carry)
        loss = {"loss": tuple(metrics["loss"])}
        self._snapshot = now.after_step(train, (merge(totals, loss), carry))
        self._session.step(self._snapshot, loss, int(batch.mask.sum()))

    def _weights(self) -> Any:
        return self._snapshot.train.params

    def _sums(self) -> dict[str, Any]:
        return self._snapshot.totals[0]

    def _new_totals(self) -> tuple[dict[str, Any], Any]:
        sums, _ = self._zeros
        carry = self._model.initial_carry(self._weights(), (self._settings.rows,))
        return sums, self._devices.place_batch(carry)

    def _validate(self, params: Any) -> dict[str, float]:
        return {"loss": self._score(params, self._texts.validation)}

    def _score(self, params: Any, ids: np.ndarray) -> float:
        return score(self._model, params, ids, self._devices)

    def _shown(self, epoch: int, params: Any) -> None:
        if is_first():
            sample = self._show(params)
            self._session.sample(epoch, sample, indented(sample))

    def _finish(self, params: Any, epoch: int) -> Fitted:
        has_test = len(self._texts.test) > 1
        test = self._score(params, self._texts.test) if has_test else None
        validation = self._snapshot.stopping.best_value
        assert validation is not None
        return Fitted(params, epoch, validation, test)

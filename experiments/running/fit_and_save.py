"""Training as most programs do it: by a loss, with figures, weights and curves left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from experiments.running import curves
from experiments.running.checkpoints import Saver
from experiments.running.console import parameter_table
from experiments.running.devices import Devices
from experiments.running.loss_fitting import (
    Fitted,
    Loss,
    Parts,
    TrainingSettings,
    fit_by_loss,
    tokens_of,
)
from experiments.running.run_folder import RunFolder
from experiments.running.trained import WEIGHTS
from rnnjax.weights import save_weights

CURVES = "curves.png"


def fit_and_save(
    settings: TrainingSettings,
    init: Callable[[jax.Array], Any],
    loss_fn: Loss,
    parts: Parts,
    run: RunFolder,
    saver: Saver,
    devices: Devices,
    *,
    loss_in_words: str = "cross entropy, nats",
    show: Callable[[Any], str] | None = None,
    tokens: Callable[[Any], int] = tokens_of,
) -> Fitted:
    """Train, and leave the test figures, the weights and the curves in the run's folder.

    A run with weights counts as finished: what a trained network is used with, such as its
    vocabulary, must be in the folder before.

    Args:
        settings: those of the program; its seed decides the first weights.
        init: ``(key) -> weights``.
        loss_fn: as of `fit_by_loss`.
        parts: as of `fit_by_loss`.
        run: the folder.
        saver: what saves the checkpoints.
        devices: which divide the rows of a batch.
        loss_in_words: what the curves call the loss.
        show: as of `fit_by_loss`.
        tokens: as of `fit_by_loss`.
    """
    params = init(jax.random.key(settings.seed))
    parameter_table(params)
    fitted = fit_by_loss(loss_fn, params, parts, settings, run, saver, devices, show, tokens)
    run.write({"kind": "test", "epoch": fitted.epoch, **fitted.test})
    saver.wait()
    save_weights(run.path / WEIGHTS, fitted.params)
    curves.draw(run.metrics_path, run.path / CURVES, loss_in_words)
    return fitted

"""Many recurrent classifiers trained at once by ``jax.vmap``, to choose a learning rate by.

Every combination of seeds, learning rates, word dropout and scales of the first word vectors is one
model; all of them are trained by one program, on the same batches. The dropout of activations is
fixed when a program is compiled, so each of its rates has a program of its own.

Run:     python -m experiments.sweep --learning-rates 1e-3 3e-3 1e-2 --seeds 4
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.running.classifier_fitting import classification_loss
from experiments.running.console import exit_code, how_many, print_table, wrapped
from experiments.running.figures import new_figure, save_figure
from experiments.running.parsing import parse
from experiments.running.room import require_room
from experiments.running.run_folder import (
    RunFolder,
    check_usable,
    run_config,
    usual_folder,
)
from experiments.running.setting_checks import (
    above,
    at_least,
    check_seeds,
    check_settings,
    each_once,
    share,
    whole,
)
from experiments.running.text import Splits, read_batches
from rnnjax.metrics import merge
from rnnjax.training import CompiledStep, TrainState, init_train_state, make_train_step

PICTURE = "sweep.png"
_DASHES, _MARKS = ("-", "--", "-.", ":"), ("o", "x", "^", "s")


@dataclass(frozen=True)
class Settings:
    """Train a recurrent classifier of texts with many settings at once."""

    dataset: str = "rotten_tomatoes"
    """rotten_tomatoes needs no network, as its sentences come inside a package; a path such as
    own.csv is your own file, with the columns text and label."""
    data_dir: Path | None = None
    """Folder of local data sets; the environment variable RNNJAX_DATA if not given."""
    take: int | None = None
    """Train on this many examples only."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Rates of Adam to be tried."""
    word_dropouts: tuple[float, ...] = (0.2,)
    """Shares of words read as the unknown word in training, to be tried."""
    dropouts: tuple[float, ...] = (0.6,)
    """Shares of activations dropped in training, to be tried; each is compiled anew."""
    embedding_scales: tuple[float, ...] = (0.1,)
    """Standard deviations of the first word vectors, to be tried."""
    seeds: int = 3
    """Models of each combination: differences smaller than their spread mean nothing."""
    hidden_size: int = 32
    """Units in each direction."""
    embedding_size: int = 64
    """Size of a word vector, learned from nothing."""
    batch_size: int = 32
    """Rows in a batch; all models see the same batches."""
    buckets: int = 3
    """Lengths that batches are padded to, which is how many shapes are compiled."""
    epochs: int = 6
    """How long all are trained; the best epoch of each is chosen by its validation accuracy."""
    seed: int = 0
    """Decides the split and the order of examples; the first of the seeds."""
    out: Path | None = None
    """The folder for the records and the picture; by default runs/sweep-DATASET-TIME."""


class Combination(NamedTuple):
    """What one model is trained with."""

    dropout: float
    word_dropout: float
    embedding_scale: float
    learning_rate: float
    seed: int


class Found(NamedTuple):
    """What became of one model: its best validation accuracy, when, and its test accuracy then."""

    combination: Combination
    validation: float
    epoch: int
    test: float


def combinations(settings: Settings, dropout: float) -> list[Combination]:
    """All models with this dropout."""
    seeds = range(settings.seed, settings.seed + settings.seeds)
    rest = itertools.product(
        settings.word_dropouts, settings.embedding_scales, settings.learning_rates, seeds
    )
    return [Combination(dropout, *one) for one in rest]


def make_optimizer(rate: float) -> optax.GradientTransformation:
    """Adam whose rate is a number in its state, so that each model can have its own."""
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=rate)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def init_models(model: rnnjax.Model, models: Sequence[Combination]) -> TrainState:
    """The states of all models, stacked: every leaf has the models as its first axis.

    The word vectors of ``model`` are of scale 1; each gets those of its own scale.
    """

    def init(seed: jax.Array, scale: jax.Array, rate: jax.Array) -> TrainState:
        init_key, step_key = jax.random.split(jax.random.key(seed))
        params = model.init(init_key)
        table = params.embedding._replace(vectors=scale * params.embedding.vectors)
        params = params._replace(embedding=table)
        state = init_train_state(step_key, params, make_optimizer(0.0))
        return state._replace(
            opt_state=optax.tree_utils.tree_set(state.opt_state, learning_rate=rate)
        )

    seeds = jnp.array([one.seed for one in models], jnp.uint32)
    scales = jnp.array([one.embedding_scale for one in models], jnp.float32)
    return jax.vmap(init)(seeds, scales, jnp.array([one.learning_rate for one in models]))


def make_step(model: rnnjax.Model) -> CompiledStep:
    """A training step of one model, mapped over all of them on the same batch."""

    def step(state: TrainState, word_dropout: jax.Array, batch: Any) -> Any:
        loss_fn = classification_loss(model, word_dropout)  # pyright: ignore[reportArgumentType]
        return make_train_step(loss_fn, make_optimizer(0.0)).function(state, batch)

    every = jax.vmap(step, in_axes=(0, 0, None))
    return CompiledStep("train step", every, donate_state=True, on_compile=None)


def make_scoring(model: rnnjax.Model) -> Callable:
    """The accuracy [N] of every model on a whole set."""
    loss_fn = classification_loss(model, 0.0)

    @jax.jit
    def of_batch(params: Any, batch: Any) -> Any:
        return jax.vmap(lambda p: loss_fn(p, batch, None)[1]["accuracy"])(params)

    def of_set(params: Any, batches: Iterable[Any]) -> np.ndarray:
        pairs = ({"accuracy": of_batch(params, batch)} for batch in batches)
        total, count = functools.reduce(merge, pairs)["accuracy"]
        return np.asarray(total) / np.asarray(count)

    return of_set


def build_model(
    settings: Settings, dropout: float, vocab_size: int, num_classes: int
) -> rnnjax.Model:
    """A model, of which all with this dropout have the shapes."""
    return rnnjax.classifier(
        rnnjax.embedding(vocab_size, settings.embedding_size, scale=1.0),
        rnnjax.bidirectional(rnnjax.gru(settings.hidden_size)),
        num_classes,
        pooling="max",
        dropout=dropout,
    )


def train_together(
    settings: Settings, models: Sequence[Combination], prepared: tuple[Splits, int, int]
) -> list[Found]:
    """Train models that differ in no shape; the best epoch of each by its validation accuracy."""
    splits, *sizes = prepared
    model = build_model(settings, models[0].dropout, *sizes)
    states, step, score = init_models(model, models), make_step(model), make_scoring(model)
    drops = jnp.array([one.word_dropout for one in models])
    best = np.full((3, len(models)), -np.inf)  # validation, epoch, test
    for epoch in range(1, settings.epochs + 1):
        began = time.perf_counter()
        for batch in splits.train.epoch(epoch):
            states, _ = step(states, drops, batch)
        validation = score(states.params, splits.validation.epoch(0))
        test = score(states.params, splits.test.epoch(0))
        now = np.stack([validation, np.full(len(models), epoch), test])
        best = np.where(validation > best[0], now, best)
        seconds = time.perf_counter() - began
        print(
            f"epoch {epoch}: validation accuracy {validation.min():.4f} to {validation.max():.4f}, "
            f"{how_many(len(models), 'model')}, {seconds:.1f} s",
            flush=True,
        )
    rows = zip(models, *best.tolist(), strict=True)
    return [Found(one, validation, int(epoch), test) for one, validation, epoch, test in rows]


def table(found: Sequence[Found]) -> list[dict[str, str]]:
    """A row for each combination, the best one first: means and spread over its seeds."""
    groups: dict[tuple[float, ...], list[Found]] = {}
    for one in found:
        groups.setdefault(one.combination[:4], []).append(one)
    means = {key: np.mean([one.validation for one in group]) for key, group in groups.items()}
    rows = []
    for key in sorted(groups, key=lambda key: -means[key]):
        values = [[one.validation for one in groups[key]], [one.test for one in groups[key]]]
        validation, test = map(_mean_and_spread, values)
        dropout, word_dropout, scale, rate = (f"{number:g}" for number in key)
        rows.append(
            {
                "learning rate": rate,
                "dropout": dropout,
                "word dropout": word_dropout,
                "embedding scale": scale,
                "validation": validation,
                "test": test,
            }
        )
    return rows


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def draw(found: Sequence[Found], path: Path) -> None:
    """Validation accuracy over the learning rate: a dot a model, and a line through the means."""
    kinds = sorted({one.combination[:3] for one in found})
    figure = new_figure(6, 3.5 + 0.1 * len(kinds))  # the legend has two lines in a row
    axes = figure.subplots()
    for number, kind in enumerate(kinds):
        dots = [one for one in found if one.combination[:3] == kind]
        rates = sorted({one.combination.learning_rate for one in dots})
        means = [
            np.mean([one.validation for one in dots if one.combination.learning_rate == rate])
            for rate in rates
        ]
        label = "dropout {:g}, of words {:g}, scale {:g}".format(*kind)
        # There are ten colours; behind the tenth line they come again with other dashes and marks.
        again = number // 10
        dashes, mark = _DASHES[again % len(_DASHES)], _MARKS[again % len(_MARKS)]
        (line,) = axes.plot(rates, means, dashes, label=label)
        xs, ys = zip(
            *((one.combination.learning_rate, one.validation) for one in dots), strict=True
        )
        axes.scatter(xs, ys, s=12, color=line.get_color(), marker=mark)
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy")
    axes.set_title("a dot is a model, the line their mean over the seeds", fontsize="medium")
    # Below, as no corner is free of dots in every sweep.
    figure.legend(frameon=False, ncols=2, fontsize="small", loc="outside lower center")
    save_figure(figure, path)


def sweep(settings: Settings) -> tuple[list[Found], Path]:
    """Train all models, and leave their records and a picture in the folder that is given too."""
    check_settings(
        settings,
        seeds=whole(1, 1_000),
        learning_rates=each_once(above(0)),
        word_dropouts=each_once(share()),
        dropouts=each_once(share()),
        embedding_scales=each_once(at_least(0)),
    )
    check_seeds(settings, "seeds")
    folder = settings.out or usual_folder(f"sweep-{Path(settings.dataset).stem}")
    check_usable(folder, "new")
    # Before there is a folder: what is wrong with the data leaves none.
    prepared = read_batches(settings, vocabulary_size=20_000, max_length=400)
    found: list[Found] = []
    together = len(combinations(settings, settings.dropouts[0]))
    require_room(build_model(settings, 0.0, *prepared[1:]).init, together)
    with RunFolder(folder, run_config(settings), leaves=(PICTURE,)) as run:
        for dropout in settings.dropouts:
            with _telling_what_is_left(settings, dropout, folder):
                done = train_together(settings, combinations(settings, dropout), prepared)
            for one in done:
                figures = {"validation": one.validation, "epoch": one.epoch, "test": one.test}
                run.write({"kind": "model", **one.combination._asdict(), **figures})
            found += done
            draw(found, folder / PICTURE)
    return found, folder


@contextlib.contextmanager
def _telling_what_is_left(settings: Settings, dropout: float, folder: Path) -> Iterator[None]:
    """Says after Ctrl-C what is kept, and which dropouts are still to be tried."""
    try:
        yield
    except KeyboardInterrupt:
        place = settings.dropouts.index(dropout)
        if place:
            left = " ".join(f"{number:g}" for number in settings.dropouts[place:])
            say = f"{folder} keeps {PICTURE} and a record of each model that was trained to the end"
            print(wrapped(f"{say}; for the rest: --dropouts {left} and another --out"))
        raise


def report(settings: Settings) -> None:
    """Trains, and prints how good each combination became."""
    found, folder = sweep(settings)
    rows = table(found)
    spread = "; mean ± standard deviation over the seeds" if settings.seeds > 1 else ""
    print(wrapped(f"accuracy at the best epoch of each model by validation{spread}"))
    print_table(rows)
    print(f"{PICTURE} and a record of each model in {folder}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.sweep", arguments)
    return exit_code(lambda: report(settings))


if __name__ == "__main__":
    sys.exit(main())

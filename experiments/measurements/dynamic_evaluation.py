r"""What does a language model gain that goes on learning while it is read to?

Every window of a text is first predicted, and only then learned from by one step:

    weights += -rate * gradient / (rms + 1e-3) + decay * scale * (trained - weights)

``rms`` is the root mean square of each weight's gradients on the training text and ``scale`` is
``rms`` over its mean: what has large gradients moves less, and is drawn back to the trained weights
more. Nothing is predicted by weights that have seen it.

Run:     python -m experiments.measurements.dynamic_evaluation RUN
Prints:  nats a token on the validation text of a run of experiments.write, and on its test text
         where there is one, with the trained weights held and with weights that follow the text.

References:
    Krause, Kahembwe, Murray and Renals, "Dynamic evaluation of neural sequence models", ICML 2018.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.running.console import exit_code, print_table
from experiments.running.data_folder import lies_elsewhere
from experiments.running.parsing import Positional, parse
from experiments.running.setting_checks import above, at_least, check_settings, refuse_unread, whole
from experiments.running.trained import finished_settings, load_trained
from experiments.write.command import PROGRAM
from experiments.write.corpus import read_corpus
from experiments.write.model import build_model
from experiments.write.settings import Settings as RunSettings
from experiments.write.training import cut, make_step
from rnnjax.metrics import compute, merge
from rnnjax.training import Sequences, init_train_state

_EPSILON = 1e-3
# Windows in one call of the compiled step.
_WINDOWS_A_CALL = 50


@dataclass(frozen=True)
class Settings:
    """Score a text by a language model that goes on learning while it reads it."""

    run: Positional[Path]
    """Folder of a finished run of experiments.write."""
    window: int = 20
    """Tokens between two steps of learning, and as far as gradients go back."""
    rate: float = 1e-3
    """How far a weight goes in a step where its gradient is as large as usual."""
    decay: float = 2e-3
    """How much of the way back to the trained weights is gone in a step."""
    take: int | None = None
    """Read only so many tokens of each text, to be done sooner."""
    take_training: int = 20_000
    """Tokens of the training text that tell how large gradients usually are."""
    data_dir: Path | None = None
    """The folder of local data sets; without it that of the run, or the environment variable
    RNNJAX_DATA."""


class Squares(NamedTuple):
    """Sums of squared gradients, leaf by leaf, and the number of gradients."""

    total: Any
    gradients: jax.Array


def hold() -> optax.GradientTransformation:
    """Moves nothing, and sums the squares of the gradients."""

    def init(params: Any) -> Squares:
        return Squares(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Squares]:
        del params
        total = jax.tree.map(lambda a, g: a + g * g, state.total, updates)
        return jax.tree.map(jnp.zeros_like, updates), Squares(total, state.gradients + 1)

    return optax.GradientTransformation(init, update)


def follow(
    trained: Any, squares: Squares, rate: float, decay: float
) -> optax.GradientTransformation:
    """A step along the gradient, and one back to the ``trained`` weights."""
    rms = jax.tree.map(lambda a: jnp.sqrt(a / squares.gradients), squares.total)
    leaves = jax.tree.leaves(rms)
    mean = sum(jnp.sum(a) for a in leaves) / sum(a.size for a in leaves)

    def move(grad: Any, rms: Any, weight: Any, start: Any) -> Any:
        back = jnp.minimum(decay * rms / mean, 1.0)  # never beyond the trained weight
        return -rate * grad / (rms + _EPSILON) + back * (start - weight)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(move, updates, rms, params, trained), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def read(
    model: rnnjax.LanguageModel,
    params: Any,
    ids: np.ndarray,
    optimizer: optax.GradientTransformation,
    window: int,
) -> tuple[float, Any]:
    """The mean nats a token of a text that is read once, and the state of the optimizer then.

    ``model`` must be without dropout.
    """
    window = min(window, len(ids) - 1)
    step = make_step(model, optimizer, window, donate_state=False)
    state = init_train_state(jax.random.key(0), params, optimizer)
    carry = model.initial_carry(params, (1,))
    totals: Any = None
    for piece in cut(ids, 1, window * _WINDOWS_A_CALL):
        state, carry, metrics = step(state, Sequences(*piece), carry)
        found = {"loss": tuple(metrics["loss"])}
        totals = found if totals is None else merge(totals, found)
    return compute(totals)["loss"], state.opt_state


def measure(settings: Settings) -> list[dict[str, str]]:
    """A row of the table for each text."""
    check_settings(
        settings,
        window=whole(1),
        rate=above(0),
        decay=at_least(0),
        take=whole(2),
        take_training=whole(2),
    )
    run = finished_settings(PROGRAM, RunSettings, settings.run)
    in_folder = not lies_elsewhere(run.dataset)
    refuse_unread(settings, "with a run whose text lies in it", in_folder, "data_dir")
    # The trained weights have learned with dropout; what learns from then on does without.
    run = dataclasses.replace(run, dropout=0.0, data_dir=settings.data_dir or run.data_dir)
    corpus = read_corpus(run)
    model = build_model(run, len(corpus.vocabulary))
    params = load_trained(model.init, settings.run)
    _, squares = read(
        model, params, corpus.train[: settings.take_training], hold(), settings.window
    )
    rows = []
    for name in ("validation", "test"):
        ids = getattr(corpus, name)[: settings.take]
        if len(ids) < 2:
            continue
        held, _ = read(model, params, ids, hold(), settings.window)
        following = follow(params, squares, settings.rate, settings.decay)
        moved, _ = read(model, params, ids, following, settings.window)
        rows.append(
            {
                "text": name,
                "tokens": f"{len(ids) - 1:,}",
                "weights held": f"{held:.4f}",
                "weights that follow": f"{moved:.4f}",
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    program = "python -m experiments.measurements.dynamic_evaluation"
    settings = parse(Settings, program, arguments)
    return exit_code(lambda: print_table(measure(settings)))


if __name__ == "__main__":
    sys.exit(main())

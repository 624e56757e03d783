"""The loss of a head with many words, by all logits at once and in chunks of the real rows.

Run:     python -m experiments.measurements.large_vocabulary
Prints:  for every number of words, and with and without padding: the time of the loss with its
         gradients by ``cross_entropy`` of the logits, by ``linear_cross_entropy``, and by PyTorch
         as is usual, medians of interleaved rounds with their ranges; and what the compiler sets
         aside for the first two. All three are first compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.setting_checks import check_settings, each, share, whole
from rnnjax.benchmark import compile_apart, interleaved
from rnnjax.metrics import cross_entropy, linear_cross_entropy


@dataclass(frozen=True)
class Settings:
    """Time the loss of a head with many words."""

    words: tuple[int, ...] = (2_000, 10_000, 50_000)
    """Sizes of the vocabulary."""
    rows: int = 2048
    """Positions of a batch, such as 32 texts of 64 words."""
    features: int = 256
    """What the head reads of a position."""
    padding: float = 0.3
    """The share of positions that are padding in every other row of the table."""
    rounds: int = 7
    """Durations kept of each."""


def measure(settings: Settings, words: int, padding: float) -> dict[str, str]:
    """A row of the table."""
    rng = np.random.default_rng(0)
    rows, size = settings.rows, settings.features
    features = rng.normal(size=(rows, size)).astype(np.float32)
    w = (rng.normal(size=(size, words)) / size**0.5).astype(np.float32)
    labels, mask = rng.integers(0, words, rows), rng.random(rows) >= padding
    classes = jnp.asarray(labels)
    given = [jnp.asarray(a) for a in (features, w, np.zeros(words, np.float32))]

    def by_logits(features: Any, w: Any, bias: Any) -> Any:
        return cross_entropy(features @ w + bias[None], classes, mask).value

    def in_chunks(features: Any, w: Any, bias: Any) -> Any:
        return linear_cross_entropy(features, w, bias, classes, mask)[0].value

    both = [
        compile_apart(jax.value_and_grad(loss, (0, 1, 2)), *given)
        for loss in (by_logits, in_chunks)
    ]
    theirs = _in_torch(features, w, labels, mask)
    values = [float(call.run(*given)[0]) for call in both]
    np.testing.assert_allclose([*values, theirs()], values[0], rtol=1e-4)
    calls: dict[str, Callable] = {
        "logits": lambda: both[0].run(*given),
        "chunks": lambda: both[1].run(*given),
        "PyTorch": theirs,
    }
    timings = interleaved(calls, rounds=settings.rounds, pauses={"PyTorch": 0.2})
    row = {"words": f"{words:,}", "padding": f"{padding:.0%}"}
    for name, timing in timings.items():
        middle, least, most = (1e3 * seconds for seconds in timing.spread)
        row[f"{name}, ms"] = f"{middle:.0f} ({least:.0f}-{most:.0f})"
    for name, call in zip(("logits", "chunks"), both, strict=True):
        row[f"{name}, MiB"] = "-" if call.memory is None else f"{call.memory.temporary / 2**20:.0f}"
    return row


def _in_torch(
    features: np.ndarray, w: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> Callable[[], float]:
    import torch

    xs, weights = (torch.tensor(a, requires_grad=True) for a in (features, w))
    bias = torch.zeros(w.shape[1], requires_grad=True)
    targets = torch.tensor(np.where(mask, labels, -100))

    def run() -> float:
        loss = torch.nn.functional.cross_entropy(xs @ weights + bias, targets)
        torch.autograd.grad(loss, (xs, weights, bias))
        return float(loss.detach())

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.measurements.large_vocabulary", arguments)

    def run() -> None:
        sizes = dict.fromkeys(("rows", "features", "rounds"), whole(1))
        check_settings(settings, words=each(whole(1)), padding=share(), **sizes)
        shares = dict.fromkeys((0.0, settings.padding))
        print_table([measure(settings, n, share) for n in settings.words for share in shares])

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())

"""How fast a character model writes, beside a loop over PyTorch's ``LSTMCell`` with equal weights.

Run:     python -m experiments.measurements.generation
Prints:  tokens a second of each, one text at a time and many at a time, and the ratio: medians
         and ranges of interleaved rounds. Both draw from the softmax; both have the same weights,
         and are first checked to give the same logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.setting_checks import check_settings, each, whole
from rnnjax.benchmark import Timing, interleaved


@dataclass(frozen=True)
class Settings:
    """Time the writing of texts by an LSTM, beside the same network in PyTorch."""

    hidden_size: int = 256
    """Units of the LSTM; the embedding is as wide."""
    vocab_size: int = 65
    """Tokens to choose among: by default as many as Tiny Shakespeare has characters."""
    texts: tuple[int, ...] = (1, 256)
    """Numbers of texts that are written side by side."""
    tokens: int = 400
    """Tokens of each text in one call."""
    rounds: int = 7
    """How often each is timed, by turns; the median and the extremes are shown."""


def ours(model: Any, params: Any, rows: int, tokens: int) -> Callable[[], Any]:
    """A call that writes ``tokens`` in ``rows`` texts."""
    prompt, key = jnp.zeros((rows, 1), jnp.int32), jax.random.key(0)
    return lambda: rnnjax.generate(
        model, params, prompt, max_new_tokens=tokens, key=key
    ).tokens.block_until_ready()


def theirs(params: Any, rows: int, tokens: int) -> tuple[Callable[[], Any], Callable]:
    """The same in PyTorch, and its logits of given ids."""
    import torch

    from rnnjax.interop import torch as interop

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX does by default
    vocab_size, size = params.embedding.vectors.shape
    embedding = torch.nn.Embedding(vocab_size, size, device=device)
    cell = torch.nn.LSTMCell(size, params.head.w.shape[0], device=device)
    head = torch.nn.Linear(*params.head.w.shape, device=device)
    state = {
        name: torch.tensor(np.asarray(value))
        for name, value in interop.export_weights("lstm", params.layer, cell=True).items()
    }
    cell.load_state_dict(state)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor(np.asarray(params.embedding.vectors)))
        head.weight.copy_(torch.tensor(np.asarray(params.head.w).T))
        head.bias.copy_(torch.tensor(np.asarray(params.head.bias)))

    @torch.inference_mode()
    def write() -> Any:
        token, carry, written = torch.zeros(rows, dtype=torch.long, device=device), None, []
        for _ in range(tokens):
            carry = cell(embedding(token), carry)
            probabilities = torch.softmax(head(carry[0]), dim=-1)
            token = torch.multinomial(probabilities, 1)[:, 0]
            written.append(token)
        return torch.stack(written, dim=1).cpu()  # which waits for a GPU

    @torch.inference_mode()
    def logits(ids: np.ndarray) -> np.ndarray:
        carry, found = None, []
        for token in torch.tensor(ids, dtype=torch.long, device=device).T:
            carry = cell(embedding(token), carry)
            found.append(head(carry[0]).cpu().numpy())
        return np.stack(found, axis=1)

    return write, logits


def measure(settings: Settings) -> list[dict[str, str]]:
    """A row of the table for each number of texts."""
    sizes = dict.fromkeys(("vocab_size", "tokens", "rounds"), whole(1))
    check_settings(settings, **sizes, texts=each(whole(1)))
    size, vocab_size = settings.hidden_size, settings.vocab_size
    model = rnnjax.language_model(rnnjax.embedding(vocab_size, size), rnnjax.lstm(size))
    params = model.init(jax.random.key(0))
    rows = []
    for texts in settings.texts:
        write, logits = theirs(params, texts, settings.tokens)
        _check_equal(model, params, logits, vocab_size)
        timings = interleaved(
            {"rnnjax": ours(model, params, texts, settings.tokens), "PyTorch": write},
            rounds=settings.rounds,
            pauses={"PyTorch": 0.2},
        )
        found = rates(timings, texts * settings.tokens, " tokens/s")
        rows.append({"texts": str(texts), **found})
    return rows


def _check_equal(model: Any, params: Any, logits: Callable, vocab_size: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocab_size, (3, 20))
    mine = model.apply(params, ids)[1]
    # Products of a GPU have ten bits (TF32) in both.
    tolerance = 2e-3 if jax.default_backend() == "gpu" else 1e-4
    np.testing.assert_allclose(mine, logits(ids), rtol=tolerance, atol=tolerance)


def rates(timings: dict[str, Timing], count: int, unit: str = "") -> dict[str, str]:
    """How many of ``count`` a call there are in a second, of each, and rnnjax's over PyTorch's."""
    found = {}
    for name, timing in timings.items():
        median, fast, slow = (count / seconds for seconds in timing.spread)
        found[f"{name}{unit}"] = f"{median:,.0f} ({slow:,.0f}-{fast:,.0f})"
    ratio = timings["PyTorch"].spread.median / timings["rnnjax"].spread.median
    return {**found, "ratio": f"{ratio:.1f}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    program = "python -m experiments.measurements.generation"
    settings = parse(Settings, program, arguments)
    return exit_code(lambda: print_table(measure(settings)))


if __name__ == "__main__":
    sys.exit(main())

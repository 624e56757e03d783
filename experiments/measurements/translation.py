"""A translator with attention inside the recurrence, beside the same one in PyTorch.

Run:     python -m experiments.measurements.translation
Prints:  pairs a second in training, and sentences a second, greedy and with a beam, all at once
         and one by one, of each, and the ratio: medians and ranges of interleaved rounds. Both have
         the same weights and the same sentences. First both must give the same loss, the same
         greedy texts and the same best hypotheses. Trained is on pairs of many lengths, padded
         alike, of which PyTorch's loss leaves out the padding as is usual, behind the head; and on
         pairs of one length. Translated are sentences of one length into texts of one length, as
         the stop is forbidden. Rows "the head alone" say how many there would be a second if
         nothing were computed but the products of the head for all positions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rnnjax
from experiments.measurements.generation import rates
from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.setting_checks import Rule, check_settings, whole
from experiments.translate.training import make_loss
from rnnjax.benchmark import interleaved

_START, _STOP = 2, 3
_RATE = 1e-3
# Of the 83 of 100 pairs of Multi30k, German to English, of which no side has more than 16 words, a
# stop included: mean and deviation of the targets, and how much shorter sources are.
_LONGEST, _MEAN, _DEVIATION, _SHORTER, _SCATTER = 16, 11.6, 2.4, 1.7, 1.7


@dataclass(frozen=True)
class Settings:
    """Time training and translation of a translator, beside PyTorch."""

    hidden_size: int = 256
    """Units of the decoder; the encoder has half of them in each direction."""
    embedding_size: int = 256
    """Size of a token's vector, on both sides."""
    vocab_size: int = 6_000
    """Tokens of each side: as many as Multi30k has."""
    length: int = 13
    """Tokens of each sentence and of each text, where all are of one length."""
    batch_size: int = 128
    """Pairs of a training step."""
    sentences: int = 64
    """Sentences that are translated, in one call and in a call each."""
    beam: int = 5
    """Hypotheses side by side."""
    rounds: int = 7
    """Durations kept of each."""


class Pairs(NamedTuple):
    """Sources and targets [B, T], and how long they are [B]: of NumPy, of JAX or of PyTorch."""

    sources: Any
    source_lengths: Any
    targets: Any
    target_lengths: Any


def make_pairs(settings: Settings, rng: np.random.Generator, ragged: bool) -> Pairs:
    """Pairs of random tokens, of one length or of as many lengths as sentences of Multi30k."""
    count = settings.batch_size
    longest = _LONGEST if ragged else settings.length
    shape = (count, longest)
    sources, targets = (rng.integers(4, settings.vocab_size, shape) for _ in range(2))
    if not ragged:
        return Pairs(sources, np.full(count, longest), targets, np.full(count, longest))
    of_targets = rng.normal(_MEAN, _DEVIATION, count)
    of_sources = rng.normal(of_targets - _SHORTER, _SCATTER)
    lengths = [np.clip(np.rint(a), 1, longest).astype(int) for a in (of_sources, of_targets)]
    return Pairs(sources, lengths[0], targets, lengths[1])


def make_model(settings: Settings) -> rnnjax.SequenceToSequence:
    """A bidirectional GRU, and a GRU with additive attention (Bahdanau)."""
    size = settings.hidden_size
    return rnnjax.sequence_to_sequence(
        rnnjax.embedding(settings.vocab_size, settings.embedding_size),
        rnnjax.bidirectional(rnnjax.gru(size // 2)),
        rnnjax.embedding(settings.vocab_size, settings.embedding_size),
        rnnjax.attention_cell(rnnjax.gru(size), size),
        start=_START,
    )


class Theirs:
    """The same model in PyTorch, with the weights of ``params``."""

    def __init__(self, model: rnnjax.SequenceToSequence, params: Any) -> None:
        import torch

        self.torch = torch

        def tensor(a: Any) -> Any:
            return torch.tensor(np.array(a), requires_grad=True)

        embedding_size, half = params.source.vectors.shape[1], params.encoder.forward.w_hh.shape[0]
        size = params.decoder.cell.w_hh.shape[0]
        self.encoder = torch.nn.GRU(embedding_size, half, bidirectional=True, batch_first=True)
        self.decoder = torch.nn.GRUCell(embedding_size + 2 * half, size)
        _fill(self.encoder, params.encoder.forward, "_l0")
        _fill(self.encoder, params.encoder.backward, "_l0_reverse")
        inner, context = params.decoder.cell, params.decoder.context
        _fill(self.decoder, inner._replace(w_ih=jnp.concatenate([inner.w_ih, context])), "")
        attention, bridge = params.decoder.attention, params.bridge[0]
        self.source, self.target = tensor(params.source.vectors), tensor(params.target.vectors)
        self.query, self.key, self.v = map(tensor, attention[:3])  # without a bias
        self.w, self.bias = map(tensor, model.head_weights(params))
        self.bridge_w, self.bridge_bias = tensor(bridge.w), tensor(bridge.bias)
        own = (self.source, self.target, self.query, self.key, self.v, self.w, self.bias)
        self.weights = [
            *own,
            self.bridge_w,
            self.bridge_bias,
            *self.encoder.parameters(),
            *self.decoder.parameters(),
        ]
        self.optimizer = torch.optim.Adam(self.weights, lr=_RATE)

    def read(self, source: Any, lengths: Any = None) -> tuple[Any, Any, Any]:
        """The first state, the memory and its keys; sources of many lengths are packed."""
        xs, packing = self.source[source], self.torch.nn.utils.rnn
        if lengths is not None:
            xs = packing.pack_padded_sequence(
                xs, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
        states, final = self.encoder(xs)
        if lengths is not None:
            size = source.shape[1]
            states, _ = packing.pad_packed_sequence(states, batch_first=True, total_length=size)
        both = self.torch.cat([final[0], final[1]], dim=-1)
        h = self.torch.tanh(both @ self.bridge_w + self.bridge_bias)
        return h, states, states @ self.key

    def look(self, h: Any, x: Any, states: Any, keys: Any, hidden: Any = None) -> tuple[Any, Any]:
        """The next state and what the head reads, of states [N, H] over a memory [N, S, M]."""
        energy = self.torch.tanh((h @ self.query)[:, None] + keys) @ self.v
        if hidden is not None:
            energy = energy.masked_fill(hidden, -self.torch.inf)
        weights = self.torch.softmax(energy, dim=-1)
        context = self.torch.bmm(weights[:, None], states)[:, 0]
        h = self.decoder(self.torch.cat([x, context], dim=-1), h)
        return h, self.torch.cat([h, context, x], dim=-1)

    def loss(self, pairs: Pairs) -> Any:
        """Nats a token; the head is one product over all steps."""
        torch, target = self.torch, pairs.targets
        size = target.shape[1]
        ragged = bool((pairs.target_lengths < size).any())
        h, states, keys = self.read(pairs.sources, pairs.source_lengths if ragged else None)
        places, hidden, labels = torch.arange(size), None, target
        if ragged:
            hidden = torch.arange(states.shape[1]) >= pairs.source_lengths[:, None]
            labels = target.masked_fill(places >= pairs.target_lengths[:, None], -100)
        starts = torch.full_like(target[:, :1], _START)
        xs = self.target[torch.cat([starts, target[:, :-1]], dim=1)]
        features = []
        for x in xs.unbind(1):
            h, read = self.look(h, x, states, keys, hidden)
            features.append(read)
        logits = torch.stack(features, dim=1) @ self.w + self.bias
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def train(self, pairs: Pairs) -> float:
        """One step of Adam."""
        self.optimizer.zero_grad()
        loss = self.loss(pairs)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def translate(self, source: Any, beam: int, length: int) -> Any:
        """The best hypothesis of each sentence; of a beam of 1 the greedy text."""
        torch, rows = self.torch, len(source)
        with torch.inference_mode():
            h, states, keys = (a.repeat_interleave(beam, dim=0) for a in self.read(source))
            token = torch.full((rows * beam,), _START)
            scores = torch.full((rows, beam), -torch.inf)
            scores[:, 0] = 0.0
            texts = torch.zeros((rows, beam, 0), dtype=torch.long)
            for _ in range(length):
                h, read = self.look(h, self.target[token], states, keys)
                log_probs = torch.log_softmax(read @ self.w + self.bias, dim=-1)
                log_probs[:, _STOP] = -torch.inf
                totals = scores[..., None] + log_probs.view(rows, beam, -1)
                scores, best = totals.flatten(1).topk(beam, dim=-1)
                parents, chosen = best // totals.shape[-1], best % totals.shape[-1]
                at = (parents + beam * torch.arange(rows)[:, None]).flatten()
                h, token = h[at], chosen.flatten()
                before = texts.flatten(0, 1)[at].view(rows, beam, -1)
                texts = torch.cat([before, chosen[..., None]], dim=-1)
            return texts[:, 0].numpy()


def _fill(gru: Any, params: Any, layer: str) -> None:
    """The weights of a GRU in PyTorch's layout."""
    import torch

    def tensor(a: Any) -> Any:
        return torch.tensor(np.array(a))

    zeros = torch.zeros(2 * len(params.hidden_bias))
    with torch.no_grad():
        getattr(gru, f"weight_ih{layer}").copy_(tensor(params.w_ih.T))
        getattr(gru, f"weight_hh{layer}").copy_(tensor(params.w_hh.T))
        getattr(gru, f"bias_ih{layer}").copy_(tensor(params.bias))
        getattr(gru, f"bias_hh{layer}").copy_(torch.cat([zeros, tensor(params.hidden_bias)]))


def _ours(
    model: rnnjax.SequenceToSequence, params: Any, beam: int, length: int
) -> Callable[[jax.Array], np.ndarray]:
    @jax.jit
    def search(params: Any, source: jax.Array) -> jax.Array:
        carry, memory = model.encode(params, source)
        found = rnnjax.beam_search(
            model.step,
            params,
            carry,
            jnp.full(len(source), _START),
            memory,
            stop=_STOP,
            beam_size=beam,
            max_length=length,
            length_penalty=0.0,
            transforms=(rnnjax.forbid((_STOP,)),),
        )
        return found.tokens[:, 0]

    return lambda source: np.asarray(search(params, source))


def measure(settings: Settings) -> list[dict[str, str]]:
    """Rows of the table for the training step, and for each way to translate."""
    names = ("vocab_size", "length", "sentences", "beam", "rounds")
    even = Rule("even, half for each direction", lambda size: size > 0 and size % 2 == 0)
    check_settings(settings, **dict.fromkeys(names, whole(1)), hidden_size=even)
    model = make_model(settings)
    params = model.init(jax.random.key(0))
    theirs = Theirs(model, params)
    rng = np.random.default_rng(0)
    pairs = {ragged: make_pairs(settings, rng, ragged) for ragged in (True, False)}
    sentences = rng.integers(4, settings.vocab_size, (settings.sentences, settings.length))
    _check_equal_loss(model, params, theirs, pairs.values())
    rows = [
        row
        for beam in dict.fromkeys((1, settings.beam))
        for row in _translating(model, params, theirs, sentences, beam, settings)
    ]
    what = "pairs/s, a training step"
    training = [
        _training(f"{what}, {name}", model, params, theirs, pairs[ragged], settings)
        for name, ragged in (("many lengths", True), ("one length", False))
    ]
    matrix = model.head_weights(params)[0]
    alone = _head_alone(matrix, settings.batch_size * settings.length, calls=1, gradients=True)
    head = _row(f"{what}, the head alone", settings.batch_size, *alone, settings.rounds)
    return [*training, head, *rows]


def _check_equal_loss(
    model: rnnjax.SequenceToSequence, params: Any, theirs: Theirs, batches: Iterable[Pairs]
) -> None:
    loss_fn = make_loss(model)
    for pairs in batches:
        one, _ = loss_fn(params, Pairs(*map(jnp.asarray, pairs)), None)
        with theirs.torch.no_grad():
            other = theirs.loss(Pairs(*map(theirs.torch.tensor, pairs)))
        np.testing.assert_allclose(one, float(other), rtol=1e-4)


def _translating(
    model: rnnjax.SequenceToSequence,
    params: Any,
    theirs: Theirs,
    sentences: np.ndarray,
    beam: int,
    settings: Settings,
) -> list[dict[str, str]]:
    """All sentences in one call, nothing but the head's products of it, and a call a sentence."""
    search, count = _ours(model, params, beam, settings.length), len(sentences)

    def row(what: str, batches: Sequence[np.ndarray]) -> dict[str, str]:
        given, tensors = [*map(jnp.asarray, batches)], [*map(theirs.torch.tensor, batches)]

        def mine() -> list[np.ndarray]:
            return [search(source) for source in given]

        def other() -> list[np.ndarray]:
            return [theirs.translate(source, beam, settings.length) for source in tensors]

        _check_equal(np.concatenate(mine()), np.concatenate(other()))
        return _row(what, count, mine, other, settings.rounds)

    name = "greedy" if beam == 1 else f"beam {beam}"
    what = f"sentences/s, {name}, {count} at once"
    matrix = model.head_weights(params)[0]
    alone = _head_alone(matrix, count * beam, calls=settings.length, gradients=False)
    return [
        row(what, [sentences]),
        _row(f"{what}, the head alone", count, *alone, settings.rounds),
        row(f"sentences/s, {name}, one by one", np.split(sentences, count)),
    ]


def _training(
    what: str,
    model: rnnjax.SequenceToSequence,
    params: Any,
    theirs: Theirs,
    pairs: Pairs,
    settings: Settings,
) -> dict[str, str]:
    optimizer = optax.adam(_RATE)
    step = rnnjax.make_train_step(make_loss(model), optimizer)
    state = [rnnjax.init_train_state(jax.random.key(1), params, optimizer)]
    on_device = jax.device_put(Pairs(*map(jnp.asarray, pairs)))
    tensors = Pairs(*map(theirs.torch.tensor, pairs))

    def mine() -> Any:
        state[0], metrics = step(state[0], on_device)
        return jax.block_until_ready((state[0], metrics))

    return _row(what, settings.batch_size, mine, lambda: theirs.train(tensors), settings.rounds)


def _head_alone(
    matrix: jax.Array, rows: int, *, calls: int, gradients: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The products of the head for so many rows and nothing else, in JAX and in PyTorch."""
    import torch

    rng = np.random.default_rng(0)
    w = np.array(matrix)
    features, logits = (rng.normal(size=(rows, n)).astype(np.float32) for n in w.shape)

    def products(features: Any, w: Any, logits: Any) -> Any:
        product = features @ w
        return (product, logits @ w.T, features.T @ logits) if gradients else product

    compiled, ours = jax.jit(products), tuple(map(jnp.asarray, (features, w, logits)))
    theirs = tuple(map(torch.tensor, (features, w, logits)))

    def mine() -> Any:
        return [jax.block_until_ready(compiled(*ours)) for _ in range(calls)]

    return mine, lambda: [products(*theirs) for _ in range(calls)]


def _check_equal(mine: np.ndarray, other: np.ndarray) -> None:
    """Nearly all texts are the same; sums in another order may turn a choice between two."""
    same = np.mean(np.all(mine == other, axis=-1))
    if same < 0.9:
        raise AssertionError(f"texts must be those of PyTorch, got {same:.2f} of them equal")


def _row(what: str, count: int, mine: Callable, other: Callable, rounds: int) -> dict[str, str]:
    timings = interleaved(
        {"rnnjax": mine, "PyTorch": other}, rounds=rounds, pauses={"PyTorch": 0.2}
    )
    return {"what": what, **rates(timings, count)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    program = "python -m experiments.measurements.translation"
    settings = parse(Settings, program, arguments)
    return exit_code(lambda: print_table(measure(settings)))


if __name__ == "__main__":
    sys.exit(main())

"""What is computed on several devices by ``tests/training/test_devices.py``, and the comparison.

    python tests/mesh_cases.py lstm gru "a tagger"

runs cases by name, all without names: each on one device, and with its batch divided over as many
devices as there are, on meshes of both kinds, with and without ``jax.set_mesh``.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import CELLS, D, H
from jax.sharding import AxisType

import rnnjax
from rnnjax.metrics import (
    accuracy,
    cross_entropy,
    f1_by_class,
    linear_cross_entropy,
    of_linear_heads,
    recall_by_class,
    squared_error,
    transducer_loss,
)
from rnnjax.training import replicate, shard_batch

B, T, V = 8, 5, 7
KEY = jax.random.key(7)
LENGTHS = np.array([5, 4, 3, 2, 1, 0, 5, 3], np.int32)


def _draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _integers(most, *shape):
    return np.random.default_rng(1).integers(0, most, shape).astype(np.int32)


VECTORS = {"xs": _draw(B, T, D), "lengths": LENGTHS}
TEXTS = {"tokens": _integers(V, B, T), "lengths": LENGTHS, "labels": _integers(3, B)}
PACKED = {
    "tokens": _integers(V, B, T),
    "segment_ids": np.stack(
        [np.array([2 * row + 1, 0, 2 * row + 2] + [0] * 2) for row in range(B)]
    ),
}


class Case(NamedTuple):
    """``function(params, batch)``, and whether it has a gradient to compare."""

    function: Callable
    params: Any
    batch: dict[str, Any]
    differentiable: bool = True


def of_layer(layer, key=None, size=D, **options):
    """The outputs and the carry of a layer."""

    def function(params, batch):
        return layer.apply(params, batch["xs"], batch["lengths"], key=key, **options)

    return Case(function, layer.init(jax.random.key(0), size), VECTORS)


def of_cell(cell, batch=VECTORS, **options):
    """``unroll`` with options; ``resets``, ``mask`` and ``start`` come with the batch."""

    def function(params, batch):
        given = {name: batch[name] for name in ("resets", "mask") if name in batch}
        start = batch.get("start")
        return rnnjax.unroll(
            cell, params, batch["xs"], batch.get("lengths"), initial_carry=start, **given, **options
        )

    return Case(function, cell.init(jax.random.key(0), D), batch)


def of_model(model, key=None, **fields):
    """What a model gives for texts."""

    def function(params, batch):
        return model.apply(params, batch["tokens"], batch["lengths"], key=key, **fields)

    return Case(function, model.init(jax.random.key(0)), TEXTS)


def of_packed(model):
    def function(params, batch):
        ids = batch["segment_ids"]
        return model.apply(params, batch["tokens"], segment_ids=ids, num_segments=2 * B)

    return Case(function, model.init(jax.random.key(0)), PACKED)


def mapped(cell, axis):
    """``unroll`` under ``jax.vmap``, of the rows or of an axis before them."""

    def function(params, batch):
        xs = batch["xs"] if axis == "rows" else jnp.stack([batch["xs"], 2 * batch["xs"]])
        return jax.vmap(lambda xs: rnnjax.unroll(cell, params, xs))(xs)

    return Case(function, cell.init(jax.random.key(0), D), VECTORS)


def without_carry():
    cell = rnnjax.Cell(
        D,
        lambda key, size: {"bias": jnp.ones(size, jnp.float32)},
        lambda params: (),
        lambda params, x: (x,),
        update=lambda params, carry, x_proj, h_proj: ((), jnp.tanh(x_proj[0] + params["bias"])),
    )
    return of_cell(cell)


def attended():
    attention = rnnjax.attention("general")

    def function(params, batch):
        return attention.apply(params, batch["xs"], batch["xs"], batch["lengths"])

    return Case(function, attention.init(jax.random.key(0), D, D), VECTORS)


# On one device in chunks of two rows, and on a mesh all logits at once.
of_linear_heads._LOGITS, of_linear_heads._LEAST_ROWS = 1, 2


def _transducer_loss(logits, batch):
    """Of a joint that looks at the steps and not at the two labels."""
    joint = jnp.stack([logits, -logits, logits**2], axis=-2)
    lengths, labels = batch["lengths"], 1 + batch["tokens"][:, :2] % 2
    return transducer_loss(joint, lengths, labels, lengths.clip(0, 2), lengths > 0)


def figures():
    """The sums of the metrics, over all rows."""

    def function(params, batch):
        logits = batch["xs"] @ params
        labels = batch["tokens"] % 3
        mask = rnnjax.lengths_to_mask(batch["lengths"], T)
        return (
            cross_entropy(logits, labels, mask),
            accuracy(logits, labels, mask),
            recall_by_class(logits, labels, mask),
            f1_by_class(logits, labels, mask),
            squared_error(logits, logits**2, mask),
            linear_cross_entropy(batch["xs"], params, None, labels, mask),
            _transducer_loss(logits, batch),
        )

    return Case(function, jnp.asarray(_draw(D, 3)), {**VECTORS, "tokens": TEXTS["tokens"]})


def translated(decoder, **options):
    """What a translator gives for the first tokens of its sources, dropout included."""
    table = rnnjax.embedding(V, D)
    model = rnnjax.sequence_to_sequence(
        table, rnnjax.gru(H), table, decoder, start=2, dropout=0.3, **options
    )

    def function(params, batch):
        tokens, lengths = batch["tokens"], batch["lengths"]
        return model.apply(params, tokens, lengths, tokens[:, :3], lengths.clip(0, 3), key=KEY)

    return Case(function, model.init(jax.random.key(0)), TEXTS)


def captioned():
    decoder = rnnjax.attention_cell(rnnjax.lstm(H), D, selector=True)
    model = rnnjax.captioner(D, rnnjax.embedding(V, D), decoder, start=2)

    def function(params, batch):
        return model.apply(params, batch["xs"], batch["lengths"], batch["tokens"])

    return Case(function, model.init(jax.random.key(0)), {**VECTORS, "tokens": TEXTS["tokens"]})


def forecast():
    """Scores and losses of a series, dropout included."""
    model = rnnjax.series_model(rnnjax.gru(H), rnnjax.bernoulli_head(D), dropout=0.3)

    def function(params, batch):
        pair = batch["xs"] > 0, batch["xs"] > 1
        return [run(params, pair, batch["lengths"], key=KEY) for run in (model.score, model.loss)]

    return Case(function, model.init(jax.random.key(0)), VECTORS)


CLASSIFIER = rnnjax.classifier(
    rnnjax.embedding(V, D), rnnjax.bidirectional(rnnjax.lstm(H)), 3, dropout=0.5
)
MODEL = rnnjax.language_model(rnnjax.embedding(V, H), rnnjax.gru(H), tie=True)
DROPPED = rnnjax.language_model(
    rnnjax.embedding(V, H), rnnjax.gru(H), dropout=0.3, word_dropout=0.2
)


def language_loss(params, batch, key):
    logits = DROPPED.apply(params, batch["tokens"], batch["lengths"], key=key)[1]
    mask = rnnjax.lengths_to_mask(batch["lengths"], T)
    loss = cross_entropy(logits, batch["tokens"], mask)
    return loss.value, {"loss": loss}


def train_step():
    """A step of training, its state and a batch."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01))
    step = rnnjax.make_train_step(language_loss, optimizer)
    params = DROPPED.init(jax.random.key(0))
    return step, rnnjax.init_train_state(KEY, params, optimizer), TEXTS


def trained():
    """Two steps of training: the state, and the metrics of the second."""
    step, state, batch = train_step()

    def function(state, batch):
        return step(step(state, batch)[0], batch)

    return Case(function, state, batch, differentiable=False)


def truncated():
    def loss_fn(ys, targets, mask):
        loss = squared_error(ys, targets, mask)
        return loss.value, {"loss": loss}

    layer, optimizer = rnnjax.recurrent(rnnjax.gru(D)), optax.adam(0.01)
    step = rnnjax.make_truncated_step(layer.apply, loss_fn, optimizer, k1=2, k2=3)

    def function(params, batch):
        state = rnnjax.init_train_state(KEY, params, optimizer)
        mask = rnnjax.lengths_to_mask(batch["lengths"], T)
        part = rnnjax.Sequences(batch["xs"], jnp.sin(batch["xs"]), mask)
        state, carry, _ = step(state, part)
        return step(state, part, carry)

    return Case(function, layer.init(jax.random.key(0), D), VECTORS, differentiable=False)


def streamed():
    layer = rnnjax.stack(rnnjax.gru(H), rnnjax.lstm(H))

    def function(params, batch):
        carry = layer.initial_carry(params, (B,))
        carry, first = layer.step(params, carry, batch["xs"][:, 0])
        return layer.step(params, carry, batch["xs"][:, 1]), first

    return Case(function, layer.init(jax.random.key(0), D), VECTORS)


def generated():
    def function(params, batch):
        found = rnnjax.generate(
            MODEL, params, batch["tokens"], batch["lengths"].clip(1), max_new_tokens=4, key=KEY
        )
        return found.tokens, found.lengths, found.log_probs

    return Case(function, MODEL.init(jax.random.key(0)), TEXTS, differentiable=False)


def searched():
    def function(params, batch):
        start = batch["tokens"][:, 0]
        carry = MODEL.initial_carry(params, (B,))
        return rnnjax.beam_search(
            MODEL.step, params, carry, start, stop=0, beam_size=2, max_length=4
        )

    return Case(function, MODEL.init(jax.random.key(0)), TEXTS, differentiable=False)


FLAGS = np.random.default_rng(2).random((B, T)) < 0.4
CASES: dict[str, Any] = {
    **{name: lambda cell=cell: of_layer(rnnjax.recurrent(cell)) for name, cell in CELLS.items()},
    "resets": lambda: of_cell(rnnjax.lstm(H), {"xs": VECTORS["xs"], "resets": FLAGS}),
    "a mask, in reverse": lambda: of_cell(
        rnnjax.gru(H), {"xs": VECTORS["xs"], "mask": FLAGS}, reverse=True
    ),
    "a given carry": lambda: of_cell(rnnjax.gru(H), {**VECTORS, "start": _draw(B, H)}),
    "all carries": lambda: of_cell(rnnjax.lstm(H), all_carries=True),
    "chunks": lambda: of_cell(rnnjax.lstm(H), remat=2),
    "an associative scan": lambda: of_cell(rnnjax.lru(H), implementation="associative"),
    "a vmap of rows": lambda: mapped(rnnjax.gru(H), "rows"),
    "a vmap over batches": lambda: mapped(rnnjax.lstm(H), "batches"),
    "no carry": without_carry,
    "bfloat16": lambda: of_layer(
        rnnjax.recurrent(rnnjax.with_policy(rnnjax.lstm(H), rnnjax.Policy(compute="bfloat16")))
    ),
    "layer norm": lambda: of_layer(rnnjax.recurrent(rnnjax.layer_norm(rnnjax.lstm(H)))),
    "variational dropout": lambda: of_layer(
        rnnjax.recurrent(rnnjax.variational_dropout(rnnjax.lstm(H), inputs=0.3, hidden=0.3)), KEY
    ),
    "recurrent dropout": lambda: of_layer(
        rnnjax.recurrent(rnnjax.recurrent_dropout(rnnjax.gru(H), 0.3)), KEY
    ),
    "weight drop": lambda: of_layer(rnnjax.recurrent(rnnjax.weight_drop(rnnjax.gru(H), 0.3)), KEY),
    "zoneout": lambda: of_layer(rnnjax.recurrent(rnnjax.zoneout(rnnjax.gru(H), 0.3)), KEY),
    "zoneout of a step": lambda: of_layer(
        rnnjax.recurrent(rnnjax.zoneout(rnnjax.gru(H, reset_after=False), 0.3)), KEY
    ),
    "a stack with dropout": lambda: of_layer(
        rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(H)), rnnjax.gru(H), dropout=0.3), KEY
    ),
    "residual": lambda: of_layer(rnnjax.residual(rnnjax.gru(D))),
    "skip stack": lambda: of_layer(rnnjax.skip_stack(rnnjax.gru(H), rnnjax.lstm(H))),
    "output head": lambda: of_layer(rnnjax.output_head(rnnjax.gru(H), 2)),
    "attention": attended,
    "metrics": figures,
    **{
        f"a classifier by {pooling}": lambda pooling=pooling: of_model(
            rnnjax.classifier(
                rnnjax.embedding(V, D), rnnjax.gru(H), 3, pooling=pooling, dropout=0.5
            ),
            KEY,
        )
        for pooling in ("last", "mean", "max")
    },
    "a classifier of packed rows": lambda: of_packed(CLASSIFIER),
    "one-hot": lambda: of_model(rnnjax.classifier(rnnjax.one_hot(V), rnnjax.gru(H), 3)),
    "a tagger": lambda: of_model(rnnjax.tagger(rnnjax.embedding(V, D), rnnjax.gru(H), 3), KEY),
    "a language model": lambda: of_model(DROPPED, KEY),
    "an adaptive softmax": lambda: of_model(
        rnnjax.language_model(
            rnnjax.embedding(V, D), rnnjax.gru(H), softmax=rnnjax.adaptive_softmax(H, V, (3,))
        )
    ),
    "a translator": lambda: translated(rnnjax.gru(H)),
    "a translator that attends": lambda: translated(
        rnnjax.gru(H), attention=rnnjax.attention("general")
    ),
    "a translator that attends inside": lambda: translated(
        rnnjax.attention_cell(rnnjax.gru(H), H, input_feeding=True), head_size=D, tie=True
    ),
    "a captioner": captioned,
    "a series": forecast,
    "train step": trained,
    "truncated step": truncated,
    "steps of a stack": streamed,
    "generate": generated,
    "beam search": searched,
}


def weigh(tree):
    """A loss that feels every element differently."""

    def of_leaf(leaf):
        places = jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
        return jnp.sum((jnp.real(leaf) + jnp.imag(leaf)) * places)

    leaves = jax.tree.leaves(tree)
    return sum(of_leaf(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))


def values_and_gradients(cases: dict[str, Case]) -> Callable:
    """Of all cases in one program, since compiling many small ones takes twice the time."""

    def results(params, batches):
        return {n: case.function(params[n], batches[n]) for n, case in cases.items()}

    def loss(params, batches):
        found = results(params, batches)
        return weigh(found), found

    if all(case.differentiable for case in cases.values()):
        return jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.jit(results)


def compare(name: str, found: Any, expected: Any) -> None:
    """What a mesh gave for a case, beside what one device gave."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(np.asarray(a), b, rtol=2e-4, atol=2e-5, err_msg=name)


def of_case(name: str, found: Any) -> Any:
    """The results of one case, and its gradients if it has them, out of those of a program."""
    if isinstance(found, dict):
        return found[name]
    (_, results), gradients = found
    return results[name], gradients[name]


def compare_together(cases: dict[str, Case]) -> None:
    """Cases on one device, and divided over meshes of both kinds, set or not."""
    program = values_and_gradients(cases)
    params = {n: case.params for n, case in cases.items()}
    batches = {n: case.batch for n, case in cases.items()}
    expected = jax.device_get(program(params, batches))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(kind,))
        for set_mesh in (False, True):
            with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
                found = program(replicate(mesh, params), shard_batch(mesh, batches))
            for name in cases:
                what = f"{name}, {kind}, set_mesh={set_mesh}"
                compare(what, of_case(name, found), of_case(name, expected))


def main(*names: str) -> None:
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time
    cases = {name: CASES[name]() for name in names or CASES}
    for differentiable in (True, False):
        together = {n: c for n, c in cases.items() if c.differentiable == differentiable}
        if together:
            compare_together(together)


if __name__ == "__main__":
    main(*sys.argv[1:])

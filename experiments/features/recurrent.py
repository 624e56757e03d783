"""What is about recurrence: cells, ragged batches, time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax
from experiments.features.claims import (
    Check,
    Claim,
    Feature,
    at_call,
    but,
    everywhere,
    fails,
    has,
    has_arguments,
    no,
    part,
    when_made,
    yes,
)

B, T, D, H = 2, 5, 3, 4


def nnx_rnn(xs: Any, **options: Any) -> Any:
    """The outputs, or (carry, outputs), of Flax's own layer."""
    from flax import nnx

    layer = nnx.RNN(nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(0)), **options.pop("layer", {}))
    return layer(xs, **options)


def linen_rnn(xs: Any, **options: Any) -> Any:
    from flax import linen

    layer = linen.RNN(linen.OptimizedLSTMCell(H), **options.pop("layer", {}))
    return layer.init_with_output(jax.random.key(0), xs, **options)[0]


def empty_row_is_wrong(run: Callable) -> Check:
    """That the final state of a row of length 0 is not its initial state, which is zero."""

    def check() -> bool:
        xs = jnp.ones((B, T, D))
        carry, _ = run(xs, seq_lengths=jnp.array([T, 0]), return_carry=True)
        return any(bool(jnp.any(leaf[1] != 0)) for leaf in jax.tree.leaves(carry))

    return check


def padding_is_not_zero(run: Callable) -> Check:
    def check() -> bool:
        return bool(jnp.any(run(jnp.ones((B, T, D)), seq_lengths=jnp.array([T, 2]))[1, 2:] != 0))

    return check


def nan_padding_poisons(run: Callable) -> Check:
    """That NaN in padding makes the gradient of what is not padding NaN."""

    def check() -> bool:
        xs = jnp.ones((B, T, D)).at[1, 2:].set(jnp.nan)

        def loss(xs: Any) -> Any:
            return jnp.sum(run(xs, seq_lengths=jnp.array([T, 2]))[1, :2])

        return not bool(jnp.all(jnp.isfinite(jax.grad(loss)(xs))))

    return check


def keras_nan_padding_poisons() -> bool:
    import keras

    layer = keras.layers.LSTM(H)
    mask = jnp.arange(T)[None] < jnp.array([[T], [2]])
    xs = jnp.ones((B, T, D)).at[1, 2:].set(jnp.nan)
    layer.build(xs.shape)
    weights = [w.value for w in layer.trainable_variables]
    others = [w.value for w in layer.non_trainable_variables]

    def loss(weights: list) -> Any:
        return jnp.sum(layer.stateless_call(weights, others, xs, mask=mask)[0])

    with jax.numpy_rank_promotion("allow"):
        grads = jax.grad(loss)(weights)
    return not all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


def torch_empty_row() -> Any:
    import torch

    return torch.nn.utils.rnn.pack_padded_sequence(torch.ones(B, T, D), [T, 0], batch_first=True)


def torch_vmap_over_weights() -> Any:
    import torch

    layers = [torch.nn.LSTM(D, H) for _ in range(2)]
    params, buffers = torch.func.stack_module_state(layers)

    def one(params: Any, buffers: Any, x: Any) -> Any:
        return torch.func.functional_call(layers[0], (params, buffers), (x,))[0]

    return torch.func.vmap(one, in_dims=(0, 0, None))(params, buffers, torch.ones(T, B, D))


def run_ours(cell: rnnjax.Cell, xs: Any = None, **options: Any) -> Any:
    """``(carry, ys)`` of a cell with fresh weights."""
    xs = jnp.ones((B, T, D)) if xs is None else xs
    return rnnjax.unroll(cell, cell.init(jax.random.key(0), xs.shape[-1]), xs, **options)


def runs(call: Callable[[], Any]) -> Check:
    """That a call gives finite numbers."""

    def check() -> bool:
        leaves = [
            leaf for leaf in jax.tree.leaves(call()) if jnp.issubdtype(leaf.dtype, np.inexact)
        ]
        return bool(leaves) and all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)

    return check


def run_linear() -> Any:
    from rnnjax.cells import min_gru

    return run_ours(min_gru(H), implementation="associative", lengths=[T, 2])


def run_segments() -> Any:
    from rnnjax.data import pack
    from rnnjax.segments import segment_carries

    cell, packed = rnnjax.lstm(H), pack([[0, 1], [1, 2, 0], [2]], row_length=4)
    params = cell.init(jax.random.key(0), D)
    xs, ids = jax.nn.one_hot(packed.tokens, D), packed.segment_ids
    _, (_, carries) = rnnjax.unroll(
        cell, params, xs, mask=ids > 0, resets=packed.resets, all_carries=True
    )
    return segment_carries(carries, ids, 3, cell.initial_carry(params))


def run_truncated() -> Any:
    import optax

    from rnnjax.training import Sequences, make_truncated_step

    layer, optimizer = rnnjax.recurrent(rnnjax.lstm(H)), optax.sgd(0.1)

    def loss_fn(ys: Any, targets: Any, mask: Any) -> Any:
        loss = jnp.sum(jnp.where(mask[..., None], (ys - targets) ** 2, 0))
        return loss, {"loss": (loss, jnp.ones(()))}

    state = rnnjax.init_train_state(jax.random.key(1), layer.init(jax.random.key(0), D), optimizer)
    step = make_truncated_step(layer.apply, loss_fn, optimizer, k1=2)
    batch = Sequences(jnp.ones((B, T, D)), jnp.ones((B, T, H)))
    return step(state, batch)[0].params


def run_torch_weights() -> Any:
    from rnnjax.interop.torch import import_weights

    state = {
        "weight_ih_l0": np.ones((4 * H, D), np.float32),
        "weight_hh_l0": np.ones((4 * H, H), np.float32),
        "bias_ih_l0": np.ones(4 * H, np.float32),
        "bias_hh_l0": np.ones(4 * H, np.float32),
    }
    return import_weights("lstm", state)


def run_bfloat16() -> Any:
    from rnnjax.transforms import Policy, with_policy

    carry, ys = run_ours(with_policy(rnnjax.lstm(H), Policy(compute="bfloat16")))
    if not carry.c.dtype == ys.dtype == jnp.float32:
        raise AssertionError(f"state and outputs of {carry.c.dtype} and {ys.dtype}")
    return carry


def run_ensemble() -> Any:
    cell = rnnjax.lstm(H)
    params = jax.vmap(lambda key: cell.init(key, D))(jax.random.split(jax.random.key(0)))
    return jax.vmap(lambda p: rnnjax.unroll(cell, p, jnp.ones((T, D))))(params)


def ours_with(name: str, *arguments: Any) -> Check:
    """That a cell transformer of this name works, with its noise drawn."""

    def call() -> Any:
        transform = getattr(rnnjax, name)
        return run_ours(transform(rnnjax.lstm(H), *arguments), key=jax.random.key(1))

    return runs(call)


def nan_padding_ignored() -> bool:
    cell = rnnjax.lstm(H)
    params = cell.init(jax.random.key(0), D)
    xs = jnp.ones((B, T, D)).at[1, 2:].set(jnp.nan)

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(rnnjax.unroll(cell, params, xs, [T, 2])[1])

    grads = jax.grad(loss, (0, 1))(params, xs)
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))


def keras_outputs(mask: Any, **options: Any) -> Any:
    """(outputs, h, c) of a Keras LSTM on ones."""
    import keras

    layer = keras.layers.LSTM(H, return_sequences=True, return_state=True, **options)
    with jax.numpy_rank_promotion("allow"):
        return layer(jnp.ones((B, T, D)), mask=mask)


def keras_empty_row_stays() -> bool:
    _, h, c = keras_outputs(jnp.arange(T)[None] < jnp.array([[T], [0]]))
    return not bool(jnp.any(h[1]) | jnp.any(c[1]))


def keras_padding_is_zero() -> bool:
    mask = jnp.arange(T)[None] < jnp.array([[T], [2]])
    return not bool(jnp.any(keras_outputs(mask, zero_output_for_mask=True)[0][1, 2:]))


def torch_packed(xs: Any) -> tuple[Any, Any]:
    """Outputs and parameters of a torch LSTM on rows of 5 and 2 steps."""
    import torch

    layer = torch.nn.LSTM(D, H, batch_first=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs, [T, 2], batch_first=True)
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True)
    return ys, list(layer.parameters())


def torch_padding_is_zero() -> bool:
    import torch

    return not bool(torch_packed(torch.ones(B, T, D))[0][1, 2:].any())


def torch_ignores_nan_padding() -> bool:
    import torch

    xs = torch.ones(B, T, D)
    xs[1, 2:] = float("nan")
    ys, params = torch_packed(xs.requires_grad_())
    ys.sum().backward()
    return all(bool(torch.isfinite(p.grad).all()) for p in params)


def is_one_mask(ys: Any) -> bool:
    """That outputs which are dropout masks are those of one mask for all steps, and drop."""
    return bool(jnp.all(ys == ys[:, :1])) and bool(jnp.any(ys == 0))


def nnx_keeps_a_mask() -> bool:
    """That nnx's layer has a cell of the user's drop the same units at every step."""
    from flax import nnx

    class Masks(nnx.LSTMCell):
        def __init__(self, rngs: Any) -> None:
            super().__init__(D, 64, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rng_collection="recurrent_dropout", rngs=rngs)

        def __call__(self, carry: Any, x: Any) -> Any:
            return super().__call__(carry, x)[0], self.dropout(jnp.ones((len(x), 64)))

    cell = Masks(nnx.Rngs(params=0, recurrent_dropout=1))
    return is_one_mask(nnx.RNN(cell, broadcast_rngs="recurrent_dropout")(jnp.ones((B, T, D))))


def linen_keeps_a_mask() -> bool:
    """That linen's layer has a cell of the user's drop the same units at every step."""
    from flax import linen

    class Masks(linen.OptimizedLSTMCell):
        @linen.compact
        def __call__(self, carry: Any, x: Any) -> Any:
            ys = linen.Dropout(0.5, deterministic=False)(jnp.ones((len(x), 64)))
            return super().__call__(carry, x)[0], ys

    layer = linen.RNN(Masks(64), split_rngs={"params": False, "dropout": False})
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return is_one_mask(layer.init_with_output(keys, jnp.ones((B, T, D)))[0])


def haiku_keeps_dtypes_apart() -> bool:
    """That a policy gives float32 parameters and states around products in bfloat16."""
    import haiku
    import jmp

    f32, bf16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
    policy = jmp.Policy(param_dtype=f32, compute_dtype=bf16, output_dtype=f32)

    def forward(xs: Any) -> Any:
        with haiku.mixed_precision.push_policy(haiku.Linear, policy):
            core = haiku.LSTM(H)
            return haiku.dynamic_unroll(core, xs, core.initial_state(B), time_major=False)

    model, xs = haiku.without_apply_rng(haiku.transform(forward)), jnp.ones((B, T, D))
    params = model.init(jax.random.key(0), xs)
    ys, state = model.apply(params, xs)
    is_rounded = bool(jnp.all(state.cell == state.cell.astype(bf16)))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, ys, state))}
    products = "preferred_element_type=bfloat16" in str(jax.make_jaxpr(model.apply)(params, xs))
    return products and dtypes == {f32} and not is_rounded


NO_LENGTHS = at_call("lengths", "seq_lengths", "sequence_lengths", "mask")
RESETS = at_call("resets", "reset", "should_reset", "segment_ids")


def row(name: str, shown: Check, peers: tuple[Claim, ...]) -> Feature:
    """A feature that rnnjax has."""
    return Feature(name, yes(shown), peers)


def table() -> list[Feature]:
    lstm = rnnjax.lstm(H)
    flags = jnp.zeros((B, T), bool).at[:, 2].set(True)
    return [
        row(
            "lengths of a ragged batch",
            runs(lambda: run_ours(lstm, lengths=[T, 2])),
            but(
                NO_LENGTHS,
                nnx=yes(has_arguments("flax.nnx:RNN.__call__", "seq_lengths")),
                linen=yes(has_arguments("flax.linen:RNN.__call__", "seq_lengths")),
                keras=yes(has_arguments("keras.layers:LSTM.call", "mask")),
                torch=yes(has("torch.nn.utils.rnn:pack_padded_sequence")),
            ),
        ),
        row(
            "a mask that is False anywhere",
            runs(lambda: run_ours(lstm, mask=~flags)),
            but(at_call("mask"), keras=yes(has_arguments("keras.layers:LSTM.call", "mask"))),
        ),
        row(
            "an empty row keeps its initial carry",
            lambda: not any(jnp.any(c[1]) for c in run_ours(lstm, lengths=[T, 0])[0]),
            but(
                NO_LENGTHS,
                nnx=no(empty_row_is_wrong(nnx_rnn)),
                linen=no(empty_row_is_wrong(linen_rnn)),
                keras=yes(keras_empty_row_stays),
                torch=no(fails(torch_empty_row)),
            ),
        ),
        row(
            "padded outputs are exact zeros",
            lambda: not jnp.any(run_ours(lstm, lengths=[T, 2])[1][1, 2:]),
            but(
                NO_LENGTHS,
                nnx=no(padding_is_not_zero(nnx_rnn)),
                linen=no(padding_is_not_zero(linen_rnn)),
                keras=yes(keras_padding_is_zero),
                torch=yes(torch_padding_is_zero),
            ),
        ),
        row(
            "NaN in padding spoils no gradient",
            nan_padding_ignored,
            but(
                NO_LENGTHS,
                nnx=no(nan_padding_poisons(nnx_rnn)),
                linen=no(nan_padding_poisons(linen_rnn)),
                keras=no(keras_nan_padding_poisons),
                torch=yes(torch_ignores_nan_padding),
            ),
        ),
        row(
            "resets inside a sequence",
            runs(lambda: run_ours(lstm, resets=flags)),
            but(RESETS, haiku=yes(has("haiku:ResetCore"))),
        ),
        row(
            "resets together with lengths",
            runs(lambda: run_ours(lstm, resets=flags, lengths=[T, 2])),
            but(RESETS, haiku=NO_LENGTHS[2]),
        ),
        row(
            "segments of one row, each with its final carry",
            runs(run_segments),
            everywhere("segment"),
        ),
        row(
            "a learned initial carry, for any cell",
            runs(lambda: run_ours(rnnjax.learn_initial_carry(lstm))),
            everywhere("learned", "learn_init", "trainable_state", "trainablestate"),
        ),
        row(
            "the carries of all steps",
            runs(lambda: run_ours(lstm, all_carries=True)),
            but(
                at_call("all_carries", "return_all_states", "all_states"),
                haiku=yes(has_arguments("haiku:dynamic_unroll", "return_all_states")),
            ),
        ),
        row(
            "checkpoints over time (remat) as an option",
            runs(lambda: run_ours(lstm, remat="sqrt")),
            at_call("remat", "checkpoint", "checkpointing"),
        ),
        row(
            "truncated backpropagation through time, as a step",
            runs(run_truncated),
            but(
                everywhere("truncated_step", "tbptt", "truncatedb"),
                keras=part(has_arguments("keras.layers:LSTM.__init__", "stateful")),
            ),
        ),
        row(
            "dropout of one mask for all steps",
            ours_with("variational_dropout", 0.2, 0.2),
            but(
                when_made("dropout", "recurrent_dropout"),
                nnx=part(nnx_keeps_a_mask),
                linen=part(linen_keeps_a_mask),
                keras=yes(
                    has_arguments("keras.layers:LSTM.__init__", "dropout", "recurrent_dropout")
                ),
                torch=when_made("recurrent_dropout")[5],
            ),
        ),
        row("zoneout", ours_with("zoneout", 0.1), everywhere("zoneout")),
        row(
            "weight drop",
            ours_with("weight_drop", 0.2),
            everywhere("weightdrop", "weight_drop", "dropconnect"),
        ),
        row(
            "layer normalisation inside the gates",
            ours_with("layer_norm"),
            when_made("layer_norm", "norm", "normalization", "use_layer_norm"),
        ),
        row(
            "LSTM with a projection",
            runs(lambda: run_ours(rnnjax.projected_lstm(H, 2))),
            but(
                when_made("proj_size", "projection", "projection_size"),
                torch=yes(has_arguments("torch.nn:RNNBase.__init__", "proj_size")),
            ),
        ),
        row(
            "LSTM with peepholes",
            runs(lambda: run_ours(rnnjax.peephole_lstm(H))),
            when_made("peephole", "peepholes", "use_peepholes"),
        ),
        row("IndRNN", runs(lambda: run_ours(rnnjax.indrnn(H))), everywhere("indrnn")),
        row(
            "linear recurrences in parallel over time",
            runs(run_linear),
            everywhere("lru", "mingru", "associative", "linear_recurrence"),
        ),
        row(
            "parameter, compute and state dtype apart",
            runs(run_bfloat16),
            but(
                when_made("state_dtype", "carry_dtype", "policy"),
                haiku=yes(haiku_keeps_dtypes_apart),
            ),
        ),
        row(
            "vmap over the weights of a whole layer",
            runs(run_ensemble),
            (
                yes(has("flax.nnx:vmap", "flax.nnx:split")),
                yes(has("flax.linen:vmap")),
                yes(has("haiku:transform")),
                yes(has("equinox:filter_vmap")),
                yes(has("keras.layers:LSTM.stateless_call")),
                no(fails(torch_vmap_over_weights)),
            ),
        ),
        row(
            "weights of other libraries",
            runs(run_torch_weights),
            everywhere("from_torch", "from_keras", "from_pytorch", "import_weights"),
        ),
        row(
            "says which path runs, and why",
            lambda: (
                "chunks of 2"
                in rnnjax.explain(lstm, lstm.init(jax.random.key(0), D), jnp.ones((T, D)), remat=2)
            ),
            everywhere("explain"),
        ),
    ]

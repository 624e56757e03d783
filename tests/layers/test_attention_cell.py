"""Attention inside the loop beside a plain loop in float64, and what it never reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.base import NoiseShape

pytestmark = pytest.mark.usefixtures("quick_compile")

H, D, M, T, S, B = 4, 3, 5, 3, 4, 3
LENGTHS, PLACES = np.array([3, 2]), np.array([4, 2])
SOURCES = np.array([4, 2, 0])
CELLS = {"gru": rnnjax.gru(H), "lstm": rnnjax.lstm(H)}
# The state is as wide as the memory where a kind wants it so.
KINDS = {"additive": M, "general": M, "scaled": H, "local": M}


def made(cell, size, kind, feeding=False):
    attention = rnnjax.attention(kind, window=3 if kind == "local" else None)
    whole = rnnjax.attention_cell(CELLS[cell], size, attention, input_feeding=feeding)
    params = whole.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (B, T, D))
    states = jax.random.normal(jax.random.key(2), (B, S, size))
    return attention, whole, params, xs, states


def memory_of(states, sources=SOURCES):
    return rnnjax.Memory(states, rnnjax.lengths_to_mask(sources, states.shape[-2]))


def joined(params, more):
    """The parameters of the same cell that reads a further input beside its own."""
    return params._replace(w_ih=jnp.concatenate([params.w_ih, more]))


def close(found, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 100),
        found,
        expected,
    )


def one_step(cell, params, carry, x):
    h_proj = cell.hidden(carry) @ cell.recurrent(params)
    x_proj = cell.project(params, x)
    return cell.update(params, carry, x_proj, jnp.split(h_proj, len(x_proj)))


def loop(name, attention, params, xs, states, feeding):
    """One row, step after step, on what it has and nothing else: the cell of [x, c]."""
    cell = CELLS[name]
    carry, outputs, weights = cell.initial_carry(params.cell), [], []
    fed = jnp.zeros((H,))
    for x in xs:
        h = carry if name == "gru" else carry.h
        if not feeding:
            (context,), (row,) = attention.apply(params.attention, h[None], states)
            whole = joined(params.cell, params.context)
            carry, y = one_step(cell, whole, carry, jnp.concatenate([x, context]))
        else:
            whole = joined(params.cell, params.feed)
            carry, h = one_step(cell, whole, carry, jnp.concatenate([x, fed]))
            (context,), (row,) = attention.apply(params.attention, h[None], states)
            y = fed = jnp.tanh(jnp.concatenate([context, h]) @ params.output)
        outputs.append(y)
        weights.append(row)
    return jnp.stack(outputs), jnp.stack(weights)


CASES = [
    ("gru", "additive", False),
    ("lstm", "general", True),
    *(pytest.param("lstm", kind, False, marks=pytest.mark.full) for kind in KINDS),
    *(
        pytest.param("gru", kind, True, marks=pytest.mark.full)
        for kind in KINDS
        if kind != "scaled"
    ),
]


@pytest.mark.parametrize(("name", "kind", "feeding"), CASES)
def test_it_is_a_plain_loop_in_values_and_gradients(name, kind, feeding, float64):
    attention, whole, params, xs, states = made(name, KINDS[kind], kind, feeding)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (params, xs[:2], states[:2]))

    def run(params, xs, states):
        _, ys = rnnjax.unroll(whole, params, xs, LENGTHS, context=memory_of(states, PLACES))
        return ys

    def of_rows(params, xs, states):
        out, weights = [], []
        for b, (steps, places) in enumerate(zip(LENGTHS, PLACES, strict=True)):
            y, w = loop(name, attention, params, xs[b, :steps], states[b, :places], feeding)
            out.append(jnp.pad(y, ((0, T - steps), (0, 0))))
            weights.append(jnp.pad(w, ((0, T - steps), (0, S - places))))
        return rnnjax.Attended(jnp.stack(out), jnp.stack(weights))

    def loss(run):
        def total(*args):
            ys = run(*args)
            return jnp.sum(ys.output**2) + jnp.sum(ys.weights**3), ys

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))

    found, expected = loss(run)(*wide), loss(of_rows)(*wide)
    close(found, expected, 1e-9)


@pytest.mark.parametrize("feeding", [False, True])
@pytest.mark.kept
def test_what_is_masked_is_never_read_and_a_row_without_memory_is_finite(feeding):
    _, whole, params, xs, states = made("gru", M, "additive", feeding)
    behind = np.arange(S) >= SOURCES[:, None]

    @jax.jit
    def results(params, states):
        def loss(params, states):
            _, ys = rnnjax.unroll(whole, params, xs, context=memory_of(states))
            return jnp.sum(ys.output**2) + jnp.sum(ys.weights**3), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, states)

    clean = results(params, states)
    dirty = results(params, jnp.where(behind[..., None], jnp.nan, states))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (_, ys), (_, of_states) = dirty
    assert not np.any(np.asarray(ys.weights)[np.broadcast_to(behind[:, None], ys.weights.shape)])
    assert not np.any(np.asarray(of_states)[behind])
    assert np.all(np.isfinite(ys.output))
    np.testing.assert_allclose(np.sum(ys.weights, -1)[:2], 1.0, rtol=1e-6)


def test_a_memory_prepared_once_is_the_memory():
    for feeding in (False, True):
        _, whole, params, xs, states = made("lstm", M, "additive", feeding)
        plain = memory_of(states)
        prepared = rnnjax.prepare_memory(whole, params, plain)
        assert prepared.keys.shape == (B, S, H)
        one = rnnjax.unroll(whole, params, xs, context=plain)
        two = rnnjax.unroll(whole, params, xs, context=prepared)
        close(one, two, 1e-6)


READING = {
    **{
        kind: rnnjax.attention_cell(rnnjax.gru(H), size, rnnjax.attention(kind))
        for kind, size in KINDS.items()
    },
    "selector": rnnjax.attention_cell(rnnjax.gru(H), M, selector=True, hard=True),
    "feeding": rnnjax.attention_cell(rnnjax.gru(H), M, input_feeding=True),
    "window": rnnjax.window_cell(rnnjax.gru(H), M),
    "policy": rnnjax.attention_cell(
        rnnjax.with_policy(rnnjax.gru(H), rnnjax.Policy(compute="bfloat16")), M
    ),
}


@pytest.mark.parametrize("name", READING)
def test_parameters_inputs_and_memory_may_be_of_three_widths(name, float64):
    cell, size = READING[name], KINDS.get(name, M)

    def run(xs, states):
        params = cell.init(jax.random.key(0), D)
        if name != "policy":  # which casts on its own
            params = jax.tree.map(lambda a: a.astype("bfloat16"), params)
        _, ys = rnnjax.unroll(cell, params, xs, context=memory_of(states))
        return ys.output if isinstance(ys, rnnjax.Attended) else ys

    with jax.numpy_dtype_promotion("strict"):
        ys = jax.eval_shape(run, jnp.zeros((B, T, D), "float16"), jnp.zeros((B, S, size)))
    assert ys.dtype == jnp.float32


def test_noise_of_the_recurrent_weights_leaves_the_query_alone():
    dropped = rnnjax.weight_drop(CELLS["gru"], 0.5)
    whole = rnnjax.attention_cell(dropped, M)
    plain = rnnjax.attention_cell(CELLS["gru"], M)
    _, _, _, xs, states = made("gru", M, "additive")
    params, key = whole.init(jax.random.key(0), D), jax.random.key(5)
    mask = dropped.noise(key, params.cell, NoiseShape(B, T, D)).recurrent
    thinned = params.cell._replace(w_hh=params.cell.w_hh * mask)
    expected = rnnjax.unroll(plain, params._replace(cell=thinned), xs, context=memory_of(states))
    found = rnnjax.unroll(whole, params, xs, context=memory_of(states), key=key)
    close(found, expected, 1e-5)
    assert 0 < np.mean(mask == 0) < 1


def run_with(memory):
    _, whole, params, xs, _ = made("gru", M, "additive")
    return rnnjax.unroll(whole, params, xs, context=memory)


AROUND = {
    "residual": rnnjax.residual,
    "gated": lambda cell: rnnjax.gated(cell, 2),
    "skip_stack": rnnjax.skip_stack,
    "bidirectional": rnnjax.bidirectional,
    "output_head": lambda cell: rnnjax.output_head(cell, 2),
}


@pytest.mark.parametrize("name", AROUND)
def test_layers_that_read_one_array_refuse_outputs_with_weights(name):
    layer = AROUND[name](rnnjax.attention_cell(rnnjax.gru(D), M))
    memory = memory_of(jnp.ones((B, S, M)))
    parts = {"skip_stack": (memory,), "bidirectional": (memory, memory)}
    context = parts.get(name, memory)
    params = layer.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match=r"layer must be one array, got Attended\(output, weights"):
        layer.apply(params, jnp.ones((B, T, D)), context=context)


BAD = {
    "a cell without gates": (
        lambda: rnnjax.attention_cell(rnnjax.gru(4, reset_after=False), M),
        "cell must be one that gives recurrent weights",
    ),
    "a layer": (lambda: rnnjax.attention_cell(rnnjax.stack(rnnjax.gru(4)), M), "rnnjax.Cell"),
    "attention in attention": (
        lambda: rnnjax.attention_cell(rnnjax.attention_cell(rnnjax.gru(4), M), M),
        "no context of its own",
    ),
    "no attention": (lambda: rnnjax.attention_cell(rnnjax.gru(4), M, "dot"), "attention must be"),
    "sizes that differ": (
        lambda: rnnjax.attention_cell(rnnjax.gru(4), M, rnnjax.attention("dot")).init(
            jax.random.key(0), D
        ),
        "as wide as the memory",
    ),
    "an output size for nothing": (
        lambda: rnnjax.attention_cell(rnnjax.gru(4), M, output_size=3),
        "output_size must be None",
    ),
    "no memory": (
        lambda: run_with(jnp.ones((B, S, M))),
        r"rnnjax.Memory\(states, mask\), got an array",
    ),
    "a memory of another size": (
        lambda: run_with(memory_of(jnp.ones((B, S, M + 1)))),
        r"context.states must have shape \[..., S, 5\], got size 6",
    ),
    "a mask of another length": (
        lambda: run_with(rnnjax.Memory(jnp.ones((B, S, M)), jnp.ones((B, S + 1), bool))),
        "context.mask must be bool",
    ),
    "a cell that takes no memory": (
        lambda: rnnjax.prepare_memory(rnnjax.gru(4), (), memory_of(jnp.ones((B, S, M)))),
        "takes a context",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()


@pytest.mark.parametrize("kind", ["additive", "local"])
def test_a_selector_starts_apart_from_its_attention(kind):
    """Drawn with one key they would be multiples of each other."""
    whole = rnnjax.attention_cell(rnnjax.lstm(8), 8, rnnjax.attention(kind), selector=True)
    params = whole.init(jax.random.key(0), 3)
    for other in jax.tree.leaves(params.attention):
        assert abs(np.corrcoef(params.selector.w, other.ravel()[:8])[0, 1]) < 0.95

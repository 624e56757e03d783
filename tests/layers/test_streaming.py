"""A stream gives the same bits however the sequence is cut, and the numbers that unroll gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import cell_without_recurrent_matrix, users_own_cell
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnjax
from rnnjax.layers import make_stream

D, T, BLOCK = 3, 11, 4
LAYERS = {
    "lstm": rnnjax.lstm(5),
    "gru_reset_before": rnnjax.gru(5, reset_after=False),
    "users_own": users_own_cell(),
    "no_recurrent_matrix": cell_without_recurrent_matrix(),
    "stack": rnnjax.stack(rnnjax.gru(5), rnnjax.lstm(4)),
    "output_head": rnnjax.output_head(rnnjax.vanilla(5), 2, jnp.tanh),
}


def layer_of(name):
    layer = LAYERS[name]
    return rnnjax.recurrent(layer) if isinstance(layer, rnnjax.Cell) else layer


def inputs(batch=(2,), seed=1):
    return np.asarray(jax.random.normal(jax.random.key(seed), (*batch, T, D)))


def flags(batch=(2,), seed=0):
    """Steps missing and segments starting here and there."""
    random = np.random.default_rng(seed)
    return {"mask": random.random((*batch, T)) < 0.8, "resets": random.random((*batch, T)) < 0.3}


def feed(stream, params, xs, cuts, carry=None, **options):
    """The pieces between ``cuts`` one after the other."""
    parts = []
    for begin, end in itertools.pairwise([0, *cuts, xs.shape[-2]]):
        piece = {name: flag[..., begin:end] for name, flag in options.items()}
        carry, ys = stream(params, xs[..., begin:end, :], initial_carry=carry, **piece)
        parts.append(ys)
    return carry, jnp.concatenate(parts, axis=-2)


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


STREAMS = {name: make_stream(layer, block_size=BLOCK) for name, layer in LAYERS.items()}
PARAMS = {name: layer_of(name).init(jax.random.key(0), D) for name in LAYERS}


@pytest.mark.full
def test_with_jit_disabled_a_stream_gives_the_numbers_of_the_compiled_one():
    stream, params, xs, given_flags = STREAMS["stack"], PARAMS["stack"], inputs(), flags()
    cuts = [0, 1, 6]
    expected = feed(stream, params, xs, cuts, **given_flags)
    with jax.disable_jit():
        found = feed(stream, params, xs, cuts, **given_flags)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("given_flags", [False, True], ids=["plain", "mask_and_resets"])
@pytest.mark.parametrize("name", LAYERS)
def test_pieces_of_any_length_give_the_bits_of_the_whole(name, given_flags):
    stream, params, xs = STREAMS[name], PARAMS[name], inputs()
    options = flags() if given_flags else {}
    whole = stream(params, xs, **options)
    for cuts in (range(1, T), [3, 6, 9], [7], [1, 5, 10], [BLOCK, 2 * BLOCK], [0, 4, 4, T]):
        assert_same_bits(feed(stream, params, xs, cuts, **options), whole)


@pytest.mark.parametrize(
    "name", ["lstm", *(pytest.param(name, marks=pytest.mark.full) for name in ("stack", "deep"))]
)
def test_steps_one_by_one_have_the_bits_of_the_stream(name):
    """Compiled in full; in ``test_step`` with few optimisations, and of all cells and layers."""
    layer = rnnjax.stack(*[rnnjax.lstm(5)] * 4) if name == "deep" else layer_of(name)
    params, xs = layer.init(jax.random.key(0), D), jnp.asarray(inputs((16,)))
    whole = make_stream(layer)(params, xs)
    carry, ys = layer.initial_carry(params, (16,)), []
    for t in range(T):
        carry, y = layer.step(params, carry, xs[:, t])
        ys.append(y)
    assert_same_bits((carry, jnp.stack(ys, axis=1)), whole)


@settings(max_examples=40)
@given(st.lists(st.integers(0, T), max_size=8).map(sorted), st.integers(0, 99))
def test_any_cuts_of_any_inputs_give_the_bits_of_the_whole(cuts, seed):
    stream, params = STREAMS["stack"], PARAMS["stack"]
    xs, options = inputs(seed=seed), flags(seed=seed)
    assert_same_bits(feed(stream, params, xs, cuts, **options), stream(params, xs, **options))


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 2)])
def test_any_batch_axes(batch):
    stream, params, xs, options = STREAMS["lstm"], PARAMS["lstm"], inputs(batch), flags(batch)
    whole = stream(params, xs, **options)
    assert whole[1].shape == (*batch, T, 5)
    assert_same_bits(feed(stream, params, xs, [1, 2, 7], **options), whole)


@pytest.mark.parametrize("name", LAYERS)
def test_a_stream_computes_what_the_layer_computes(name):
    """From a carry of its own, with masks and resets."""
    layer, params, xs, options = layer_of(name), PARAMS[name], inputs(), flags()
    start, _ = layer.apply(params, inputs(seed=9))
    expected = layer.apply(params, xs, **options, initial_carry=start)
    found = STREAMS[name](params, xs, **options, initial_carry=start)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, expected)


def test_lengths_and_nan_in_padding():
    layer, params, xs = layer_of("stack"), PARAMS["stack"], inputs()
    lengths = np.array([T, 5])
    expected = layer.apply(params, xs, lengths)
    xs = np.where(np.arange(T)[None, :, None] < lengths[:, None, None], xs, np.nan)
    found = STREAMS["stack"](params, xs, lengths)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )
    assert np.all(found[1][1, 5:] == 0)


def test_outputs_may_be_trees_and_parameters_bfloat16():
    cell = rnnjax.trace_gates(rnnjax.lstm(5))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS["lstm"])
    stream, xs = make_stream(cell, block_size=BLOCK), jnp.asarray(inputs(), jnp.bfloat16)
    carry, (ys, gates) = stream(params, xs)
    carry_on, (first, first_gates) = stream(params, xs[:, :6])
    last, (second, second_gates) = stream(params, xs[:, 6:], initial_carry=carry_on)
    assert_same_bits((carry, ys), (last, jnp.concatenate([first, second], axis=1)))
    assert_same_bits(gates.f, jnp.concatenate([first_gates.f, second_gates.f], axis=1))
    assert ys.dtype == carry.c.dtype == jnp.float32


def test_the_size_of_a_block_does_not_change_the_numbers():
    small = STREAMS["lstm"](PARAMS["lstm"], inputs())
    large = make_stream(rnnjax.lstm(5), block_size=64)(PARAMS["lstm"], inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), small, large)


def test_a_piece_without_steps_hands_its_carry_on():
    stream, params = STREAMS["lstm"], PARAMS["lstm"]
    carry, _ = stream(params, inputs())
    held, ys = stream(params, inputs()[:, :0], initial_carry=carry)
    assert_same_bits(held, carry)
    assert ys.shape == (2, 0, 5)


def test_one_step_is_traced_whatever_the_lengths_of_the_pieces():
    cell, traces = rnnjax.gru(5), []

    def update(*arguments):
        traces.append(1)
        return cell.update(*arguments)

    stream = make_stream(cell._replace(update=update), block_size=BLOCK)
    params, xs = cell.init(jax.random.key(0), D), inputs()
    feed(stream, params, xs, [3])
    so_far = len(traces)
    feed(stream, params, xs, [1, 2, 7, 9], **flags())
    assert len(traces) == so_far


@pytest.mark.parametrize(
    "layer",
    [
        rnnjax.bidirectional(rnnjax.gru(2)),
        rnnjax.recurrent(rnnjax.lstm(2), reverse=True),
        rnnjax.stack(rnnjax.bidirectional(rnnjax.vanilla(2)), rnnjax.vanilla(2)),
        # A relu that is closed for most inputs: no trial would show which way this one runs.
        rnnjax.recurrent(rnnjax.vanilla(1, jax.nn.relu), reverse=True),
        rnnjax.output_head(rnnjax.recurrent(rnnjax.gru(2), reverse=True), 1),
        rnnjax.residual(rnnjax.recurrent(rnnjax.gru(3), reverse=True)),
        rnnjax.skip_stack(rnnjax.gru(2), rnnjax.recurrent(rnnjax.gru(2), reverse=True)),
        rnnjax.Layer(lambda key, size: (), lambda params, xs, **_: ((), xs), 3, lambda ys, v: ys),
    ],
    ids=["both", "reverse", "below", "relu", "head", "residual", "skip_stack", "by_hand"],
)
def test_a_layer_that_looks_ahead_is_refused(layer):
    params = layer.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="outputs depend on past inputs alone"):
        make_stream(layer)
    with pytest.raises(ValueError, match="step needs a layer whose outputs depend on past"):
        layer.step(params, None, inputs()[:, 0])


def test_a_stream_inside_a_transformation_is_refused():
    stream, params, xs = STREAMS["lstm"], PARAMS["lstm"], inputs()
    for transform in (jax.jit, jax.vmap, lambda f: jax.grad(lambda a: f(a).sum())):
        with pytest.raises(ValueError, match=r"fed outside of jax\.jit"):
            transform(lambda xs: stream(params, xs)[1])(xs)
    # The layer may close over what is traced, though no argument is.
    with pytest.raises(ValueError, match=r"fed outside of jax\.jit"):
        jax.grad(lambda scale: scale * stream(params, xs)[1].sum())(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xs": inputs()[0, 0]}, r"xs must have shape \[..., T, D\], got shape \(3,\)"),
        ({"xs": np.ones((2, T, D), int)}, "xs must be of floating dtype"),
        ({"mask": np.ones((2, T))}, "mask must be of dtype bool"),
        ({"resets": np.ones((2, T - 1), bool)}, r"resets must have shape \(2, 11\)"),
        ({"lengths": [T, T + 1]}, r"lengths must lie in \[0, 11\]"),
        ({"initial_carry": np.zeros((2, 5))}, "initial_carry"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        STREAMS["lstm"](PARAMS["lstm"], **({"xs": inputs()} | arguments))


def test_what_is_no_layer_is_refused():
    with pytest.raises(ValueError, match=r"a rnnjax\.Cell or rnnjax\.Layer, got str"):
        make_stream("lstm")
    with pytest.raises(ValueError, match="block_size must be a positive integer, got 0"):
        make_stream(rnnjax.lstm(2), block_size=0)


@pytest.mark.parametrize("name", ["lstm", "stack"])
def test_a_step_by_itself_is_one_compiled_program(name):
    """Of a stream and of the layer: any operation beside it would be a program, too."""
    layer, params = layer_of(name), PARAMS[name]
    stream, xs = make_stream(layer), inputs((7,))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    # The flags of a batch of seven are made once for all layers.
    other = rnnjax.vanilla(1)
    other.step(other.init(jax.random.key(0), D), None, xs[:, 0])
    make_stream(other)(other.init(jax.random.key(0), D), xs[:, :1])

    def count(step):
        compiled.clear()
        carry, _ = step(None)
        at_first = len(compiled)
        for _ in range(3):
            carry, _ = step(carry)
        return at_first, len(compiled)

    def of_layer(carry):
        return layer.step(params, carry, xs[:, 0])

    def of_stream(carry):
        return stream(params, xs[:, :1], initial_carry=carry)

    # The first step begins without a carry, the others with one: two programs, and no more.
    assert count(of_layer) == count(of_stream) == (1, 2)


def test_inputs_may_be_several_a_step():
    cell = rnnjax.cfc(5)
    params, xs = cell.init(jax.random.key(0), D), inputs()
    elapsed = np.abs(inputs(seed=3)[..., :1])
    stream = make_stream(cell, block_size=BLOCK)
    _, whole = stream(params, (xs, elapsed), [T, 3])
    expected = rnnjax.unroll(cell, params, (xs, elapsed), [T, 3])
    np.testing.assert_allclose(whole, expected[1], rtol=1e-5, atol=1e-6)
    held, first = stream(params, (xs[:, :1], elapsed[:, :1]))
    _, second = stream(params, (xs[:, 1:], elapsed[:, 1:]), [T - 1, 2], initial_carry=held)
    assert_same_bits(jnp.concatenate([first, second], axis=1), whole)

"""What the combinators add to the sequence law: shapes of trees, dropout, last outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, One, init

import rnnjax
from rnnjax.layers import elementwise_dropout
from rnnjax.models import locked_dropout

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (3, 6, 4))
LENGTHS = np.array([6, 2, 0])


def both_ways():
    return rnnjax.bidirectional(rnnjax.lstm(5), rnnjax.gru(3))


def test_a_cell_in_backward_place_runs_in_reverse():
    layer = both_ways()
    params = layer.init(KEY, 4)
    carry, ys = layer.apply(params, XS, LENGTHS)
    for reverse, cell, part, half in (
        (False, rnnjax.lstm(5), "forward", ys[..., :5]),
        (True, rnnjax.gru(3), "backward", ys[..., 5:]),
    ):
        expected, outputs = rnnjax.unroll(cell, getattr(params, part), XS, LENGTHS, reverse=reverse)
        np.testing.assert_array_equal(half, outputs)
        jax.tree.map(np.testing.assert_array_equal, getattr(carry, part), expected)


def test_the_last_output_is_what_each_direction_says_at_its_own_end():
    layer = rnnjax.stack(rnnjax.gru(4), both_ways())
    carry, ys = layer.apply(layer.init(KEY, 4), XS, LENGTHS)
    valid = rnnjax.lengths_to_mask(LENGTHS, 6)
    expected = jnp.concatenate([carry[1].forward.h, carry[1].backward], axis=-1)
    np.testing.assert_array_equal(layer.last(ys, valid), expected)
    assert np.all(layer.last(ys, valid)[2] == 0)


def test_the_last_output_of_a_mask_is_at_its_first_and_last_real_step():
    layer, mask = both_ways(), np.array([[False, True, False, True, True, False]] * 3)
    carry, ys = layer.apply(layer.init(KEY, 4), XS, mask=mask)
    expected = jnp.concatenate([carry.forward.h, carry.backward], axis=-1)
    np.testing.assert_array_equal(layer.last(ys, mask), expected)


def test_a_stack_is_its_layers_one_after_the_other():
    floors = [both_ways(), rnnjax.recurrent(rnnjax.vanilla(2), reverse=True)]
    layer = rnnjax.stack(*floors)
    params = layer.init(KEY, 4)
    carry, ys = layer.apply(params, XS, LENGTHS)
    first, between = floors[0].apply(params[0], XS, LENGTHS)
    second, expected = floors[1].apply(params[1], between, LENGTHS)
    np.testing.assert_array_equal(ys, expected)
    jax.tree.map(np.testing.assert_array_equal, carry, (first, second))


def test_carries_given_back_continue_the_sequence():
    layer = rnnjax.stack(rnnjax.lstm(4), rnnjax.gru(3))
    params = layer.init(KEY, 4)
    _, whole = layer.apply(params, XS)
    carry, first = layer.apply(params, XS[:, :2])
    _, second = layer.apply(params, XS[:, 2:], initial_carry=carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, rtol=1e-6)


def test_a_streamed_step_equals_the_whole_sequence():
    cell = rnnjax.lstm(4)
    params = cell.init(KEY, 4)
    _, whole = rnnjax.unroll(cell, params, XS)
    carry = None
    for t in range(XS.shape[1]):
        carry, ys = rnnjax.unroll(cell, params, XS[:, t : t + 1], initial_carry=carry)
        np.testing.assert_allclose(ys[:, 0], whole[:, t], rtol=1e-6)


def test_dropout_acts_between_layers_and_only_with_a_key():
    ones = rnnjax.Layer(
        init=lambda key, size: (),
        apply=lambda params, xs, lengths=None, **_: ((), jnp.ones_like(xs)),
        output_size=4,
        last=lambda ys, valid: ys[..., -1, :],
    )
    echo = ones._replace(apply=lambda params, xs, lengths=None, **_: ((), xs))
    layer = rnnjax.stack(ones, echo, dropout=0.25)
    many = jnp.ones((50, 50, 4))
    assert np.all(layer.apply(((), ()), many)[1] == 1)
    dropped = layer.apply(((), ()), many, key=KEY)[1]
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(np.mean(dropped == 0) - 0.25) < 0.02
    np.testing.assert_array_equal(dropped, layer.apply(((), ()), many, key=KEY)[1])
    single = rnnjax.stack(echo, dropout=0.25)  # neither its input nor its output is dropped
    assert np.all(single.apply(((),), many, key=KEY)[1] == 1)


def test_elementwise_dropout_is_its_equation_and_draws_every_element_by_itself():
    xs = jax.random.normal(KEY, (50, 40, 30))
    dropped = np.asarray(elementwise_dropout(jax.random.key(2), xs, 0.4))
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, xs / 0.6, 0), rtol=1e-6)
    # Six standard deviations of the share of 60,000 elements, and of 1,200 along any axis.
    assert abs(kept.mean() - 0.6) < 6 * np.sqrt(0.24 / kept.size)
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert np.all(abs(kept.mean(axes) - 0.6) < 6 * np.sqrt(0.24 / 1200))
    for key, rate in ((None, 0.4), (KEY, 0.0)):
        assert elementwise_dropout(key, xs, rate) is xs
    for arguments, message in (
        ((KEY, xs, 1.0), r"rate must be a rate in \[0, 1\), got 1.0"),
        ((KEY, xs.astype(int), 0.4), "xs must be of floating dtype"),
        ((0, xs, 0.4), "key must be one key"),
    ):
        with pytest.raises(ValueError, match=message):
            elementwise_dropout(*arguments)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("drop", [elementwise_dropout, locked_dropout])
def test_what_dropout_keeps_of_16_bits_is_rounded_once(drop, dtype):
    xs = jax.random.uniform(KEY, (50, 40), minval=1, maxval=2).astype(dtype)
    dropped = drop(jax.random.key(2), xs, 0.4)
    assert dropped.dtype == dtype
    kept, exact = np.asarray(dropped, float), np.asarray(xs, float) / 0.6
    half_a_unit = float(jnp.finfo(dtype).eps) / 2 * 2 ** np.floor(np.log2(exact))
    assert np.all((abs(kept - exact) < 1.0001 * half_a_unit) | (kept == 0))


@pytest.mark.parametrize("drop", [elementwise_dropout, locked_dropout])
def test_dropout_reads_numpy_in_any_byte_order(drop):
    xs = np.ones((5, 8), np.float32)
    for key in (None, KEY):
        expected = np.asarray(drop(key, jnp.asarray(xs), 0.5))
        np.testing.assert_array_equal(drop(key, xs.astype(">f4"), 0.5), expected)


def test_padding_and_further_rows_do_not_change_what_is_dropped():
    xs = jax.random.normal(KEY, (5, 7, 4))
    key = jax.random.key(2)
    np.testing.assert_array_equal(
        elementwise_dropout(key, xs, 0.5)[:3, :6], elementwise_dropout(key, xs[:3, :6], 0.5)
    )
    layer = rnnjax.stack(rnnjax.lstm(4), rnnjax.lstm(4), dropout=0.5)
    params = layer.init(KEY, 4)
    few = layer.apply(params, XS[:2], LENGTHS[:2], key=key)[1]
    wide = jnp.pad(XS, ((0, 0), (0, 3), (0, 0)), constant_values=jnp.nan)
    many = layer.apply(params, wide, LENGTHS, key=key)[1]
    np.testing.assert_allclose(many[:2, : XS.shape[1]], few, atol=1e-6)
    model = rnnjax.tagger(rnnjax.embedding(6, 4), rnnjax.lstm(4), 2, dropout=0.5)
    params, tokens = model.init(KEY), np.array([[1, 2, 3], [4, 5, 1]])
    few = model.apply(params, tokens, [3, 3], key=key)
    many = model.apply(params, np.pad(tokens, ((0, 1), (0, 2))), [3, 3, 0], key=key)
    np.testing.assert_allclose(many[:2, :3], few, atol=1e-6)


def test_the_noise_of_a_layer_is_not_that_of_the_dropout_below_it():
    ones = rnnjax.Layer(
        init=lambda key, size: (),
        apply=lambda params, xs, lengths=None, **_: ((), jnp.ones_like(xs)),
        output_size=4,
        last=lambda ys, valid: ys[..., -1, :],
    )

    def drop_half(params, xs, lengths=None, *, key, **_):
        return (), jnp.where(jax.random.bernoulli(key, 0.5, xs.shape), xs, 0)

    # Two masks drawn apart leave a quarter; one mask drawn twice leaves a half.
    layer = rnnjax.stack(ones, ones._replace(apply=drop_half), dropout=0.5)
    ys = layer.apply(((), ()), jnp.ones((50, 50, 4)), key=KEY)[1]
    assert abs(np.mean(ys != 0) - 0.25) < 0.02


def test_each_direction_draws_noise_of_its_own():
    # Every input drawn once a sequence; the update is that input, the same in both directions.
    cell = rnnjax.variational_dropout(rnnjax.indrnn(4, lambda a: a), inputs=0.5)
    layer = rnnjax.bidirectional(cell)
    params = layer.init(KEY, 4)
    params = params._replace(backward=params.forward)
    ys = layer.apply(params, jnp.ones((50, 1, 4)), key=KEY)[1]
    assert not np.allclose(ys[..., :4], ys[..., 4:])
    np.testing.assert_array_equal(*jnp.split(layer.apply(params, jnp.ones((50, 1, 4)))[1], 2, -1))


def test_dropout_keeps_padding_zero_and_differs_between_keys():
    layer = rnnjax.stack(rnnjax.lstm(4), rnnjax.lstm(4), dropout=0.5)
    params = layer.init(KEY, 4)
    one, other = (layer.apply(params, XS, LENGTHS, key=jax.random.key(k))[1] for k in (1, 2))
    assert not np.allclose(one[0], other[0])
    assert np.all(one[1, 2:] == 0)
    assert np.all(one[2] == 0)


def test_an_output_head_reads_the_new_state():
    layer = rnnjax.output_head(rnnjax.vanilla(5), 2, jax.nn.sigmoid)
    params = layer.init(KEY, 4)
    carry, ys = layer.apply(params, XS)
    expected = jax.nn.sigmoid(carry @ params.w + params.bias[None])
    np.testing.assert_allclose(ys[:, -1], expected, rtol=1e-6)
    assert np.all(layer.apply(params, XS, LENGTHS)[1][1, 2:] == 0)


def test_bidirectional_has_twice_the_parameters():
    cell = rnnjax.lstm(5)

    def count(params):
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count(rnnjax.bidirectional(cell).init(KEY, 4)) == 2 * count(cell.init(KEY, 4))


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_before"])
def test_gate_traces_are_the_gates_of_the_equations(name):
    cell = {
        "lstm": rnnjax.lstm(5),
        "gru": rnnjax.gru(5),
        "gru_before": rnnjax.gru(5, reset_after=False),
    }[name]
    params = cell.init(KEY, 4)
    _, plain = rnnjax.unroll(cell, params, XS, LENGTHS)
    carry, (ys, gates) = rnnjax.unroll(rnnjax.trace_gates(cell), params, XS, LENGTHS)
    np.testing.assert_allclose(ys, plain, rtol=1e-6)
    for gate in gates:
        assert np.all(gate[1, 2:] == 0)
    if name == "lstm":
        c = np.zeros((3, 5))
        for t in range(6):
            new = gates.f[:, t] * c + gates.i[:, t] * gates.g[:, t]
            c = np.where((t < LENGTHS)[:, None], new, c)
        np.testing.assert_allclose(carry.c, c, rtol=1e-5)
    else:
        h = np.zeros((3, 5))
        for t in range(6):
            new = (1 - gates.z[:, t]) * gates.n[:, t] + gates.z[:, t] * h
            h = np.where((t < LENGTHS)[:, None], new, h)
        np.testing.assert_allclose(carry, h, rtol=1e-5)


def test_gates_of_a_cell_with_a_learned_start_are_those_of_the_cell_from_there():
    inner = rnnjax.gru(5)
    cell = rnnjax.learn_initial_carry(inner)
    params = cell.init(KEY, 4)._replace(initial_carry=jnp.arange(5.0) / 5)
    _, (_, gates) = rnnjax.unroll(rnnjax.trace_gates(cell), params, XS)
    _, (_, expected) = rnnjax.unroll(
        rnnjax.trace_gates(inner),
        params.cell,
        XS,
        initial_carry=jnp.tile(params.initial_carry, (3, 1)),
    )
    for gate, other in zip(gates, expected, strict=True):
        np.testing.assert_allclose(gate, other, rtol=1e-6)


def test_a_second_call_with_the_same_cell_does_not_trace_again():
    traces = []

    def activation(x):
        traces.append(x)
        return jnp.tanh(x)

    cell = rnnjax.vanilla(4, activation)
    params = cell.init(KEY, 4)
    rnnjax.unroll(cell, params, XS, LENGTHS)
    first = len(traces)
    rnnjax.unroll(cell, params, XS + 1, np.array([1, 2, 3]))
    assert len(traces) == first > 0


@pytest.mark.parametrize("make", [rnnjax.stack, rnnjax.skip_stack, rnnjax.bidirectional])
def test_parameters_of_more_layers_than_there_are_are_refused(make):
    """A part that nobody reads would be lost without a word."""
    layer = make(rnnjax.gru(2), rnnjax.gru(2))
    params = layer.init(jax.random.key(0), 3)
    for wrong, got in (((*params, params[1]), "tuple of 3"), (params[:1], "tuple of 1")):
        with pytest.raises(ValueError, match=f"params must be a tuple of 2 parts, got {got}"):
            layer.apply(wrong, jnp.ones((4, 3)))
        with pytest.raises(ValueError, match=f"params must be a tuple of 2 parts, got {got}"):
            layer.initial_carry(wrong, (1,))
    with pytest.raises(ValueError, match="params must be a tuple of 2 parts, got NoneType"):
        layer.apply(None, jnp.ones((4, 3)))


@pytest.mark.parametrize(
    ("layer", "fields"),
    [
        (rnnjax.output_head(rnnjax.gru(2), 3), "HeadParams"),
        (rnnjax.gated(rnnjax.gru(2), 3), "GatedParams"),
        (rnnjax.rms_norm(rnnjax.gru(2)), "RMSNormParams"),
    ],
)
def test_parameters_of_another_layer_are_named_wherever_they_are_given(layer, fields):
    wrong = rnnjax.stack(rnnjax.gru(2), rnnjax.gru(2)).init(KEY, 4)
    for run in (
        lambda: layer.apply(wrong, XS),
        lambda: layer.step(wrong, None, XS[:, 0]),
        lambda: layer.initial_carry(wrong, (3,)),
    ):
        with pytest.raises(ValueError, match=rf"params must be {fields}\(.*, got a tuple of 2"):
            run()


def test_a_head_of_another_size_is_refused():
    """One of a single output would be added to every feature by a residual layer."""
    layer = rnnjax.residual(rnnjax.output_head(rnnjax.gru(2), 4))
    other = rnnjax.output_head(rnnjax.gru(2), 1).init(KEY, 4)
    with pytest.raises(ValueError, match=r"head must have shape \(2, 4\), got shape \(2, 1\)"):
        layer.apply(other, XS)


def test_the_last_output_takes_lengths_as_well_as_a_mask():
    for layer in (both_ways(), rnnjax.skip_stack(rnnjax.gru(2), both_ways())):
        _, ys = layer.apply(layer.init(KEY, 4), XS, LENGTHS)
        mask = rnnjax.lengths_to_mask(LENGTHS, 6)
        np.testing.assert_array_equal(layer.last(ys, LENGTHS), layer.last(ys, mask))
    with pytest.raises(ValueError, match=r"valid must be a mask, bool of shape \(3, 6\), or len"):
        layer.last(ys, LENGTHS[:2])


def test_dropout_between_layers_does_not_use_the_noise_of_a_layer_again():
    """A layer that drops inputs as dropout does, with the same rate and shape: had both one key,
    the same elements would be missing twice, and none only once."""
    echo = rnnjax.Layer(
        init=lambda key, size: (),
        apply=lambda params, xs, lengths=None, *, key=None, **_: (
            (),
            xs * jax.random.bernoulli(key, 0.5, xs.shape),
        ),
        output_size=4,
        last=lambda ys, valid: ys[..., -1, :],
    )
    ones = jnp.ones((40, 50, 4))
    layer = rnnjax.stack(echo, echo, dropout=0.5)
    _, ys = layer.apply(((), ()), ones, key=KEY)
    # Independent: two layers and one dropout between them keep an eighth.
    assert abs(np.mean(ys != 0) - 0.125) < 0.02


def test_arguments_in_the_wrong_order_are_named():
    layer = rnnjax.recurrent(rnnjax.lstm(4))
    params = layer.init(KEY, 4)
    with pytest.raises(ValueError, match=r"the order is layer\.apply\(params, xs, lengths\)"):
        layer.apply(XS, params)
    with pytest.raises(TypeError, match=r"layer\.apply\(\) missing .* 'xs'"):
        layer.apply(params)
    with pytest.raises(TypeError, match=r"layer\.apply\(\) takes from 2 to 3 positional"):
        layer.apply(params, XS, None, np.ones((3, 6), bool))


def test_old_keys_are_taken_and_are_the_new_ones():
    layer = rnnjax.stack(
        rnnjax.variational_dropout(rnnjax.lstm(4), 0.5), rnnjax.gru(4), dropout=0.5
    )
    params = layer.init(jax.random.PRNGKey(3), 4)
    jax.tree.map(np.testing.assert_array_equal, params, layer.init(jax.random.key(3), 4))
    old, new = (
        layer.apply(params, XS, key=make(5))[1] for make in (jax.random.PRNGKey, jax.random.key)
    )
    np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(
        jax.jit(layer.apply)(params, XS, key=jax.random.PRNGKey(5))[1], new
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda **given: rnnjax.bidirectional(rnnjax.gru(4), **given),
        lambda **given: rnnjax.stack(rnnjax.gru(4), rnnjax.lstm(4), **given),
        lambda **given: rnnjax.skip_stack(rnnjax.gru(4), **given),
        lambda **given: rnnjax.residual(rnnjax.gru(3), **given),
        lambda **given: rnnjax.output_head(rnnjax.gru(4), 2, **given),
        lambda **given: rnnjax.recurrent(rnnjax.gru(4), **given),
        lambda **given: rnnjax.grid_lstm(4, 2, **given),
    ],
    ids=["bidirectional", "stack", "skip_stack", "residual", "output_head", "recurrent", "grid"],
)
def test_a_policy_is_taken_by_every_layer(make):
    policy = rnnjax.Policy("bfloat16", "bfloat16", "bfloat16")
    layer = make(policy=policy)
    assert rnnjax.with_policy(make(), policy) == layer
    xs = jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)
    params = jax.eval_shape(lambda key: layer.init(key, 3), jax.random.key(0))
    results = jax.eval_shape(layer.apply, params, xs)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, results))} == {jnp.dtype("bfloat16")}


READERS = {
    "residual": rnnjax.residual(rnnjax.gru(4)),
    "skip_stack": rnnjax.skip_stack(rnnjax.gru(4), rnnjax.gru(2)),
    "gated": rnnjax.gated(rnnjax.gru(3), 2),
    "gated map": rnnjax.gated(None, 2, hidden_size=3),
    "rms_norm": rnnjax.rms_norm(rnnjax.gru(3)),
    "convolution": rnnjax.causal_convolution(4),
    "dense": rnnjax.dense(2),
    "output_head": rnnjax.output_head(rnnjax.gru(3), 2),
}
WRONG_INPUTS = {
    "one axis": (jnp.ones(4), r"xs must have shape \[..., T, D\], got shape \(4,\)"),
    "a text": ("abc", "xs must be an array of numbers, got str"),
    "nothing": (None, "xs must be an array of numbers, got NoneType"),
    "rows of unequal size": ([[[1.0] * 4], [[1.0] * 4] * 2], "xs must be one array, got rows of"),
    "integers": (XS.astype(int), "xs must be of floating dtype, got dtype int32"),
    "complex numbers": (XS * 1j, "xs must be of floating dtype, got dtype complex64: jnp.conc"),
    "two arrays": ((XS, XS), "xs must be one array.*, got a tuple of 2"),
    "a dict": ({"x": XS}, "xs must be one array.*, got a dict of x"),
    "objects": (np.ones((3, 6, 4), object), "xs must be an array of numbers"),
}


@pytest.mark.parametrize("name", READERS)
def test_inputs_that_are_none_are_named_by_every_layer(name):
    """Two arrays were taken for a batch of them by some, and told in words of JAX by others."""
    layer = READERS[name]
    params = layer.init(KEY, 4)
    for xs, message in WRONG_INPUTS.values():
        with pytest.raises(ValueError, match=message):
            layer.apply(params, xs)
    with pytest.raises(ValueError, match="params must "):
        layer.apply({"w": 1}, XS)
    with pytest.raises(ValueError, match="key must be one key"):
        layer.apply(params, XS, key=3)
    with pytest.raises(ValueError, match=r"input_size must be a positive|key must be one"):
        layer.init(4, KEY)
    with pytest.raises(ValueError, match=r"input_size must be a positive integer, got 4\.0"):
        layer.init(KEY, 4.0)


def test_a_number_of_rows_is_no_parameters():
    with pytest.raises(ValueError, match=r"params must be .*, got 3: the order is initial_carry"):
        rnnjax.recurrent(rnnjax.lru(4)).initial_carry(3)


def test_a_function_that_makes_a_cell_is_no_direction():
    with pytest.raises(ValueError, match=r"a layer must be .*, got function: call it first"):
        rnnjax.bidirectional(rnnjax.lstm)


@pytest.mark.parametrize("name", ["residual", "skip_stack", "rms_norm", "convolution"])
def test_a_number_of_rows_is_no_batch_shape(name):
    layer = READERS[name]
    params = layer.init(KEY, 4)
    with pytest.raises(ValueError, match="batch_shape must be a tuple of integers, got 3"):
        layer.initial_carry(params, 3)
    with pytest.raises(ValueError, match="initial_carry"):
        layer.apply(params, XS, initial_carry="zeros")


@pytest.mark.parametrize("cell", [rnnjax.lstm(3), rnnjax.gru(3)])
def test_a_carry_in_the_place_of_lengths_is_told_where_it_goes(cell):
    layer = rnnjax.recurrent(cell)
    params = layer.init(KEY, 4)
    carry, _ = layer.apply(params, XS)
    with pytest.raises(ValueError, match=r"lengths must be integers.*: .* initial_carry=carry"):
        layer.apply(params, XS, carry)


@pytest.mark.parametrize("name", CELLS)
def test_a_carry_before_the_first_step_may_be_given_away(name):
    """No array is there twice: it could be given away once alone."""
    cell = CELLS[name]
    carry = cell.initial_carry(init(One(cell)))
    jax.jit(lambda carry: jax.tree.map(lambda a: a + 1, carry), donate_argnums=0)(carry)

"""Noise for cells: what is drawn, where it acts, and that the law holds with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, B, D, H, One, T, ragged
from cases import init as init_row
from jax.flatten_util import ravel_pytree
from trees import EXACT, assert_trees_equal

import rnnjax
from rnnjax.cells import projected_lstm
from rnnjax.cells.min_gru import min_gru
from rnnjax.transforms import (
    layer_norm,
    recurrent_dropout,
    variational_dropout,
    weight_drop,
    zoneout,
)

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

KEY = jax.random.key(7)
LSTM, GRU, GRU_BEFORE = rnnjax.lstm(H), rnnjax.gru(H), rnnjax.gru(H, reset_after=False)
SLSTM = rnnjax.slstm(H)
NOISY = {
    "variational": variational_dropout(weight_drop(LSTM, 0.4), inputs=0.4, hidden=0.4),
    "variational_users_own": variational_dropout(CELLS["users_own"], inputs=0.4, hidden=0.4),
    "variational_inputs_of_a_step": variational_dropout(GRU_BEFORE, inputs=0.4),
    "variational_whole": variational_dropout(rnnjax.vanilla(H), inputs=0.4, hidden=0.4),
    "recurrent_gru": recurrent_dropout(GRU, 0.4),
    "recurrent_gru_reset_before": recurrent_dropout(GRU_BEFORE, 0.4),
    "zoneout_lstm": zoneout(projected_lstm(H, 2), {"h": 0.3, "c": 0.6}),
    "zoneout_of_a_step": zoneout(variational_dropout(GRU_BEFORE, inputs=0.4), 0.4),
    "everything": zoneout(
        variational_dropout(
            weight_drop(layer_norm(recurrent_dropout(LSTM, 0.4)), 0.4), inputs=0.4, hidden=0.4
        ),
        {"c": 0.4},
    ),
}
LAW = [n for n in NOISY if n not in ("variational", "variational_inputs_of_a_step")]
REVERSED = ("variational_users_own", "recurrent_gru", "zoneout_lstm", "everything")


def weigh(tree):
    """A loss that feels every element differently."""
    flat = ravel_pytree(tree)[0]
    return flat @ jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))


def init(cell, seed=1):
    return init_row(One(cell), seed)


def with_fixed_noise(cell, params):
    """The cell with the noise it draws for the key, drawn once for all; this compiles sooner."""
    noise = jax.jit(lambda: cell.noise(KEY, params, rnnjax.NoiseShape(B, T, D)))()
    return cell._replace(noise=lambda *_: noise), noise


def one_step(cell, params, carry, x, row, own):
    """A step with each factor of the noise in its place."""
    x_proj = (*cell.project(params, x if row.inputs is None else x * row.inputs), *own)
    if cell.plain_step is not None:
        return cell.plain_step(params, carry, x_proj)
    h = cell.hidden(carry) if row.hidden is None else cell.hidden(carry) * row.hidden
    w_hh = cell.recurrent(params)
    h_proj = h @ (w_hh if row.recurrent is None else w_hh * row.recurrent)
    ends = np.cumsum([piece.size for piece in jax.tree.leaves(x_proj)])
    pieces = jnp.split(h_proj, ends[ends < h_proj.size])
    return cell.update(params, carry, x_proj, tuple(pieces))


def alone_with_noise(cell, params, noise, b, batch, carry, reverse):
    """The real steps of row ``b``, one by one."""
    row = noise._replace(
        inputs=None if noise.inputs is None else noise.inputs[b],
        hidden=None if noise.hidden is None else noise.hidden[b],
        steps=(),
    )
    steps, starts = list(np.flatnonzero(batch.valid[b])), batch.starts[b]
    ys = jnp.zeros((T, cell.output_size))
    for n, t in list(enumerate(steps))[:: -1 if reverse else 1]:
        crossing = n + 1 < len(steps) and starts[steps[n + 1]] if reverse else starts[t]
        carry = cell.initial_carry(params) if crossing else carry
        own = jax.tree.map(lambda a, t=t: a[t, b], noise.steps)
        carry, y = one_step(cell, params, carry, batch.xs[b, t], row, own)
        ys = ys.at[t].set(y)
    return carry, ys


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.full] * (n == "variational_whole")) for n in LAW]
)
def test_a_noisy_batch_is_each_sequence_alone_with_its_noise(name):
    # Of whole rows of a tanh the derivative finds the state in the outputs, but for noise.
    cell, batch = NOISY[name], ragged("plain" if name == "variational_whole" else "all")
    params, reverse = init(cell), name in REVERSED
    start = jax.tree.map(
        lambda a: jnp.full((B, *a.shape), 0.3, a.dtype), cell.initial_carry(params)
    )
    cell, noise = with_fixed_noise(cell, params)
    xs = jnp.where(batch.valid[..., None], batch.xs, jnp.nan)

    def engine(params, start):
        options = {**batch.options, "initial_carry": start, "reverse": reverse}
        return rnnjax.unroll(cell, params, xs, **options, key=KEY)

    def oracle(params, start):
        starts = [jax.tree.map(lambda a, b=b: a[b], start) for b in range(B)]
        rows = [
            alone_with_noise(cell, params, noise, b, batch, starts[b], reverse) for b in range(B)
        ]
        return jax.tree.map(lambda *a: jnp.stack(a), *rows)

    def everything(run):
        def loss(params, start):
            results = run(params, start)
            return weigh(results), results

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, start)

    assert_trees_equal(everything(engine), everything(oracle))


PLAIN = {
    "variational": LSTM,
    "variational_users_own": CELLS["users_own"],
    "variational_inputs_of_a_step": GRU_BEFORE,
    "recurrent_gru": GRU,
    "recurrent_gru_reset_before": GRU_BEFORE,
}


@pytest.mark.parametrize("name", PLAIN)
def test_no_key_is_no_noise(name):
    params, batch = init(PLAIN[name]), ragged("all")
    noisy, plain = (
        rnnjax.unroll(cell, params, batch.xs, **batch.options)
        for cell in (NOISY[name], PLAIN[name])
    )
    assert_trees_equal(noisy, plain, rtol=0, atol=0)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def as_numpy(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def drawn(cell, params):
    """The noise of a call with one sequence of T steps, and its inputs, in NumPy."""
    noise = as_numpy(cell.noise(KEY, params, rnnjax.NoiseShape(1, T, D)))
    return noise, np.asarray(ragged("plain").xs[0])


def outputs(cell, params, key=KEY):
    """What the library gives for the same sequence."""
    carry, ys = rnnjax.unroll(cell, params, ragged("plain").xs[:1], key=key)
    return jax.tree.map(lambda a: a[0], carry), ys[0]


def lstm_step(p, h, c, x, x_factor=1.0, h_factor=1.0, w_factor=1.0, g_factor=1.0):
    """The LSTM of the literature with the factor of each regulariser in its place."""
    sums = (x * x_factor) @ p.w_ih + (h * h_factor) @ (p.w_hh * w_factor) + p.bias
    i, f, g, o = np.split(sums, 4)
    c = sigmoid(f) * c + sigmoid(i) * (g_factor * np.tanh(g))
    return sigmoid(o) * np.tanh(c), c


def test_variational_dropout_and_weight_drop_are_their_equations():
    cell = NOISY["variational"]
    params = init(cell)
    noise, xs = drawn(cell, params)
    h = c = np.zeros(H)
    for x in xs:
        factors = noise.inputs[0], noise.hidden[0], noise.recurrent
        h, c = lstm_step(as_numpy(params), h, c, x, *factors)
    carry, ys = outputs(cell, params)
    np.testing.assert_allclose([carry.h, carry.c, ys[-1]], [h, c, h], **EXACT)


@pytest.mark.parametrize("policy", [None, rnnjax.Policy(compute="bfloat16")])
def test_weights_of_16_bits_are_rounded_once_after_weight_drop(policy):
    """A factor that is rounded itself makes all that is kept too small by a sixth of a per cent."""
    size, narrow = 32, jnp.bfloat16
    cell = weight_drop(rnnjax.vanilla(size), 0.4)
    w_hh = jax.random.uniform(KEY, (size, size), narrow)
    dtype = jnp.float32 if policy else narrow
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY, D))._replace(w_hh=w_hh)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    factor = np.asarray(cell.noise(KEY, params, rnnjax.NoiseShape(size, 1, D)).recurrent)
    expected = (np.asarray(w_hh, np.float64) * (factor > 0) / 0.6).astype(narrow)
    # Of unit vectors and no input a step makes the tanh of each row of the weights.
    cell = rnnjax.with_policy(cell, policy) if policy else cell
    start, xs = jnp.eye(size, dtype=jnp.float32), jnp.zeros((size, 1, D), jnp.float32)
    h, _ = rnnjax.unroll(cell, params, xs, initial_carry=start, key=KEY)
    np.testing.assert_allclose(h, np.tanh(expected.astype(np.float64)), rtol=1e-5)


def test_recurrent_dropout_is_its_equation_for_the_lstm():
    cell = recurrent_dropout(LSTM, 0.4)
    params = init(cell)
    noise, xs = drawn(cell, params)
    h = c = np.zeros(H)
    for t, x in enumerate(xs):
        factor = noise.steps[0].keep[t, 0] / 0.6
        h, c = lstm_step(as_numpy(params), h, c, x, g_factor=factor)
    carry, ys = outputs(cell, params)
    np.testing.assert_allclose([carry.h, carry.c, ys[-1]], [h, c, h], **EXACT)


@pytest.mark.parametrize("reset_after", [True, False])
def test_recurrent_dropout_is_its_equation_for_the_gru(reset_after):
    cell = NOISY["recurrent_gru" if reset_after else "recurrent_gru_reset_before"]
    params = init(cell)
    noise, xs = drawn(cell, params)
    p, h = as_numpy(params), np.zeros(H)
    w_r, w_z, w_n = np.split(p.w_hh, 3, axis=1)
    for t, x in enumerate(xs):
        x_r, x_z, x_n = np.split(x @ p.w_ih + p.bias, 3)
        r, z = sigmoid(x_r + h @ w_r), sigmoid(x_z + h @ w_z)
        back = r * (h @ w_n + p.hidden_bias) if reset_after else (r * h) @ w_n
        dropped = noise.steps[0].keep[t, 0] / 0.6 * np.tanh(x_n + back)
        h = (1 - z) * dropped + z * h
    np.testing.assert_allclose(outputs(cell, params)[0], h, **EXACT)


@pytest.mark.parametrize("key", [KEY, None])
def test_zoneout_is_its_equation(key):
    cell = zoneout(LSTM, {"h": 0.3, "c": 0.6})
    params = init(cell)
    noise, xs = drawn(cell, params)
    held = noise.steps[0].hold if key is not None else (np.full((T, 1, H), p) for p in (0.3, 0.6))
    h = c = np.zeros(H)
    for x, hold_h, hold_c in zip(xs, *held, strict=True):
        new_h, new_c = lstm_step(as_numpy(params), h, c, x)
        h = hold_h[0] * h + (1 - hold_h[0]) * new_h
        c = hold_c[0] * c + (1 - hold_c[0]) * new_c
    carry, ys = outputs(cell, params, key)
    np.testing.assert_allclose([carry.h, carry.c, ys[-1]], [h, c, h], **EXACT)


def test_the_masks_of_keras_mean_the_same():
    keras = pytest.importorskip("keras")
    cell = variational_dropout(LSTM, inputs=0.4, hidden=0.4)
    params = init(cell)
    noise, xs = drawn(cell, params)
    theirs = keras.layers.LSTMCell(
        H, activation=jnp.tanh, dropout=0.4, recurrent_dropout=0.4, dtype="float64"
    )
    theirs.get_dropout_mask = lambda _: [noise.inputs] * 4  # Keras has a mask for each gate
    theirs.get_recurrent_dropout_mask = lambda _: [noise.hidden] * 4
    state, ys = [np.zeros((1, H)), np.zeros((1, H))], []
    with jax.numpy_rank_promotion("allow"):  # Keras adds its biases so
        theirs.build((1, D))
        theirs.set_weights([np.asarray(a) for a in (params.w_ih, params.w_hh, params.bias)])
        for x in xs:
            y, state = theirs(x[None], state, training=True)
            ys.append(np.asarray(y)[0])
    np.testing.assert_allclose(outputs(cell, params)[1], ys, **EXACT)


def showing(update, size=D):
    """A cell of ``size`` units whose input passes as it is, and whose recurrent weights are 1."""
    return rnnjax.Cell(
        output_size=size,
        init=lambda key, input_size: {"w": jnp.ones((size, size))},
        initial_carry=lambda params: jnp.ones(size),
        project=lambda params, x: (x,),
        recurrent=lambda params: params["w"],
        hidden=lambda carry: carry,
        update=update,
    )


WIDE = 50


def masks_shown(cell, time=6, batch=4):
    """The outputs [B, T, WIDE] of a call on ones."""
    params = cell.init(KEY, WIDE)
    return np.asarray(rnnjax.unroll(cell, params, jnp.ones((batch, time, WIDE)), key=KEY)[1])


def assert_drawn_at(rate, factors, scale):
    """The values are those of a mask, and the share of zeros is within 5 standard deviations."""
    assert set(np.unique(factors)) == {0.0, scale}
    zeros = np.mean(factors == 0)
    assert abs(zeros - rate) < 5 * np.sqrt(rate * (1 - rate) / factors.size)


def test_variational_masks_are_the_same_at_every_step_and_differ_between_sequences():
    first = showing(lambda params, carry, x_proj, h_proj: (carry, x_proj[0]), WIDE)
    ys = masks_shown(variational_dropout(first, inputs=0.3))
    assert np.all(ys == ys[:, :1])
    assert len({row.tobytes() for row in ys[:, 0]}) == len(ys)
    assert_drawn_at(0.3, ys[:, 0], 1 / 0.7)

    eye = first._replace(
        init=lambda key, size: {"w": jnp.eye(size)},
        update=lambda params, carry, x_proj, h_proj: (carry, h_proj[0]),
    )
    ys = masks_shown(variational_dropout(eye, hidden=0.3))
    assert np.all(ys == ys[:, :1])
    assert len({row.tobytes() for row in ys[:, 0]}) == len(ys)
    assert_drawn_at(0.3, ys[:, 0], 1 / 0.7)


def test_the_masks_of_inputs_and_hidden_units_are_drawn_apart():
    cell = variational_dropout(LSTM, inputs=0.5, hidden=0.5)
    noise = cell.noise(KEY, cell.init(KEY, H), rnnjax.NoiseShape(500, T, H))
    # Of masks drawn apart, half of the places agree; of one mask drawn twice, all.
    assert noise.inputs.shape == noise.hidden.shape == (500, H)
    assert abs(np.mean(noise.inputs == noise.hidden) - 0.5) < 0.05
    # So are those of one transformer on another: a quarter is kept by both.
    twice = variational_dropout(variational_dropout(LSTM, inputs=0.5), inputs=0.5)
    kept = twice.noise(KEY, twice.init(KEY, H), rnnjax.NoiseShape(500, T, H)).inputs > 0
    assert abs(np.mean(kept) - 0.25) < 0.05


def test_weight_drop_has_one_mask_for_all_sequences_and_steps():
    cell = weight_drop(showing(lambda params, carry, x_proj, h_proj: (carry, h_proj[0]), WIDE), 0.5)
    noise = cell.noise(KEY, cell.init(KEY, WIDE), rnnjax.NoiseShape(4, 6, WIDE))
    assert_drawn_at(0.5, np.asarray(noise.recurrent), 2.0)
    ys = masks_shown(cell)
    np.testing.assert_allclose(ys, np.broadcast_to(noise.recurrent.sum(0), ys.shape), **EXACT)


def test_weights_of_16_bits_are_rounded_once_with_their_factor():
    cell = weight_drop(rnnjax.vanilla(H), 0.3)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), init(cell))
    factor = cell.noise(KEY, params, rnnjax.NoiseShape(1, T, D)).recurrent
    thinned = (params.w_hh.astype(factor.dtype) * factor).astype(jnp.bfloat16)
    xs = ragged("plain").xs[:1].astype(jnp.bfloat16)
    _, expected = rnnjax.unroll(rnnjax.vanilla(H), params._replace(w_hh=thinned), xs)
    np.testing.assert_array_equal(rnnjax.unroll(cell, params, xs, key=KEY)[1], expected)


def test_zoneout_masks_differ_between_steps_and_parts():
    def update(params, carry, x_proj, h_proj):
        return {"seen": jnp.zeros(WIDE), "other": (new := jnp.zeros(WIDE) + x_proj[0])}, new

    cell = showing(update, WIDE)._replace(
        initial_carry=lambda params: {"seen": jnp.ones(WIDE), "other": jnp.zeros(WIDE)},
        hidden=lambda carry: carry["seen"],
    )
    noise = zoneout(cell, 0.3).noise(KEY, cell.init(KEY, WIDE), rnnjax.NoiseShape(4, 6, WIDE))
    hold = [np.asarray(a, float) for a in noise.steps[0].hold]
    assert [a.shape for a in hold] == [(6, 4, WIDE)] * 2
    assert len({row.tobytes() for a in hold for row in a.reshape(-1, WIDE)}) == 2 * 6 * 4
    for a in hold:
        assert_drawn_at(0.7, a, 1.0)
    seen = np.asarray(masks_shown(zoneout(cell, {"other": 0.3})))
    assert np.all(np.diff(seen, axis=1) >= 0)
    assert_drawn_at(0.3, seen[:, 0], 1.0)


def test_more_rows_and_more_steps_leave_the_noise_of_a_sequence_as_it_was():
    cell = zoneout(variational_dropout(rnnjax.vanilla(H), inputs=0.4, hidden=0.4), 0.4)
    params = init(cell)
    few, many = (cell.noise(KEY, params, rnnjax.NoiseShape(b, t, D)) for b, t in [(2, 3), (4, 7)])
    parts = many._replace(
        inputs=many.inputs[:2],
        hidden=many.hidden[:2],
        steps=jax.tree.map(lambda a: a[:3, :2], many.steps),
    )
    assert_trees_equal(parts, few, rtol=0, atol=0)


def test_padding_is_invisible_with_a_key_too():
    cell = zoneout(rnnjax.vanilla(H), 0.4)
    params, xs = init(cell), ragged("plain").xs[:2, :3]
    long = jnp.pad(xs, ((0, 2), (0, 4), (0, 0)), constant_values=jnp.nan)
    _, ys = rnnjax.unroll(cell, params, long, np.array([3, 2, 0, 0]), key=KEY, reverse=True)
    _, alone = rnnjax.unroll(cell, params, xs, [3, 2], key=KEY, reverse=True)
    np.testing.assert_allclose(ys[:2, :3], alone, **EXACT)


LAYER = rnnjax.bidirectional(variational_dropout(rnnjax.vanilla(H), hidden=0.4))


def test_a_layer_is_noisy_only_with_a_key_and_the_key_decides_the_noise():
    params, xs = LAYER.init(jax.random.key(0), D), ragged("plain").xs
    params = jax.tree.map(jnp.float64, params)
    apply = jax.jit(lambda key: LAYER.apply(params, xs, key=key)[1])
    keys = jax.random.split(KEY, 3)
    each = [apply(key) for key in keys]
    np.testing.assert_allclose(jax.vmap(apply)(keys), each, **EXACT)
    np.testing.assert_array_equal(apply(keys[0]), each[0])
    assert not np.allclose(each[0], each[1])
    assert not np.allclose(each[0], apply(None))


def test_the_mean_over_masks_is_what_zoneout_does_without_a_key():
    update = lambda params, carry, x_proj, h_proj: ((new := x_proj[0] + 0 * h_proj[0]), new)  # noqa: E731
    cell = zoneout(showing(update), 0.3)
    params, xs = cell.init(KEY, D), ragged("plain").xs[:, :1]
    each = jax.vmap(lambda key: rnnjax.unroll(cell, params, xs, key=key)[1])
    mean = each(jax.random.split(KEY, 4000)).mean(0)
    np.testing.assert_allclose(mean, rnnjax.unroll(cell, params, xs)[1], atol=0.1)


def test_noise_is_the_same_however_the_loop_is_cut():
    cell = zoneout(variational_dropout(rnnjax.vanilla(H), inputs=0.4, hidden=0.4), 0.4)
    batch = ragged("all")
    params = init(cell)
    cell, _ = with_fixed_noise(cell, params)

    def grad(**options):
        run = lambda p: rnnjax.unroll(  # noqa: E731
            cell, p, batch.xs, **batch.options, key=KEY, **options
        )
        return jax.value_and_grad(lambda p: weigh(run(p)))(params)

    assert_trees_equal(grad(remat=3), grad(remat="never"))


@pytest.mark.parametrize("key", [KEY, None])
def test_zoneout_keeps_a_linear_cell_linear(key):
    cell, batch = zoneout(min_gru(H), 0.4), ragged("all")
    params = init(cell)
    cell, _ = with_fixed_noise(cell, params)

    def grad(implementation):
        options = {**batch.options, "implementation": implementation, "key": key}
        run = lambda p: rnnjax.unroll(cell, p, batch.xs, **options)  # noqa: E731
        return jax.value_and_grad(lambda p: weigh(run(p)))(params)

    assert_trees_equal(grad("associative"), grad("scan"))


def loops_of(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from loops_of(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", ["variational", "recurrent_gru", "zoneout_lstm", "everything"])
def test_the_backward_loop_carries_no_gradient_of_recurrent_weights(name):
    cell = NOISY[name]
    params = init(cell)
    w_hh = jax.eval_shape(cell.recurrent, params).shape
    grad = jax.grad(lambda p: weigh(rnnjax.unroll(cell, p, jnp.ones((2, 7, D)), key=KEY)))
    loops = [
        [v.aval.shape for v in e.outvars] for e in loops_of(jax.make_jaxpr(grad)(params).jaxpr)
    ]
    assert len(loops) == 2
    assert all(w_hh not in shapes for shapes in loops)


def test_no_rows_and_no_steps_are_allowed():
    cell = zoneout(variational_dropout(LSTM, inputs=0.4), 0.4)
    params = init(cell)
    for shape in [(B, 0), (0, T)]:
        carry, ys = rnnjax.unroll(cell, params, jnp.zeros((*shape, D)), key=KEY)
        assert ys.shape == (*shape, H)
        assert carry.h.shape == (shape[0], H)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_noise_is_at_least_float32_and_leaves_dtypes_as_they_are(dtype):
    cell = NOISY["everything"]
    params = jax.tree.map(lambda a: a.astype(dtype), init(cell))

    def run(key):
        noise = cell.noise(key, params, rnnjax.NoiseShape(B, T, D))
        return noise, rnnjax.unroll(cell, params, jnp.ones((B, T, D), dtype), key=key)

    noise, results = jax.eval_shape(run, KEY)
    wide = "float64" if dtype == "float64" else "float32"
    assert noise.inputs.dtype == noise.hidden.dtype == noise.recurrent.dtype == wide
    assert {a.dtype for a in jax.tree.leaves(results)} == {jnp.dtype(wide)}


def test_gates_can_be_seen_under_noise():
    cell = recurrent_dropout(zoneout(LSTM, 0.0), 0.4)
    params, xs = init(cell), ragged("plain").xs
    _, (ys, gates) = rnnjax.unroll(rnnjax.trace_gates(zoneout(cell, 0.4)), params, xs, key=KEY)
    assert ys.shape == gates.f.shape == (B, T, H)
    plain = rnnjax.unroll(rnnjax.trace_gates(LSTM), params, xs)[1][1]
    np.testing.assert_allclose(gates.f[:, 0], plain.f[:, 0], **EXACT)


def test_a_rate_of_zero_is_the_cell_itself():
    assert variational_dropout(LSTM) is LSTM
    assert recurrent_dropout(LSTM, 0.0) is LSTM
    assert weight_drop(LSTM, 0) is LSTM
    assert zoneout(LSTM, 0.0) is LSTM
    assert zoneout(LSTM, {"h": 0.0}) is LSTM


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: variational_dropout(LSTM, inputs=1.0), r"inputs must be a rate in \[0, 1\)"),
        (lambda: variational_dropout("lstm", 0.1), "cell must be a rnnjax.Cell, got str"),
        (lambda: recurrent_dropout(None, 0.1), "cell must be a rnnjax.Cell, got NoneType"),
        (lambda: weight_drop(LAYER, 0.1), "cell must be a rnnjax.Cell, got Layer"),
        (
            lambda: zoneout(rnnjax.lstm, 0.1),
            "cell must be a rnnjax.Cell, got function: call it first",
        ),
        (lambda: rnnjax.trace_gates("lstm"), "cell must be a rnnjax.Cell, got str"),
        (lambda: variational_dropout(LSTM, hidden=-0.1), "hidden must be a rate"),
        (lambda: variational_dropout(GRU_BEFORE, hidden=0.1), "hidden.*written as a plain step"),
        (lambda: variational_dropout(min_gru(H), hidden=0.1), "needs a cell with recurrent"),
        (lambda: weight_drop(GRU_BEFORE, 0.1), "weight_drop needs.*written as a plain step"),
        (lambda: weight_drop(LSTM, "0.1"), "rate must be a rate"),
        (lambda: recurrent_dropout(LSTM, 2), "rate must be a rate"),
        (lambda: recurrent_dropout(rnnjax.vanilla(H), 0.1), r"needs lstm\(...\) or gru\(...\)"),
        (lambda: recurrent_dropout(zoneout(LSTM, 0.1), 0.1), "before other transformers"),
        (lambda: zoneout(LSTM, {"c": 1.5}), r"rate\['c'\] must be a rate"),
        (lambda: run_once(zoneout(LSTM, {"b": 0.5})), r"got \['b'\].*parts \['h', 'c'\]"),
        (lambda: zoneout(LSTM, {"b": 0.0}), r"got \['b'\].*parts \['h', 'c'\]"),
        (lambda: run_once(zoneout(GRU, {"h": 0.5})), "one part without a name: give one rate"),
        (lambda: run_once(zoneout(CELLS["users_own"], 0.5)), "output is an array of its new carry"),
        (lambda: run_once(zoneout(rnnjax.trace_gates(LSTM), 0.5)), "output is an array"),
        (
            lambda: run_once(zoneout(SLSTM, 0.1)),
            r"must be one of h alone, .*, got 0\.1: c and",
        ),
        (lambda: run_once(zoneout(SLSTM, {"n": 0.1})), r"one of h alone, .*, got \{'n': 0\.1\}"),
        (lambda: run_once(zoneout(zoneout(SLSTM, {"h": 0.1}), {"m": 0.1})), "one of h alone"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("key", [None, KEY], ids=["mean", "masks"])
def test_an_slstm_that_holds_its_output_back_keeps_its_equations(key):
    """A number added to the input gates of all steps cancels in c / n."""
    cell = zoneout(SLSTM, {"h": 0.3})
    params, xs = init(cell), 20 * jax.random.normal(jax.random.key(3), (2, T, D))
    more = params._replace(bias=params.bias.at[:H].add(20.0))
    ys, moved = (rnnjax.unroll(cell, given, xs, key=key)[1] for given in (params, more))
    assert float(jnp.abs(ys).max()) <= 1
    np.testing.assert_allclose(moved, ys, atol=2e-4)


def run_once(cell):
    rnnjax.unroll(cell, init(cell), jnp.ones((T, D)))


def test_variational_dropout_drops_inputs_and_hidden_units_independently():
    """With as many inputs as units and one rate, one key for both would give one mask twice."""
    cell = rnnjax.variational_dropout(rnnjax.lstm(50), inputs=0.5, hidden=0.5)
    params = cell.init(jax.random.key(0), 50)
    noise = cell.noise(jax.random.key(1), params, rnnjax.NoiseShape(40, 3, 50))
    assert noise.inputs.shape == noise.hidden.shape == (40, 50)
    agree = np.mean((noise.inputs == 0) == (noise.hidden == 0))
    assert abs(agree - 0.5) < 0.05


def test_inputs_of_which_one_is_a_time_are_not_dropped():
    cell = variational_dropout(rnnjax.cfc(3), inputs=0.5)
    params, xs = cell.init(KEY, 2), (jnp.ones((2, 4, 2)), jnp.ones((2, 4, 1)))
    rnnjax.unroll(cell, params, xs)
    with pytest.raises(ValueError, match=r"variational_dropout\(inputs=...\) needs inputs of one"):
        rnnjax.unroll(cell, params, xs, key=KEY)


@pytest.mark.parametrize("name", ["weight_drop", "variational_dropout"])
def test_noise_of_a_product_reaches_a_cell_that_computes_many_steps_at_once(name):
    """A chunk reads the weights itself, so that the noise would change nothing."""

    def noisy(cell):
        if name == "weight_drop":
            return weight_drop(cell, 0.5)
        return variational_dropout(cell, hidden=0.5)

    inner = rnnjax.vanilla(H)

    def chunk(params, carry, reset_carry, x_projs, valid, resets):
        step = lambda h, x: inner.update(params, h, (x,), (h @ params.w_hh,))  # noqa: E731
        return jax.lax.scan(step, carry, x_projs[0])

    cell, params = inner._replace(chunk=chunk), init(inner)
    xs = jax.random.normal(jax.random.key(2), (B, T, D))
    _, found = rnnjax.unroll(noisy(cell), params, xs, key=KEY)
    _, expected = rnnjax.unroll(noisy(inner), params, xs, key=KEY)
    assert_trees_equal(found, expected)
    own = cell._replace(noise=noisy(inner).noise)
    with pytest.raises(ValueError, match=r"a cell's noise must have no .* beside chunk"):
        rnnjax.unroll(own, params, xs, key=KEY)

"""What a cell may be made of beyond one matrix and one array: heads, several inputs, constants."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

B, T, D, H, HEADS, S = 3, 6, 4, 6, 2, 5
LENGTHS = np.array([6, 0, 4])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def value_and_gradients(function, *args):
    """The value and the gradients in all arguments of a sum that weighs every result otherwise."""

    def weighed(*args):
        leaves = jax.tree.leaves(function(*args))
        return sum(jnp.vdot(normal(k, *a.shape), a) for k, a in enumerate(leaves)), leaves

    gradients, results = jax.grad(weighed, tuple(range(len(args))), has_aux=True)(*args)
    return results, gradients


# Block-diagonal recurrent weights.


def dense(blocks):
    """The matrix [H, 4H] that ``blocks`` [heads, H/heads, 4H/heads] stand for, entry by entry."""
    heads, rows, columns = blocks.shape
    matrix, width = jnp.zeros((heads * rows, heads * columns)), columns // 4
    for n in range(heads):
        for gate in range(4):
            begin = gate * heads * width + n * width
            part = blocks[n, :, gate * width : (gate + 1) * width]
            matrix = matrix.at[n * rows : (n + 1) * rows, begin : begin + width].set(part)
    return matrix


@pytest.mark.parametrize("options", [{}, {"remat": 2}, {"reverse": True}, {"scan_unroll": 4}])
def test_blocks_equal_the_dense_matrix_with_zeros_in_it(options):
    cell = rnnjax.lstm(H)
    params = jax.tree.map(lambda a: normal(9, *a.shape), cell.init(jax.random.key(0), D))
    blocks, xs = normal(1, HEADS, H // HEADS, 4 * H // HEADS), normal(2, B, T, D)

    args = blocks, params.w_ih, params.bias, xs
    tangents = jax.tree.map(lambda a: normal(7, *a.shape), args)

    def everything(weights):
        def run(blocks, w_ih, bias, xs):
            whole = params._replace(w_ih=w_ih, bias=bias, w_hh=weights(blocks))
            return rnnjax.unroll(cell, whole, xs, LENGTHS, **options)

        @jax.jit
        def both(args, tangents):
            return value_and_gradients(run, *args), jax.jvp(run, args, tangents)

        return both(args, tangents)

    assert_same(everything(lambda blocks: blocks), everything(dense))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 6, 6), "each gate of a cell with 4 heads must have a width divisible by 4"),
        ((2, 3, 11), "must be as wide as the first pieces"),
        ((2, 4, 12), "hidden must give 8 features, as 2 blocks .* got 6"),
        ((1, 2, 3, 12), r"blocks \[heads, P/heads, G\*H/heads\], got shape"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(shape, message):
    cell = rnnjax.lstm(H)
    params = cell.init(jax.random.key(0), D)
    odd = cell._replace(recurrent=lambda params: jnp.ones(shape), init=lambda key, size: params)
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(odd, params, normal(2, B, T, D))


def test_a_tree_in_front_of_the_gates_is_refused():
    """Its gradient would meet the tree where it looks for the first gate."""
    inner = rnnjax.vanilla(H)
    cell = inner._replace(
        project=lambda params, x: ({"extra": x}, *inner.project(params, x)),
        update=lambda params, carry, z, h: inner.update(params, carry, z[1:], h),
    )
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match=r"must be as wide as the first pieces .* got 0 pieces"):
        rnnjax.unroll(cell, params, normal(2, B, T, D))


# A tree of inputs.


def timed(size):
    """A cell that reads vectors, the time since the step before, and token ids."""
    inner = rnnjax.vanilla(size)

    def project(params, x):
        decayed = x["x"] * jnp.exp(-x["elapsed"])
        return inner.project(params["cell"], decayed + params["table"][x["token"][0]])

    return inner._replace(
        init=lambda key, sizes: {"cell": inner.init(key, D), "table": normal(3, 7, D)},
        initial_carry=lambda params: inner.initial_carry(params["cell"]),
        recurrent=lambda params: inner.recurrent(params["cell"]),
        update=lambda params, *rest: inner.update(params["cell"], *rest),
        project=project,
    )


def test_a_tree_of_inputs_equals_a_python_loop_and_its_padding_is_not_read():
    cell = timed(H)
    params = cell.init(jax.random.key(0), None)
    params = jax.tree.map(lambda a: normal(4, *a.shape), params)
    real = np.arange(T) < LENGTHS[:, None]
    tokens = jax.random.randint(jax.random.key(6), (B, T, 1), 0, 7)

    def engine(params, x, elapsed):
        x = jnp.where(real[..., None], x, jnp.nan)
        elapsed = jnp.where(real[..., None], elapsed, jnp.inf)
        return rnnjax.unroll(cell, params, {"x": x, "elapsed": elapsed, "token": tokens}, LENGTHS)

    def loop(params, x, elapsed):
        carries, rows = [], []
        for b in range(B):
            h, ys = jnp.zeros(H), [jnp.zeros(H)] * T
            for t in range(LENGTHS[b]):
                at = {"x": x[b, t], "elapsed": elapsed[b, t], "token": tokens[b, t]}
                x_proj = cell.project(params, at)
                h, ys[t] = cell.update(params, h, x_proj, (h @ params["cell"].w_hh,))
            carries.append(h)
            rows.append(jnp.stack(ys))
        return jnp.stack(carries), jnp.stack(rows)

    args = params, normal(5, B, T, D), jnp.abs(normal(8, B, T, 1))
    assert_same(value_and_gradients(engine, *args), value_and_gradients(loop, *args))


def test_inputs_of_unequal_leading_axes_are_refused_by_name():
    cell = timed(H)
    params = cell.init(jax.random.key(0), None)
    xs = {"x": normal(5, B, T, D), "elapsed": normal(8, B, T + 1, 1)}
    message = r"xs\['x'\] must have the batch and time axes \(3, 7\) of xs\['elapsed'\]"
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(cell, params, xs)


def test_inputs_without_their_axis_of_features_are_named_beside_whole_ones():
    cell = timed(H)
    xs = {"elapsed": normal(8, B, T), "x": normal(5, B, T, D)}
    message = (
        r"xs\['elapsed'\] must have the batch and time axes \(3, 6\) of xs\['x'\], of shape "
        r"\(3, 6, 4\), and an axis of features, got shape \(3, 6\)"
    )
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(cell, cell.init(jax.random.key(0), None), xs)


@pytest.mark.parametrize(
    "xs",
    [
        (np.ones((2, 5, 4), int), np.ones((2, 5, 1), np.float32)),
        (np.ones((2, 5, 4), np.float32), np.ones((2, 5, 1), np.complex64)),
    ],
    ids=["inputs of integers", "complex times"],
)
@pytest.mark.parametrize("cell", [rnnjax.s4d(4, 2), rnnjax.s5(4, 2)])
def test_inputs_and_times_of_another_kind_of_number_are_refused(cell, xs):
    with pytest.raises(ValueError, match=r"must be (of floating dtype|real numbers), got dtype"):
        rnnjax.unroll(cell, cell.init(jax.random.key(0), 4), xs)


# Constants of a sequence.


def attending(size, plain):
    """Attention over the context, whose keys are made once a call, before a simple cell."""

    def init(key, input_size):
        del input_size
        names = {"x": (D, size), "h": (size, size), "keys": (4, size), "values": (4, size)}
        return {n: normal(k, *shape) / 2 for k, (n, shape) in enumerate(names.items())}

    def context(params, given):
        scores = jnp.where(given["real"], 0.0, -jnp.inf)
        return given["rows"] @ params["keys"], given["rows"] @ params["values"], scores

    def update(params, h, x_proj, h_proj, context):
        keys, values, scores = context
        read = jax.nn.softmax(keys @ h + scores) @ values
        h = jnp.tanh(x_proj[0] + h_proj[0] + read)
        return h, h

    def plain_step(params, h, x_proj, context):
        return update(params, h, x_proj, (h @ params["h"],), context)

    cell = rnnjax.Cell(
        size,
        init,
        lambda params: jnp.zeros(size),
        lambda params, x: (x @ params["x"],),
        context=context,
    )
    if plain:
        return cell._replace(plain_step=plain_step)
    return cell._replace(recurrent=lambda p: p["h"], hidden=lambda h: h, update=update)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("remat", [None, 4])
@pytest.mark.kept
def test_constants_of_a_sequence_equal_a_python_loop(plain, remat):
    cell = attending(H, plain)
    params = cell.init(jax.random.key(0), D)
    real = jnp.asarray(np.arange(S) < np.array([[5], [3], [1]]))

    def engine(params, xs, rows):
        given = {"rows": rows, "real": real}
        return rnnjax.unroll(cell, params, xs, LENGTHS, context=given, remat=remat)

    def loop(params, xs, rows):
        carries, all_ys = [], []
        for b in range(B):
            keys, values = rows[b] @ params["keys"], rows[b] @ params["values"]
            h, ys = jnp.zeros(H), [jnp.zeros(H)] * T
            for t in range(LENGTHS[b]):
                weights = jnp.exp(keys @ h) * real[b]
                read = weights / weights.sum() @ values
                ys[t] = h = jnp.tanh(xs[b, t] @ params["x"] + h @ params["h"] + read)
            carries.append(h)
            all_ys.append(jnp.stack(ys))
        return jnp.stack(carries), jnp.stack(all_ys)

    args = params, normal(5, B, T, D), normal(6, B, S, 4)
    assert_same(value_and_gradients(engine, *args), value_and_gradients(loop, *args))


def test_the_context_of_a_row_never_touches_another():
    cell = attending(H, plain=False)
    params, xs = cell.init(jax.random.key(0), D), normal(5, B, T, D)
    real = jnp.ones((B, S), bool)

    def outputs(rows):
        return rnnjax.unroll(cell, params, xs, context={"rows": rows, "real": real})[1]

    rows = normal(6, B, S, 4)
    poisoned = outputs(rows.at[1].set(jnp.nan))
    np.testing.assert_array_equal(poisoned[np.array([0, 2])], outputs(rows)[np.array([0, 2])])
    gradient = jax.grad(lambda rows: outputs(rows)[0].sum())(rows)
    np.testing.assert_array_equal(gradient[1:], 0)
    assert jnp.any(gradient[0] != 0)


def test_context_is_checked():
    cell, plain = attending(H, plain=False), rnnjax.vanilla(H)
    params, xs = cell.init(jax.random.key(0), D), normal(5, B, T, D)
    with pytest.raises(ValueError, match="context must be given to a cell with the field context"):
        rnnjax.unroll(cell, params, xs)
    with pytest.raises(ValueError, match=r"context\['rows'\] must begin with the batch \(3,\)"):
        rnnjax.unroll(cell, params, xs, context={"rows": normal(6, 2, S, 4)})
    with pytest.raises(ValueError, match="context must be None for a cell without"):
        rnnjax.unroll(plain, plain.init(jax.random.key(0), D), xs, context=normal(6, B, S))


# Less than everything.


def test_a_cell_without_recurrent_weights_needs_no_hidden():
    cell = rnnjax.indrnn(H)
    params, xs = cell.init(jax.random.key(0), D), normal(5, B, T, D)
    bare = cell._replace(hidden=None)

    def run(cell):
        return lambda p, x: rnnjax.unroll(cell, p, x, LENGTHS)

    assert_same(
        value_and_gradients(run(bare), params, xs), value_and_gradients(run(cell), params, xs)
    )


def test_the_gates_of_a_cell_of_ones_own_are_shown():
    class Kept(NamedTuple):
        half: jax.Array

    cell = halving(lambda h: (h, h))._replace(gates=lambda p, h, x, *_: Kept((h + x[0]) / 2))
    xs = normal(0, B, T, H)
    _, (ys, gates) = rnnjax.unroll(rnnjax.trace_gates(cell), (), xs)
    np.testing.assert_array_equal(gates.half, ys)


# What a cell of one's own may get wrong.


def halving(step, size=H, plain=False):
    """h' = (h + x) / 2, as the cell that ``step(h')`` makes of it."""
    parts = {"plain_step" if plain else "update": lambda p, h, x, *_: step((h + x[0]) / 2)}
    zeros = lambda params: jnp.zeros(H)  # noqa: E731
    return rnnjax.Cell(size, lambda key, input_size: (), zeros, lambda p, x: (x,), **parts)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("batch", [2, 3])
def test_a_step_that_gives_no_carry_with_its_output_is_refused(plain, batch):
    """An array of two rows would come apart as if it were a pair."""
    with pytest.raises(ValueError, match=r"must give \(carry, y\), got an array of shape"):
        rnnjax.unroll(halving(lambda h: h, plain=plain), (), normal(0, batch, T, H))


@pytest.mark.parametrize("plain", [False, True])
def test_outputs_of_another_size_than_the_cell_says_are_refused(plain):
    cell = halving(lambda h: (h, h), size=H + 1, plain=plain)
    message = rf"outputs of shape \({H + 1},\) for one example.*, got shape \({H},\)"
    xs = normal(0, B, T, H)
    for run in (
        lambda: rnnjax.unroll(cell, (), xs),
        lambda: rnnjax.unroll(cell, (), xs, remat=2, all_carries=True),
        lambda: rnnjax.recurrent(cell).apply((), xs.tolist()),
        lambda: cell.step((), None, xs[:, 0]),
    ):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize("rows", [1, 2])
def test_a_carry_of_a_whole_batch_is_refused(rows):
    """All functions of a cell are of one example; with one row too many all of it would run."""
    many = lambda params: jnp.zeros((rows, H))  # noqa: E731
    xs = normal(0, 2, T, H)
    plain = halving(None)._replace(
        initial_carry=many, update=None, plain_step=lambda p, h, x: (h, jnp.tanh(h))
    )
    with pytest.raises(ValueError, match=rf"for one example.*, got shape \({rows}, {H}\)"):
        rnnjax.recurrent(plain).apply((), xs)
    vanilla = rnnjax.vanilla(H)
    cell, params = vanilla._replace(initial_carry=many), vanilla.init(jax.random.key(0), H)
    message = rf"without batch axes\), got an array of shape \({rows}, {H}\)"
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(cell, params, xs)
    with pytest.raises(ValueError, match=message):
        jax.grad(lambda p: rnnjax.unroll(cell, p, xs)[1].sum())(params)
    with pytest.raises(ValueError, match=message):
        cell.step(params, None, xs[:, 0])


@pytest.mark.parametrize("plain", [False, True])
def test_a_step_that_gives_another_carry_is_refused(plain):
    message = rf"must give a carry like the one before, \({H},\), got \({H - 1},\)"
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(halving(lambda h: (h[1:], h), plain=plain), (), normal(0, B, T, H))
    with pytest.raises(ValueError, match=r"like the one before, .* got \{'h': \("):
        rnnjax.unroll(halving(lambda h: ({"h": h}, h), plain=plain), (), normal(0, B, T, H))


@pytest.mark.parametrize("plain", [False, True])
def test_an_output_before_the_carry_is_refused(plain):
    def step(params, carry, x, *_):
        h = (carry["h"] + x[0]) / 2
        return h, {"h": h}

    cell = halving(None)._replace(
        initial_carry=lambda params: {"h": jnp.zeros(H)},
        **({"update": None, "plain_step": step} if plain else {"update": step}),
    )
    message = r"got \(6,\), and a carry in the place of y: the carry comes first"
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(cell, (), normal(0, B, T, H))


def test_a_carry_of_integers_is_taken_in_the_dtype_of_the_cell():
    gru, xs = rnnjax.gru(H), normal(0, B, T, D)
    params = gru.init(jax.random.key(0), D)
    ones = np.ones((B, H))
    found, expected = (
        rnnjax.unroll(gru, params, xs, initial_carry=start)[0] for start in (ones.astype(int), ones)
    )
    np.testing.assert_array_equal(found, expected)


def test_recurrent_weights_may_be_complex():
    cell = rnnjax.Cell(
        output_size=H,
        init=lambda key, size: None,
        initial_carry=lambda params: jnp.zeros(H, complex),
        project=lambda params, x: (x,),
        recurrent=lambda params: params,
        hidden=lambda h: h.imag,
        update=lambda params, h, x_proj, h_proj: (x_proj[0] + h_proj[0], h.real),
    )
    w, xs = normal(0, H, H) + 1j * normal(1, H, H), normal(2, B, T, H)
    carry, _ = rnnjax.unroll(cell, jnp.asarray(w), xs)
    h = np.zeros((B, H), complex)
    for x in np.moveaxis(xs, 1, 0):
        h = x + h.imag @ w
    np.testing.assert_allclose(carry, h, rtol=1e-12)


def test_integers_among_the_weights_and_in_the_carry_are_refused():
    vanilla, xs = rnnjax.vanilla(H), normal(0, B, T, D)
    params = vanilla.init(jax.random.key(0), D)
    whole = vanilla._replace(recurrent=lambda params: jnp.ones((H, H), jnp.int32))
    with pytest.raises(ValueError, match=r"recurrent must give weights of floating .*, got int32"):
        rnnjax.unroll(whole, params, xs)
    counting = halving(None)._replace(
        initial_carry=lambda params: (jnp.zeros(H), jnp.array(0, jnp.int32)),
        update=lambda params, carry, x, _: ((carry[0] + x[0], carry[1] + 1), carry[0]),
    )
    message = r"dtype, got int32: keep a count or a flag as a float"
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(counting, (), normal(0, B, T, H))
    with pytest.raises(ValueError, match=message):
        rnnjax.learn_initial_carry(counting).init(jax.random.key(0), H)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            lambda key, params, shape: jnp.ones((T, B, H)),
            r"must give a rnnjax\.Noise, got an array",
        ),
        (
            lambda key, params, shape: rnnjax.Noise(steps=jnp.ones((T, B, H))),
            r"a tuple of trees \[T, B, ...\] as steps, got an array of shape \(6, 3, 6\)",
        ),
        (
            lambda key, params, shape: rnnjax.Noise(steps=(jnp.ones((B, T, H)),)),
            r"here T = 6 and B = 3, got shape \(3, 6, 6\)",
        ),
        (
            lambda key, params, shape: rnnjax.Noise(steps=(jnp.ones((T, 1, H)),)),
            r"here T = 6 and B = 3, got shape \(6, 1, 6\)",
        ),
        (
            lambda key, params, shape: rnnjax.Noise(hidden=jnp.ones((B, H))),
            "must have no hidden where the engine multiplies no recurrent weights",
        ),
    ],
)
def test_noise_of_another_form_is_refused(noise, message):
    cell = halving(lambda h: (h, h))._replace(noise=noise)
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(cell, (), normal(0, B, T, H), key=jax.random.key(0))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("all_carries", [False, True])
def test_a_step_that_gives_a_carry_of_another_dtype_is_refused(plain, all_carries):
    """As a carry made in the dtype of parameters of 16 bits, to which sums of 32 are added."""
    narrow = halving(lambda h: (h, h), plain=plain)._replace(
        initial_carry=lambda params: jnp.zeros(H, jnp.bfloat16)
    )
    message = "of the dtype of the one before, bfloat16, got float64: initial_carry should make"
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(narrow, (), normal(0, B, T, H), all_carries=all_carries)
    with pytest.raises(ValueError, match=message):
        narrow.step((), None, normal(0, B, H))
    run = lambda xs: rnnjax.unroll(narrow, (), xs)[1].sum()  # noqa: E731
    with pytest.raises(ValueError, match=message):
        jax.grad(run)(normal(0, B, T, H))


@pytest.mark.parametrize("part", ["initial_carry", "recurrent", "gates"])
def test_an_array_in_the_place_of_a_function_is_refused(part):
    cell = halving(lambda h: (h, h))._replace(**{part: jnp.zeros((H, H))})
    with pytest.raises(ValueError, match=f"a cell's {part} must be a function, got an array"):
        rnnjax.unroll(cell, (), normal(0, B, T, H))


def test_a_cell_that_is_bfloat16_throughout_has_products_and_gradients_in_float32():
    """Its carry and outputs are what it makes them: what the engine sums is not rounded."""
    seen = []

    def update(params, h, x_proj, h_proj):
        seen.append(h_proj[0].dtype)
        return h_proj[0].astype(h.dtype), x_proj[0].astype(h.dtype) + params["bias"]

    cell = rnnjax.Cell(
        output_size=1,
        init=lambda key, size: {"u": jnp.ones((1, 1), "bfloat16"), "bias": jnp.ones(1, "bfloat16")},
        initial_carry=lambda params: jnp.zeros(1, "bfloat16"),
        project=lambda params, x: (x.astype("bfloat16"),),
        recurrent=lambda params: params["u"],
        hidden=lambda h: h,
        update=update,
    )
    params = cell.init(None, 1)
    time = 1000  # ones added up in bfloat16 stay at 256

    def total(params):
        _, ys = rnnjax.unroll(cell, params, jnp.ones((1, time, 1)))
        return jnp.sum(ys, dtype=jnp.float32)

    carry, ys = rnnjax.unroll(cell, params, jnp.ones((1, time, 1)))
    assert carry.dtype == ys.dtype == jnp.bfloat16
    assert set(seen) == {jnp.dtype("float32")}
    assert jax.grad(total)(params)["bias"].tolist() == [time]


@pytest.mark.parametrize(
    "again", [lambda x, h: x, lambda x, h: h, lambda x, h: x * h], ids=["x", "h", "both"]
)
def test_a_product_that_is_read_again_behind_the_sum_has_the_gradient_of_both(again):
    def update(params, h, x_proj, h_proj):
        total = x_proj[0] + h_proj[0]
        h = jnp.tanh(total) * jax.nn.sigmoid(again(x_proj[0], h_proj[0]))
        return h, h

    cell = rnnjax.Cell(
        H,
        init=lambda key, size: {"x": normal(1, D, H), "h": normal(2, H, H)},
        initial_carry=lambda params: jnp.zeros(H),
        project=lambda params, x: (x @ params["x"],),
        recurrent=lambda params: params["h"],
        hidden=lambda h: h,
        update=update,
    )

    def loop(params, xs):
        h, ys = jnp.zeros((B, H)), []
        for t in range(T):
            h, _ = update(params, h, (xs[:, t] @ params["x"],), (h @ params["h"],))
            ys.append(h)
        return h, jnp.stack(ys, 1)

    args = cell.init(None, D), normal(3, B, T, D)
    engine = value_and_gradients(lambda params, xs: rnnjax.unroll(cell, params, xs), *args)
    assert_same(engine, value_and_gradients(loop, *args))

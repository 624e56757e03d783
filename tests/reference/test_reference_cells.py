"""The further LSTMs, the minimal gated unit, IndRNN, the convolutional LSTM and the learned carry:
against NumPy loops written from the papers, and against live torch, onnxruntime and Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax.cells import (
    ConvLSTMParams,
    CoupledLSTMParams,
    MinimalGatedParams,
    PeepholeLSTMParams,
    ProjectedLSTMParams,
    conv_lstm,
    coupled_lstm,
    flatten_frames,
    indrnn,
    minimal_gated,
    peephole_lstm,
    projected_lstm,
    unflatten_frames,
)
from rnnjax.initializers import PRESETS
from rnnjax.transforms import LearnedCarryParams, learn_initial_carry

pytestmark = pytest.mark.usefixtures("float64")

B, T, D, H, P = 3, 4, 6, 4, 3
LENGTHS = np.array([T, 0, 3])
STARTS = np.array([[False, False, True, False], [True] * T, [True, True, False, True]])
TOLERANCE = {"value": 1e-12, "gradient": 1e-11, "finite difference": 1e-7}


def assert_close(got, expected, kind):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


def normal_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=np.shape(a)), tree)


# The equations, one step of one sequence in NumPy.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_like(i, f, g, o, c):
    """The state and the output before projection, from gates before their nonlinearities."""
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def projected_step(p, carry, x):
    c, m = lstm_like(*np.split(x @ p.w_ih + carry.h @ p.w_hh + p.bias, 4), carry.c)
    return rnnjax.LSTMCarry(m @ p.w_hr, c), m @ p.w_hr


def peephole_step(p, carry, x):
    i, f, g, o = np.split(x @ p.w_ih + carry.h @ p.w_hh + p.bias, 4)
    c = sigmoid(f + p.p_f * carry.c) * carry.c + sigmoid(i + p.p_i * carry.c) * np.tanh(g)
    h = sigmoid(o + p.p_o * c) * np.tanh(c)
    return rnnjax.LSTMCarry(h, c), h


def coupled_step(p, carry, x):
    i, g, o = np.split(x @ p.w_ih + carry.h @ p.w_hh + p.bias, 3)
    c = (1 - sigmoid(i)) * carry.c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return rnnjax.LSTMCarry(h, c), h


def minimal_gated_of_the_paper_step(p, h, x):
    (u_f, u_n), (w_f, w_n) = np.split(p.w_ih, 2, axis=1), np.split(p.w_hh, 2, axis=1)
    b_f, b_n = np.split(p.bias, 2)
    f = sigmoid(np.concatenate([h, x]) @ np.concatenate([w_f, u_f]) + b_f)
    n = np.tanh(np.concatenate([f * h, x]) @ np.concatenate([w_n, u_n]) + b_n)
    h = (1 - f) * h + f * n
    return h, h


def minimal_gated_after_step(p, h, x):
    (x_f, x_n), (h_f, h_n) = np.split(x @ p.w_ih + p.bias, 2), np.split(h @ p.w_hh, 2)
    f = sigmoid(x_f + h_f)
    h = (1 - f) * np.tanh(x_n + f * (h_n + p.hidden_bias)) + f * h
    return h, h


def indrnn_step(p, h, x):
    h = np.maximum(x @ p.w_ih + p.w_hh * h + p.bias, 0)
    return h, h


def correlate(frame, kernel):
    """Every place sees its neighbours under the kernel; outside the frame there are zeros."""
    out = np.zeros((*frame.shape[:-1], kernel.shape[-1]))
    before = (np.array(kernel.shape[:-2]) - 1) // 2
    for place in np.ndindex(frame.shape[:-1]):
        for tap in np.ndindex(kernel.shape[:-2]):
            seen = np.array(place) + tap - before
            if np.all(seen >= 0) and np.all(seen < frame.shape[:-1]):
                out[place] += frame[tuple(seen)] @ kernel[tap]
    return out


def conv_step(spatial_shape):
    def step(p, carry, x):
        frame = np.moveaxis(np.reshape(x, (-1, *spatial_shape)), 0, -1)  # flat: channel by channel
        gates = correlate(frame, p.w_ih) + correlate(carry.h, p.w_hh) + p.bias
        c, h = lstm_like(*np.split(gates, 4, axis=-1), carry.c)
        return rnnjax.LSTMCarry(h, c), np.moveaxis(h, -1, 0).ravel()

    return step


def learned_step(step):
    return lambda p, carry, x: step(p.cell, carry, x)


CASES = {
    "projected LSTM": (projected_lstm(H, P), projected_step),
    "peephole LSTM": (peephole_lstm(H), peephole_step),
    "coupled LSTM": (coupled_lstm(H), coupled_step),
    "minimal_gated of the paper": (
        minimal_gated(H, reset_after=False),
        minimal_gated_of_the_paper_step,
    ),
    "minimal_gated reset after": (minimal_gated(H), minimal_gated_after_step),
    "IndRNN": (indrnn(H), indrnn_step),
    "ConvLSTM 1-D": (conv_lstm((3,), 2, kernel_size=2), conv_step((3,))),
    "ConvLSTM 2-D": (conv_lstm((3, 2), 2, kernel_size=(3, 2)), conv_step((3, 2))),
    "learned carry": (learn_initial_carry(coupled_lstm(H)), learned_step(coupled_step)),
}


def problem(cell):
    """Random parameters, initial carries and inputs."""
    params = cell.init(jax.random.key(0), D)
    carries = jax.tree.map(lambda a: np.zeros((B, *a.shape)), cell.initial_carry(params))
    return normal_like((params, carries, np.zeros((B, T, D))), seed=0)


def fresh(p, carry):
    """What a segment starts from: what was learned, or zeros."""
    if isinstance(p, LearnedCarryParams):
        return p.initial_carry
    return jax.tree.map(np.zeros_like, carry)


def loop(step, size, p, carries, xs):
    """Each sequence by itself over its valid steps, cut into the segments of ``STARTS``."""
    rows, ys = [], np.zeros((B, T, size))
    for b, length in enumerate(LENGTHS):
        carry = jax.tree.map(lambda a, b=b: a[b], carries)
        for t in range(length):
            if STARTS[b, t]:
                carry = fresh(p, carry)
            carry, ys[b, t] = step(p, carry, xs[b, t])
        rows.append(carry)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), ys


@pytest.mark.parametrize("case", CASES)
def test_values_and_slopes_equal_those_of_a_numpy_loop_over_the_segments(case):
    cell, step = CASES[case]
    arguments = problem(cell)
    weights = normal_like((arguments[1], np.zeros((B, T, cell.output_size))), seed=1)

    def weighted(result):
        return sum(jax.tree.leaves(jax.tree.map(lambda w, a: (w * a).sum(), weights, result)))

    def ours(params, carries, xs):
        result = rnnjax.unroll(cell, params, xs, LENGTHS, resets=STARTS, initial_carry=carries)
        return weighted(result), result

    def numpy_along(direction, size):
        moved = jax.tree.map(lambda a, d: a + size * d, arguments, direction)
        return weighted(loop(step, cell.output_size, *moved))

    grad = jax.jit(jax.grad(ours, argnums=(0, 1, 2), has_aux=True))
    gradient, result = grad(*arguments)
    assert_close(result, loop(step, cell.output_size, *arguments), "value")
    for seed in (2, 3):
        direction = normal_like(arguments, seed)
        products = jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)
        size = 1e-5
        slope = (numpy_along(direction, size) - numpy_along(direction, -size)) / (2 * size)
        assert_close(sum(jax.tree.leaves(products)), slope, "finite difference")


def test_packed_torch_with_proj_size_has_the_same_outputs_states_and_gradients():
    torch = pytest.importorskip("torch", reason="torch is not installed: its proj_size is untested")
    pack = torch.nn.utils.rnn.pack_padded_sequence
    torch.manual_seed(0)
    lengths = [3, T, 1]
    options = {"batch_first": True, "bidirectional": True, "dtype": torch.float64}
    module = torch.nn.LSTM(D, H, proj_size=P, **options)
    xs = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    packed, final = module(pack(xs, lengths, batch_first=True, enforce_sorted=False))
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=T)
    expected = [ys, *final]
    cotangents = [torch.randn_like(a) for a in expected]
    torch.autograd.backward(expected, cotangents)

    def array(tensor):
        return jnp.asarray(tensor.detach().numpy())

    def to_params(w_ih, w_hh, b_ih, b_hh, w_hr):
        return ProjectedLSTMParams(w_ih.T, w_hh.T, b_ih + b_hh, w_hr.T)

    def ours(weights, xs):
        params = rnnjax.Directions(to_params(*weights[:5]), to_params(*weights[5:]))
        carry, ys = rnnjax.bidirectional(projected_lstm(H, P)).apply(params, xs, lengths)
        return [ys, *(jnp.stack(states) for states in zip(*carry, strict=True))]

    got, pullback = jax.vjp(jax.jit(ours), [array(w) for w in module.parameters()], array(xs))
    assert_close(got, [array(a) for a in expected], "value")
    gradients = jax.tree.leaves(pullback([array(a) for a in cotangents]))
    grads = [array(a.grad) for a in (*module.parameters(), xs)]
    assert_close(gradients, grads, "gradient")


def lstm_node(attributes, inputs):
    """What onnxruntime makes of one ``LSTM`` node: outputs [T, B, H], states [B, H]."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: its LSTM is untested")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    value = onnx.helper.make_tensor_value_info
    kind = onnx.helper.np_dtype_to_tensor_dtype
    outputs = ["Y", "Y_h", "Y_c"]
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    node = onnx.helper.make_node(
        "LSTM", [n if n in inputs else "" for n in order], outputs, hidden_size=H, **attributes
    )
    graph = onnx.helper.make_graph(
        [node],
        "lstm",
        [value(name, kind(a.dtype), a.shape) for name, a in inputs.items()],
        [value(name, onnx.TensorProto.FLOAT, None) for name in outputs],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8
    )
    session = runtime.InferenceSession(model.SerializeToString())
    y, h, c = session.run(None, inputs)
    return y[:, 0], h[0], c[0]


def iofc(matrix):
    """Our gates i, f, g, o along the last axis, as ONNX packs them along the first."""
    i, f, g, o = np.split(matrix, 4, axis=-1)
    return np.concatenate([i, o, f, g], axis=-1).T


def onnx_inputs(w_ih, w_hh, bias, xs):
    tensors = {
        "X": np.swapaxes(xs, 0, 1),
        "W": iofc(w_ih)[None],
        "R": iofc(w_hh)[None],
        "B": np.concatenate([iofc(bias), np.zeros(4 * H)])[None],
    }
    return {
        **{name: np.asarray(a, np.float32) for name, a in tensors.items()},
        "sequence_lens": LENGTHS.astype(np.int32),
    }


def assert_same_as_onnx(cell, params, xs, reverse, attributes, inputs):
    direction = "reverse" if reverse else "forward"
    expected = lstm_node({"direction": direction, **attributes}, inputs)
    carry, ys = rnnjax.unroll(cell, params, xs, LENGTHS, reverse=reverse)
    for got, want in zip((np.swapaxes(ys, 0, 1), carry.h, carry.c), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)  # onnxruntime: float32


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
def test_onnxruntime_with_peepholes_gives_the_same_outputs_and_states(reverse):
    cell = peephole_lstm(H)
    params, _, xs = problem(cell)
    assert isinstance(params, PeepholeLSTMParams)
    inputs = onnx_inputs(params.w_ih, params.w_hh, params.bias, xs)
    inputs["P"] = np.concatenate([params.p_i, params.p_o, params.p_f])[None].astype(np.float32)
    assert_same_as_onnx(cell, params, xs, reverse, {}, inputs)


def test_onnxruntime_with_coupled_gates_gives_the_same_outputs_and_states():
    cell = coupled_lstm(H)
    params, _, xs = problem(cell)
    assert isinstance(params, CoupledLSTMParams)

    def with_unused_forget_gate(a):
        return np.insert(a, [H] * H, 7.0, axis=-1)

    inputs = onnx_inputs(*map(with_unused_forget_gate, params), xs)
    assert_same_as_onnx(cell, params, xs, False, {"input_forget": 1}, inputs)


def linen():
    return pytest.importorskip("flax.linen", reason="flax is not installed: its cells untested")


def run_linen(cell, xs):
    """The final carry, outputs and parameters of a Flax cell with random weights."""
    layer = linen().RNN(cell, return_carry=True)
    with jax.numpy_rank_promotion("allow"):  # Flax adds its biases so
        shapes = jax.eval_shape(layer.init, jax.random.key(0), xs)
        variables = normal_like(shapes, seed=0)
        carry, ys = layer.apply(variables, xs, seq_lengths=np.array([T, 1, 3]))
    return carry, ys, variables["params"]["cell"]


def assert_same_as_linen(cell, params, xs, expected_carry, expected_ys):
    carry, ys = rnnjax.unroll(cell, params, xs, np.array([T, 1, 3]))
    valid = np.arange(T) < np.array([[T], [1], [3]])
    assert_close(ys[valid], expected_ys[valid], "value")
    assert_close(carry, expected_carry, "value")


def test_minimal_gated_unit_of_flax_gives_the_same_outputs_and_carry():
    xs = normal_like(np.zeros((B, T, D)), seed=1)
    carry, ys, w = run_linen(linen().MGUCell(H, param_dtype=jnp.float64), xs)

    def join(half, leaf):
        return np.concatenate([w[half + "f"][leaf], w[half + "n"][leaf]], axis=-1)

    params = MinimalGatedParams(
        join("i", "kernel"), join("h", "kernel"), join("i", "bias"), w["hn"]["bias"]
    )
    assert_same_as_linen(minimal_gated(H), params, xs, carry, ys)


@pytest.mark.parametrize("kernel", [(2, 3), (1, 3, 2)], ids=["2-D", "3-D"])
def test_convolutional_lstm_of_flax_gives_the_same_outputs_and_carry(kernel):
    space, channels = (4, 3, 2)[: len(kernel)], 2
    frames = normal_like(np.zeros((B, T, *space, channels)), seed=1)
    (c, h), ys, w = run_linen(linen().ConvLSTMCell(H, kernel, param_dtype=jnp.float64), frames)

    def ifgo(a):  # Flax packs i, g, f, o and adds 1 to f in its step
        i, g, f, o = np.split(a, 4, axis=-1)
        return np.concatenate([i, f, g, o], axis=-1)

    bias = ifgo(w["ih"]["bias"] + w["hh"]["bias"])
    bias[H : 2 * H] += 1
    params = ConvLSTMParams(ifgo(w["ih"]["kernel"]), ifgo(w["hh"]["kernel"]), bias)
    expected_ys = np.asarray(flatten_frames(ys, space))
    cell, carry = conv_lstm(space, H, kernel), rnnjax.LSTMCarry(h, c)
    assert_same_as_linen(cell, params, flatten_frames(frames, space), carry, expected_ys)


def test_two_directions_of_a_convolution_join_their_channels():
    space = (3, 2)
    layer = rnnjax.bidirectional(conv_lstm(space, 2))
    params = layer.init(jax.random.key(0), D)
    xs = normal_like(np.zeros((B, T, D)), seed=0)
    _, ys = layer.apply(params, xs, LENGTHS)
    for half, p, reverse in ((0, params.forward, False), (1, params.backward, True)):
        _, one = rnnjax.unroll(conv_lstm(space, 2), p, xs, LENGTHS, reverse=reverse)
        channels = unflatten_frames(ys, space)[..., 2 * half : 2 * half + 2]
        np.testing.assert_array_equal(channels, unflatten_frames(one, space))


def test_frames_of_no_rows_and_frames_in_lists_are_made_flat_and_back():
    assert flatten_frames(np.zeros((0, 5, 3, 2)), (3,)).shape == (0, 5, 6)
    frames = np.arange(12.0).reshape(1, 2, 3, 2)
    flat = flatten_frames(frames.tolist(), (2, 3))
    np.testing.assert_array_equal(
        flat, np.concatenate([frames[..., 0], frames[..., 1]]).reshape(1, 12)
    )
    np.testing.assert_array_equal(unflatten_frames(flat.tolist(), (2, 3)), frames)


def test_a_convolution_moves_with_its_input():
    cell = conv_lstm((9,), 2)
    params = normal_like(cell.init(jax.random.key(0), 9), seed=0)._replace(bias=np.zeros(8))
    frames = np.zeros((T, 9, 1))
    frames[:, 3] = normal_like(np.zeros((T, 1)), seed=1)

    def run(frames):
        _, ys = rnnjax.unroll(cell, params, flatten_frames(frames, (9,)))
        return unflatten_frames(ys, (9,))

    shifted = run(np.roll(frames, 1, axis=1))
    # A kernel of three sees one place further at every step: the border is met after the third.
    np.testing.assert_allclose(shifted[:3, 1:], run(frames)[:3, :-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inner", [rnnjax.lstm(H), rnnjax.gru(H, reset_after=False)])
def test_the_gradient_of_a_learned_carry_is_the_sum_over_its_segments(inner):
    cell = learn_initial_carry(inner)
    params = normal_like(cell.init(jax.random.key(0), D), seed=0)
    xs, dys = normal_like((np.zeros((T, D)), np.zeros((T, H))), seed=1)

    def packed(params):
        resets = np.array([False, False, True, False])
        return (dys * rnnjax.unroll(cell, params, xs, resets=resets)[1]).sum()

    @jax.jit
    @jax.grad
    def alone(start, xs, dys):
        return (dys * rnnjax.unroll(inner, params.cell, xs, initial_carry=start)[1]).sum()

    first, second = (alone(params.initial_carry, xs[k : k + 2], dys[k : k + 2]) for k in (0, 2))
    total = jax.tree.map(np.add, first, second)
    assert_close(jax.jit(jax.grad(packed))(params).initial_carry, total, "gradient")


def test_a_given_carry_comes_before_the_learned_one_until_the_next_reset():
    cell = learn_initial_carry(rnnjax.gru(H))
    params = normal_like(cell.init(jax.random.key(0), D), seed=0)
    start, xs = normal_like((np.zeros((B, H)), np.zeros((B, T, D))), seed=1)
    resets = np.zeros((B, T), bool)
    resets[:, 2] = True
    _, ys = rnnjax.unroll(cell, params, xs, resets=resets, initial_carry=start)
    _, first = rnnjax.unroll(rnnjax.gru(H), params.cell, xs[:, :2], initial_carry=start)
    learned = np.broadcast_to(params.initial_carry, (B, H))
    _, second = rnnjax.unroll(rnnjax.gru(H), params.cell, xs[:, 2:], initial_carry=learned)
    assert_close(ys, np.concatenate([first, second], axis=1), "value")


def test_a_narrow_learned_carry_starts_a_wide_one():
    cell = learn_initial_carry(rnnjax.lstm(H))
    params = cell.init(jax.random.key(0), D)
    params = jax.tree.map(lambda a: (a + 0.1).astype(jnp.bfloat16), params)
    carry, ys = rnnjax.unroll(cell, params, jnp.ones((0, D)))
    assert {a.dtype for a in (*carry, ys)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(carry.c, params.initial_carry.c.astype(np.float32))


@pytest.mark.parametrize("make", [rnnjax.lru, rnnjax.s4d, rnnjax.s5])
def test_a_complex_learned_carry_is_trained_as_its_real_and_imaginary_parts(make):
    """The gradient by them is the way uphill; that of JAX by a complex array is its mirror."""
    inner = make(D, 3)
    cell = learn_initial_carry(inner)
    params = normal_like(cell.init(jax.random.key(0), D), seed=0)
    xs, dys = normal_like((np.zeros((T, D)), np.zeros((T, D))), seed=1)

    def value(start):
        _, ys = rnnjax.unroll(cell, params._replace(initial_carry=start), xs)
        return (dys * ys).sum()

    start = np.asarray(params.initial_carry)
    given = start[..., 0] + 1j * start[..., 1]
    alone = rnnjax.unroll(inner, params.cell, xs, initial_carry=given)[1]
    np.testing.assert_allclose(value(start), (dys * alone).sum(), rtol=1e-12)
    # The outputs are linear in the carry, so a step of any size along the gradient says all of it.
    gradient = np.asarray(jax.grad(value)(start))
    rise = value(start + gradient) - value(start)
    np.testing.assert_allclose(rise, (gradient**2).sum(), rtol=1e-9)


def test_a_learned_carry_of_another_cell_is_refused():
    cell = learn_initial_carry(rnnjax.lstm(H))
    params = cell.init(jax.random.key(0), D)
    other = learn_initial_carry(rnnjax.lstm(H + 1)).init(jax.random.key(0), D)
    for wrong in (other, params._replace(initial_carry=other.initial_carry)):
        with pytest.raises(ValueError, match=r"params\.\S+ must have shape .*, got shape"):
            rnnjax.unroll(cell, wrong, jnp.ones((T, D)))


@pytest.mark.parametrize("case", ["projected LSTM", "peephole LSTM", "ConvLSTM 2-D"])
def test_gradients_of_bfloat16_parameters_follow_those_of_float64(case):
    cell, _ = CASES[case]
    params, xs = problem(cell)[::2]
    params, xs = jax.tree.map(lambda a: jnp.asarray(0.5 * a, jnp.bfloat16), (params, xs))
    dys = normal_like(np.zeros((B, T, cell.output_size)), seed=1)

    def gradient(dtype):
        def loss(params):
            _, ys = rnnjax.unroll(cell, params, xs.astype(dtype), LENGTHS)
            return (ys * dys.astype(ys.dtype)).sum()

        return jax.jit(jax.grad(loss))(jax.tree.map(lambda a: a.astype(dtype), params))

    for a, b in zip(gradient(jnp.bfloat16), gradient(jnp.float64), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=0.03 * np.abs(b).max())


GATED = [case for case in CASES if CASES[case][0].gates is not None]


@pytest.mark.parametrize("case", GATED)
def test_traced_gates_are_those_the_carry_was_made_with(case):
    cell, _ = CASES[case]
    params, carries, xs = problem(cell)
    held = jax.tree.map(lambda a: a[0], carries)
    traced = rnnjax.trace_gates(cell)
    after, (_, gates) = rnnjax.unroll(traced, params, xs[0, :1], initial_carry=held)
    gates = jax.tree.map(lambda a: a[0], gates)
    if isinstance(after, rnnjax.LSTMCarry):
        assert_close(gates.f * held.c + gates.i * gates.g, after.c, "value")
        if case != "projected LSTM":
            assert_close(gates.o * np.tanh(after.c), after.h, "value")
    else:
        keep = gates.f if case == "minimal_gated reset after" else 1 - gates.f
        assert_close(keep * held + (1 - keep) * gates.n, after, "value")
    assert "coupled" not in case or np.all(gates.i + gates.f == 1)


def test_pytorch_rule_draws_the_projected_lstm_as_live_torch_does():
    torch = pytest.importorskip("torch", reason="torch is not installed: its rule is untested")
    ks_2samp = pytest.importorskip("scipy.stats").ks_2samp
    torch.manual_seed(0)
    size, narrow = 64, 32
    theirs = torch.nn.LSTM(D, size, proj_size=narrow)
    ours = projected_lstm(size, narrow, initializer="pytorch").init(jax.random.key(0), D)
    for got, expected in ((ours.w_hh, theirs.weight_hh_l0), (ours.w_hr, theirs.weight_hr_l0)):
        expected = expected.detach().numpy().T
        assert got.shape == expected.shape
        assert ks_2samp(np.ravel(got), expected.ravel()).pvalue > 1e-3


def test_projected_weights_start_with_orthonormal_rows_and_columns():
    params = projected_lstm(H, P).init(jax.random.key(0), D)
    for gate in np.split(np.asarray(params.w_hh, np.float64), 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(P), atol=1e-6)
    w_hr = np.asarray(params.w_hr, np.float64)
    np.testing.assert_allclose(w_hr.T @ w_hr, np.eye(P), atol=1e-6)


def test_forget_biases_open_the_gate_to_the_past():
    rule = PRESETS["rnnjax"]._replace(
        w_ih=lambda key, d, h, g: jnp.zeros((d, g * h)),
        w_hh=lambda key, h, g: jnp.zeros((h, g * h)),
        forget_bias=2.0,
    )

    def bias(make, *args, **options):
        return make(*args, initializer=rule, **options).init(jax.random.key(0), D).bias

    for got in (bias(projected_lstm, H, P), bias(peephole_lstm, H), bias(conv_lstm, (3,), H)):
        np.testing.assert_array_equal(got, np.repeat([0.0, 2.0, 0.0, 0.0], H))  # i f g o
    np.testing.assert_array_equal(bias(coupled_lstm, H), np.repeat([-2.0, 0.0, 0.0], H))  # i g o
    np.testing.assert_array_equal(bias(minimal_gated, H), np.repeat([2.0, 0.0], H))  # f n
    paper = bias(minimal_gated, H, reset_after=False)
    np.testing.assert_array_equal(paper, np.repeat([-2.0, 0.0], H))


@pytest.mark.parametrize(
    ("make", "draws"),
    [
        (coupled_lstm, [2, 2, 2]),
        (rnnjax.min_lstm, [2, 2, 2]),
        (rnnjax.gated_delta, [2, 2, 2]),
        (functools.partial(minimal_gated, reset_after=False), [2, 2]),
        (minimal_gated, [2, 1]),  # its hidden bias is the other draw of the candidate
    ],
)
def test_a_bias_is_of_two_draws_under_the_rule_of_torch(make, draws):
    rule = PRESETS["pytorch"]._replace(w_hh=lambda key, h, g: jnp.zeros((h, g * h)))
    bias = np.asarray(make(4000, initializer=rule).init(jax.random.key(0), 1).bias)
    # Each draw is uniform on [-1, 1] / sqrt(H).
    variances = np.array(draws) * (1 / 4000) / 3
    found = [gate.var() for gate in np.split(bias, len(draws))]
    np.testing.assert_allclose(found, variances, rtol=0.06)


def test_indrnn_draws_its_recurrent_weights_from_the_range_given():
    low, high = 0.9, 1.1
    w = indrnn(2000, recurrent_range=(low, high)).init(jax.random.key(0), 1).w_hh
    assert low <= w.min() < low + 1e-3
    assert high - 1e-3 < w.max() <= high
    np.testing.assert_allclose(w.mean(), 1.0, atol=0.01)


def test_both_kernels_of_a_convolution_follow_the_rule_of_flax():
    channels, size, kernel = 16, 32, (5,)
    ours = conv_lstm((6,), size, kernel, initializer="flax").init(jax.random.key(0), 6 * channels)
    assert ours.w_ih.shape == (*kernel, channels, 4 * size)
    flax_cell = linen().ConvLSTMCell(size, kernel)
    xs = jnp.zeros((6, channels))
    with jax.numpy_rank_promotion("allow"):
        start = flax_cell.initialize_carry(jax.random.key(0), xs.shape)
        theirs = flax_cell.init(jax.random.key(1), start, xs)["params"]
    for w, name in ((ours.w_ih, "ih"), (ours.w_hh, "hh")):
        np.testing.assert_allclose(w.std(), theirs[name]["kernel"].std(), rtol=0.03)


BAD = {
    "projection_size must be at most hidden_size 4, got 5": lambda: projected_lstm(4, 5),
    "projection_size must be a positive integer, got 0": lambda: projected_lstm(4, 0),
    "hidden_size must be a positive integer, got -1": lambda: peephole_lstm(-1),
    "recurrent_range must be two finite numbers .* got \\(1.0, 0.0\\)": lambda: indrnn(
        4, recurrent_range=(1.0, 0.0)
    ),
    "recurrent_range must be two finite numbers .* got 0.5": lambda: indrnn(4, recurrent_range=0.5),
    "cell must be a rnnjax.Cell, got Layer": lambda: learn_initial_carry(
        rnnjax.recurrent(rnnjax.lstm(4))
    ),
    "spatial_shape must be a tuple of positive integers, got 3": lambda: conv_lstm(3, 4),
    "spatial_shape\\[1\\] must be a positive integer, got 0": lambda: conv_lstm((3, 0), 4),
    "one size for each of the 2 spatial axes, got \\(3,\\)": lambda: conv_lstm((3, 3), 4, (3,)),
    "multiple of 9 features, got 10": lambda: conv_lstm((3, 3), 4).init(jax.random.key(0), 10),
    "frames must have 1 channels .* got 2 channels": lambda: conv_lstm((3,), 4).project(
        conv_lstm((3,), 4).init(jax.random.key(0), 3), jnp.ones(6)
    ),
    "frames must have shape .*3.* got shape \\(2, 4, 1\\)": lambda: flatten_frames(
        jnp.ones((2, 4, 1)), (3,)
    ),
    "initializer must be one of .* got 'he'": lambda: minimal_gated(4, initializer="he"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()

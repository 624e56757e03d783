"""One step: the carry and outputs of the whole sequence, the bits of a stream, inside and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, D, H

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
B, T = 2, 5
XS = jax.random.normal(jax.random.key(1), (B, T, D))
LAYERS = {
    "stack": rnnjax.stack(rnnjax.lstm(H), rnnjax.gru(H, reset_after=False)),
    "residual": rnnjax.stack(rnnjax.gru(H), rnnjax.residual(rnnjax.lru(H))),
    "skip_stack": rnnjax.skip_stack(rnnjax.lstm(H), rnnjax.gru(H)),
    "many_arrays_in_the_carry": rnnjax.stack(*[rnnjax.indrnn(H)] * 6, rnnjax.lru(H)),
    "output_head": rnnjax.output_head(rnnjax.lstm(H), 2, jnp.tanh),
    "associative": rnnjax.recurrent(rnnjax.min_lstm(H), implementation="associative"),
    "grid": rnnjax.grid_lstm(H, 2, priority=None),
    "grid_of_depth": rnnjax.grid_lstm(H, 2, dimensions=1),
    "bfloat16": rnnjax.with_policy(
        rnnjax.stack(rnnjax.lstm(H), rnnjax.gru(H)),
        rnnjax.Policy("bfloat16", "bfloat16", "bfloat16"),
    ),
    "transformed": rnnjax.recurrent(
        rnnjax.zoneout(rnnjax.layer_norm(rnnjax.learn_initial_carry(rnnjax.lstm(H))), 0.1)
    ),
}
PARTS = {**CELLS, **LAYERS}


def as_layer(part):
    return rnnjax.recurrent(part) if isinstance(part, rnnjax.Cell) else part


def close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.complex64), np.asarray(b, np.complex64), rtol=tolerance, atol=1e-6
        ),
        found,
        expected,
    )


def same_bits(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", PARTS)
def test_steps_give_what_apply_gives_and_the_bits_of_a_stream(name):
    part = PARTS[name]
    params = part.init(KEY, D)
    expected = as_layer(part).apply(params, XS)
    streamed = rnnjax.make_stream(part)(params, XS)
    carry, ys = None, []
    for t in range(T):
        carry, y = part.step(params, carry, XS[:, t])
        ys.append(y)
    stepped = carry, jax.tree.map(lambda *a: jnp.stack(a, 1), *ys)
    same_bits(stepped, streamed)
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    close(stepped, expected, tolerance)
    assert jax.tree.map(jax.typeof, stepped) == jax.tree.map(jax.typeof, expected)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "stack", "bfloat16", "transformed"])
def test_a_step_is_a_body_for_scan_from_the_initial_carry(name):
    """Also: the carry has the same structure, shapes and dtypes before and after."""
    layer = as_layer(PARTS[name])
    params = layer.init(KEY, D)

    @jax.jit
    def run(xs):
        start = layer.initial_carry(params, (B,))
        return jax.lax.scan(
            lambda carry, x: layer.step(params, carry, x), start, jnp.swapaxes(xs, 0, 1)
        )

    carry, ys = run(XS)
    expected, outputs = layer.apply(params, XS)
    tolerance = 2e-2 if name == "bfloat16" else 1e-5
    close((carry, ys), (expected, jnp.swapaxes(outputs, 0, 1)), tolerance)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_batch_axes(batch):
    layer = LAYERS["stack"]
    params, x = layer.init(KEY, D), jax.random.normal(KEY, (*batch, D))
    carry, y = layer.step(params, None, x)
    assert y.shape == (*batch, H)
    expected, ys = layer.apply(params, x[..., None, :])
    close((carry, y), (expected, ys[..., 0, :]))
    start = layer.initial_carry(params, batch)
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, carry)
    same_bits(layer.step(params, start, x), (carry, y))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["learned_carry", "stack"])
def test_a_mask_holds_the_carry_and_a_reset_returns_to_the_first_one(name, compiled):
    part = PARTS[name]
    params = jax.tree.map(lambda a: a + 0.1, part.init(KEY, D))
    step = jax.jit(part.step) if compiled else part.step
    carry, _ = step(params, None, XS[:, 0])
    x = XS[:, 1].at[0].set(jnp.nan)
    mask, resets = np.array([False, True]), np.array([True, True])
    held, y = step(params, carry, x, mask=mask, resets=resets)
    anew, y_anew = step(params, None, XS[:, 1])
    first, second = (lambda tree, b=b: jax.tree.map(lambda a: a[b], tree) for b in (0, 1))
    same_bits(first(held), first(carry))
    close(second((held, y)), second((anew, y_anew)), 1e-6)
    assert np.all(y[0] == 0)


def test_gradients_through_steps_are_those_of_the_sequence():
    layer = LAYERS["stack"]
    params = layer.init(KEY, D)

    def by_steps(params):
        carry, total = None, 0.0
        for t in range(T):
            carry, y = layer.step(params, carry, XS[:, t])
            total += jnp.sum(y**2)
        return total

    whole = jax.grad(lambda p: jnp.sum(layer.apply(p, XS)[1] ** 2))(params)
    close(jax.grad(by_steps)(params), whole)


def test_many_steps_are_compiled_once_and_for_equal_layers_too():
    traces = []

    def activation(x):
        traces.append(1)
        return jnp.tanh(x)

    params = rnnjax.vanilla(H, activation).init(KEY, D)
    carry = rnnjax.recurrent(rnnjax.vanilla(H, activation)).initial_carry(params, (B,))
    counts = []
    for t in range(T):
        layer = rnnjax.recurrent(rnnjax.vanilla(H, activation))
        carry, _ = layer.step(params, carry, XS[:, t])
        counts.append(len(traces))
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_flags_that_say_nothing_change_no_bit_and_each_kind_of_call_is_one_program(kind):
    layer = LAYERS["stack"]
    params, xs = layer.init(KEY, D), kind(XS)
    carry, _ = layer.step(params, None, xs[:, 0])
    plain = layer.step(params, carry, xs[:, 1])
    every, none = kind(np.ones(B, bool)), kind(np.zeros(B, bool))
    for flags in ({"mask": every}, {"resets": none}, {"mask": every, "resets": none}):
        same_bits(layer.step(params, carry, xs[:, 1], **flags), plain)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for flags in ({}, {"mask": every}, {"resets": none}, {"mask": every, "resets": none}):
        layer.step(params, carry, xs[:, 2], **flags)
    assert compiled == []


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": 1.0}, r"x must have shape \[\.\.\., D\], got shape \(\)"),
        ({"x": np.ones((B, D), int)}, r"x must be of floating dtype.* x\.astype\(float\)"),
        ({"x": np.ones((B, D + 1))}, r"^x must have size 3 .*, got size 4"),
        ({"carry": (np.ones((B, H)),) * 2}, r"^carry must be LSTMCarry\(h, c\), got a tuple of 2"),
        (
            {"carry": rnnjax.LSTMCarry(np.ones((B + 1, H)), np.ones((B, H)))},
            r"^carry\.h must have shape \(2, 4\), got shape \(3, 4\)",
        ),
        ({"mask": np.ones(B)}, "mask must be of dtype bool"),
        ({"resets": np.ones(B + 1, bool)}, r"resets must have the batch shape of x, \(2,\)"),
    ],
)
def test_what_does_not_fit_is_named_at_every_call(arguments, message, kind):
    """Of arrays of JAX too, of which shapes and dtypes are looked at where a step is compiled."""
    cell = rnnjax.lstm(H)
    given = {"params": cell.init(KEY, D), "carry": None, "x": np.ones((B, D))}
    given |= {name: jax.tree.map(kind, value) for name, value in arguments.items()}
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            cell.step(**given)
        with pytest.raises(ValueError, match=message):
            jax.jit(lambda params: cell.step(**given | {"params": params}))(given["params"])


def test_inputs_are_called_by_the_name_of_the_argument_that_brought_them():
    layer = rnnjax.stack(rnnjax.residual(rnnjax.lstm(D)), rnnjax.gru(H))
    params, x = layer.init(KEY, D), jnp.ones((B, D + 1))
    message = f"must have size {D} in the last axis .*, got size {D + 1}"
    for step in (layer.step, jax.jit(layer.step)):
        with pytest.raises(ValueError, match=f"^x {message}"):
            step(params, None, x)
    stream = rnnjax.make_stream(layer)
    for xs in (x[:, None], jnp.stack([x, x], 1)):
        with pytest.raises(ValueError, match=f"^xs {message}"):
            stream(params, xs)


def test_a_layer_made_by_hand_steps_once_it_says_that_it_is_causal():
    layer = rnnjax.Layer(
        init=lambda key, size: (),
        apply=lambda params, xs, lengths=None, **_: ((), 2 * xs),
        output_size=D,
        last=lambda ys, valid: ys[..., -1, :],
    )
    with pytest.raises(ValueError, match="direction='forward'"):
        layer.step((), (), XS[:, 0])
    causal = layer._replace(direction="forward", initial_carry=lambda params, batch_shape=(): ())
    np.testing.assert_array_equal(causal.step((), None, XS[:, 0])[1], 2 * XS[:, 0])
    with pytest.raises(ValueError, match="needs a layer that was made with initial_carry"):
        layer._replace(direction="forward").step((), None, XS[:, 0])


@pytest.mark.parametrize("compiled", [False, True])
def test_several_inputs_a_step(compiled):
    """A cell that embeds a token beside its vector."""
    plain = rnnjax.gru(H)

    def project(params, x):
        return plain.project(params, x["vector"] + params.bias[:D] * x["token"].astype(float))

    cell = plain._replace(project=project)
    params = cell.init(KEY, D)
    params = params._replace(bias=params.bias + 0.3)
    xs = {"vector": XS, "token": jnp.arange(B * T).reshape(B, T, 1)}
    expected, ys = rnnjax.unroll(cell, params, xs)
    step, carry = jax.jit(cell.step) if compiled else cell.step, None
    for t in range(T):
        carry, y = step(params, carry, jax.tree.map(lambda a, t=t: a[:, t], xs))
        close(y, ys[:, t])
    close(carry, expected)
    with pytest.raises(ValueError, match=r"x\['vector'\] must have the batch axes \(2,\)"):
        cell.step(params, None, {"token": jnp.ones((B, 1), int), "vector": XS[0, 0]})

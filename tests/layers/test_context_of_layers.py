"""Constants of a sequence through layers, steps and streams: what ``unroll`` makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, D, H = 2, 3, 3, 3
XS = jax.random.normal(jax.random.key(1), (B, T, D))
GIVEN = jax.random.normal(jax.random.key(2), (B, H))
LENGTHS = [3, 2]
GRU = rnnjax.gru(H)


def biased():
    """A simple cell with a bias of each sequence."""

    def init(key, input_size):
        ih, hh = jax.random.split(key)
        return jax.random.normal(ih, (input_size, H)), jax.random.normal(hh, (H, H))

    def update(params, h, x_proj, h_proj, context):
        h = jnp.tanh(x_proj[0] + h_proj[0] + context)
        return h, h

    return rnnjax.Cell(
        output_size=H,
        init=init,
        initial_carry=lambda params: jnp.zeros(H),
        project=lambda params, x: (x @ params[0],),
        recurrent=lambda params: params[1],
        hidden=lambda h: h,
        update=update,
        context=lambda params, given: 2 * given,
    )


CELL = biased()


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_a_stack_gives_each_layer_its_own():
    stack = rnnjax.stack(GRU, rnnjax.residual(CELL))
    params = stack.init(jax.random.key(0), D)
    carry, ys = stack.apply(params, XS, LENGTHS, context=(None, GIVEN))
    below, hs = rnnjax.unroll(GRU, params[0], XS, LENGTHS)
    above, more = rnnjax.unroll(CELL, params[1], hs, LENGTHS, context=GIVEN)
    close((carry, ys), ((below, above), hs + more))


def test_so_do_skip_stacks_and_the_two_directions():
    stack = rnnjax.skip_stack(CELL, GRU)
    params = stack.init(jax.random.key(0), D)
    _, ys = stack.apply(params, XS, context=(GIVEN, None))
    below = rnnjax.unroll(CELL, params[0], XS, context=GIVEN)[1]
    above = rnnjax.unroll(GRU, params[1], jnp.concatenate([XS, below], -1))[1]
    close(ys, jnp.concatenate([below, above], -1))

    both = rnnjax.bidirectional(CELL)
    params = both.init(jax.random.key(0), D)
    _, ys = both.apply(params, XS, LENGTHS, context=(GIVEN, -GIVEN))
    ahead = rnnjax.unroll(CELL, params.forward, XS, LENGTHS, context=GIVEN)[1]
    back = rnnjax.unroll(CELL, params.backward, XS, LENGTHS, context=-GIVEN, reverse=True)[1]
    close(ys, jnp.concatenate([ahead, back], -1))


def test_steps_and_streams_take_it_as_the_whole_sequence_does():
    stack = rnnjax.stack(GRU, rnnjax.output_head(CELL, 2))
    params, context = stack.init(jax.random.key(0), D), (None, GIVEN)
    expected = stack.apply(params, XS, context=context)
    stream = rnnjax.make_stream(stack)
    close(stream(params, XS, context=context), expected)
    carry, inside, outputs = None, None, []
    for x in jnp.moveaxis(XS, 1, 0):
        inside, _ = jax.jit(stack.step)(params, inside, x, context=context)
        carry, y = stack.step(params, carry, x, context=context)
        outputs.append(y)
    close((carry, jnp.stack(outputs, 1)), expected)
    close(inside, expected[0])
    _, one = stream(params, XS[:, :1], context=context)
    np.testing.assert_array_equal(one[:, 0], outputs[0])


def test_what_does_not_fit_is_refused():
    stack = rnnjax.stack(GRU, CELL)
    params = stack.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="context must be a tuple of 2 parts"):
        stack.apply(params, XS, context=GIVEN)
    with pytest.raises(ValueError, match="context must be None for a cell without"):
        stack.apply(params, XS, context=(GIVEN, None))
    with pytest.raises(ValueError, match="context must be given to a cell"):
        stack.step(params, None, XS[:, 0])

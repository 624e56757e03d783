"""What the derivative keeps of a forward run, counted: bytes a step, and of them per hidden unit.

Nothing runs here: ``jax.vjp`` says which arrays its pullback holds. Kept in any case, and of no
size that grows with the steps: the weights.
"""

import jax
import jax.numpy as jnp
import pytest

import rnnjax

B, D, H = 3, 5, 7

# Numbers a step, a sequence and a hidden unit. An LSTM keeps h, c, tanh(c) and its four gates in
# what its derivative is made of; a GRU h and five; a vanilla cell h and its output.
KEPT = {"vanilla": 2, "gru": 6, "lstm": 7}
CARRIES = {"vanilla": 1, "gru": 1, "lstm": 2}


def residual_bytes(name, steps, hidden, remat, dtype=jnp.float32, **options):
    cell = getattr(rnnjax, name)(hidden)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)
    xs = jax.ShapeDtypeStruct((B, steps, D), dtype)

    def pullback(params, xs):
        return jax.vjp(
            lambda params, xs: rnnjax.unroll(cell, params, xs, remat=remat, **options)[1],
            params,
            xs,
        )[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, params, xs))
    return sum(a.size * a.dtype.itemsize for a in kept)


def bytes_per_step(name, hidden, remat, **options):
    """The growth from 12 to 24 steps, a sequence and a step."""
    few, many = (residual_bytes(name, steps, hidden, remat, **options) for steps in (12, 24))
    return (many - few) / 12 / B


def bytes_per_unit(name, remat, **options):
    """The growth of that from H to 2 H units, a unit: what does not depend on them cancels."""
    few, many = (bytes_per_step(name, hidden, remat, **options) for hidden in (H, 2 * H))
    return (many - few) / H


@pytest.mark.parametrize("name", KEPT)
def test_a_step_keeps_so_many_numbers_per_hidden_unit_and_its_input(name):
    assert bytes_per_unit(name, "never") == 4 * KEPT[name]
    assert bytes_per_step(name, H, "never") == 4 * (KEPT[name] * H + D)


@pytest.mark.parametrize("name", KEPT)
def test_recomputed_chunks_keep_their_first_carry_and_the_inputs(name):
    assert bytes_per_step(name, H, "step") == 4 * (CARRIES[name] * H + D)
    assert bytes_per_step(name, H, 4) == 4 * (CARRIES[name] * H / 4 + D)
    assert bytes_per_step(name, H, 12) == 4 * (CARRIES[name] * H / 12 + D)


@pytest.mark.parametrize("name", KEPT)
def test_running_backwards_keeps_no_more(name):
    assert bytes_per_unit(name, "never", reverse=True) == 4 * KEPT[name]


def test_bfloat16_halves_the_inputs_and_keeps_the_state_whole():
    lstm = bytes_per_step("lstm", H, "step", dtype=jnp.bfloat16)
    assert lstm == 4 * CARRIES["lstm"] * H + 2 * D


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("remat", [12, 13, 1000])
def test_one_chunk_that_is_as_long_as_the_sequence_keeps_its_inputs_alone(name, remat):
    """A longer sequence of one chunk: no carry more than the first one, and no gate."""
    few, many = (residual_bytes(name, steps, H, max(remat, 24)) for steps in (12, 24))
    assert (many - few) / 12 / B == 4 * D
    assert residual_bytes(name, 12, H, remat) < residual_bytes(name, 12, H, "never") / 2


def test_attention_keeps_no_number_for_each_unit_of_each_place_of_a_memory():
    """A query meets S keys of size A in a tanh of [S, A]: kept of it are weights, [S]."""
    cell = rnnjax.attention_cell(rnnjax.gru(H), 4)
    params = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))

    def kept(places, steps):
        def pullback(params, xs, states):
            memory = rnnjax.Memory(states, jnp.ones((B, places), bool))

            def run(params, xs, states):
                context = memory._replace(states=states)
                return rnnjax.unroll(cell, params, xs, context=context)[1].output

            return jax.vjp(run, params, xs, states)[1]

        shapes = [(B, steps, D), (B, places, 4)]
        given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(pullback, params, *given)))

    def per_place(steps):
        return (kept(200, steps) - kept(100, steps)) / 100 / B

    # Of a place and a step the weight, and from which numbers the softmax made it.
    assert (per_place(20) - per_place(10)) / 10 <= 4

"""Which way a layer runs follows from how it is put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

AHEAD = rnnjax.recurrent(rnnjax.gru(2))
BACK = rnnjax.recurrent(rnnjax.gru(2), reverse=True)
BY_HAND = rnnjax.Layer(lambda key, size: (), lambda *a, **k: ((), a[1]), 2, lambda ys, valid: ys)


@pytest.mark.parametrize(
    ("layer", "direction"),
    [
        (AHEAD, "forward"),
        (BACK, "backward"),
        (rnnjax.bidirectional(rnnjax.gru(2)), "both"),
        (rnnjax.stack(AHEAD, rnnjax.lstm(2)), "forward"),
        (rnnjax.stack(BACK, BACK), "backward"),
        (rnnjax.stack(AHEAD, BACK), "both"),
        (rnnjax.stack(AHEAD, BY_HAND), "unknown"),
        (rnnjax.skip_stack(AHEAD, AHEAD), "forward"),
        (rnnjax.grid_lstm(2, 2), "forward"),
        (rnnjax.grid_lstm(2, 2, reverse=True), "backward"),
        (rnnjax.skip_stack(AHEAD, BACK), "both"),
        (rnnjax.residual(BACK), "backward"),
        (rnnjax.output_head(BACK, 3), "backward"),
        (rnnjax.output_head(AHEAD, 3), "forward"),
        (rnnjax.with_policy(rnnjax.stack(BACK), rnnjax.Policy(compute="bfloat16")), "backward"),
    ],
)
def test_the_direction_of_a_composition(layer, direction):
    assert layer.direction == direction
    assert layer.causal == (direction == "forward")


@pytest.mark.parametrize(
    ("forward", "backward", "half"),
    [
        (AHEAD, AHEAD, "backward"),
        (rnnjax.gru(2), rnnjax.stack(AHEAD, AHEAD), "backward"),
        (BACK, BACK, "forward"),
        (BACK, rnnjax.gru(2), "forward"),
    ],
)
def test_two_halves_of_one_direction_are_refused(forward, backward, half):
    with pytest.raises(ValueError, match=f"{half} must run (forwards|in reverse), got"):
        rnnjax.bidirectional(forward, backward)


def test_the_refusal_says_how_to_make_the_other_direction():
    for wrong in ((AHEAD, AHEAD), (AHEAD,)):
        with pytest.raises(ValueError, match=r"recurrent\(cell, reverse=True\)"):
            rnnjax.bidirectional(*wrong)


def test_two_layers_of_opposite_directions_are_the_two_cells():
    one, two = rnnjax.bidirectional(AHEAD, BACK), rnnjax.bidirectional(rnnjax.gru(2))
    params = one.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (4, 3))
    assert jnp.array_equal(one.apply(params, xs)[1], two.apply(params, xs)[1])


@pytest.mark.parametrize("outputs", [1, 5])
@pytest.mark.parametrize("make", [rnnjax.output_head, rnnjax.gated])
@pytest.mark.parametrize(
    ("inner", "place"),
    [
        (AHEAD, 3),
        (BACK, 1),
        (rnnjax.bidirectional(rnnjax.gru(2)), 3),
        (rnnjax.skip_stack(AHEAD, AHEAD), 3),
    ],
)
def test_the_last_of_outputs_that_mix_all_of_a_step_is_of_one_step(make, inner, place, outputs):
    ys = np.arange(5.0 * outputs).reshape(1, 5, outputs)
    valid = np.array([[False, True, True, True, False]])
    found = make(inner, outputs).last(ys, valid)
    np.testing.assert_array_equal(found[0], ys[0, place])


@pytest.mark.parametrize("make", [rnnjax.output_head, rnnjax.gated])
def test_a_classifier_takes_the_last_of_such_a_layer(make):
    model = rnnjax.classifier(None, make(rnnjax.bidirectional(rnnjax.gru(4)), 2), 3)
    params = model.init(jax.random.key(0), 2)
    assert model.apply(params, jnp.ones((2, 5, 2)), [5, 3]).shape == (2, 3)


@pytest.mark.parametrize(
    "layer",
    [
        rnnjax.bidirectional(rnnjax.gru(4)),
        rnnjax.stack(rnnjax.gru(2), rnnjax.bidirectional(rnnjax.gru(4))),
        rnnjax.skip_stack(rnnjax.gru(4), rnnjax.gru(4)),
    ],
)
@pytest.mark.parametrize("width", [3, 4, 6, 12])
def test_of_summed_or_projected_outputs_the_last_is_not_taken(layer, width):
    """The halves of both directions, or the parts of a stack, cannot be told apart in them."""
    message = rf"ys must be the outputs of this layer, of size 8 in .*, got shape \(2, 5, {width}\)"
    with pytest.raises(ValueError, match=message):
        layer.last(jnp.ones((2, 5, width)), None)
    assert layer.last(jnp.ones((2, 5, 8)), None).shape == (2, 8)

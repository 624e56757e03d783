"""The targets of a model of a series: each fault is told of them, not of the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax

B, T, D = 3, 4, 3
HEADS = {
    "keys": rnnjax.bernoulli_head(D),
    "ids": rnnjax.categorical_head(5),
    "joint": rnnjax.joint_head(rnnjax.gaussian_mixture_head(2, 2), rnnjax.bernoulli_head(1)),
    "quantiles": rnnjax.quantile_head(size=D),
}
WRONG = {
    "a step less": (lambda a: a[:, 1:], r"targets must have shape \(3, 4.*, got shape \(3, 3"),
    "one sequence": (lambda a: a[:1], r"targets must have shape \(3, 4.*, got shape \(1, 4"),
    "rows": (lambda a: [[1, 2], [3]], "targets must be one array, got rows of unequal size"),
    "a text": (lambda a: "ab", "targets must be an array of numbers, got str"),
    "none": (lambda a: None, "targets must be an array of numbers, got NoneType"),
    "complex": (lambda a: a + 1j, "targets must be (real|integers), got dtype complex64"),
    "masked": (
        lambda a: np.ma.masked_array(a, np.ones(np.shape(a), bool)),
        "targets must be a plain array, got one with masked numbers",
    ),
}


def problem(name):
    model = rnnjax.series_model(rnnjax.gru(2), HEADS[name])
    values = jnp.ones((B, T, *model.head.value_shape), int if name == "ids" else float)
    return model, model.init(jax.random.key(0)), values


MEASURES = [(name, "loss") for name in HEADS]
MEASURES += [(name, "score") for name in HEADS if name != "quantiles"]  # which have no density


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize(("name", "measure"), MEASURES)
def test_targets_that_do_not_fit_are_named(name, measure, case):
    model, params, values = problem(name)
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(model, measure)(params, (values, change(values)))


def test_ids_are_whole_numbers_and_vectors_have_their_size():
    model, params, values = problem("ids")
    with pytest.raises(ValueError, match=r"^targets must be integers, got dtype float32"):
        model.loss(params, (values, values * 1.0))
    model, params, values = problem("joint")
    with pytest.raises(
        ValueError, match=r"^targets must have shape \[..., 3\], got .* \(3, 4, 2\)"
    ):
        model.loss(params, (values, values[..., 1:]))
    with pytest.raises(ValueError, match=r"^values must have shape"):
        model.loss(params, (values[..., 1:], values))


def test_a_head_of_ones_own_may_take_targets_of_another_form():
    model, params, values = problem("keys")

    def loss(logits, targets, mask=None):
        if set(targets) != {"goal"}:
            raise ValueError(f"targets must be a dict of goal, got {targets}")
        errors = jnp.square(logits[..., 0] - targets["goal"])
        return jnp.sum(errors), jnp.array(errors.size)

    own = rnnjax.series_model(rnnjax.gru(2), model.head._replace(loss=loss))
    goal = jnp.arange(B * T, dtype=float).reshape(B, T)
    logits = np.asarray(model.apply(params, values)[1], np.float64)
    total, count = own.loss(params, (values, {"goal": goal}))[1]
    np.testing.assert_allclose(total, np.square(logits[..., 0] - goal).sum(), rtol=1e-5)
    assert count == B * T
    with pytest.raises(ValueError, match=r"^targets must be a dict of goal, got "):
        own.loss(params, (values, {"aim": goal}))


def test_an_error_that_is_not_about_targets_stays_what_it_is():
    model, params, values = problem("quantiles")
    with pytest.raises(ValueError, match="log_prob needs a density, and quantile_head has none"):
        model.score(params, (values, values))

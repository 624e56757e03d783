"""Optimizers that look at the loss, and what cannot work refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax.metrics import Mean
from rnnjax.training import (
    apply_gradients,
    init_train_state,
    make_accumulating_step,
    make_train_step,
)

X = jnp.array([[1.0, 0.0], [0.0, 3.0]])


def quadratic(params, batch, key):
    """|X p - 1|², least at (1, 1/3)."""
    loss = jnp.square(X @ params - 1.0).sum()
    return loss, {"loss": (loss, jnp.array(1.0))}


def run(optimizer, steps, make=make_train_step, batch=None):
    state = init_train_state(jax.random.key(0), jnp.array([3.0, -2.0]), optimizer)
    step = make(quadratic, optimizer)
    for _ in range(steps):
        state, _ = step(state, batch)
    assert len(step.compilations) == 1
    assert state.skipped == 0
    return state


def test_polyak_steps_are_as_long_as_the_loss_says():
    """Rate = loss / |gradient|², in NumPy."""
    params, x = np.array([3.0, -2.0]), np.asarray(X, np.float64)
    for _ in range(4):
        error = x @ params - 1
        gradient = 2 * x.T @ error
        params = params - (error**2).sum() / (gradient**2).sum() * gradient
    state = run(optax.polyak_sgd(max_learning_rate=10.0), 4)
    np.testing.assert_allclose(state.params, params, rtol=1e-4)


def test_a_plateau_of_the_loss_lowers_the_rate():
    """The rate of 0 keeps the loss where it is, so that it never improves."""
    optimizer = optax.chain(
        optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2, cooldown=0)
    )
    state = run(optimizer, 7)
    # The first loss is the best; each two steps that bring no better one halve the rate.
    assert state.opt_state[1].scale == 0.5**3
    assert state.opt_state[1].best_value == pytest.approx(4 + 49)


def test_a_line_search_finds_the_least_loss():
    """Of a quadratic in two variables, in a few steps; the search calls the loss itself."""
    np.testing.assert_allclose(run(optax.lbfgs(), 6).params, [1, 1 / 3], atol=1e-4)
    backtracking = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))
    np.testing.assert_allclose(run(backtracking, 60).params, [1, 1 / 3], atol=1e-3)


def test_the_loss_that_an_optimizer_calls_has_the_noise_of_the_step():
    def noisy(params, batch, key):
        loss = jnp.square(params - jax.random.normal(key, params.shape)).sum()
        return loss, {"loss": (loss, jnp.array(1.0))}

    def narrow(*given):
        loss, metrics = noisy(*given)
        return loss.astype(jnp.bfloat16), metrics

    dtypes = set()

    def update(grads, state, params, *, value, value_fn, **_):
        dtypes.update((value.dtype.name, value_fn(params).dtype.name))
        return jnp.full_like(params, value_fn(params) - value), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    state = init_train_state(jax.random.key(0), jnp.zeros(2), optimizer)
    step = make_train_step(noisy, optimizer)
    for _ in range(2):
        state, metrics = step(state, None)
        np.testing.assert_allclose(state.params, np.zeros(2), atol=1e-6)
        assert metrics["loss"][0] > 0.1
    jax.eval_shape(make_train_step(narrow, optimizer), state, None)
    assert dtypes == {"float32"}


def test_sharpness_aware_steps_take_the_gradient_uphill():
    """The step of SAM in NumPy: the gradient at the point a step of length 0.1 uphill."""
    params, x = np.array([3.0, -2.0]), np.asarray(X, np.float64)
    for _ in range(3):
        uphill = 2 * x.T @ (x @ params - 1)
        there = params + 0.1 * uphill / np.linalg.norm(uphill)
        params = params - 0.05 * 2 * x.T @ (x @ there - 1)
    rise = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    for opaque, steps in ((True, 3), (False, 6)):
        sam = optax.contrib.sam(optax.sgd(0.05), rise, sync_period=2, opaque_mode=opaque)
        np.testing.assert_allclose(run(sam, steps).params, params, rtol=1e-5)


def test_several_steps_of_gradients_reach_what_looks_at_the_loss():
    inner = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    multi = optax.MultiSteps(inner, 2)
    params = jnp.array([3.0, -2.0])
    opt_state = multi.init(params)
    for _ in range(4):
        value, grads = jax.value_and_grad(lambda p: quadratic(p, None, None)[0])(params)
        updates, opt_state = multi.update(grads, opt_state, params, value=value)
        params = optax.apply_updates(params, updates)
    for optimizer in (multi, multi.gradient_transformation()):
        np.testing.assert_allclose(run(optimizer, 4).params, params, rtol=1e-6)


def test_curvature_is_estimated_with_the_loss_of_the_step():
    """As plain Optax does it with the loss of its own."""
    sophia, params = optax.contrib.sophia(0.01), jnp.array([3.0, -2.0])
    opt_state = sophia.init(params)

    def loss(params):
        return quadratic(params, None, None)[0]

    for _ in range(3):
        grads = jax.grad(loss)(params)
        updates, opt_state = sophia.update(grads, opt_state, params, obj_fn=loss)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(run(sophia, 3).params, params, rtol=1e-6)


def test_a_state_that_changes_its_structure_is_refused():
    def update(updates, state, params=None):
        return updates, {"seen": jnp.ones(())}

    growing = optax.GradientTransformation(lambda params: {}, update)
    with pytest.raises(ValueError, match=r"optimizer must keep the structure of its state, .*seen"):
        run(optax.chain(optax.sgd(0.1), growing), 1)


GRADIENT = {"w": jnp.ones(3), "b": jnp.ones(())}


@pytest.mark.parametrize(
    ("loss", "grads", "message"),
    [
        (1.0, GRADIENT | {"w": jnp.ones(())}, r"grads\['w'\] must have shape \(3,\), .* got shape"),
        (1.0, GRADIENT | {"w": jnp.ones(4)}, r"grads\['w'\] must have shape .* got shape \(4,\)"),
        (1.0, {"w": jnp.ones(3)}, "grads must be a tree like state.params, .*, got "),
        (jnp.ones(3), GRADIENT, r"loss must be a floating scalar, got float32\[3\]"),
        ((jnp.ones(()), {}), GRADIENT, "loss must be a floating scalar, got "),
        (Mean.of(jnp.ones(2)), GRADIENT, "loss must be a floating scalar, got a Mean: give loss.v"),
        (GRADIENT, jnp.ones(()), "grads must be a tree like"),
    ],
)
def test_a_gradient_of_another_form_is_refused_by_name(loss, grads, message):
    params, optimizer = {"w": jnp.ones(3), "b": jnp.zeros(())}, optax.adam(0.1)
    state = init_train_state(jax.random.key(0), params, optimizer)
    with pytest.raises(ValueError, match=message):
        apply_gradients(state, optimizer, loss, grads)


def test_what_the_loss_decides_works_over_micro_batches_too():
    halves = jnp.zeros((2, 3))
    state = run(optax.polyak_sgd(max_learning_rate=10.0), 2, make_accumulating_step, halves)
    np.testing.assert_allclose(
        state.params, run(optax.polyak_sgd(max_learning_rate=10.0), 2).params, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("first", "other"),
    # Optax's sgd takes Adam's state and leaves it as it is; Adam trips over that of sgd.
    [(optax.adam(0.1), optax.sgd(0.1)), (optax.sgd(0.1), optax.adam(0.1))],
)
def test_the_state_of_another_optimizer_is_refused(first, other):
    state = init_train_state(jax.random.key(0), jnp.ones(2), first)
    with pytest.raises(ValueError, match="give init_train_state the same optimizer"):
        make_train_step(quadratic, other)(state, None)


def test_an_argument_that_no_step_has_is_refused_by_name():
    def update(updates, state, params=None, *, hessian, **extra):
        return updates, state

    optimizer = optax.chain(
        optax.GradientTransformationExtraArgs(lambda params: (), update), optax.sgd(0.1)
    )
    message = "optimizer must need none but value, grad, value_fn .* that needs 'hessian'"
    with pytest.raises(ValueError, match=message):
        run(optimizer, 1)
    with pytest.raises(ValueError, match=r"none but value, grad beside .* needs 'value_fn'"):
        run(optax.lbfgs(), 1, make_accumulating_step, jnp.zeros((2, 3)))
    sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True)
    with pytest.raises(ValueError, match=r"none but value, grad beside .* needs grad_fn"):
        run(sam, 1, make_accumulating_step, jnp.zeros((2, 3)))
    state = init_train_state(jax.random.key(0), jnp.ones(2), optax.lbfgs())
    with pytest.raises(ValueError, match="needs 'value_fn'"):
        apply_gradients(state, optax.lbfgs(), jnp.array(1.0), jnp.ones(2))


@pytest.mark.filterwarnings("ignore")  # Optax itself warns of what is refused here
def test_lookahead_is_refused_by_name_however_it_is_wrapped():
    lookahead = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(jnp.ones(2))
    for optimizer, params in (
        (lookahead, jnp.ones(2)),
        (optax.chain(optax.clip_by_global_norm(1.0), lookahead), jnp.ones(2)),
        (lookahead, pair),
    ):
        with pytest.raises(ValueError, match=r"got optax\.lookahead"):
            init_train_state(jax.random.key(0), params, optimizer)

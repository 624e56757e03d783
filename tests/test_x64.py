"""With ``jax_enable_x64`` what is float32 stays it; no program mixes dtypes (strict promotion)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import D, H
from mesh_cases import CASES as ALL
from mesh_cases import FLAGS, VECTORS, V, of_cell

import rnnjax

# Without the cells of the tests' own, whose weights are as wide as they come.
CASES = {name: ALL[name] for name in ALL if name not in ("users_own", "no_recurrent_matrix")}
CASES["chunks with resets"] = lambda: of_cell(
    rnnjax.mlstm(H), {"xs": VECTORS["xs"], "resets": FLAGS}
)
WORDS = rnnjax.embedding(V, D)
# What makes parameters and is no case of its own there.
MADE = {
    "s4d": (rnnjax.s4d(H), H),
    "s5": (rnnjax.s5(H), D),
    "s6": (rnnjax.s6(H), H),
    "lru": (rnnjax.lru(H), D),
    "min_gru": (rnnjax.min_gru(H), D),
    "mogrifier of matrices": (rnnjax.mogrifier_lstm(H), D),
    "causal convolution": (rnnjax.causal_convolution(D, window=2), D),
    "dense": (rnnjax.dense(H), D),
    "rms norm": (rnnjax.rms_norm(rnnjax.gated(rnnjax.gru(H), H)), D),
    "grid": (rnnjax.grid_lstm(H, 2), D),
    "grid over images": (rnnjax.image_grid_lstm(H, 2), D),
    "attention inside": (rnnjax.attention_cell(rnnjax.gru(H), 2), D),
    "window": (rnnjax.window_cell(rnnjax.gru(H), 2, 2), D),
    "learned carry": (rnnjax.learn_initial_carry(rnnjax.lstm(H)), D),
    "mixture": (rnnjax.series_model(rnnjax.gru(H), rnnjax.gaussian_mixture_head(2, 2)), None),
    "classes": (rnnjax.series_model(rnnjax.gru(H), rnnjax.categorical_head(3)), None),
    "translator": (
        rnnjax.sequence_to_sequence(
            WORDS,
            rnnjax.gru(H),
            WORDS,
            rnnjax.gru(H),
            attention=rnnjax.attention("additive"),
            start=1,
        ),
        None,
    ),
}


def wider(tree):
    """The leaves that have more than 32 bits, integers aside."""
    return {
        jax.tree_util.keystr(path): str(leaf.dtype)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and jnp.finfo(leaf.dtype).bits > 32
    }


@pytest.mark.parametrize("name", [*CASES, *MADE])
def test_first_parameters_are_float32(name):
    def params():
        if name in CASES:
            return CASES[name]().params
        part, size = MADE[name]
        key = jax.random.key(0)
        return part.init(key) if size is None else part.init(key, size)

    with jax.enable_x64(True):
        assert wider(jax.eval_shape(params)) == {}


def wide_arrays(jaxpr):
    """What is computed of 64-bit floats in a program, single numbers aside: literals are such."""
    for equation in jaxpr.eqns:
        for made in equation.outvars:
            if getattr(made.aval, "shape", ()) and wider(made.aval):
                yield str(equation)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from wide_arrays(inner)


def summed(case, params, batch):
    leaves = jax.tree.leaves(case.function(params, batch))
    return sum(jnp.sum(jnp.abs(a)) for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact))


def traced(case):
    """The program of a case, that of its gradient where it has one."""
    function = case.function
    if case.differentiable:
        function = jax.grad(lambda *given: summed(case, *given))
    return jax.make_jaxpr(function)(case.params, case.batch).jaxpr


# The sum of a metric is float64 there, as its docstring says; Optax's Adam mixes dtypes.
ADDS_UP = {"metrics", "train step", "truncated step"}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ADDS_UP])
def test_a_program_of_float32_computes_nothing_in_float64_and_mixes_no_dtypes(name):
    case = CASES[name]()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        assert list(wide_arrays(traced(case))) == []


def test_a_state_of_training_stays_float32():
    case = CASES["train step"]()
    with jax.enable_x64(True):
        state, metrics = jax.eval_shape(case.function, case.params, case.batch)
    assert wider((state, metrics["grad_norm"], metrics["skipped"])) == {}


def test_metrics_and_a_step_mix_no_dtypes():
    figures = CASES["metrics"]()
    params, optimizer = {"w": jnp.ones(3)}, optax.sgd(0.1)

    def update(params):
        state = rnnjax.init_train_state(jax.random.key(0), params, optimizer)
        return rnnjax.apply_gradients(state, optimizer, jnp.float32(1), params)

    for x64 in (False, True):
        with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(figures.function, figures.params, figures.batch)
            jax.eval_shape(update, params)


@pytest.mark.parametrize("noisy", [rnnjax.variational_dropout, rnnjax.zoneout, rnnjax.weight_drop])
def test_noise_is_that_of_float32(noisy):
    cell = noisy(rnnjax.gru(H), 0.5)
    params = cell.init(jax.random.key(0), D)

    def drawn():
        return jax.tree.leaves(cell.noise(jax.random.key(1), params, rnnjax.NoiseShape(3, 2, D)))

    expected = drawn()
    with jax.enable_x64(True):
        assert all(map(np.array_equal, drawn(), expected))
    assert expected

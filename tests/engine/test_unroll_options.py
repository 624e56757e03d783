"""What `unroll` gives and keeps on request: all carries, less memory, noise, an explanation."""

import inspect
import re
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, B, D, One, T, init, ragged, random_carry

import rnnjax
from rnnjax.engine import _plan as plan

pytestmark = pytest.mark.usefixtures("quick_compile")

SPECS = {name: One(CELLS[name]) for name in ("lstm", "gru_reset_before", "users_own")}
REMAT = ["never", "step", "sqrt", 3, 100]


def close(a, b, tolerance=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


def step_by_step(cell, params, xs, carry, reverse):
    """All carries, the initial one first in the order of the run, from calls of one step each."""
    order = range(xs.shape[-2])
    carries = [carry]
    for t in reversed(order) if reverse else order:
        carry, _ = rnnjax.unroll(cell, params, xs[..., t : t + 1, :], initial_carry=carry)
        carries.append(carry)
    return carries


def test_the_loop_in_the_docstring_is_what_runs():
    text = inspect.getdoc(rnnjax.unroll)
    loop = re.search(r"costs less::\n\n(.*?)\n\nWhat", text, re.DOTALL)
    with jax.enable_x64(True):
        cell = rnnjax.lstm(4)
        draw = np.random.default_rng(0).normal
        params = rnnjax.LSTMParams(draw(size=(3, 16)), draw(size=(4, 16)), draw(size=16))
        xs, mask, resets = draw(size=(6, 3)), np.array([1, 1, 0, 1, 1, 1]) > 0, np.zeros(6, bool)
        resets[[2, 4]] = True  # the first of them on a masked step
        found = {"cell": cell, "params": params, "xs": xs, "mask": mask, "resets": resets}
        found |= {"T": 6, "zeros": np.zeros(4), "jnp": jnp}
        exec(textwrap.dedent(loop[1]), found)
        given = rnnjax.unroll(cell, params, xs, mask=mask, resets=resets)
        close(given, (found["carry"], jnp.stack(found["ys"])))


@pytest.mark.parametrize("options", [{}, {"remat": 3}, {"reverse": True}, {"all_carries": True}])
@pytest.mark.parametrize("name", ["lstm", "users_own"])
def test_gates_cut_in_the_loop_are_those_cut_before_a_loop_that_is_differentiated(name, options):
    with jax.enable_x64(True):
        spec, batch = SPECS[name], ragged("mask")
        given = {**batch.options, **options}

        def run(params):
            results = rnnjax.unroll(spec.cell, params, batch.xs, **given)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(results)), results

        params = init(spec)
        assert "cuts its gates" in rnnjax.explain(spec.cell, params, batch.xs)
        close(run(params)[1], jax.grad(run, has_aux=True)(params)[1])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_all_carries_are_those_of_single_steps(name, reverse):
    with jax.enable_x64(True):
        spec = SPECS[name]
        params, batch = init(spec), ragged("plain")
        start = random_carry(spec, params)
        given = {"initial_carry": start, "reverse": reverse}
        final, (ys, carries) = rnnjax.unroll(
            spec.cell, params, batch.xs, **given, all_carries=True, include_initial=True
        )
        expected = step_by_step(spec.cell, params, batch.xs, start, reverse)
        if reverse:
            expected.reverse()
        close(carries, jax.tree.map(lambda *c: jnp.stack(c, 1), *expected))
        plain, plain_ys = rnnjax.unroll(spec.cell, params, batch.xs, **given)
        close((final, ys), (plain, plain_ys))
        _, (_, without) = rnnjax.unroll(spec.cell, params, batch.xs, **given, all_carries=True)
        inner = slice(None, -1) if reverse else slice(1, None)
        close(without, jax.tree.map(lambda c: c[:, inner], carries))


@pytest.mark.parametrize("reverse", [False, True])
def test_carries_are_held_through_masked_steps(reverse):
    spec, batch = SPECS["lstm"], ragged("mask")
    _, (_, carries) = rnnjax.unroll(
        spec.cell,
        init(spec),
        batch.xs,
        mask=batch.valid,
        reverse=reverse,
        all_carries=True,
        include_initial=True,
    )
    before, after = (slice(1, None), slice(None, -1)) if reverse else (slice(-1), slice(1, None))
    for leaf in carries:
        np.testing.assert_array_equal(leaf[:, before][~batch.valid], leaf[:, after][~batch.valid])
        assert np.all(np.any(leaf[:, before] != leaf[:, after], -1) == batch.valid)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_remat_changes_neither_values_nor_gradients(name, reverse):
    with jax.enable_x64(True):
        spec, batch = SPECS[name], ragged("all")
        params = init(spec)
        carry = random_carry(spec, params)

        def loss(params, xs, carry, remat):
            final, (ys, carries) = rnnjax.unroll(
                spec.cell,
                params,
                xs,
                **batch.options,
                initial_carry=carry,
                reverse=reverse,
                remat=remat,
                all_carries=True,
            )
            # A place in time weighs what no other does, so that no two may be exchanged.
            return sum(
                jnp.sum(jnp.cos(leaf) * jnp.sin(jnp.arange(leaf.size) + i).reshape(leaf.shape))
                for i, leaf in enumerate(jax.tree.leaves((final, ys, carries)))
            )

        expected = jax.value_and_grad(loss, (0, 1, 2))(params, batch.xs, carry, None)
        for remat in REMAT:
            close(jax.value_and_grad(loss, (0, 1, 2))(params, batch.xs, carry, remat), expected)
        tangents = jax.tree.map(jnp.ones_like, params)
        slopes = [
            jax.jvp(lambda p, r=r: loss(p, batch.xs, carry, r), (params,), (tangents,))[1]
            for r in [None, 3]
        ]
        close(*slopes)


@pytest.mark.parametrize("remat", [1, 2, "sqrt"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_batch_without_rows_may_be_run_in_chunks(remat, reverse):
    cell, xs = CELLS["lstm"], jnp.zeros((0, 5, D))

    def loss(params):
        _, ys = rnnjax.unroll(cell, params, xs, reverse=reverse, remat=remat)
        assert ys.shape == (0, 5, cell.output_size)
        return jnp.sum(ys)

    gradient = jax.grad(loss)(init(SPECS["lstm"]))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def kept_bytes(remat, time):
    """Size of what reverse mode keeps of the loop."""
    cell = rnnjax.lstm(8)
    params = cell.init(jax.random.key(0), D)

    def pullback(xs):
        return jax.vjp(lambda x: rnnjax.unroll(cell, params, x, remat=remat)[1], xs)[1]

    shapes = jax.eval_shape(pullback, jax.ShapeDtypeStruct((2, time, D), jnp.float32))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_chunks_keep_one_carry_each_and_not_the_gates():
    time, batch, size = 64, 2, 8
    carry, step = 2 * batch * size * 4, batch * D * 4
    slack = 8 * 1024  # the weights, which do not grow with time
    assert kept_bytes(8, time) <= 8 * carry + time * step + slack
    assert kept_bytes("never", time) >= time * 6 * batch * size * 4
    growth = kept_bytes("sqrt", 4 * time) - kept_bytes("sqrt", time)
    assert growth <= 8 * carry + 3 * time * step + 256


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [0, 1, 5])
def test_outputs_that_are_the_state_are_found_again_by_the_derivative(time, reverse):
    """A vanilla cell keeps its outputs alone: each step finds h where the last one left it."""
    cell, draw = rnnjax.vanilla(4), np.random.default_rng(0).normal
    shapes = jax.eval_shape(lambda key: cell.init(key, D), jax.random.key(0))

    def loss(params, xs, start):
        h, ys = rnnjax.unroll(cell, params, xs, initial_carry=start, reverse=reverse)
        return jnp.sum(ys**2) + jnp.sum(jnp.sin(h))

    def plain(params, xs, start):
        h, total = start, 0.0
        for t in reversed(range(time)) if reverse else range(time):
            h = jnp.tanh(xs[:, t] @ params.w_ih + h @ params.w_hh + params.bias[None])
            total = total + jnp.sum(h**2)
        return total + jnp.sum(jnp.sin(h))

    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(draw(size=a.shape)), shapes)
        xs, start = jnp.asarray(draw(size=(2, time, D))), jnp.asarray(draw(size=(2, 4)))
        close(*(jax.value_and_grad(f, (0, 1, 2))(params, xs, start) for f in (loss, plain)))
        along = [jax.grad(lambda p, f=f: squares(jax.grad(f)(p, xs, start))) for f in (loss, plain)]
        close(*(slope(params) for slope in along))


def squares(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def test_outputs_that_are_the_state_are_kept_once():
    """Inputs of the loop, outputs, what each step found, and the gradient: in arrays of T B H."""
    time, batch, size = 64, 8, 32
    cell = rnnjax.vanilla(size)
    params = cell.init(jax.random.key(0), size)
    xs = jnp.ones((time, batch, size))

    def loss(params, xs):
        return jnp.sum(xs * rnnjax.unroll(cell, params, xs.swapaxes(0, 1))[1].swapaxes(0, 1))

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4.5 * xs.nbytes


class NoisyParams(NamedTuple):
    inner: Any
    scale: Any


def noisy(cell):
    """A cell with every kind of noise, whose size is a parameter: so the noise has a gradient."""

    def draw(key, params, shape):
        keys = jax.random.split(key, 4)
        p, gh = cell.recurrent(params.inner).shape
        normal = [
            1 + params.scale * jax.random.normal(k, s, params.scale.dtype)
            for k, s in zip(
                keys,
                [
                    (shape.batch, shape.input_size),
                    (shape.batch, p),
                    (p, gh),
                    (shape.time, shape.batch, p),
                ],
                strict=True,
            )
        ]
        return rnnjax.Noise(*normal[:3], steps=({"factor": normal[3]},))

    def update(params, carry, x_proj, h_proj):
        factor = x_proj[-1]["factor"] if isinstance(x_proj[-1], dict) else 1.0
        x_proj = x_proj[:-1] if isinstance(x_proj[-1], dict) else x_proj
        carry, y = cell.update(params.inner, carry, x_proj, h_proj)
        return carry, y * factor

    return cell._replace(
        init=lambda key, size: NoisyParams(cell.init(key, size), jnp.ones(())),
        initial_carry=lambda params: cell.initial_carry(params.inner),
        project=lambda params, x: cell.project(params.inner, x),
        recurrent=lambda params: cell.recurrent(params.inner),
        update=update,
        noise=draw,
    )


@pytest.mark.parametrize("remat", [None, 3])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_noise_of_every_kind_is_applied_and_differentiated(name, remat):
    with jax.enable_x64(True):
        inner = CELLS[name]
        cell = noisy(inner)
        params = NoisyParams(init(One(inner)), jnp.array(0.3))
        xs, key = ragged("plain").xs, jax.random.key(5)

        def engine(params, xs):
            return rnnjax.unroll(cell, params, xs, key=key, remat=remat)

        def loop(params, xs):
            noise = cell.noise(key, params, rnnjax.NoiseShape(B, T, D))
            carry = jax.tree.map(
                lambda a: jnp.broadcast_to(a, (B, *a.shape)), inner.initial_carry(params.inner)
            )
            ys = []
            for t in range(T):
                x_proj = inner.project(params.inner, xs[:, t] * noise.inputs)
                h = inner.hidden(carry) * noise.hidden
                w_hh = inner.recurrent(params.inner) * noise.recurrent
                h_proj = jnp.split(h @ w_hh, len(x_proj), -1)
                update = jax.vmap(inner.update, in_axes=(None, 0, 0, 0))
                carry, y = update(params.inner, carry, x_proj, tuple(h_proj))
                ys.append(y * noise.steps[0]["factor"][t])
            return carry, jnp.stack(ys, 1)

        def loss(run):
            return lambda *a: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run(*a)))

        def both(run):
            return jax.jit(lambda *a: (run(*a), jax.grad(loss(run), (0, 1))(*a)))

        with jax.numpy_rank_promotion("allow"):
            expected = both(loop)(params, xs)
        close(both(engine)(params, xs), expected, 1e-10)
        assert abs(expected[1][0].scale) > 1e-3


def test_without_a_key_there_is_no_noise():
    inner, xs = CELLS["lstm"], ragged("plain").xs
    params = NoisyParams(init(One(inner)), jnp.array(0.3))
    close(rnnjax.unroll(noisy(inner), params, xs), rnnjax.unroll(inner, params.inner, xs))


def test_noise_of_the_hidden_state_needs_an_engine_that_multiplies_it():
    step_cell = CELLS["gru_reset_before"]._replace(
        noise=lambda key, params, shape: rnnjax.Noise(hidden=jnp.ones((shape.batch, 4)))
    )
    with pytest.raises(ValueError, match="noise must have no hidden"):
        rnnjax.unroll(step_cell, init(One(step_cell)), ragged("plain").xs, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remat": 0}, "remat must be None"),
        ({"remat": True}, "remat must be None"),
        ({"remat": "half"}, "remat must be None"),
        ({"remat": [3]}, "remat must be None"),
        ({"implementation": "magic"}, "implementation must be None"),
        ({"implementation": "associative"}, "linear in its carry"),
        ({"include_initial": True}, "include_initial=True needs all_carries"),
    ],
)
def test_options_that_cannot_be_had_are_refused(options, message):
    cell = CELLS["lstm"]
    with pytest.raises(ValueError, match=message):
        rnnjax.unroll(cell, init(One(cell)), ragged("plain").xs, **options)


@pytest.mark.parametrize(
    ("implementation", "option"),
    [
        ("associative", "remat"),
        ("associative", "scan_unroll"),
        ("chunked", "scan_unroll"),
        ("persistent", "scan_unroll"),
    ],
)
def test_options_that_an_implementation_does_not_read_are_refused(implementation, option):
    cell = {"associative": rnnjax.lru(4), "chunked": rnnjax.mlstm(4)}.get(
        implementation, rnnjax.lstm(4)
    )
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((2, 5, 3))
    message = f"{option} must be None with implementation='{implementation}'.*, got 2"
    for function in (rnnjax.unroll, rnnjax.explain):
        with pytest.raises(ValueError, match=message):
            function(cell, params, xs, implementation=implementation, **{option: 2})


def test_a_key_of_the_old_kind_draws_the_noise_of_the_typed_one():
    cell = noisy(CELLS["lstm"])
    params = NoisyParams(init(One(CELLS["lstm"])), jnp.array(0.3))
    old, new = jax.random.PRNGKey(5), jax.random.key(5)
    _, found = rnnjax.unroll(cell, params, ragged("plain").xs, key=old)
    np.testing.assert_array_equal(
        found, rnnjax.unroll(cell, params, ragged("plain").xs, key=new)[1]
    )


def test_explain_says_which_path_runs_and_why():
    small, large = jnp.ones((2, 5, 3)), jax.ShapeDtypeStruct((64, 512, 3), jnp.float32)
    lstm, plain = rnnjax.lstm(256), CELLS["gru_reset_before"]
    shapes = jax.eval_shape(lambda k: lstm.init(k, 3), jax.random.key(0))
    said = rnnjax.explain(lstm, shapes, small)
    assert "all steps projected at once" in said
    assert "one rule for all cells" in said
    assert "chunks of 8 steps, gates kept" in rnnjax.explain(lstm, shapes, large)
    longer = jax.ShapeDtypeStruct((64, 1024, 3), jnp.float32)
    assert "chunks of 8 steps, run again" in rnnjax.explain(lstm, shapes, longer)
    assert "64.0 MiB" not in said
    assert "128.0 MiB of gate inputs" in rnnjax.explain(lstm, shapes, large)
    assert "ordinary autodiff" in rnnjax.explain(plain, init(One(plain)), small)
    assert "every step's gates" in rnnjax.explain(lstm, shapes, large, remat="never")
    assert "chunks of 2 steps" in rnnjax.explain(lstm, shapes, large, remat=np.int64(2))


def attending(size):
    return rnnjax.attention_cell(rnnjax.lstm(size), 4)


@pytest.mark.parametrize(
    ("make", "shape", "said"),
    [
        (rnnjax.lstm, (32, 90, 128), "5.6 MiB of gate inputs on cpu: all steps"),
        (rnnjax.lstm, (32, 104, 128), "above 5.8 MiB on cpu: chunks of 26 steps"),
        (rnnjax.lstm, (64, 100, 256), "chunks of 10 steps"),
        (rnnjax.lstm, (64, 101, 256), "chunks of 8 steps"),  # five are left over
        (rnnjax.gru, (64, 80, 128), "chunks of 20 steps"),
        (attending, (64, 101, 256), "31.6 MiB of gate inputs on cpu: all steps"),
        (attending, (8, 2048, 256), "chunks of 64 steps, run again"),
        (rnnjax.vanilla, (64, 128, 256), "all steps projected at once"),
        (rnnjax.vanilla, (64, 512, 256), "32.0 MiB of gate inputs on cpu: all steps"),
        (rnnjax.vanilla, (8, 2048, 256), "16.0 MiB of gate inputs on cpu: all steps"),
        (rnnjax.vanilla, (16, 2048, 256), "above 24.0 MiB on cpu: chunks of 128 steps, run again"),
    ],
)
def test_chunks_are_chosen_by_the_size_of_the_gate_inputs_and_leave_nothing_over(make, shape, said):
    batch, time, size = shape
    cell = make(size)
    params = jax.eval_shape(lambda k: cell.init(k, 3), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((batch, time, 3), jnp.float32)
    assert said in rnnjax.explain(cell, params, xs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [16, 19])
@pytest.mark.kept
def test_chunks_that_keep_their_gates_change_no_value_and_no_gradient(time, reverse, monkeypatch):
    monkeypatch.setattr(plan, "HOISTED_BYTES_ON_CPU", 0)
    monkeypatch.setattr(plan, "CHUNK_BYTES_ON_CPU", 1)
    with jax.enable_x64(True):
        cell = rnnjax.lstm(3)  # a new one, which has not been compiled yet
        params = cell.init(jax.random.key(0), 2)
        params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        xs = jax.random.normal(jax.random.key(1), (3, time, 2), jnp.float64)
        assert "chunks of 8 steps, gates kept" in rnnjax.explain(cell, params, xs)

        def loss(params, xs, remat):
            carry, ys = rnnjax.unroll(cell, params, xs, [time, 0, 11], reverse=reverse, remat=remat)
            return (ys**2).sum() + (carry.c**3).sum(), (carry, ys)

        run = jax.grad(loss, argnums=(0, 1), has_aux=True)
        close(run(params, xs, None), run(params, xs, "never"))


@pytest.mark.parametrize("remat", [None, 8])
@pytest.mark.parametrize("name", ["projected", "peephole", "gru_reset_before"])
def test_bfloat16_gradients_of_parameters_read_in_the_loop_are_summed_wider(name, remat):
    """Summed in bfloat16 over these 400 steps, they would be wrong by two to six per cent."""
    with jax.enable_x64(True):
        cell = CELLS[name]
        narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), init(One(cell)))
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), narrow)
        xs = jax.random.normal(jax.random.key(1), (2, 400, D), jnp.float32)
        xs = xs.astype(jnp.bfloat16)

        def loss(params, xs):
            return jnp.sum(rnnjax.unroll(cell, params, xs, remat=remat)[1].astype(jnp.float64))

        found = jax.grad(loss)(narrow, xs.astype(jnp.float32))
        expected = jax.grad(loss)(wide, xs.astype(jnp.float64))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.bfloat16
            assert jnp.max(jnp.abs(a.astype(b.dtype) - b)) < 0.008 * jnp.max(jnp.abs(b))

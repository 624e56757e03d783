"""The same code on many devices and for other platforms than this one."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from processes import run

import rnnjax
from rnnjax.metrics import linear_cross_entropy

SHARDED = """
    import jax, jax.numpy as jnp, numpy as np, rnnjax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    assert jax.device_count() == 4
    layer = rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(8)), rnnjax.gru(4))
    params = layer.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (8, 6, 3))
    lengths = jnp.array([6, 5, 4, 3, 2, 1, 0, 6])

    @jax.jit
    def grad(params, xs, lengths):
        return jax.grad(lambda p: (layer.apply(p, xs, lengths)[1] ** 2).sum())(params)

    expected = grad(params, xs, lengths)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.KIND,))
    batch = PartitionSpec("batch")
    rows = NamedSharding(mesh, batch)
    with jax.set_mesh(mesh):
        given = params, jax.device_put(xs, rows), jax.device_put(lengths, rows)
        if BY_HAND:
            specs = PartitionSpec(), batch, batch
            grad = jax.jit(jax.shard_map(grad, in_specs=specs, out_specs=PartitionSpec()))
        found = grad(*given)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.parametrize(
    ("kind", "by_hand"), [("Auto", False), ("Explicit", False), ("Auto", True)]
)
def test_a_batch_spread_over_devices_has_the_gradients_of_one_device(kind, by_hand):
    code = textwrap.dedent(SHARDED).replace("KIND", kind).replace("BY_HAND", str(by_hand))
    # Optimised as programs of users are: the other tests of several devices compile quickly.
    run("-c", code, devices=4, JAX_DISABLE_MOST_OPTIMIZATIONS="0")


OTHER_DEVICE = """
    import jax, jax.numpy as jnp, numpy as np, optax, rnnjax

    here, there = jax.devices()
    layer = rnnjax.stack(rnnjax.lstm(4), rnnjax.gru(4))
    own = layer.init(jax.random.key(0), 3)
    params = jax.device_put(own, there)
    xs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


    def lie(tree):
        return set().union(*(leaf.devices() for leaf in jax.tree.leaves(tree)))


    stream = rnnjax.make_stream(layer)
    for params, device in ((own, here), (params, there), (own, here)):
        carry, ys = stream(params, xs)
        step = layer.step(params, carry, xs[:, 0])
        assert lie((carry, ys, step)) == {device}, (lie((carry, ys, step)), device)

        optimizer = optax.adam(0.1)
        train = rnnjax.make_train_step(
            lambda params, xs, key: ((layer.apply(params, xs)[1] ** 2).sum(), {}), optimizer
        )
        state = rnnjax.init_train_state(jax.random.key(1), params, optimizer)
        for _ in range(3):
            state, _ = train(state, xs)
        assert lie(state) == {device}
        assert len(train.compilations) == 1, train.compilations
"""


def test_what_is_given_parameters_on_another_device_stays_there_and_compiles_once():
    run("-c", textwrap.dedent(OTHER_DEVICE), devices=2)


def test_one_program_with_free_batch_and_time_lowers_for_cpu_cuda_and_tpu():
    layer = rnnjax.bidirectional(rnnjax.lstm(8), rnnjax.gru(4))
    params = layer.init(jax.random.key(0), 3)
    batch, time = export.symbolic_shape("batch, time")
    program = export.export(
        jax.jit(lambda params, xs, lengths: layer.apply(params, xs, lengths)),
        platforms=["cpu", "cuda", "tpu"],
    )(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params),
        jax.ShapeDtypeStruct((batch, time, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    for rows, steps in ((2, 5), (3, 1)):
        xs = jax.random.normal(jax.random.key(1), (rows, steps, 3))
        lengths = jnp.arange(rows, dtype=jnp.int32) % (steps + 1)
        expected = layer.apply(params, xs, lengths)
        found = program.call(params, xs, lengths)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def texts(params, prompt, xs):
    model = rnnjax.language_model(rnnjax.embedding(5, 2), rnnjax.gru(3))
    return rnnjax.generate(model, params, prompt, max_new_tokens=2, sampling=rnnjax.greedy()).tokens


def beams(params, prompt, xs):
    model = rnnjax.language_model(rnnjax.embedding(5, 2), rnnjax.gru(3))
    start = prompt[:, 0]
    carry = model.initial_carry(params, start.shape)
    options = {"stop": 1, "beam_size": 2, "max_length": 2}
    return rnnjax.beam_search(model.step, params, carry, start, **options).tokens


def series(params, prompt, xs):
    model = rnnjax.series_model(rnnjax.gru(3), rnnjax.gaussian_mixture_head(1))
    key = jax.random.key(0)
    return rnnjax.generate_series(model, model.init(key), xs, max_new_steps=2, key=key).values


@pytest.mark.parametrize("write", [texts, beams, series])
def test_a_program_that_writes_may_leave_the_batch_free(write):
    params = rnnjax.language_model(rnnjax.embedding(5, 2), rnnjax.gru(3)).init(jax.random.key(0))
    prompt = jnp.array([[1, 2], [3, 4], [0, 1]], jnp.int32)
    given = prompt, jnp.ones((3, 2, 1))
    batch, time = export.symbolic_shape("batch, time")
    free = [jax.ShapeDtypeStruct((batch, time, *a.shape[2:]), a.dtype) for a in given]
    program = export.export(jax.jit(lambda *given: write(params, *given)))(*free)
    np.testing.assert_allclose(program.call(*given), write(params, *given), rtol=1e-5)


def test_the_gradient_of_a_translator_may_leave_batch_and_lengths_free():
    decoder = rnnjax.attention_cell(rnnjax.gru(3), 3)
    embedding = rnnjax.embedding(9, 2)
    model = rnnjax.sequence_to_sequence(embedding, rnnjax.gru(3), embedding, decoder, start=2)
    params = model.init(jax.random.key(0))

    def loss(params, source, target):
        features, _ = model.features(params, source, None, target)
        return linear_cross_entropy(features, *model.head_weights(params), target)[0].value

    given = jnp.array([[4, 5, 6], [7, 8, 4]]), jnp.array([[5, 3], [6, 3]])
    batch, words, time = export.symbolic_shape("batch, words, time")
    free = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, words), (batch, time))]
    program = export.export(jax.jit(lambda *pair: jax.grad(loss)(params, *pair)))(*free)
    found, expected = program.call(*given), jax.grad(loss)(params, *given)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


@pytest.mark.kept
def test_a_training_step_lowers_for_cuda_and_tpu():
    layer = rnnjax.stack(rnnjax.lstm(8), rnnjax.gru(4))
    params = layer.init(jax.random.key(0), 3)

    def loss(params, xs, lengths):
        return (layer.apply(params, xs, lengths)[1] ** 2).sum()

    program = export.export(jax.jit(jax.grad(loss)), platforms=["cuda", "tpu"])(
        params, jnp.ones((2, 5, 3)), jnp.array([5, 2], jnp.int32)
    )
    assert program.platforms == ("cuda", "tpu")


def test_compiler_options_reach_the_train_step():
    def loss_fn(params, batch, key):
        return (params * batch).sum(), {}

    step = rnnjax.make_train_step(loss_fn, optax.sgd(0.1), compiler_options={"no_such_option": 1})
    state = rnnjax.init_train_state(jax.random.key(0), jnp.ones(3), optax.sgd(0.1))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        step(state, jnp.ones(3))

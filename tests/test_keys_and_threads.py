"""Random keys of every kind are taken, and threads may share all that there is."""

import copy
from concurrent.futures import ThreadPoolExecutor

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax._numerics import key_apart
from rnnjax.metrics import cross_entropy

B, T, D, H, V = 2, 3, 2, 3, 5
LAYER = rnnjax.stack(rnnjax.zoneout(rnnjax.lstm(H), 0.1), rnnjax.gru(H), dropout=0.1)
MODEL = rnnjax.language_model(rnnjax.embedding(V, D), rnnjax.gru(H), dropout=0.1)
TRANSLATOR = rnnjax.sequence_to_sequence(
    rnnjax.one_hot(V), rnnjax.gru(H), rnnjax.one_hot(V), rnnjax.gru(H), start=1, dropout=0.1
)
HEAD = rnnjax.gaussian_mixture_head(2)
SERIES = rnnjax.series_model(rnnjax.gru(H), HEAD)
XS, TOKENS = jnp.ones((B, T, D)), jnp.ones((B, T), jnp.int32)


def loss_fn(params, batch, key):
    loss = cross_entropy(MODEL.apply(params, batch, key=key)[1], batch)
    return loss.value, {"loss": loss}


def everything(key):
    params, optimizer = MODEL.init(key), optax.sgd(0.1)
    state = rnnjax.init_train_state(key, params, optimizer)
    return (
        LAYER.apply(LAYER.init(key, D), XS, key=key),
        rnnjax.make_train_step(loss_fn, optimizer)(state, TOKENS),
        rnnjax.generate(MODEL, params, TOKENS, max_new_tokens=2, key=key),
        rnnjax.generate(MODEL, params, TOKENS, max_new_tokens=2, key=jax.random.split(key, B)),
        rnnjax.generate_series(SERIES, SERIES.init(key), XS[..., :1], max_new_steps=2, key=key),
        HEAD.sample(key, HEAD.apply(HEAD.init(key, D), XS)),
        rnnjax.scheduled_sampling(
            TRANSLATOR, TRANSLATOR.init(key), TOKENS, None, TOKENS, rate=0.5, key=key
        ),
    )


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_key_of_any_kind_is_taken(kind, make):
    with jax.default_prng_impl(kind):
        assert jax.eval_shape(everything, make(0))


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_row_writes_by_its_own_key_whatever_the_kind(kind):
    """JAX itself draws for all rows of a ``vmap`` from the first of such keys."""
    keys = jax.random.split(jax.random.key(0, impl=kind), 4)
    params, prompt = MODEL.init(jax.random.key(1)), jnp.ones((4, 2), jnp.int32)
    series, start = SERIES.init(jax.random.key(2)), jnp.ones((4, 1, 1))

    def write(rows):
        written = rnnjax.generate(MODEL, params, prompt[rows], max_new_tokens=6, key=keys[rows])
        drawn = rnnjax.generate_series(SERIES, series, start[rows], max_new_steps=6, key=keys[rows])
        return written.tokens, drawn.values

    tokens, values = write(slice(None))
    assert len(np.unique(tokens, axis=0)) > 1
    for row in range(4):
        tokens_alone, values_alone = write(row)
        np.testing.assert_array_equal(tokens_alone, tokens[row])
        np.testing.assert_allclose(values_alone, values[row], rtol=1e-5)


NOISES = {
    "zoneout": rnnjax.zoneout(rnnjax.variational_dropout(rnnjax.gru(H), 0.3, 0.3), 0.4),
    "recurrent_dropout": rnnjax.recurrent_dropout(rnnjax.lstm(H), 0.4),
    "hard_attention": rnnjax.attention_cell(rnnjax.gru(H), 1, hard=True),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_further_rows_and_steps_change_no_noise_whatever_the_kind(kind, name):
    cell, key = NOISES[name], jax.random.key(0, impl=kind)
    params = cell.init(jax.random.key(1), D)

    def outputs(rows, steps):
        places = jnp.arange(4.0)[:, None]
        memory = rnnjax.Memory(jnp.tile(places, (rows, 1, 1)), jnp.ones((rows, 4), bool))
        context = memory if cell.context is not None else None
        xs = jnp.ones((rows, steps, D))
        _, ys = rnnjax.unroll(cell, params, xs, context=context, key=key)
        return jax.tree.map(lambda a: a[:3, :4], ys)

    few, many = outputs(3, 4), outputs(5, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), few, many)


def dropped_weights(key):
    cell = rnnjax.weight_drop(rnnjax.gru(H), 0.5)
    return rnnjax.unroll(cell, cell.init(jax.random.key(1), D), XS, key=key)[1]


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize(
    "draw", [dropped_weights, lambda key: rnnjax.models.locked_dropout(key, jnp.ones((2, 9)), 0.5)]
)
def test_a_mask_of_a_whole_call_is_that_of_its_own_key_under_vmap(draw, kind):
    keys = jax.random.split(jax.random.key(0, impl=kind), 4)
    mapped, alone = jax.vmap(draw)(keys), jnp.stack([draw(key) for key in keys])
    np.testing.assert_allclose(mapped, alone, atol=1e-6)
    assert len(np.unique(np.asarray(mapped), axis=0)) == 4


ATTENTION_CELLS = {
    "selector": rnnjax.attention_cell(rnnjax.gru(H), D, selector=True, hard=True),
    "input_feeding": rnnjax.attention_cell(rnnjax.gru(H), D, input_feeding=True),
}
NOISY = rnnjax.attention_cell(rnnjax.variational_dropout(rnnjax.gru(H), 0.1, 0.1), D, hard=True)
DRAWN = {
    "noise": lambda key: NOISY.noise(
        key, NOISY.init(jax.random.key(1), D), rnnjax.NoiseShape(B, T, D)
    ),
    **{
        name: lambda key, row=row: cases.build(row).init(key, cases.D)
        for name, row in cases.LAYERS.items()
        if not name.endswith("_reverse")
    },
    **{name: lambda key, cell=cell: cell.init(key, D) for name, cell in ATTENTION_CELLS.items()},
    "slstm_of_heads": lambda key: rnnjax.slstm(4, num_heads=2).init(key, D),
    "untied_images": lambda key: rnnjax.image_grid_lstm(H, 2, tied=False).init(key, D),
    "attention_local": lambda key: rnnjax.attention("local").init(key, D, D),
    "translator": TRANSLATOR.init,
    "series": SERIES.init,
    **{
        f"gru_of_{name}": lambda key, name=name: rnnjax.gru(H, initializer=name).init(key, D)
        for name in rnnjax.initializers.PRESETS
    },
}


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", DRAWN)
def test_every_array_is_drawn_with_a_key_of_its_own(name):
    with jax.debug_key_reuse(True):
        DRAWN[name](jax.random.key(0))


@pytest.mark.parametrize("partitionable", [True, False])
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_key_apart_is_none_that_is_split_off(kind, partitionable):
    with jax.threefry_partitionable(partitionable):
        key = jax.random.key(0, impl=kind)
        apart = jax.random.key_data(key_apart(key)).tolist()
        for count in (1, 2, 1000):
            assert apart not in jax.random.key_data(jax.random.split(key, count)).tolist()


@pytest.mark.full
def test_threads_share_layers_models_and_streams():
    layer = rnnjax.stack(rnnjax.gru(H), rnnjax.lstm(H))
    params, of_model = layer.init(jax.random.key(0), D), MODEL.init(jax.random.key(0))
    stream, mesh = rnnjax.make_stream(layer, block_size=2), jax.make_mesh((1,), ("batch",))

    def work(number):
        with jax.set_mesh(mesh) if number % 2 else jax.default_device(None):
            written = rnnjax.generate(
                MODEL, of_model, TOKENS, max_new_tokens=2, sampling=rnnjax.greedy()
            )
        found = layer.step(params, None, XS[:, 0]), stream(params, XS), written.tokens
        return jax.tree.map(np.asarray, found)

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(work, range(8)))
    for result in results:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])


@pytest.mark.parametrize("made", [LAYER, MODEL, TRANSLATOR, SERIES, rnnjax.attention("general")])
def test_a_copy_is_equal_and_the_same_program(made):
    for other in (copy.copy(made), copy.deepcopy(made)):
        assert other == made
        assert hash(other) == hash(made)

"""An option of a network is read: with another value the program that trains it is another one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import experiments.anomaly.model as anomaly
import experiments.anomaly.settings as of_anomaly
import experiments.forecast.model as forecast
import experiments.forecast.settings as of_forecast
import experiments.recognize.model as recognize
import experiments.recognize.settings as of_recognize
import experiments.tag.model as tag
import experiments.tag.settings as of_tag
import experiments.translate.model as translate
import experiments.translate.settings as of_translate
import experiments.translate.training as pairs
import experiments.write.model as write
import experiments.write.settings as of_write
import rnnjax
from rnnjax.data import Batch, PairBatch

pytestmark = pytest.mark.usefixtures("quick_compile")

TOKENS, LENGTHS, ONES = np.array([[4, 5, 6], [4, 6, 0]]), np.array([3, 2]), np.ones(2, np.float32)
VALUES = np.ones((2, 4, 1), np.float32)
PAIRS = PairBatch(TOKENS, LENGTHS, TOKENS, LENGTHS, ONES)
KNOWN = recognize.Known(["a", "b"], ["x"], [0.0], [1.0], 4)


def writing(settings):
    model = write.build_model(settings, 7)
    return model.init, lambda params, key: model.features(params, TOKENS, key=key)[1].dropped


def translating(settings):
    model = translate.build_model(settings, 7, 8)
    loss_fn = pairs.make_loss(model, settings.own_tokens)
    return model.init, lambda params, key: loss_fn(params, PAIRS, key)


def tagging(settings):
    model = tag.build_model(settings, 7, 5)
    batch = Batch(TOKENS, LENGTHS, TOKENS % 5, ONES)
    return model.init, lambda params, key: tag.label_loss(model)(params, batch, key)


def recognizing(settings):
    network = recognize.build_network(settings, KNOWN)
    batch = Batch(VALUES, LENGTHS + 1, np.array([0, 1]), ONES)
    loss_fn = recognize.label_loss(network, settings.noise)
    return network.init, lambda params, key: loss_fn(params, batch, key)


def forecasting(settings):
    network = forecast.build_network(settings)
    future = np.ones((2, settings.horizon), np.float32)
    past = np.ones((2, settings.window, 1), np.float32)
    batch = Batch(past, LENGTHS, future, ONES)
    return network.init, lambda params, key: forecast.pinball(network)(params, batch, key)


def watching(settings):
    model = anomaly.build_model(settings, 1)
    batch = Batch(VALUES, LENGTHS + 1, np.ones((2, 4), np.int32), ONES)
    return model.init, lambda params, key: anomaly.surprise_loss(model)(params, batch, key)


SIZES = {"hidden_size": 6, "dropout": 0.25}
WORDS = {**SIZES, "embedding_size": 6}
PROGRAMS = {
    "write": (writing, of_write.Settings(**WORDS)),
    "translate": (translating, of_translate.Settings(**WORDS, attention="outside")),
    "tag": (tagging, of_tag.Settings(**WORDS)),
    "recognize": (recognizing, of_recognize.Settings(**SIZES)),
    "forecast": (forecasting, of_forecast.Settings(**SIZES, window=4, season=2, horizon=3)),
    "anomaly": (watching, of_anomaly.Settings(**SIZES)),
}
OTHERS = {
    "write": {"cell": "gru", "layers": 2, "embedding_size": 5, "tie": True},
    "translate": {
        "cell": "lstm",
        "layers": 2,
        "embedding_size": 5,
        "attention": "none",
        "score": "general",
        "head_size": 5,
        "own_tokens": 0.5,
    },
    "tag": {"cell": "lstm", "embedding_size": 5, "direction": "forward"},
    "recognize": {
        "cell": "lstm",
        "layers": 2,
        "direction": "forward",
        "pooling": "max",
        "noise": 0.5,
    },
    "forecast": {"cell": "lstm", "window": 5, "horizon": 2},
    "anomaly": {"cell": "lstm", "components": 3},
}
CASES = [
    (program, name, value)
    for program, options in OTHERS.items()
    for name, value in {"hidden_size": 8, "dropout": 0.5, **options}.items()
]


def shapes(program, **options):
    make, settings = PROGRAMS[program]
    init, apply = make(dataclasses.replace(settings, **options))
    return jax.eval_shape(init, jax.random.key(0)), apply


@functools.cache
def training(program, **options):
    """The text of the program that gives the loss of a batch in training."""
    params, apply = shapes(program, **options)
    return jax.jit(apply).lower(params, jax.random.key(0)).as_text()


@pytest.mark.parametrize("program", PROGRAMS)
def test_settings_that_are_equal_are_trained_by_equal_programs(program):
    training.cache_clear()
    first = training(program)
    training.cache_clear()
    jax.clear_caches()
    assert training(program) == first


@pytest.mark.parametrize(("program", "name", "value"), CASES)
def test_another_value_of_an_option_is_another_program(program, name, value):
    before, after = (jax.tree.leaves(shapes(program, **o)[0]) for o in ({}, {name: value}))
    if before == after:  # else the weights are others, and so is what reads them
        assert training(program, **{name: value}) != training(program)


@pytest.mark.parametrize("program", ["tag", "recognize"])
def test_a_layer_reads_one_way_where_it_is_told(program):
    """Both ways take twice the weights of the layer."""
    sizes = {}
    for direction in ("forward", "both"):
        params, _ = shapes(program, direction=direction)
        square = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (6, 18)]  # of a GRU
        sizes[direction] = len(square)
    assert sizes["both"] == 2 * sizes["forward"] > 0


DESCRIBED = {
    "write": lambda settings: write.build_model(settings, 7),
    "translate": lambda settings: translate.build_model(settings, 7, 8),
    "tag": lambda settings: tag.build_model(settings, 7, 5),
    "anomaly": lambda settings: anomaly.build_model(settings, 1),
}


@pytest.mark.parametrize(
    ("program", "places"), [("write", 2), ("translate", 3), ("tag", 1), ("anomaly", 1)]
)
def test_all_parts_of_a_model_drop_at_one_rate(program, places):
    """Layers, and the model around them, as they are printed."""
    settings = dataclasses.replace(PROGRAMS[program][1], dropout=0.37)
    assert repr(DESCRIBED[program](settings)).count("dropout=0.37") == places


def rates_given(monkeypatch, part, build):
    """The arguments of 0.37 that a part of the library is given."""
    given, make = [], getattr(rnnjax, part)

    def watched(*arguments, **named):
        given.extend(value for value in (*arguments, *named.values()) if value == 0.37)
        return make(*arguments, **named)

    monkeypatch.setattr(rnnjax, part, watched)
    build()
    monkeypatch.undo()
    return len(given)


def test_all_parts_of_what_reads_series_drop_at_one_rate(monkeypatch):
    settings = dataclasses.replace(PROGRAMS["recognize"][1], dropout=0.37)
    for part in ("stack", "classifier"):
        build = functools.partial(recognize.build_network, settings, KNOWN)
        assert rates_given(monkeypatch, part, build) == 1
    settings = dataclasses.replace(PROGRAMS["forecast"][1], dropout=0.37)
    build = functools.partial(forecast.build_network, settings)
    # Of what the layer gives, and of what it hands on to itself.
    assert rates_given(monkeypatch, "variational_dropout", build) == 2


def test_with_weights_of_each_place_what_is_read_there_is_dropped():
    network = recognize.build_network(
        of_recognize.Settings(hidden_size=3, pooling="places", dropout=0.999999), KNOWN
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    layers, w, _ = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    params, apply = (layers, w, np.float32([1.0, 2.0])), jax.jit(network.apply)
    xs = np.random.default_rng(0).normal(size=(2, 4, 1)).astype(np.float32)
    logits = apply(params, xs, LENGTHS, jax.random.key(1))
    np.testing.assert_array_equal(logits, [[1, 2], [1, 2]])
    assert np.all(apply(params, xs, LENGTHS) != logits)


@pytest.mark.parametrize(
    ("program", "sides"), [("write", ["layer"]), ("translate", ["encoder", "decoder"])]
)
def test_each_layer_more_is_one_more_on_every_side(program, sides):
    for side in sides:
        params = [shapes(program, layers=layers)[0] for layers in (1, 2, 3)]
        one, two, three = (len(jax.tree.leaves(getattr(of_all, side))) for of_all in params)
        assert three - two == two - one > 0

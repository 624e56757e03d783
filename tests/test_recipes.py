"""Cells, layers and models made from equal arguments are equal: one key of a cache, one program."""

import copy
import inspect
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from rnnjax._recipe import Made
from rnnjax.decoding.sampling import Transform

# By the name of what makes it, and a word where there are several.
MAKE = {
    "vanilla": lambda: rnnjax.vanilla(4),
    "vanilla relu": lambda: rnnjax.vanilla(4, jax.nn.relu),
    "lstm": lambda: rnnjax.lstm(4),
    "gru": lambda: rnnjax.gru(4, reset_after=False, initializer="keras"),
    "minimal_gated": lambda: rnnjax.minimal_gated(4),
    "indrnn": lambda: rnnjax.indrnn(4, recurrent_range=(0.1, 0.5)),
    "cornn": lambda: rnnjax.cornn(4, time_step=0.1),
    "lmu": lambda: rnnjax.lmu(4, 3, theta=np.float32(8)),
    "lru": lambda: rnnjax.lru(4, 6, min_radius=0.5),
    "rg_lru": lambda: rnnjax.rg_lru(4),
    "s4d": lambda: rnnjax.s4d(4, 2, frequencies="inverse", sampling="bilinear"),
    "s5": lambda: rnnjax.s5(4, 6, min_step=0.01),
    "cfc": lambda: rnnjax.cfc(4),
    "conv_lstm": lambda: rnnjax.conv_lstm([4, 3], 2, kernel_size=[2, 2]),
    "projected_lstm": lambda: rnnjax.projected_lstm(4, 2),
    "peephole_lstm": lambda: rnnjax.peephole_lstm(4),
    "coupled_lstm": lambda: rnnjax.coupled_lstm(4),
    "mogrifier_lstm": lambda: rnnjax.mogrifier_lstm(4, rounds=3, rank=2),
    "mlstm": lambda: rnnjax.mlstm(4, num_heads=2),
    "gated_delta": lambda: rnnjax.gated_delta(4, num_heads=2),
    "slstm": lambda: rnnjax.slstm(4),
    "min_gru": lambda: rnnjax.min_gru(4),
    "min_lstm": lambda: rnnjax.min_lstm(4),
    "zoneout": lambda: rnnjax.zoneout(rnnjax.lstm(4), {"h": 0.1, "c": np.float32(0.5)}),
    "variational_dropout": lambda: rnnjax.variational_dropout(rnnjax.lstm(4), 0.1, hidden=0.2),
    "recurrent_dropout": lambda: rnnjax.recurrent_dropout(rnnjax.lstm(4), 0.1),
    "weight_drop": lambda: rnnjax.weight_drop(rnnjax.lstm(4), 0.1),
    "layer_norm": lambda: rnnjax.layer_norm(rnnjax.lstm(4)),
    "learn_initial_carry": lambda: rnnjax.learn_initial_carry(rnnjax.lstm(4)),
    "trace_gates": lambda: rnnjax.trace_gates(rnnjax.lstm(4)),
    "with_policy": lambda: rnnjax.with_policy(rnnjax.lstm(4), rnnjax.Policy(compute=jnp.bfloat16)),
    "recurrent": lambda: rnnjax.recurrent(rnnjax.lstm(4), reverse=True, remat=2),
    "bidirectional": lambda: rnnjax.bidirectional(rnnjax.lstm(4)),
    "stack": lambda: rnnjax.stack(rnnjax.lstm(4), rnnjax.gru(4), dropout=0.1),
    "skip_stack": lambda: rnnjax.skip_stack(rnnjax.lstm(4), rnnjax.gru(4)),
    "residual": lambda: rnnjax.residual(rnnjax.lstm(4)),
    "output_head": lambda: rnnjax.output_head(rnnjax.lstm(4), 2, jax.nn.softplus),
    "grid_lstm": lambda: rnnjax.grid_lstm(4, 2, tied=False, policy=rnnjax.Policy()),
    "image_grid_lstm": lambda: rnnjax.image_grid_lstm(4, 2, corner="bottom right"),
    "attention": lambda: rnnjax.attention("local", window=3),
    "attention_cell": lambda: rnnjax.attention_cell(rnnjax.gru(4), 3, input_feeding=True),
    "window_cell": lambda: rnnjax.window_cell(rnnjax.gru(4), 3, 2, speed=0.2),
    "s6": lambda: rnnjax.s6(4, 2, step_rank=1),
    "causal_convolution": lambda: rnnjax.causal_convolution(4, 3, jax.nn.silu),
    "dense": lambda: rnnjax.dense(4, jax.nn.relu),
    "gated": lambda: rnnjax.gated(rnnjax.gru(4), 4, activation=jax.nn.gelu),
    "rms_norm": lambda: rnnjax.rms_norm(rnnjax.gru(4)),
    "embedding": lambda: rnnjax.embedding(3, vectors=np.eye(3)),
    "one_hot": lambda: rnnjax.one_hot(3),
    "adaptive_softmax": lambda: rnnjax.adaptive_softmax(4, 9, cutoffs=[3, 6]),
    "classifier": lambda: rnnjax.classifier(rnnjax.embedding(5, 2), rnnjax.lstm(4), 3),
    "tagger": lambda: rnnjax.tagger(rnnjax.embedding(5, 2), rnnjax.lstm(4), 3),
    "language_model": lambda: rnnjax.language_model(
        rnnjax.embedding(9, 4), rnnjax.lstm(4), softmax=rnnjax.adaptive_softmax(4, 9, [3])
    ),
    "sequence_to_sequence": lambda: rnnjax.sequence_to_sequence(
        rnnjax.embedding(5, 2), rnnjax.gru(4), rnnjax.one_hot(6), rnnjax.gru(4), start=1
    ),
    "captioner": lambda: rnnjax.captioner(
        6, rnnjax.embedding(5, 2), rnnjax.attention_cell(rnnjax.gru(4), 6), start=1
    ),
    "series_model": lambda: rnnjax.series_model(
        rnnjax.gru(4),
        rnnjax.joint_head(rnnjax.gaussian_mixture_head(3, 2), rnnjax.bernoulli_head(1)),
    ),
    "joint_head": lambda: rnnjax.joint_head(rnnjax.bernoulli_head(1), rnnjax.bernoulli_head(2)),
    "gaussian_mixture_head": lambda: rnnjax.gaussian_mixture_head(3, 2),
    "bernoulli_head": lambda: rnnjax.bernoulli_head(1),
    "quantile_head": lambda: rnnjax.quantile_head([0.2, 0.8], 3),
    "categorical_head": lambda: rnnjax.categorical_head(3),
    "sample": lambda: rnnjax.sample(rnnjax.temperature(0.5), rnnjax.top_k(2)),
    "greedy": lambda: rnnjax.greedy(rnnjax.forbid([0])),
    "temperature": lambda: rnnjax.temperature(np.float32(0.5)),
    "top_k": lambda: rnnjax.top_k(jnp.asarray(3)),
    "top_p": lambda: rnnjax.top_p(0.5),
    "min_p": lambda: rnnjax.min_p(0.5),
    "repetition_penalty": lambda: rnnjax.repetition_penalty(1.5, window=4),
    "forbid": lambda: rnnjax.forbid(np.array([2, 1])),
    "min_length": lambda: rnnjax.min_length(2, stop=[1]),
}


def test_everything_that_the_package_makes_is_in_the_table():
    """A factory is known by what it says it returns, or by how it is wrapped."""
    functions = {name: f for name, f in vars(rnnjax).items() if inspect.isfunction(f)}
    results = {name: f.__annotations__.get("return") for name, f in functions.items()}
    made = {
        name
        for name, result in results.items()
        if functions[name].__code__ is rnnjax.lstm.__code__
        or result is Transform
        or (isinstance(result, type) and issubclass(result, Made | rnnjax.Sampling))
    }
    assert made == {name.split()[0] for name in MAKE}


@pytest.mark.parametrize("name", MAKE)
def test_what_is_built_twice_is_equal_and_survives_pickling_and_copying(name):
    one, two = MAKE[name](), MAKE[name]()
    assert one is not two
    assert one == two
    assert (one != two) is False
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == copy.copy(one) == one


def test_different_things_differ():
    things = [make() for make in MAKE.values()]
    assert len(set(things)) == len(things)
    assert all(a != b for i, a in enumerate(things) for b in things[:i])


def test_arguments_by_place_by_name_and_by_default_are_the_same():
    assert rnnjax.gru(4) == rnnjax.gru(hidden_size=4) == rnnjax.gru(4, True, initializer="rnnjax")
    assert rnnjax.lstm(np.int64(4)) == rnnjax.lstm(4)
    assert rnnjax.lstm(4) != rnnjax.lstm(5)
    names, types = rnnjax.Policy(compute="bfloat16"), rnnjax.Policy(compute=jnp.bfloat16)
    assert rnnjax.with_policy(rnnjax.gru(4), names) == rnnjax.with_policy(rnnjax.gru(4), types)


def test_functions_are_compared_by_identity_and_arrays_by_value():
    assert rnnjax.vanilla(4, lambda x: x) != rnnjax.vanilla(4, lambda x: x)
    vectors = np.eye(3)
    before = rnnjax.embedding(3, vectors=vectors)
    assert before == rnnjax.embedding(3, vectors=np.eye(3))
    vectors[0, 0] = 7.0  # the caller's own array, changed afterwards
    assert before == rnnjax.embedding(3, vectors=np.eye(3))
    assert before.init(jax.random.key(0)).vectors[0, 0] == 1
    assert before != rnnjax.embedding(3, vectors=vectors)


def test_a_changed_cell_is_no_longer_the_one_it_came_from():
    cell = rnnjax.lstm(4)
    changed = cell._replace(update=lambda *a: a)
    assert changed != cell
    assert hash(changed) != hash(cell)
    assert "rnnjax.lstm(" not in repr(changed)
    assert cell._replace(output_size=5) != cell
    with pytest.raises(AttributeError, match="_replace"):
        cell.color = "red"  # pyright: ignore


def test_cells_made_by_hand_are_equal_where_their_functions_are_the_same():
    pieces = rnnjax.lstm(4)
    other = rnnjax.lstm(4)
    assert rnnjax.Cell(*pieces) == rnnjax.Cell(*pieces)
    assert rnnjax.Cell(*pieces) != rnnjax.Cell(*other)
    assert hash(rnnjax.Cell(*pieces)) == hash(rnnjax.Cell(*pieces))
    own = rnnjax.Cell(*pieces)
    assert rnnjax.zoneout(own, 0.1) == rnnjax.zoneout(own, 0.1)
    assert rnnjax.zoneout(own, 0.0) is own


def test_what_is_not_there_is_answered_with_what_is():
    cell, layer = rnnjax.lstm(4), rnnjax.recurrent(rnnjax.lstm(4))
    with pytest.raises(
        AttributeError, match=r"no 'apply' \(rnnjax\.recurrent\(cell\) makes a layer"
    ):
        cell.apply(None, None)
    with pytest.raises(AttributeError, match=r"no 'fit' \(rnnjax\.make_train_step"):
        layer.fit(None)
    with pytest.raises(
        AttributeError, match=r"Layer has no 'forward' \(apply\(params, xs, lengths\) "
    ):
        layer.forward(None)
    model = MAKE["classifier"]()
    with pytest.raises(AttributeError, match=r"Model has no 'predict' \(apply\(params, tokens, "):
        model.predict(None)
    with pytest.raises(
        AttributeError, match=r"Model has no .step. \(a layer has it, such as rnnjax"
    ):
        model.step(None)
    with pytest.raises(AttributeError, match=r"no 'init_carry', only .*initial_carry") as told:
        layer.init_carry(None)
    assert (told.value.name, told.value.obj) == ("init_carry", layer)
    assert not hasattr(layer, "__call__")  # noqa: B004 (also not by name)
    assert not hasattr(layer, "__jax_array__")


def test_a_wrong_call_is_answered_with_the_arguments_that_there_are():
    message = (
        r"lstm must be called as lstm\(hidden_size, \*, initializer\), got a wrong call "
        r"\({}\): the size of the inputs is given to init"
    )
    with pytest.raises(TypeError, match=message.format("too many positional arguments")):
        rnnjax.lstm(3, 8)
    with pytest.raises(TypeError, match=message.format(".* 'input_size'")):
        rnnjax.lstm(input_size=3, hidden_size=8)
    # What other libraries have as an argument is named as what it is here.
    for name, counterpart in {
        "num_layers": r"rnnjax\.stack\(layer, layer\)",
        "bidirectional": r"rnnjax\.bidirectional\(cell\)",
        "dropout": r"rnnjax\.stack\(\.\.\., dropout=rate\)",
        "batch_first": r"inputs are \[\.\.\., T, D\], batch first",
        "return_sequences": r"layer\.last\(ys, lengths\)",
    }.items():
        for make in (rnnjax.lstm, rnnjax.gru):
            with pytest.raises(TypeError, match=rf"got .*'{name}'\): .*{counterpart}"):
                make(4, **{name: 2})
    with pytest.raises(TypeError, match=r"recurrent must be .*'bidirectional'\): rnnjax\.bidirect"):
        rnnjax.recurrent(rnnjax.lstm(4), bidirectional=True)
    with pytest.raises(TypeError, match=r"'dropot'\)$"):
        rnnjax.lstm(4, dropot=0.1)
    with pytest.raises(
        TypeError, match=r"stack must be called as stack\(\*layers, dropout, policy\)"
    ):
        rnnjax.stack(rnnjax.lstm(3), rate=0.1)
    # Of two sizes the second is taken for another argument, where there is one.
    for make, second in (
        (rnnjax.gru, "reset_after"),
        (rnnjax.vanilla, "activation"),
        (rnnjax.projected_lstm, "projection_size"),
    ):
        with pytest.raises(ValueError, match=f"^{second} must .* 8: the size of the inputs is g"):
            make(3, 8)
    with pytest.raises(ValueError, match=r"^max_phase must .*, got -1.0$"):
        rnnjax.lru(3, 8, max_phase=-1.0)
    # What is made by hand is named as it is called, not by the private class of its fields.
    with pytest.raises(TypeError, match=r"^Cell\(\) got an unexpected keyword argument 'step'"):
        rnnjax.Cell(step=lambda: 0)
    with pytest.raises(TypeError, match=r"^Layer\(\) missing 4 required .* 'init', 'apply'"):
        rnnjax.Layer()


def test_they_are_printed_as_the_call_that_made_them():
    assert repr(rnnjax.lstm(hidden_size=16)) == "rnnjax.lstm(hidden_size=16)"
    layer = rnnjax.stack(rnnjax.bidirectional(rnnjax.gru(4)), rnnjax.lstm(2), dropout=0.5)
    assert repr(layer) == (
        "rnnjax.stack(rnnjax.bidirectional(rnnjax.gru(hidden_size=4)), "
        "rnnjax.lstm(hidden_size=2), dropout=0.5)"
    )
    assert repr(rnnjax.vanilla(2, jax.nn.relu)) == "rnnjax.vanilla(hidden_size=2, activation=relu)"
    grid = rnnjax.grid_lstm(np.int64(4), jnp.asarray(2), reverse=np.True_)
    assert repr(grid) == "rnnjax.grid_lstm(hidden_size=4, num_layers=2, reverse=True)"
    assert "float64[3, 3]" in repr(MAKE["embedding"]())
    assert repr(rnnjax.Cell(*rnnjax.lstm(4))).startswith("rnnjax.Cell(output_size=4, init=init, ")


def test_forty_builds_are_one_program():
    traces = []

    def activation(x):
        traces.append(1)
        return jnp.tanh(x)

    def build():
        cell = rnnjax.zoneout(rnnjax.vanilla(3, activation), 0.1)
        return rnnjax.stack(cell, rnnjax.bidirectional(rnnjax.lstm(2)))

    params, xs = build().init(jax.random.key(0), 2), jnp.ones((2, 4, 2))
    counts = []
    for _ in range(40):
        build().apply(params, xs)
        counts.append(len(traces))
    assert counts[0] == counts[-1] > 0


def test_a_layer_is_one_static_argument():
    traces = []

    def run(layer, params, xs):
        traces.append(1)
        return layer.apply(params, xs)[1]

    run = jax.jit(run, static_argnums=0)
    params = rnnjax.lstm(2).init(jax.random.key(0), 2)
    for _ in range(3):
        run(rnnjax.recurrent(rnnjax.lstm(2)), params, jnp.ones((4, 2)))
    assert len(traces) == 1


def test_another_process_makes_the_same_model_of_a_pickle(tmp_path):
    model = rnnjax.classifier(rnnjax.embedding(5, 2), rnnjax.vanilla(3, jax.nn.relu), 2)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, jax; model = pickle.load(open(sys.argv[1], 'rb')); print(model); "
        "print(float(model.init(jax.random.key(0)).head.w.sum()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pickle")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    assert found[0] == repr(model)
    assert float(found[1]) == float(model.init(jax.random.key(0)).head.w.sum())

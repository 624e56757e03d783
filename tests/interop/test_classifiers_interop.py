"""Whole classifiers from and to PyTorch and Keras: logits beside the live models, and refusals."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import rnnjax
from rnnjax.interop import classifiers
from rnnjax.interop.classifiers import (
    Architecture,
    LayerSize,
    build,
    describe,
    export_keras,
    export_torch,
    import_keras,
    import_torch,
    two_classes,
)
from rnnjax.interop.weight_files import read_keras_file, read_torch_file

# Keras reads its own variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

V, E, H, C = 11, 4, 3, 2
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TOKENS = np.array([[2, 3, 4, 5, 6], [8, 9, 10, 1, 7]], np.int32)
TORCH_KINDS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def drawn(architecture, seed=0):
    """Parameters of an architecture, the biases drawn too."""
    shapes = jax.eval_shape(build(architecture).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda a: random.normal(0, 0.5, a.shape).astype(a.dtype), shapes)


def zeros(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)


def logits(architecture, params, tokens=TOKENS):
    return np.asarray(jax.jit(build(architecture).apply)(params, tokens))


def torch_net(kind, names=("embedding", "rnn", "fc"), **options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Module()
    width = H * (2 if options.get("bidirectional") else 1)
    for name, module in zip(
        names,
        (
            torch.nn.Embedding(V, E),
            getattr(torch.nn, TORCH_KINDS[kind])(E, H, batch_first=True, **options),
            torch.nn.Linear(width, C),
        ),
        strict=True,
    ):
        net.add_module(name, module)
    return net.requires_grad_(False)


def torch_logits(net, tokens=TOKENS):
    """The mean over time, as in the lesson."""
    torch = pytest.importorskip("torch")
    table, rnn, linear = net.children()
    return linear(rnn(table(torch.from_numpy(tokens)))[0].mean(dim=1)).numpy()


OPTIONS = {
    "one layer": {},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("rnn", "one layer"), ("lstm", "two layers, two directions"), ("gru", "no bias")],
)
def test_a_state_dict_gives_the_logits_of_its_module(kind, options):
    net = torch_net(kind, **OPTIONS[options])
    params = import_torch(kind, net.state_dict())
    architecture = describe(kind, params, pooling="mean")
    np.testing.assert_allclose(logits(architecture, params), torch_logits(net), **CLOSE)


def test_relu_is_an_activation_that_the_weights_do_not_show():
    net = torch_net("rnn", nonlinearity="relu")
    params = import_torch("rnn", net.state_dict())
    architecture = describe("rnn", params, pooling="mean", activation="relu")
    np.testing.assert_allclose(logits(architecture, params), torch_logits(net), **CLOSE)


def test_the_parts_of_a_module_are_found_whatever_their_names():
    net = torch_net("gru", names=("table", "encoder", "out"))
    wrapped = {f"module.{name}": array for name, array in net.state_dict().items()}
    expected = import_torch("gru", torch_net("gru").state_dict())
    for params in (
        import_torch("gru", wrapped),
        import_torch("gru", net.state_dict(), embedding="table", encoder="encoder", head="out"),
    ):
        jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_exported_parameters_load_strictly_and_give_the_same_logits(kind):
    layers = (LayerSize(H, True), LayerSize(H, True))
    architecture = Architecture(kind, V, E, layers, C, pooling="mean")
    params = drawn(architecture)
    torch = pytest.importorskip("torch")
    net = torch_net(kind, num_layers=2, bidirectional=True)
    state = {name: torch.from_numpy(a) for name, a in export_torch(kind, params).items()}
    net.load_state_dict(state, strict=True)
    np.testing.assert_allclose(torch_logits(net), logits(architecture, params), **CLOSE)


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_torch_export_is_undone_by_import(kind):
    params = drawn(Architecture(kind, V, E, (LayerSize(H, False), LayerSize(H, False)), C))
    names = {"embedding": "a", "encoder": "b.c", "head": "d"}
    again = import_torch(kind, export_torch(kind, params, **names))
    jax.tree.map(np.testing.assert_array_equal, again, params)


STACKS = {
    "one": (LayerSize(H, False),),
    "bidirectional": (LayerSize(H, True),),
    # Every size is E, so that shapes alone must tell pairs from stacks.
    "stack of equal sizes": (LayerSize(E, False), LayerSize(E, False)),
    "two directions of equal sizes": (LayerSize(E, True), LayerSize(E, True)),
    "mixed": (LayerSize(E, True), LayerSize(2 * E, False), LayerSize(H, True)),
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru_reset_before"])
def test_keras_export_is_undone_by_import(kind, stack):
    architecture = Architecture(kind, V, E, STACKS[stack], C)
    params = drawn(architecture)
    again = import_keras(kind, list(export_keras(kind, params).values()))
    assert describe(kind, again) == architecture
    jax.tree.map(np.testing.assert_array_equal, again, params)


KERAS_LAYERS = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU"}


@pytest.mark.parametrize("kind", KERAS_LAYERS)
def test_keras_takes_the_arrays_under_its_own_names_and_gives_the_same_logits(kind):
    keras = pytest.importorskip("keras")
    keras.backend.clear_session()
    sizes = (LayerSize(E, True), LayerSize(H, False))
    architecture = Architecture(kind, V, E, sizes, C)
    params = drawn(architecture)
    make = getattr(keras.layers, KERAS_LAYERS[kind])
    more = {"reset_after": False} if kind == "gru_reset_before" else {}
    net = keras.Sequential(
        [
            keras.layers.Embedding(V, E),
            keras.layers.Bidirectional(make(E, return_sequences=True, **more)),
            make(H, **more),
            keras.layers.Dense(C),
        ]
    )
    arrays = export_keras(kind, params)
    with jax.numpy_rank_promotion("allow"):  # Keras adds its biases so
        net.build((None, None))
        net.set_weights(list(arrays.values()))
        found = jax.jit(net)(TOKENS)
    paths = [variable.path.split("/", 1)[1] for variable in net.weights]
    assert [name[4:] for name in arrays] == paths
    np.testing.assert_allclose(found, logits(architecture, params), **CLOSE)


def test_layers_of_keras_without_biases_are_told_apart():
    params = drawn(Architecture("lstm", V, E, (LayerSize(H, True), LayerSize(H, False)), C))
    arrays = [a for a in export_keras("lstm", params).values() if a.shape != (4 * H,)]
    again = import_keras("lstm", arrays)
    for found, given in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        expected = np.zeros_like(given) if given.shape == (4 * H,) else given
        np.testing.assert_array_equal(found, expected)


def test_two_classes_have_the_probabilities_of_one_sigmoid_unit():
    architecture = Architecture("gru", V, E, (LayerSize(H, False),), 1)
    params = drawn(architecture)
    z = logits(architecture, params)
    both = two_classes(params)
    found = jax.nn.softmax(logits(describe("gru", both), both), axis=-1)
    np.testing.assert_allclose(found[:, 1:], 1 / (1 + np.exp(-z)), **CLOSE)
    with pytest.raises(ValueError, match="head: expected one unit, got 2"):
        two_classes(both)


@pytest.mark.parametrize("kind", classifiers.KINDS)
@pytest.mark.parametrize("stack", ["one", "mixed"])
def test_describe_gives_back_what_was_built(kind, stack):
    activation = "relu" if kind == "rnn" else "tanh"
    architecture = Architecture(kind, V, E, STACKS[stack], C, "max", activation)
    assert describe(kind, drawn(architecture), pooling="max", activation=activation) == architecture


def state_dict(**changes):
    arrays = export_torch("lstm", drawn(Architecture("lstm", V, E, (LayerSize(H, False),), C)))
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}


F = np.float32
WRONG = {
    "no recurrent module": (
        {"rnn.weight_ih_l0": None},
        r"encoder: expected exactly one in the state dict, found \[\]",
    ),
    "two recurrent modules": (
        {"b.weight_ih_l0": np.ones((4 * H, E), F)},
        r"encoder: expected exactly one in the state dict, found \['rnn', 'b'\]",
    ),
    "two heads": (
        {"g.weight": np.ones((C, H), F), "g.bias": np.ones(C, F)},
        r"head: expected exactly one in the state dict, found \['fc', 'g'\]",
    ),
    "no bias in the head": ({"fc.bias": None}, "embedding: expected exactly one"),
    "a part of none": ({"scale": np.ones(1, F)}, "entries of no part of a classifier: scale"),
    "a narrow embedding": (
        {"embedding.weight": np.ones((V, E - 1), F)},
        "encoder layer 0: expected weights for 3 inputs, the size of what is below, got 4",
    ),
    "a wide head": (
        {"fc.weight": np.ones((C, H + 1), F)},
        "head: expected weights for 3 inputs, got 4",
    ),
    "a head of two shapes": ({"fc.bias": np.ones(C + 1, F)}, "bias: expected shape"),
    "a projection": ({"rnn.weight_hr_l0": np.ones((2, H), F)}, "weight_hr_l0: unexpected"),
    "integers": ({"embedding.weight": np.ones((V, E), int)}, "weight: expected a floating dtype"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        import_torch("lstm", state_dict(**changes))


def test_a_named_part_must_be_there():
    with pytest.raises(ValueError, match=r"head: expected 'out' in the state dict, found \['fc'\]"):
        import_torch("lstm", state_dict(), head="out")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(V, E), (H, C), (C,)], r"expected get_weights\(\) of Embedding"),
        ([(V, E), (E, H), (H, H), (H,), (2 * H, C), (C,)], "head: expected weights for 3 inputs"),
        ([(V, E), (E, H), (H, H + 1), (H,), (H, C), (C,)], "recurrent_kernel: expected shape"),
        ([(V, E), (E, H), (H, H), (H,), (H, H), (H, C), (C,)], "expected the arrays"),
    ],
)
def test_keras_arrays_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        import_keras("rnn", [np.ones(shape, F) for shape in shapes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lru"}, r"kind must be one of \['rnn', 'lstm'"),
        ({"pooling": "first"}, "pooling must be one of"),
        ({"activation": "relu"}, "got 'relu' for 'lstm'"),
    ],
)
def test_choices_are_checked_on_both_sides(change, message):
    architecture = Architecture("lstm", V, E, STACKS["one"], C)
    params = drawn(architecture)
    with pytest.raises(ValueError, match=message):
        build(architecture._replace(**change))
    with pytest.raises(ValueError, match=message):
        describe(**{"kind": "lstm", "params": params} | change)


def test_directions_of_two_sizes_are_refused():
    encoder = rnnjax.bidirectional(rnnjax.lstm(3), rnnjax.recurrent(rnnjax.lstm(4), reverse=True))
    model = rnnjax.classifier(rnnjax.embedding(V, E), encoder, C)
    with pytest.raises(ValueError, match=r"encoder layer 0: .* one size, got sizes \[3, 4\]"):
        describe("lstm", zeros(model))


def test_layers_that_torch_has_in_no_module_are_refused():
    params = drawn(Architecture("lstm", V, E, STACKS["mixed"], C))
    with pytest.raises(ValueError, match="two directions in every layer"):
        export_torch("lstm", params)


@pytest.mark.parametrize(
    "names", [["kernel", "bias"], ["0/a", "0/b"], ["0/a", "2/b"], ["1/a", "2/b"]]
)
def test_keras_arrays_without_their_places_are_refused(names, tmp_path):
    save_file({name: np.ones(1, F) for name in names}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"expected names that begin with 0, 1, 2.*enumerate"):
        read_keras_file(tmp_path / "w.safetensors")


def test_places_are_numbers_not_words(tmp_path):
    arrays = {f"{i}/x": np.full(1, i, F) for i in range(12)}
    save_file(arrays, tmp_path / "w.safetensors")
    assert [int(a[0]) for a in read_keras_file(tmp_path / "w.safetensors")] == list(range(12))


def test_an_h5_file_that_does_not_say_the_order_is_refused(tmp_path):
    keras, _ = pytest.importorskip("keras"), pytest.importorskip("h5py")
    net = keras.Sequential(
        [
            keras.layers.Embedding(V, E),
            keras.layers.LSTM(H, return_sequences=True),
            keras.layers.GRU(H),
            keras.layers.Dense(C),
        ]
    )
    with jax.numpy_rank_promotion("allow"):
        net.build((None, None))
    net.save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match=r"recurrent layers of one class .*'gru', 'lstm'.*zip"):
        read_keras_file(tmp_path / "w.weights.h5")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "recurrent_activation",
            "hard_sigmoid",
            "only 'sigmoid' is known here, got 'hard_sigmoid'",
        ),
        ("merge_mode", "sum", "only 'concat' is known here, got 'sum'"),
    ],
)
def test_an_old_h5_file_says_what_its_model_computes(setting, value, message, tmp_path):
    keras, _ = pytest.importorskip("keras"), pytest.importorskip("h5py")
    layers, of_cell = keras.layers, setting == "recurrent_activation"
    cell = layers.LSTM(H, **({setting: value} if of_cell else {}))
    both = layers.Bidirectional(cell, **({} if of_cell else {setting: value}))
    net = keras.Sequential([layers.Embedding(V, E), both, layers.Dense(C)])
    with jax.numpy_rank_promotion("allow"):
        net.build((None, None))
    net.save(tmp_path / "w.h5")
    with pytest.raises(ValueError, match=f"{setting}: {message}"):
        read_keras_file(tmp_path / "w.h5")


def test_more_than_ten_layers_of_an_h5_file_keep_their_order(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        for i in range(12):
            name = f"lstm_{i}" if i else "lstm"
            file[f"layers/{name}/cell/vars/0"] = np.full(1, i, F)
        file["layers/embedding/vars/0"] = np.full(1, -1, F)
        file["layers/dense/vars/0"] = np.full(1, 12, F)
    found = [int(a[0]) for a in read_keras_file(tmp_path / "w.weights.h5")]
    assert found == list(range(-1, 13))


def test_a_file_that_is_something_else_is_refused(tmp_path):
    for name, read, message in [
        ("w.h5", read_keras_file, "not a whole HDF5 file"),
        ("w.safetensors", read_keras_file, "not a whole safetensors file"),
        ("w.keras", read_keras_file, r"expected an .h5 or a .safetensors file: safetensors.numpy"),
        ("w.safetensors", read_torch_file, "not a whole safetensors file"),
        ("w.pt", read_torch_file, r"expected a .safetensors file: safetensors.torch.save_file"),
    ]:
        if name.endswith("h5"):
            pytest.importorskip("h5py")
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing of the kind")
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)

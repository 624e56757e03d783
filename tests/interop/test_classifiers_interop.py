"""Whole classifiers from and to PyTorch and Keras: logits beside the live models, and refusals."""

import json
import re
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors.numpy import save_file

import rnnjax
from rnnjax.interop import classifiers
from rnnjax.interop._keras_config import Asked, check_config
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
from rnnjax.interop.weight_files import SAVE_KERAS, read_keras_file, read_torch_file
from rnnjax.models.classifier import ClassifierParams

# Keras reads its own variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

V, E, H, C = 11, 4, 3, 2
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TOKENS = np.array([[2, 3, 4, 5, 6], [8, 9, 10, 1, 7]], np.int32)
TORCH_KINDS = {"vanilla": "RNN", "lstm": "LSTM", "gru": "GRU"}


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
    [("vanilla", "one layer"), ("lstm", "two layers, two directions"), ("gru", "no bias")],
)
def test_a_state_dict_gives_the_logits_of_its_module(kind, options):
    net = torch_net(kind, **OPTIONS[options])
    params = import_torch(kind, net.state_dict())
    architecture = describe(kind, params, pooling="mean")
    np.testing.assert_allclose(logits(architecture, params), torch_logits(net), **CLOSE)


def test_the_three_parts_of_a_tagger_are_those_of_a_classifier():
    torch = pytest.importorskip("torch")
    net = torch_net("lstm", num_layers=2, bidirectional=True)
    table, rnn, linear = net.children()
    expected = linear(rnn(table(torch.from_numpy(TOKENS)))[0]).numpy()
    params = rnnjax.TaggerParams(*import_torch("lstm", net.state_dict()))
    layer = rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(H)), rnnjax.bidirectional(rnnjax.lstm(H)))
    model = rnnjax.tagger(rnnjax.embedding(V, E), layer, num_classes=C)
    np.testing.assert_allclose(model.apply(params, TOKENS), expected, **CLOSE)
    back = export_torch("lstm", rnnjax.models.ClassifierParams(*params))
    np.testing.assert_array_equal(back["fc.weight"], net.state_dict()["fc.weight"])


def test_a_stack_inside_a_stack_has_the_logits_of_a_module_of_as_many_layers():
    torch = pytest.importorskip("torch")
    encoder = rnnjax.stack(rnnjax.stack(rnnjax.gru(H)), rnnjax.gru(H))
    model = rnnjax.classifier(rnnjax.embedding(V, E), encoder, C, pooling="mean")
    params = model.init(jax.random.key(0))
    net = torch_net("gru", num_layers=2)
    state = {name: torch.from_numpy(a) for name, a in export_torch("gru", params).items()}
    net.load_state_dict(state, strict=True)
    np.testing.assert_allclose(torch_logits(net), model.apply(params, TOKENS), **CLOSE)


def test_relu_is_an_activation_that_the_weights_do_not_show():
    net = torch_net("vanilla", nonlinearity="relu")
    params = import_torch("vanilla", net.state_dict())
    architecture = describe("vanilla", params, pooling="mean", activation="relu")
    np.testing.assert_allclose(logits(architecture, params), torch_logits(net), **CLOSE)


def test_the_parts_of_a_module_are_found_whatever_their_names():
    net = torch_net("gru", names=("table", "encoder", "encoder_out"))
    wrapped = {f"module.{name}": array for name, array in net.state_dict().items()}
    expected = import_torch("gru", torch_net("gru").state_dict())
    for params in (
        import_torch("gru", wrapped),
        import_torch(
            "gru", net.state_dict(), embedding="table", encoder="encoder", head="encoder_out"
        ),
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
    weights = export_torch(kind, params, **names)
    again = import_torch(kind, weights)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    # safetensors 0.8 writes the numbers of an array as they lie in memory.
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves((weights, again)))


STACKS = {
    "one": (LayerSize(H, False),),
    "bidirectional": (LayerSize(H, True),),
    # Every size is E, so that shapes alone must tell pairs from stacks.
    "stack of equal sizes": (LayerSize(E, False), LayerSize(E, False)),
    "two directions of equal sizes": (LayerSize(E, True), LayerSize(E, True)),
    # Of the first, half of what the head takes.
    "two sizes": (LayerSize(H, False), LayerSize(2 * H, False)),
    "mixed": (LayerSize(E, True), LayerSize(2 * E, False), LayerSize(H, True)),
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", ["vanilla", "lstm", "gru", "gru_reset_before"])
def test_keras_export_is_undone_by_import(kind, stack):
    architecture = Architecture(kind, V, E, STACKS[stack], C)
    params = drawn(architecture)
    again = import_keras(kind, list(export_keras(kind, params).values()))
    assert describe(kind, again) == architecture
    jax.tree.map(np.testing.assert_array_equal, again, params)


KERAS_LAYERS = {"vanilla": "SimpleRNN", "lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU"}


@pytest.mark.parametrize("kind", KERAS_LAYERS)
def test_keras_takes_the_arrays_under_its_own_names_and_gives_the_same_logits(kind):
    keras = pytest.importorskip("keras")
    keras.backend.clear_session()
    sizes = (LayerSize(E, False), LayerSize(H, True))
    architecture = Architecture(kind, V, E, sizes, C)
    params = drawn(architecture)
    make = getattr(keras.layers, KERAS_LAYERS[kind])
    more = {"reset_after": False} if kind == "gru_reset_before" else {}
    net = keras.Sequential(
        [
            keras.layers.Embedding(V, E),
            make(E, return_sequences=True, **more),
            keras.layers.Bidirectional(make(H, **more)),
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


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("lstm", (LayerSize(H, True), LayerSize(H, False))),
        # A matrix of two rows, as the two biases of a GRU are.
        ("gru", (LayerSize(2, False), LayerSize(H, False))),
    ],
)
def test_layers_of_keras_without_biases_are_told_apart(kind, sizes):
    def without_biases(path, leaf):
        return 0 * leaf if "bias" in jax.tree_util.keystr(path) else leaf

    params = drawn(Architecture(kind, V, E, sizes, C))
    bare = params._replace(encoder=jax.tree.map_with_path(without_biases, params.encoder))
    arrays = {n: a for n, a in export_keras(kind, params).items() if not n.endswith("_cell/bias")}
    for found, expected in zip(
        jax.tree.leaves(import_keras(kind, list(arrays.values()))),
        jax.tree.leaves(bare),
        strict=True,
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_two_classes_have_the_probabilities_of_one_sigmoid_unit():
    architecture = Architecture("gru", V, E, (LayerSize(H, False),), 1)
    params = drawn(architecture)
    z = logits(architecture, params)
    both = two_classes(params)
    found = jax.nn.softmax(logits(describe("gru", both), both), axis=-1)
    np.testing.assert_allclose(found[:, 1:], 1 / (1 + np.exp(-z)), **CLOSE)
    with pytest.raises(ValueError, match="head must have one unit, got 2"):
        two_classes(both)


@pytest.mark.parametrize("kind", classifiers.KINDS)
@pytest.mark.parametrize("stack", ["one", "mixed"])
def test_describe_gives_back_what_was_built(kind, stack):
    activation = "relu" if kind == "vanilla" else "tanh"
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
        r"encoder must be one module of the state dict, got \[\]",
    ),
    "two recurrent modules": (
        {"b.weight_ih_l0": np.ones((4 * H, E), F)},
        r"encoder must be one module of the state dict, got \['rnn', 'b'\]",
    ),
    "two heads": (
        {"g.weight": np.ones((C, H), F), "g.bias": np.ones(C, F)},
        r"head must be one module of the state dict, got \['fc', 'g'\]",
    ),
    "no bias in the head": ({"fc.bias": None}, "embedding must be one module"),
    "a part of none": (
        {"scale": np.ones(1, F)},
        "weights must be those of a classifier alone, got scale",
    ),
    "a narrow embedding": (
        {"embedding.weight": np.ones((V, E - 1), F)},
        "encoder layer 0 must have weights for 3 inputs, the size of what is below, got 4",
    ),
    "a wide head": (
        {"fc.weight": np.ones((C, H + 1), F)},
        "head must have weights for 3 inputs, got 4",
    ),
    "a head of two shapes": ({"fc.bias": np.ones(C + 1, F)}, "bias must have shape"),
    "a projection": ({"rnn.weight_hr_l0": np.ones((2, H), F)}, "weight_hr_l0 must be absent"),
    "integers": ({"embedding.weight": np.ones((V, E), int)}, "weight must be of floating dtype"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        import_torch("lstm", state_dict(**changes))


def test_a_named_part_must_be_there():
    with pytest.raises(ValueError, match=r"head must be 'out' of the state dict, got \['fc'\]"):
        import_torch("lstm", state_dict(), head="out")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(V, E), (H, C), (C,)], r"weights must be get_weights\(\) of Embedding"),
        ([(V, E), (E, H), (H, H), (H,), (H, C)], r"weights must be get_weights\(\) of Embedding"),
        ([(V, E), (E, H), (H, H), (H,), (2 * H, C), (C,)], "head must have weights for 3 inputs"),
        ([(V, E), (E, H), (H, H + 1), (H,), (H, C), (C,)], "recurrent_kernel must have shape"),
        ([(V, E), (E, H), (H, H), (H,), (H, H), (H, C), (C,)], "must have the arrays"),
    ],
)
def test_keras_arrays_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        import_keras("vanilla", [np.ones(shape, F) for shape in shapes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lru"}, r"kind must be one of \['vanilla', 'lstm'"),
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
    with pytest.raises(ValueError, match=r"encoder layer 0 must .* one size, got sizes \[3, 4\]"):
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
    with pytest.raises(ValueError, match=r"must have names that begin with 0, 1, 2.*enumerate"):
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


def test_layers_inside_of_layers_are_not_left_out_of_a_weights_file(tmp_path):
    layers = keras_layers()
    sequences = layers.LSTM(H, return_sequences=True)
    wrapped = layers.TimeDistributed(layers.Dense(H))
    inside = pytest.importorskip("keras").Sequential([layers.LSTM(H)])
    for inner in ([inside], [wrapped, layers.GlobalAveragePooling1D()]):
        net = weights_file(tmp_path, layers.Embedding(V, E), sequences, *inner, layers.Dense(C))
        with pytest.raises(
            ValueError, match=r"none inside of another, got '/layers/.* beside them"
        ):
            read_keras_file(tmp_path / "w.weights.h5")
    assert len(net.get_weights()) == 8


def test_directions_of_a_weights_file_are_put_side_by_side(tmp_path):
    layers = keras_layers()
    for mode in ("sum", "ave", "mul"):
        both = layers.Bidirectional(layers.LSTM(E, dropout=0.1), merge_mode=mode)
        net = weights_file(tmp_path, layers.Embedding(V, E), both, layers.Dense(C))
        with pytest.raises(ValueError, match=r"must be concatenated \(merge_mode='concat'\), got"):
            read_keras_file(tmp_path / "w.weights.h5")
        names = {"safetensors": safetensors, "model": net}
        exec(SAVE_KERAS.replace("model.safetensors", str(tmp_path / "w.safetensors")), names)
        with pytest.raises(ValueError, match=r"must be concatenated \(merge_mode='concat'\), got"):
            read_keras_file(tmp_path / "w.safetensors")


def weights_file(tmp_path, *layers):
    net = pytest.importorskip("keras").Sequential(layers)
    with jax.numpy_rank_promotion("allow"):
        net.build((None, 5))
    net.save_weights(tmp_path / "w.weights.h5")
    return net


def saved_keras(tmp_path, *inner, functional=None, mask_zero=False):
    """A whole-model .h5 file of a Sequential, or of what ``functional`` makes of an input."""
    keras, _ = pytest.importorskip("keras"), pytest.importorskip("h5py")
    with jax.numpy_rank_promotion("allow"):
        if functional is None:
            table = keras.layers.Embedding(V, E, mask_zero=mask_zero)
            net = keras.Sequential([table, *inner])
            net.build((None, None))
        else:
            tokens = keras.Input((None,))
            net = keras.Model(tokens, functional(keras.layers, tokens))
    net.save(tmp_path / "w.h5")
    return tmp_path / "w.h5", net


def keras_layers():
    return pytest.importorskip("keras").layers


CHANGED = [
    ("LSTM", {"go_backwards": True}, "LSTM '.*': go_backwards=True"),
    ("GRU", {"go_backwards": True}, "GRU '.*': go_backwards=True"),
    ("LSTM", {"activation": "relu"}, "LSTM '.*': activation='relu'"),
    ("GRU", {"activation": "linear"}, "GRU '.*': activation='linear'"),
    ("SimpleRNN", {"activation": "relu"}, r"activation='relu' \(give activation= of the SimpleRNN"),
    ("LSTM", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='hard_sigmoid'"),
    ("GRU", {"recurrent_activation": "tanh"}, "recurrent_activation='tanh'"),
    ("LSTM", {"stateful": True}, "stateful=True"),
    ("LSTM", {"dtype": "mixed_float16"}, "dtype='mixed_float16'"),
    (
        "LSTM",
        {"return_sequences": True},
        r"layers must be Embedding, recurrent layers, .*|return_sequen",
    ),
]


# Bidirectional refuses or turns some of them itself.
IN_ONE_OR_TWO_DIRECTIONS = [
    (*case, both)
    for case in CHANGED
    for both in (False, True)
    if not (both and case[1].keys() & {"go_backwards", "stateful"})
]


@pytest.mark.parametrize(("cell", "options", "message", "both"), IN_ONE_OR_TWO_DIRECTIONS)
def test_an_option_that_changes_what_a_keras_layer_computes_is_named(
    cell, options, message, both, tmp_path
):
    layers = keras_layers()
    inner = getattr(layers, cell)(H, **options)
    encoder = layers.Bidirectional(inner) if both else inner
    batch = 2 if "stateful" in options else None
    path = saved_config(tmp_path, [encoder, layers.Dense(C)], batch)
    with pytest.raises(ValueError, match=message):
        read_keras_file(path)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_without_a_bias_is_held_against_the_kind(reset_after, tmp_path):
    """No weight shows which form it is."""
    layers = keras_layers()
    inner = layers.GRU(H, use_bias=False, reset_after=reset_after)
    path, net = saved_keras(tmp_path, inner, layers.Dense(C))
    kind, other = ("gru", "gru_reset_before")[:: 1 if reset_after else -1]
    for asked in (None, other):
        with pytest.raises(ValueError, match=rf"GRU '.*': reset_after={reset_after} .*give kind="):
            read_keras_file(path, kind=asked)
    check_logits(kind, read_keras_file(path, kind=kind), net)
    with pytest.raises(ValueError, match=r"kind must be one of .* for Keras, got 'gruu'"):
        read_keras_file(path, kind="gruu")


def test_a_file_keeps_the_order_of_directions_and_weights_that_are_not_trained(tmp_path):
    """Keras names what is trained before what is not."""
    layers = keras_layers()
    both = layers.Bidirectional(layers.LSTM(E, return_sequences=True), name="backward_layer")
    above = layers.LSTM(2 * E)
    path, net = saved_keras(tmp_path, both, above, layers.Dense(C))
    both.forward_layer.trainable = False
    above.cell.kernel.trainable = False
    net.save(path)
    check_logits("lstm", read_keras_file(path), net)


def check_logits(kind, arrays, net):
    params = import_keras(kind, arrays)
    tokens = np.random.default_rng(0).integers(0, V, (3, 5)).astype(np.int32)
    with jax.numpy_rank_promotion("allow"):
        theirs = np.asarray(net(tokens))
    ours = jax.jit(build(describe(kind, params)).apply)(params, tokens)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_arguments_of_a_call_that_are_no_layers_are_named(tmp_path):
    def net(**arguments):
        return lambda layers, tokens: layers.Dense(C)(
            layers.LSTM(H)(layers.Embedding(V, E)(tokens), **arguments)
        )

    state = [np.ones((2, H), np.float32)] * 2
    for arguments, message in [
        ({"initial_state": state}, r"LSTM '.*': called with initial_state="),
        ({"mask": np.ones((2, 5), bool)}, r"LSTM '.*': called with mask="),
        ({"training": True}, r"LSTM '.*': called with training=True"),
    ]:
        path, _ = saved_keras(tmp_path, functional=net(**arguments))
        with pytest.raises(ValueError, match=message):
            read_keras_file(path)
    path, theirs = saved_keras(tmp_path, functional=net(training=False))
    check_logits("lstm", read_keras_file(path), theirs)


def saved_config(tmp_path, inner, batch=None):
    keras = pytest.importorskip("keras")
    pytest.importorskip("h5py")
    table = keras.layers.Embedding(V, E)
    with jax.numpy_rank_promotion("allow"):
        net = keras.Sequential([keras.Input((None,), batch_size=batch), table, *inner])
    net.save(tmp_path / "w.h5")
    return tmp_path / "w.h5"


@pytest.mark.parametrize("mode", ["sum", "mul", "ave"])
def test_halves_that_are_not_put_side_by_side_are_named(mode, tmp_path):
    layers = keras_layers()
    both = layers.Bidirectional(layers.LSTM(H), merge_mode=mode)
    path = saved_config(tmp_path, [both, layers.Dense(C)])
    with pytest.raises(ValueError, match=f"Bidirectional '.*': merge_mode='{mode}'"):
        read_keras_file(path)


def test_layers_that_are_not_known_are_named(tmp_path):
    layers = keras_layers()
    inner = [layers.LSTM(H), layers.LayerNormalization(), layers.Dense(C)]
    with pytest.raises(ValueError, match=r"LayerNormalization '.*': layers of this class are not"):
        read_keras_file(saved_config(tmp_path, inner))
    inner = [layers.LSTM(H), layers.Dense(C, activation="relu")]
    with pytest.raises(ValueError, match=r"Dense '.*': activation='relu'"):
        read_keras_file(saved_config(tmp_path, inner))
    inner = [layers.LSTM(H), layers.Dense(C, activation="sigmoid")]
    with pytest.raises(ValueError, match=f"Dense '.*': activation='sigmoid' of {C} units"):
        read_keras_file(saved_config(tmp_path, inner))


def test_layers_side_by_side_are_refused(tmp_path):
    def net(layers, tokens):
        xs = layers.Embedding(V, E)(tokens)
        halves = layers.LSTM(H)(xs), layers.LSTM(H)(xs)
        return layers.Dense(C)(layers.Concatenate()(halves))

    path, _ = saved_keras(tmp_path, functional=net)
    with pytest.raises(ValueError, match=r"Concatenate '.*': layers of this class are not known"):
        read_keras_file(path)

    def skip(layers, tokens):
        xs = layers.Embedding(V, E)(tokens)
        layer = layers.LSTM(E, return_sequences=True)
        return layers.Dense(C)(layers.LSTM(H)(layer(layer(xs))))

    path, _ = saved_keras(tmp_path, functional=skip)
    with pytest.raises(ValueError, match=r"must take the layer before it alone, got"):
        read_keras_file(path)


def test_an_option_that_nobody_has_looked_at_is_refused_unless_it_is_none(tmp_path):
    layers = keras_layers()
    import h5py

    path = saved_config(tmp_path, [layers.LSTM(H), layers.Dense(C)])
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        file.attrs["model_config"] = config.replace('"use_bias"', '"new_option": null, "use_bias"')
    assert len(read_keras_file(path)) == 6
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = np.bytes_(config)  # as Keras 2 does
    assert len(read_keras_file(path)) == 6
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = config.replace('"use_bias"', '"new_option": 3, "use_bias"')
    with pytest.raises(ValueError, match=r"LSTM '.*': new_option=3\n .*Dense '.*': new_option=3"):
        read_keras_file(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = "[" * 100_000
    with pytest.raises(ValueError, match=r"w\.h5 must have a model_config that can be read, got"):
        read_keras_file(path)


def keras_2(kinds="LSTM Dense", *links, model="Sequential", **options):
    """The configuration of a model of Keras 2; ``links`` are what each layer takes."""
    layers = [
        {"class_name": kind, "config": {"name": kind, **options.get(kind, {})}}
        for kind in ("InputLayer", "Embedding", *kinds.split())
    ]
    for layer, inbound in zip(layers, links, strict=False):
        layer["inbound_nodes"] = inbound
    return json.dumps({"class_name": model, "config": {"layers": layers} if links else layers})


def takes(name, **more):
    return [[[name, 0, 0, more]]]


def keras_3_with_mask(number, **embedding):
    """A functional model whose LSTM is given ``x != number`` as its mask, as Keras 3 writes it."""

    def tensor(name):
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}

    def layer(kind, *args, config=None, **more):
        node = [{"args": list(args), "kwargs": more}] if args else []
        return {
            "class_name": kind,
            "config": {"name": kind, **(config or {})},
            "inbound_nodes": node,
        }

    layers = [
        layer("InputLayer"),
        layer("Embedding", tensor("InputLayer"), config=embedding),
        layer("NotEqual", tensor("InputLayer"), number),
        layer("LSTM", tensor("Embedding"), mask=tensor("NotEqual")),
        layer("Dense", tensor("LSTM")),
    ]
    return json.dumps({"class_name": "Functional", "config": {"layers": layers}})


CHAIN = [[], takes("InputLayer"), takes("Embedding"), takes("LSTM")]
STATE = [*CHAIN[:2], takes("Embedding", initial_state=[["Dense", 0, 0]])]
CALLED = [*CHAIN[:2], takes("Embedding", initial_state=[[0.5]]), takes("LSTM")]
MONTE_CARLO = [*CHAIN[:2], [["Embedding", 0, 0, {"training": True}]], takes("LSTM")]
TWICE = [*CHAIN[:2], 2 * takes("Embedding")]
ALL_STEPS = {"LSTM": {"return_sequences": True}}
BACKWARD = {"class_name": "LSTM", "config": {"go_backwards": False}}
TWO_DIRECTIONS = {"layer": BACKWARD, "backward_layer": BACKWARD}
NO_CHAIN = {
    "a model of class 'Own'": keras_2(model="Own"),
    "'LSTM' must take .* alone, got .'Embedding', 'Dense'.": keras_2("LSTM Dense", *STATE),
    "'LSTM' must take .* alone, got .'more than one input'.": keras_2("LSTM Dense", *TWICE),
    "LSTM 'LSTM': called with initial_state=": keras_2("LSTM Dense", *CALLED),
    "LSTM 'LSTM': called with training=True": keras_2("LSTM Dense", *MONTE_CARLO),
    "GRU 'GRU': reset_after=False": keras_2("GRU Dense", GRU={"use_bias": False}),
    "layers must be Embedding, .*'LSTM', 'LSTM'": keras_2("LSTM LSTM"),
    "layers must be Embedding, .*'Embedding', 'Dense'": keras_2("Dense"),
    "layers must be Embedding, .*, 'GlobalMaxPooling1D', 'GlobalAv": keras_2(
        "LSTM GlobalMaxPooling1D GlobalAveragePooling1D Dense", **ALL_STEPS
    ),
    "return_sequences must be set only where": keras_2("LSTM LSTM Dense"),
    "return_sequences must be set only where a": keras_2(**ALL_STEPS),
    "return_state=True": keras_2(LSTM={"return_state": True}),
    "use_bias=False": keras_2(Dense={"use_bias": False}),
    "time_major=True": keras_2(LSTM={"time_major": True}),
    "keepdims=True": keras_2(
        "LSTM GlobalMaxPooling1D Dense", GlobalMaxPooling1D={"keepdims": True}, **ALL_STEPS
    ),
    "'NotEqual'": keras_3_with_mask(0, mask_zero=False),
    "NotEqual .*: layers of this class": keras_3_with_mask(1, mask_zero=True),
    "data_format='channels_first'": keras_2(
        "LSTM GlobalMaxPooling1D Dense",
        GlobalMaxPooling1D={"data_format": "channels_first"},
        **ALL_STEPS,
    ),
    "backward_layer does not go backwards": keras_2(
        "Bidirectional Dense", Bidirectional=TWO_DIRECTIONS
    ),
    "LSTM .*: activation='relu'": keras_2(
        "Bidirectional Dense",
        Bidirectional={"layer": {"class_name": "LSTM", "config": {"activation": "relu"}}},
    ),
    "go_backwards=0": keras_2(LSTM={"go_backwards": 0}),
}


@pytest.mark.parametrize("message", NO_CHAIN)
def test_a_model_of_keras_2_that_has_no_counterpart_is_refused(message):
    with pytest.raises(ValueError, match=message):
        check_config("w.h5", NO_CHAIN[message], Asked(None, "tanh", None))


def test_chains_of_keras_2_are_taken():
    for config in (keras_2(), keras_2("LSTM Dense", *CHAIN, model="Functional")):
        check_config("w.h5", config, Asked(None, "tanh", "last"))
    pooled = keras_2("LSTM GlobalMaxPooling1D Dense", **ALL_STEPS)
    check_config("w.h5", pooled, Asked(None, "tanh", "max"))
    check_config("w.h5", keras_3_with_mask(0, mask_zero=True), Asked(None, "tanh", "last"))
    one = keras_2("LSTM Dropout Dense", Dense={"units": 1, "activation": "sigmoid"})
    check_config("w.h5", one, Asked(None, "tanh", "last"))


ARRAYS = np.ones(3)
NO_CLASSIFIER = {
    "no state dict": (
        lambda: classifiers.import_torch("lstm", None),
        "weights must be arrays by name, got NoneType",
    ),
    "no list": (
        lambda: classifiers.import_keras("lstm", ARRAYS),
        "weights must be a list, as get_weights() gives, got ndarray",
    ),
    "no architecture": (
        lambda: classifiers.build("lstm"),
        "architecture must be an Architecture, got 'lstm'",
    ),
    "no parameters": (
        lambda: classifiers.describe("lstm", {"w": ARRAYS}),
        "params must be ClassifierParams(embedding, encoder, head), got a dict of w",
    ),
    "no parameters to export": (
        lambda: classifiers.export_torch("lstm", {"w": ARRAYS}),
        "params must be ClassifierParams(embedding, encoder, head), got a dict of w",
    ),
    "no head": (
        lambda: classifiers.two_classes(ClassifierParams((), (), None)),
        "params.head must be LinearParams(w, bias), got None",
    ),
}


@pytest.mark.parametrize("case", NO_CLASSIFIER)
def test_what_is_no_classifier_is_named(case):
    call, message = NO_CLASSIFIER[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_keras_model_with_everything_that_is_harmless_is_read(pooling, tmp_path):
    def net(layers, tokens):
        xs = layers.Embedding(V, E, embeddings_regularizer="l2")(tokens)
        xs = layers.SpatialDropout1D(0.1)(xs)
        half = layers.SimpleRNN(H, activation="relu", return_sequences=True, unroll=False)
        xs = layers.Bidirectional(half)(xs)
        above = layers.SimpleRNN(
            H, activation="relu", dropout=0.2, return_sequences=pooling == "mean"
        )
        xs = above(xs)
        xs = xs if pooling == "last" else layers.GlobalAveragePooling1D()(xs)
        return layers.Dense(C, activation="softmax")(layers.Dropout(0.5)(xs))

    path, keras_net = saved_keras(tmp_path, functional=net)
    with pytest.raises(ValueError, match=r"activation='relu'"):
        read_keras_file(path)
    with pytest.raises(ValueError, match=r"pooling: the model has .*, got pooling='max'"):
        read_keras_file(path, activation="relu", pooling="max")
    found = read_keras_file(path, activation="relu", pooling=pooling)
    for ours, theirs in zip(found, keras_net.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    params = import_keras("vanilla", found)
    model = build(describe("vanilla", params, pooling=pooling, activation="relu"))
    tokens = np.random.default_rng(0).integers(0, V, (3, 5)).astype(np.int32)
    with jax.numpy_rank_promotion("allow"):
        theirs = np.asarray(keras_net(tokens))
    ours = jax.nn.softmax(jax.jit(model.apply)(params, tokens))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Layer 'global_max_pooling1d':UserWarning")
def test_a_maximum_over_padding_is_refused(tmp_path):
    layers = keras_layers()
    inner = [layers.LSTM(H, return_sequences=True), layers.GlobalMaxPooling1D(), layers.Dense(C)]
    path, _ = saved_keras(tmp_path, *inner, mask_zero=True)
    with pytest.raises(ValueError, match="GlobalMaxPooling1D: over padding too in Keras"):
        read_keras_file(path)


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
        ("w.h5", read_keras_file, "must be a whole HDF5 file, got"),
        ("w.safetensors", read_keras_file, "must be a whole safetensors file, got "),
        (
            "w.keras",
            read_keras_file,
            r"must be an .h5 or a .safetensors file, got '.keras': Keras writes one by safetensors",
        ),
        ("w.safetensors", read_torch_file, "must be a whole safetensors file, got "),
        (
            "w.pt",
            read_torch_file,
            r"must be a .safetensors file, got '.pt': PyTorch writes one by safetensors.torch",
        ),
    ]:
        if name.endswith("h5"):
            pytest.importorskip("h5py")
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing of the kind")
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_the_line_that_writes_keras_weights_writes_them_row_by_row(tmp_path):
    """safetensors 0.8.0 writes the numbers of an array as they lie in memory."""
    columns = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    model = types.SimpleNamespace(
        weights=[types.SimpleNamespace(path="dense/kernel")], get_weights=lambda: [columns]
    )
    path = tmp_path / "w.safetensors"
    names = {"safetensors": safetensors, "model": model}
    exec(SAVE_KERAS.replace("model.safetensors", str(path)), names)
    np.testing.assert_array_equal(read_keras_file(path)[0], columns)


@pytest.mark.parametrize("size", [2, 3])
def test_three_grus_without_a_bias_are_three_or_refused_where_two_with_one_look_alike(size):
    cell = [(size, 3 * size), (size, 3 * size)]
    shapes = [(9, 4), (4, 3 * size), cell[1], *cell, *cell, (size, 2), (2,)]
    arrays = [np.ones(shape) for shape in shapes]
    if size == 2:
        with pytest.raises(ValueError, match=r"must be those of one model, got shapes"):
            import_keras("gru", arrays)
    else:
        assert len(import_keras("gru", arrays).encoder) == 3
    # Another size above tells them apart.
    arrays[-4:-2] = [np.ones((size, 15)), np.ones((5, 15))]
    arrays[-2] = np.ones((5, 2))
    assert len(import_keras("gru", arrays).encoder) == 3

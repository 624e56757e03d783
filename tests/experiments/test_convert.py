"""The convert command: the lessons' models in, the same predictions; and out to four formats."""

import io
import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import classify, convert
from experiments.running import classifier
from experiments.running.imported import Predictor
from rnnjax.data import DataError, Vocabulary, basic_english, strip_punctuation
from rnnjax.weights import save_weights

# Keras reads its own variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LABELS = ["World", "Sports", "Business", "Sci/Tech"]
WORDS = ("wall", "st", ".", "bears", "claw", "back", "into", "the", "black", "oil")
# The vocabularies of the lessons: of torchtext, whose <unk> is the padding too, and of Keras.
TORCH, KERAS = ("<unk>", *WORDS), ("", "[UNK]", *WORDS)
TEXTS = [
    "Wall St. bears claw back into the black",
    "oil",
    "the bears, the unheard-of bears",
    "",
    "back into the oil . black black black st wall claw",
]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def command(*arguments):
    assert convert.main([str(argument) for argument in arguments]) == 0


def fails(capsys, *arguments):
    assert convert.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def imported(weights, library, kind, *options, labels=LABELS):
    """The folder made of a file of weights, the vocabulary of its library beside it."""
    tokens = TORCH if library == "torch" else KERAS
    vocabulary, run = weights.with_name("vocabulary.json"), weights.with_name("run")
    vocabulary.write_text(json.dumps(tokens))
    given = ["--from", library, "--kind", kind, "--vocabulary", vocabulary, *options]
    command("import", weights, *given, "--out", run, "--classes", *labels)
    return run


def torch_ids(text):
    return [TORCH.index(token) if token in TORCH else 0 for token in basic_english(text)]


def keras_ids(text):
    return [KERAS.index(token) if token in KERAS else 1 for token in strip_punctuation(text)]


def padded(rows):
    longest = max(map(len, rows))
    return np.array([row + [0] * (longest - len(row)) for row in rows])


def torch_net(tmp_path, recurrent, **options):
    """The module of the lesson, and the file of its state dict."""
    torch = pytest.importorskip("torch")
    import safetensors.torch

    torch.manual_seed(0)
    net = torch.nn.Module()
    net.embedding = torch.nn.Embedding(len(TORCH), 6)
    net.rnn = getattr(torch.nn, recurrent)(6, 5, batch_first=True, **options)
    net.fc = torch.nn.Linear(5, 4)
    net.requires_grad_(False)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    return torch, net, tmp_path / "model.safetensors"


def test_torch_rnn_classifier_averages_over_the_padded_steps(tmp_path):
    torch, net, weights = torch_net(tmp_path, "RNN")
    run = imported(weights, "torch", "vanilla", "--pooling", "mean", "--padding", "right")
    tokens = torch.from_numpy(padded([torch_ids(text) for text in TEXTS]))
    outputs, _ = net.rnn(net.embedding(tokens))
    expected = torch.softmax(net.fc(outputs.mean(dim=1)), -1)
    np.testing.assert_allclose(Predictor(run)(TEXTS), expected, **CLOSE)


def test_torch_lstm_classifier_reads_its_padding_up_to_the_longest_of_a_batch(tmp_path):
    torch, net, weights = torch_net(tmp_path, "LSTM")
    run = imported(weights, "torch", "lstm", "--padding", "right", "--batch-size", 2)
    expected = []
    for batch in (TEXTS[:2], TEXTS[2:4], TEXTS[4:]):
        tokens = torch.from_numpy(padded([torch_ids(text) for text in batch]))
        _, (h, _) = net.rnn(net.embedding(tokens))
        expected.append(torch.softmax(net.fc(h[-1]), -1))
    np.testing.assert_allclose(Predictor(run)(TEXTS), np.concatenate(expected), **CLOSE)


def test_torch_packed_lstm_classifier_does_not(tmp_path):
    torch, net, weights = torch_net(tmp_path, "LSTM")
    run = imported(weights, "torch", "lstm")
    texts = [text for text in TEXTS if text]
    rows = [torch_ids(text) for text in texts]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        net.embedding(torch.from_numpy(padded(rows))),
        torch.tensor([len(row) for row in rows]),
        batch_first=True,
        enforce_sorted=False,
    )
    _, (h, _) = net.rnn(packed)
    expected = torch.softmax(net.fc(h[-1]), -1)
    np.testing.assert_allclose(Predictor(run)(texts), expected, **CLOSE)


def test_predict_prints_the_label_of_the_network(tmp_path, capsys, monkeypatch):
    torch, net, weights = torch_net(tmp_path, "GRU")
    run = imported(weights, "torch", "gru")
    capsys.readouterr()
    _, h = net.rnn(net.embedding(torch.tensor([torch_ids(TEXTS[0])])))
    probabilities = torch.softmax(net.fc(h[-1]), -1)[0]
    best = int(probabilities.argmax())
    line = f"{LABELS[best]}\t{probabilities[best]:.3f}\t{TEXTS[0]}\n"
    command("predict", run, TEXTS[0])
    assert capsys.readouterr().out == line
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXTS[0]}\n"))
    command("predict", run)
    assert capsys.readouterr().out == line


def test_torch_weights_come_out_as_they_went_in_but_for_the_second_bias(tmp_path):
    _, net, weights = torch_net(tmp_path, "LSTM", num_layers=2)
    run = imported(weights, "torch", "lstm")
    command("export", run, "--to", "torch", "--out", tmp_path / "again.safetensors")
    found = load_file(tmp_path / "again.safetensors")
    expected = {name: array.numpy() for name, array in net.state_dict().items()}
    for name in [name for name in expected if "bias_hh" in name]:
        expected[name.replace("hh", "ih")] = expected[name.replace("hh", "ih")] + expected[name]
        expected[name] = np.zeros_like(expected[name])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


LESSONS = {
    "simple_rnn": ("vanilla", False, lambda k: [k.SimpleRNN(5)]),
    "masked_simple_rnn": ("vanilla", True, lambda k: [k.SimpleRNN(5)]),
    "lstm": ("lstm", False, lambda k: [k.LSTM(5)]),
    "masked_gru": ("gru", True, lambda k: [k.GRU(5)]),
    "masked_bidirectional_lstm_of_two_layers": (
        "lstm",
        True,
        lambda k: [k.Bidirectional(k.LSTM(5, return_sequences=True)), k.Bidirectional(k.LSTM(5))],
    ),
}


def keras_of(*layers):
    """A Keras model, built; Keras adds its biases in a way that the other tests forbid."""
    net = pytest.importorskip("keras").Sequential(layers)
    with jax.numpy_rank_promotion("allow"):
        net.build((None, None))
    return net


def shown(net, tokens):
    """What a Keras model says.

    The mask of its table reaches every layer; newer versions of Keras carry it to the first alone.
    """
    rnn = pytest.importorskip("keras").layers.RNN
    table, *others = net.layers

    @jax.jit
    def run(tokens):
        mask, ys = table.compute_mask(tokens), table(tokens)
        for layer in others:
            recurrent = isinstance(getattr(layer, "forward_layer", layer), rnn)
            ys = layer(ys, mask=mask) if recurrent else layer(ys)
        return ys

    with jax.numpy_rank_promotion("allow"):
        return np.asarray(run(tokens))


def keras_net(recurrent, head=(4, "softmax"), mask_zero=False):
    """The model of the lesson, every weight of it drawn, the biases too."""
    keras = pytest.importorskip("keras")
    keras.backend.clear_session()  # before its layers are made: they are numbered by what was
    layers = keras.layers
    table = layers.Embedding(len(KERAS), 6, mask_zero=mask_zero)
    net = keras_of(table, *recurrent(layers), layers.Dense(*head))
    random = np.random.default_rng(0)
    net.set_weights([random.normal(0, 0.4, w.shape).astype("float32") for w in net.get_weights()])
    return net


def save_numbered(net, path):
    pairs = zip(net.weights, net.get_weights(), strict=True)
    save_file({f"{i:03}/{v.path}": w for i, (v, w) in enumerate(pairs)}, path)
    return path


@pytest.mark.parametrize("name", LESSONS)
def test_keras_predictions_are_those_of_the_model(name, tmp_path):
    kind, mask_zero, recurrent = LESSONS[name]
    net = keras_net(recurrent, mask_zero=mask_zero)
    weights = save_numbered(net, tmp_path / "model.safetensors")
    run = imported(weights, "keras", kind, "--padding", "unread" if mask_zero else "right")
    expected = shown(net, padded([keras_ids(text) for text in TEXTS]))
    np.testing.assert_allclose(Predictor(run)(TEXTS), expected, **CLOSE)


def test_keras_sigmoid_unit_on_padding_in_front_becomes_two_classes(tmp_path):
    keras = pytest.importorskip("keras")
    net = keras_net(lambda k: [k.LSTM(5, dropout=0.2, recurrent_dropout=0.2)], (1, "sigmoid"))
    weights = save_numbered(net, tmp_path / "model.safetensors")
    options = ["--padding", "left", "--length", 6, "--keep", "tail"]
    run = imported(weights, "keras", "lstm", *options, labels=["bad", "good"])
    given = keras.utils.pad_sequences([keras_ids(text) for text in TEXTS], maxlen=6)
    np.testing.assert_allclose(Predictor(run)(TEXTS)[:, 1:], shown(net, given), **CLOSE)


@pytest.mark.parametrize("name", ["model.weights.h5", "model.h5"])
def test_keras_h5_files_go_in_and_keras_names_come_out(name, tmp_path):
    pytest.importorskip("h5py")
    kind, mask_zero, recurrent = LESSONS["masked_bidirectional_lstm_of_two_layers"]
    net = keras_net(recurrent, mask_zero=mask_zero)
    (net.save_weights if name.endswith(".weights.h5") else net.save)(tmp_path / name)
    run = imported(tmp_path / name, "keras", kind)
    command("export", run, "--to", "keras", "--out", tmp_path / "again.safetensors")
    found = load_file(tmp_path / "again.safetensors")
    # The name of the model itself is left out.
    paths = [variable.path.split("/", 1)[1] for variable in net.weights]
    assert sorted(found) == [f"{i:03}/{path}" for i, path in enumerate(paths)]
    for entry, array in zip(sorted(found), net.get_weights(), strict=True):
        np.testing.assert_array_equal(found[entry], array)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of experiments.classify as it leaves it, of weights drawn at random."""
    folder = tmp_path_factory.mktemp("trained")
    sizes = {"cell": "gru", "hidden_size": 5, "embedding_size": 6, "max_length": 8}
    settings, vocabulary = classify.Settings(**sizes), Vocabulary.fit([WORDS])
    config = {"settings": settings.written(), "label_names": LABELS}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary.save(folder / classify.VOCABULARY)
    model = classify.build_model(settings, len(vocabulary), len(LABELS))
    shapes, random = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(0)
    drawn = jax.tree.map(lambda a: random.normal(0, 0.4, a.shape).astype(a.dtype), shapes)
    save_weights(folder / classify.WEIGHTS, drawn)
    return folder


TOKENS = np.array([[2, 3, 4, 5, 6, 7], [8, 9, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([6, 2, 1], np.int32)


@pytest.fixture(scope="module")
def predicted(trained):
    """What experiments.classify says of the texts whose ids are TOKENS."""
    words = Vocabulary.load(trained / classify.VOCABULARY).tokens
    rows = zip(TOKENS, LENGTHS, strict=True)
    return classify.Predictor(trained)([" ".join(words[i] for i in row[:n]) for row, n in rows])


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_a_trained_run_predicts_the_same_in_torch(trained, predicted, tmp_path):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    command("export", trained, "--to", "torch", "--out", tmp_path / "model.safetensors")
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    net = torch.nn.Module()
    net.embedding = torch.nn.Embedding(*state["embedding.weight"].shape)
    net.rnn = torch.nn.GRU(6, 5, batch_first=True, bidirectional=True)
    net.fc = torch.nn.Linear(10, 4)
    net.load_state_dict(state)
    net.requires_grad_(False)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        net.embedding(torch.from_numpy(TOKENS)),
        torch.from_numpy(LENGTHS).long(),
        batch_first=True,
        enforce_sorted=False,
    )
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(
        net.rnn(packed)[0], batch_first=True, padding_value=-np.inf
    )
    logits = net.fc(ys.max(dim=1).values).numpy()
    np.testing.assert_allclose(softmax(logits), predicted, **CLOSE)


def test_a_trained_run_predicts_the_same_in_keras(trained, predicted, tmp_path):
    layers = pytest.importorskip("keras").layers
    command("export", trained, "--to", "keras", "--out", tmp_path / "model.safetensors")
    arrays = load_file(tmp_path / "model.safetensors")
    net = keras_of(
        layers.Embedding(*arrays["000/embedding/embeddings"].shape),
        layers.Bidirectional(layers.GRU(5, return_sequences=True)),
        layers.GlobalMaxPooling1D(),
        layers.Dense(4, "softmax"),
    )
    net.set_weights([arrays[name] for name in sorted(arrays)])
    # Keras pools over padding too, so a text is shown without.
    np.testing.assert_allclose(shown(net, TOKENS[:1])[0], predicted[0], **CLOSE)


def test_a_trained_run_predicts_the_same_in_onnxruntime(trained, predicted, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    command("export", trained, "--to", "onnx", "--out", tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"tokens": TOKENS, "lengths": LENGTHS})
    np.testing.assert_allclose(softmax(logits), predicted, **CLOSE)


def test_a_trained_run_predicts_the_same_as_a_program_of_jax(trained, predicted, tmp_path):
    pytest.importorskip("flatbuffers")
    from jax import export

    command("export", trained, "--to", "jax", "--out", tmp_path / "program")
    program = export.deserialize((tmp_path / "program").read_bytes())
    logits = np.asarray(program.call(TOKENS, LENGTHS))
    np.testing.assert_allclose(softmax(logits), predicted, **CLOSE)


def test_a_cell_of_no_other_library_is_refused(trained, tmp_path, capsys):
    for file in trained.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["cell"] = "lru"
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = fails(capsys, "export", tmp_path, "--to", "onnx", "--out", tmp_path / "x")
    assert "got 'lru'" in message
    assert not (tmp_path / "x").exists()


def test_a_run_that_computes_something_else_is_refused(trained, tmp_path, capsys, monkeypatch):
    plain = classify.build_model

    def steeper(*arguments):
        model = plain(*arguments)
        return model._replace(apply=lambda *given, **more: 3 * model.apply(*given, **more))

    monkeypatch.setattr(classifier, "build_model", steeper)
    message = fails(capsys, "export", trained, "--to", "onnx", "--out", tmp_path / "x")
    assert "must predict as a plain gru classifier" in message


SHAPES = {
    "embedding.weight": (11, 6),
    "rnn.weight_ih_l0": (5, 6),
    "rnn.weight_hh_l0": (5, 5),
    "fc.weight": (4, 5),
    "fc.bias": (4,),
}


@pytest.fixture
def small(tmp_path):
    """Weights of a torch RNN classifier, and the arguments that import them."""
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    save_file({k: a.astype("float32") for k, a in arrays.items()}, tmp_path / "w.safetensors")
    given = {"--from": "torch", "--kind": "vanilla", "--out": tmp_path / "run"}
    return tmp_path / "w.safetensors", given


def arguments(weights, given, labels=LABELS):
    return ["import", weights, *sum(given.items(), ()), "--classes", *labels]


def test_without_a_vocabulary_texts_are_token_ids(small, capsys):
    command(*arguments(*small))
    run = small[1]["--out"]
    one = Predictor(run)(["1 10 3", ""])
    assert one.shape == (2, 4)
    np.testing.assert_allclose(one[1], softmax(load_file(small[0])["fc.bias"]), **CLOSE)
    capsys.readouterr()
    assert "texts must be token ids" in fails(capsys, "predict", run, "wall st")
    assert "from 0 to 10, got '1 11'" in fails(capsys, "predict", run, "1", "1 11")


def test_padding_that_is_not_read_changes_nothing(small):
    command(*arguments(small[0], small[1] | {"--pooling": "mean"}))
    predictor = Predictor(small[1]["--out"])
    together = predictor(["1 10 3", "4", "1 2 3 4 5 6 7 8 9 10"])
    np.testing.assert_allclose(predictor(["4"])[0], together[1], **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--kind": "lstm"}, "weight_hh_l0 must have shape"),
        (
            {"--vocabulary": "v.txt", "--unknown-id": 11},
            "--unknown-id must be a whole number from 0 to 10, got 11",
        ),
        (
            {"--padding": "left", "--pad-id": -1},
            "--pad-id must be a whole number from 0 to 10, got -1",
        ),
        ({"--length": 0}, "--length must be a whole number from 1 up, got 0"),
        ({"--batch-size": 0}, "--batch-size must be a whole number from 1 up, got 0"),
        ({"--from": "keras"}, "must have names that begin with 0, 1, 2, ..."),
    ],
)
def test_wrong_settings_are_named_and_leave_no_folder(
    options, message, small, tmp_path, monkeypatch, capsys
):
    weights, given = small
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.txt").write_text("a\nb\n")
    assert message in fails(capsys, *arguments(weights, given | options))
    assert not given["--out"].exists()


def test_classes_are_counted(small, capsys):
    message = fails(capsys, *arguments(*small, labels=["a", "b"]))
    assert "--classes must be 4, one an output, got 2" in message
    message = fails(capsys, *arguments(*small, labels=["a", "b", "c", "b"]))
    assert "--classes must be different, got 'b' twice" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", "a\nb\na\n", "must have each token once, got 'a' 2 times"),
        ("v.txt", "\n".join("abcdefghijkl"), "must have at most 11 tokens"),
        ("v.json", '{"a": 0, "b": 2}', "must have the ids 0 to 1, each once, got no 1"),
        ("v.json", '["a", 3]', "must be a list of strings"),
        ("v.json", "[", "v.json must be JSON, got Expecting value"),
        ("v.json", "[" * 100_000, "v.json must be JSON, got maximum recursion depth"),
        ("v.json", '{"a": 0, "b": "one"}', "v.json must have a whole number for every token, got"),
        (
            "v.json",
            '{"a": 0, "b": 1.0}',
            "must have a whole number for every token, got 1.0",
        ),
        ("v.json", '{"a": 0, "b": true}', "must have a whole number for every token, got True"),
        ("v.json", '{"a": 0, "b": [1, 2]}', "v.json must have a whole number for every token"),
        ("v.json", "3", "v.json must be a list of strings, or an object"),
        ("v.json", "", "v.json must have text, got an empty file"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
            "tokenizer.json must be a tokenizer of kind WordLevel, got 'BPE', whose tokens are",
        ),
        (
            "tokenizer.json",
            '{"model": {"type": "WordLevel", "vocab": {"a": "b"}}}',
            "tokenizer.json must have a whole number for every token, got 'b'",
        ),
        (
            "tokenizer.json",
            '{"added_tokens": [3], "model": {"type": "WordLevel", "vocab": {"a": 0}}}',
            "tokenizer.json must have content and id of every added token",
        ),
    ],
)
def test_a_bad_vocabulary_is_named(name, content, message, small, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    weights, given = small
    message_found = fails(capsys, *arguments(weights, given | {"--vocabulary": tmp_path / name}))
    assert message in message_found


def test_vocabularies_of_lines_lists_and_ids_are_the_same(tmp_path):
    files = {
        "v.txt": "\nb\na\n",
        "list.json": '["", "b", "a"]',
        "ids.json": '{"a": 2, "": 0, "b": 1}',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert convert.read_vocabulary(tmp_path / name) == (("", "b", "a"), None)


@pytest.mark.parametrize("name", ["v.txt", "v.json"])
def test_marks_and_line_ends_of_windows_are_no_part_of_a_vocabulary(name, tmp_path):
    content = "b\r\na\r\n" if name == "v.txt" else '["b",\r\n"a"]\r\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert convert.read_vocabulary(tmp_path / name).tokens == ("b", "a")
    (tmp_path / name).write_bytes(b"\xff" + content.encode())
    with pytest.raises(DataError, match=rf"{name} must have UTF-8 text, got line 1: byte 0xff"):
        convert.read_vocabulary(tmp_path / name)


def test_a_tokenizer_of_words_gives_its_tokens_and_its_unknown_one(tmp_path):
    """The form of the file that tokenizers.Tokenizer(WordLevel(...)).save writes."""
    path = tmp_path / "tokenizer.json"
    special = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 0, "content": "[PAD]", **special},
            {"id": 3, "content": "[UNK]", **special},
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"film": 2, "[PAD]": 0, "a": 1, "[UNK]": 3},
            "unk_token": "[UNK]",
        },
    }
    path.write_text(json.dumps(content))
    assert convert.read_vocabulary(path) == (("[PAD]", "a", "film", "[UNK]"), 3)


def test_the_vocabulary_of_a_run_is_read_with_its_unknown_word(tmp_path):
    path = tmp_path / "vocabulary.json"
    vocabulary = Vocabulary.fit([["format", "tokens"]])
    vocabulary.save(path)
    assert convert.read_vocabulary(path) == (vocabulary.tokens, 1)
    path.write_text('{"tokens": 1, "format": 0}')
    assert convert.read_vocabulary(path) == (("format", "tokens"), None)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.pkl"])
def test_pickles_are_never_read(name, small, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    message = fails(capsys, *arguments(tmp_path / name, small[1]))
    assert "safetensors.torch.save_file(model.state_dict()" in message


def test_a_used_folder_a_damaged_and_a_missing_file_are_refused(small, tmp_path, capsys):
    command(*arguments(*small))
    assert capsys.readouterr().out.endswith(" '1 0 1'\n")  # what such a run predicts of: ids
    assert "must be empty" in fails(capsys, *arguments(*small))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(small[0].read_bytes()[:-7])
    assert "must be a whole safetensors file, got " in fails(capsys, *arguments(damaged, small[1]))
    absent = fails(capsys, *arguments(tmp_path / "no.safetensors", small[1]))
    assert "must be a weight file, got no such file" in absent
    assert "and no classifier.json" in fails(capsys, "predict", tmp_path, "1")
    export = ("export", tmp_path, "--to", "jax", "--out", tmp_path / "x")
    assert "got no config.json" in fails(capsys, *export)
    (tmp_path / "config.json").write_text('{"settings": {"task": "reverse"}}')
    assert "must hold a run of this program and version" in fails(capsys, *export)


def test_padding_that_was_read_in_training_is_named_on_export(small, tmp_path, capsys):
    command(*arguments(small[0], small[1] | {"--padding": "right"}))
    command("export", small[1]["--out"], "--to", "torch", "--out", tmp_path / "x.safetensors")
    assert "shown padding on the right in training" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_other_floats_predict_as_the_same_numbers_in_float32(
    kind, small, tmp_path, capsys
):
    weights, given = small
    arrays = {name: a.astype(kind) for name, a in load_file(weights).items()}
    biases = {"rnn.bias_ih_l0": np.full(5, 1, kind), "rnn.bias_hh_l0": np.full(5, 1 / 1024, kind)}
    arrays |= biases  # whose sum 8 bits of mantissa do not hold
    save_file(arrays, tmp_path / "other.safetensors")
    same = {name: a.astype(np.float32) for name, a in arrays.items()}
    save_file(same, tmp_path / "same.safetensors")
    command(*arguments(tmp_path / "other.safetensors", given))
    how = "rounded to" if kind == "float64" else "kept exactly in"
    assert f"weights of {kind}, {how} float32\n" in capsys.readouterr().out
    command(*arguments(tmp_path / "same.safetensors", given | {"--out": tmp_path / "second"}))
    assert "weights of" not in capsys.readouterr().out
    found = [Predictor(run)(["1 10 3", "4"]) for run in (given["--out"], tmp_path / "second")]
    np.testing.assert_array_equal(*found)


def test_weights_in_whole_numbers_are_refused(small, tmp_path, capsys):
    arrays = {name: a.astype(np.int8) for name, a in load_file(small[0]).items()}
    save_file(arrays, tmp_path / "quantized.safetensors")
    message = fails(capsys, *arguments(tmp_path / "quantized.safetensors", small[1]))
    assert "weights must be floating-point numbers, got int8" in message
    assert not small[1]["--out"].exists()


def test_an_activation_that_torch_lacks_is_refused_and_others_are_named(small, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    for activation in ("sigmoid", "relu"):
        run = tmp_path / activation
        command(*arguments(small[0], small[1] | {"--activation": activation, "--out": run}))
    message = fails(capsys, "export", tmp_path / "sigmoid", "--to", "torch", "--out", out)
    assert "--to must be keras, onnx or jax for" in message
    assert not out.exists()
    for activation, library, words in (
        ("relu", "torch", 'torch.nn.RNN(nonlinearity="relu")'),
        ("sigmoid", "keras", 'SimpleRNN(activation="sigmoid")'),
    ):
        command("export", tmp_path / activation, "--to", library, "--out", out)
        assert f"its activation: {words}\n" in capsys.readouterr().out


def test_the_weights_of_the_run_are_not_written_over(small, capsys):
    command(*arguments(*small))
    weights = small[1]["--out"] / "weights.safetensors"
    before = weights.read_bytes()
    message = fails(capsys, "export", weights.parent, "--to", "torch", "--out", weights)
    assert "--out must not lead to a file that is read" in message
    assert weights.read_bytes() == before

"""Exported programs: any batch and time, every platform, and no rnnjax where they run."""

import subprocess

import jax
import numpy as np
import pytest
from cases import CELLS, D
from processes import PYTHON

import rnnjax
from rnnjax.exporting import PLATFORMS, export_program, export_step, export_writer

pytest.importorskip("flatbuffers")
from jax import export

LOADER = """
import sys
import jax, jax.export, numpy as np
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
given = np.load(sys.argv[2])
found = {}
for case in ("wide", "long"):
    found[case] = program.call(given[case + "_tokens"], given[case + "_lengths"])
assert "rnnjax" not in sys.modules
np.savez(sys.argv[3], **found)
"""

WRITER = """
import sys
import jax, jax.export, jax.numpy as jnp, numpy as np
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
prompt = np.load(sys.argv[2])
text = list(prompt.T)
shapes = jax.tree.unflatten(program.in_tree, program.in_avals)[0][0]
carry = {name: jnp.zeros((len(prompt), shapes[name].shape[1])) for name in shapes}
for place in range(prompt.shape[1] + 5):
    fresh = np.full(len(prompt), place == 0)
    carry, logits = program.call(carry, text[place].astype(np.int32), fresh)
    if place + 1 >= prompt.shape[1]:
        text.append(np.argmax(logits, axis=-1))
assert "rnnjax" not in sys.modules
np.save(sys.argv[3], np.stack(text[prompt.shape[1]:], axis=1))
"""


TRANSLATOR = """
import sys
import jax, jax.export, numpy as np
encode, step = (jax.export.deserialize(open(f, "rb").read()).call for f in sys.argv[1:3])
given = np.load(sys.argv[3])
found = {}
for case in ("wide", "long"):
    carry, memory = encode(given[case + "_tokens"], given[case + "_lengths"])
    token, text = np.full(len(given[case + "_tokens"]), 2, np.int32), []
    for _ in range(5):
        carry, out = step(carry, memory, token)
        token = np.argmax(out["logits"], axis=-1).astype(np.int32)
        text.append(token)
    found[case] = np.stack(text, axis=1)
assert "rnnjax" not in sys.modules
np.savez(sys.argv[4], **found)
"""


def run_alone(code, folder, *names):
    """Runs code that must not need this package, with files of ``folder`` as arguments."""
    files = [str(folder / name) for name in names]
    command = [*PYTHON, "-c", code, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


def ragged_tokens(batch, time, lengths):
    tokens = np.random.default_rng(time).integers(0, 11, (batch, time)).astype(np.int32)
    return tokens, np.array(lengths, np.int32)


def make(pooling="last"):
    encoder = rnnjax.stack(rnnjax.bidirectional(rnnjax.lstm(4)), rnnjax.gru(3), rnnjax.vanilla(4))
    model = rnnjax.classifier(rnnjax.embedding(11, 5), encoder, 3, pooling=pooling)
    return model, model.init(jax.random.key(0))


def test_a_process_without_rnnjax_gets_equal_outputs_for_two_shapes(tmp_path):
    model, params = make()
    (tmp_path / "program").write_bytes(export_program(model.apply, params))
    cases = {
        "wide": ragged_tokens(4, 3, [3, 2, 0, 1]),
        "long": ragged_tokens(1, 9, [7]),
    }
    given = {
        f"{case}_{part}": array
        for case, pair in cases.items()
        for part, array in zip(("tokens", "lengths"), pair, strict=True)
    }
    np.savez(tmp_path / "given.npz", **given)
    run_alone(LOADER, tmp_path, "program", "given.npz", "found.npz")
    found = np.load(tmp_path / "found.npz")
    for case, (tokens, lengths) in cases.items():
        np.testing.assert_allclose(
            found[case], model.apply(params, tokens, lengths), rtol=1e-6, atol=1e-6
        )


def test_a_process_without_rnnjax_writes_the_text_that_generate_writes(tmp_path):
    # Starts that are learned: a carry of zeros must not be read in the first step.
    layer = rnnjax.stack(rnnjax.learn_initial_carry(rnnjax.lstm(4)), rnnjax.gru(3))
    model = rnnjax.language_model(rnnjax.embedding(11, 5), layer)
    params = jax.tree.map(lambda a: a * 3 + 0.1, model.init(jax.random.key(0)))
    data = export_step(model.step, model.initial_carry, params)
    (tmp_path / "program").write_bytes(data)
    prompt = np.array([[5, 7, 2], [3, 3, 8]], np.int32)
    np.save(tmp_path / "prompt.npy", prompt)
    run_alone(WRITER, tmp_path, "program", "prompt.npy", "text.npy")
    out = rnnjax.generate(model, params, prompt, max_new_tokens=6, sampling=rnnjax.greedy())
    np.testing.assert_array_equal(np.load(tmp_path / "text.npy"), out.tokens)


def test_a_row_of_an_exported_step_that_starts_anew_does_not_read_its_carry():
    layer = rnnjax.recurrent(rnnjax.gru(4))
    params = layer.init(jax.random.key(0), D)
    data = export_step(layer.step, layer.initial_carry, params, input_size=D, platforms=["cpu"])
    program = export.deserialize(data)
    x = np.ones((2, D), np.float32)
    before = np.array([[np.nan] * 4, [0.5] * 4], np.float32)
    carry, y = program.call(before, x, np.array([True, False]))
    np.testing.assert_allclose(y[0], layer.step(params, None, x)[1][0], rtol=1e-6)
    np.testing.assert_allclose(y[1], layer.step(params, before, x)[1][1], rtol=1e-6)
    np.testing.assert_array_equal(carry, y)


@pytest.mark.full
def test_a_process_without_rnnjax_writes_the_greedy_text_of_a_translator(tmp_path):
    model = rnnjax.sequence_to_sequence(
        rnnjax.embedding(11, 3, scale=1.0),
        rnnjax.bidirectional(rnnjax.gru(3)),
        rnnjax.embedding(9, 3, scale=1.0),
        rnnjax.attention_cell(rnnjax.lstm(5), 6),
        above=rnnjax.gru(4),
        start=2,
    )
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(0)))
    made = export_writer(model.encode, model.step, params)
    for name, data in zip(("encode", "step"), made, strict=True):
        (tmp_path / name).write_bytes(data)
    sources = {"wide": ragged_tokens(5, 3, [3, 1, 2, 3, 0]), "long": ragged_tokens(2, 9, [9, 4])}
    names = [f"{case}_{name}" for case in sources for name in ("tokens", "lengths")]
    arrays = [array for pair in sources.values() for array in pair]
    np.savez(tmp_path / "given.npz", **dict(zip(names, arrays, strict=True)))
    run_alone(TRANSLATOR, tmp_path, "encode", "step", "given.npz", "found.npz")
    found = np.load(tmp_path / "found.npz")
    for case, (tokens, lengths) in sources.items():
        text = found[case]
        logits, _ = model.apply(params, tokens, lengths, text)
        np.testing.assert_array_equal(np.argmax(logits, axis=-1), text)


def test_an_exported_captioner_takes_pictures_and_gives_the_logits_of_its_steps():
    model = rnnjax.captioner(
        3, rnnjax.embedding(6, 2), rnnjax.attention_cell(rnnjax.gru(4), 3, selector=True), start=2
    )
    params = model.init(jax.random.key(0))
    shape = jax.ShapeDtypeStruct((5, 3), np.float32)
    made = export_writer(model.encode, model.step, params, source=shape, platforms=("cpu",))
    encode, step = (export.deserialize(data).call for data in made)
    places = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    carry, memory = encode(places)
    carry, out = step(carry, memory, np.array([2, 2], np.int32))
    logits, weights = model.apply(params, places, None, np.array([[4], [4]]))
    np.testing.assert_allclose(out["logits"], logits[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["weights"], weights[:, 0], rtol=1e-5, atol=1e-6)
    assert carry.shape == (2, 4)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_padding_is_not_read_by_an_exported_program(pooling):
    model, params = make(pooling)
    program = export.deserialize(export_program(model.apply, params, platforms=["cpu"]))
    tokens, lengths = ragged_tokens(2, 5, [5, 2])
    alone = model.apply(params, tokens[1:, :2])
    np.testing.assert_allclose(program.call(tokens, lengths)[1:], alone, rtol=1e-6, atol=1e-6)


def test_the_program_is_for_all_three_platforms_and_takes_plain_arrays():
    model, params = make()
    program = export.deserialize(export_program(model.apply, params))
    assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    assert [str(aval.dtype) for aval in program.in_avals] == ["int32", "int32"]
    assert str(program.in_avals[0].shape) == "(batch, time)"
    assert program.in_tree == jax.tree.structure(((0, 0), {}))
    amd = export.deserialize(export_program(model.apply, params, platforms=["rocm"]))
    assert amd.platforms == ("rocm",)


def test_a_layer_gives_its_carry_and_outputs_by_name():
    layer = rnnjax.bidirectional(rnnjax.lstm(3))
    params = layer.init(jax.random.key(1), 2)
    program = export.deserialize(
        export_program(layer.apply, params, input_size=2, platforms=["cpu"])
    )
    xs, lengths = np.ones((2, 4, 2), np.float32), np.array([4, 0], np.int32)
    found = program.call(xs, lengths)
    carry, ys = layer.apply(params, xs, lengths)
    expected = {
        "0.forward.h": carry.forward.h,
        "0.forward.c": carry.forward.c,
        "0.backward.h": carry.backward.h,
        "0.backward.c": carry.backward.c,
        "1": ys,
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cell", ["users_own", "no_recurrent_matrix", "gru_reset_before"])
def test_any_cell_can_be_exported(cell):
    layer = rnnjax.recurrent(CELLS[cell], reverse=True)
    params = layer.init(jax.random.key(0), D)
    program = export.deserialize(
        export_program(layer.apply, params, input_size=D, platforms=["cpu"])
    )
    xs, lengths = np.ones((2, 3, D), np.float32), np.array([3, 1], np.int32)
    _, ys = layer.apply(params, xs, lengths)
    np.testing.assert_allclose(program.call(xs, lengths)["1"], ys, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("platforms", ["cpu", (), ("gpu",), ("cpu", "metal")])
def test_other_platforms_are_named(platforms):
    model, params = make()
    with pytest.raises(ValueError, match=r"platforms must be a list with names of .*'cuda'.*, got"):
        export_program(model.apply, params, platforms=platforms)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        (rnnjax.min_gru(3), {"implementation": "associative"}),
        (rnnjax.mlstm(3), {"implementation": "chunked"}),
        (rnnjax.lstm(3), {"scan_unroll": 2}),
        (rnnjax.lstm(3), {"remat": "step"}),
    ],
    ids=["associative", "chunked", "scan_unroll", "remat"],
)
def test_what_needs_to_know_the_number_of_steps_is_refused_and_without_it_exported(cell, options):
    layer = rnnjax.recurrent(cell, **options)
    params = layer.init(jax.random.key(0), 4)
    with pytest.raises(ValueError, match="known when"):
        export_program(layer.apply, params, input_size=4)
    data = export_program(rnnjax.recurrent(cell).apply, params, input_size=4)
    xs, lengths = jax.random.normal(jax.random.key(1), (2, 5, 4)), np.array([5, 3])
    got = jax.export.deserialize(data).call(xs, lengths)
    np.testing.assert_allclose(got["1"], layer.apply(params, xs, lengths)[1], atol=1e-5)


def test_parameters_without_values_are_refused():
    model, params = make()
    shapes = jax.eval_shape(lambda: params)
    with pytest.raises(
        ValueError, match=r"params must be arrays whose values are known, got float"
    ):
        export_program(model.apply, shapes)
    with pytest.raises(ValueError, match=r"known, got float32\[11,5\].*outside of jax.jit"):
        jax.jit(lambda params: len(export_program(model.apply, params)))(params)


def test_vectors_for_a_model_of_token_ids_are_a_wrong_input_size():
    model, params = make()
    with pytest.raises(
        ValueError, match="input_size must be None where apply takes token ids, got 5"
    ):
        export_program(model.apply, params, input_size=5)


def test_the_step_of_a_cell_is_exported_as_that_of_its_layer():
    cell = rnnjax.learn_initial_carry(rnnjax.lstm(3))
    params = jax.tree.map(lambda a: a + 0.1, cell.init(jax.random.key(0), D))
    data = export_step(
        cell.step, cell.initial_carry, params, input_size=np.int64(D), platforms=["cpu"]
    )
    x = np.ones((2, D), np.float32)
    carry = {"h": np.full((2, 3), np.nan, np.float32), "c": np.full((2, 3), np.nan, np.float32)}
    _, y = export.deserialize(data).call(carry, x, np.array([True, True]))
    np.testing.assert_allclose(y, cell.step(params, None, x)[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": "3"}, "input_size must be a positive integer, got '3'"),
        ({"input_size": 3.0}, "input_size must be a positive integer, got 3.0"),
        ({"platforms": 3}, "platforms must be a list with names of"),
        ({"step": "step"}, "step must be a function, such as the step of a layer, got str"),
        ({"initial_carry": None}, "initial_carry must be a function"),
        (
            {"step": lambda c, x: c},
            r"step must be a function of params, carry and inputs, got \(c, x\)",
        ),
        (
            {"initial_carry": rnnjax.gru(2).initial_carry},
            r"initial_carry must be a function of params and batch_shape, got \(params\)",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(changes, message):
    layer = rnnjax.recurrent(rnnjax.gru(2))
    given = {
        "step": layer.step,
        "initial_carry": layer.initial_carry,
        "params": layer.init(jax.random.key(0), D),
        "input_size": D,
    }
    with pytest.raises(ValueError, match=message):
        export_step(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encode": 3}, "encode must be a function, such as the encode of a model, got int"),
        ({"step": None}, "step must be a function, such as the step of a model, got NoneType"),
        (
            {"step": rnnjax.gru(3).step},
            r"step must be a function of params, carry, token and memory, got \(params, carry, x,",
        ),
        ({"source": 3}, r"source must be a jax.ShapeDtypeStruct or None, got 3"),
        ({"platforms": ()}, "platforms must be a list with names of"),
    ],
)
def test_what_cannot_be_written_out_is_named(changes, message):
    model = rnnjax.captioner(3, rnnjax.embedding(7, 2), rnnjax.gru(3), start=2)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        export_writer(**{"encode": model.encode, "step": model.step, "params": params} | changes)


def test_an_encoder_that_needs_the_length_of_sources_is_refused():
    encoder = rnnjax.recurrent(rnnjax.min_gru(3), implementation="associative")
    table = rnnjax.embedding(7, 2)
    model = rnnjax.sequence_to_sequence(table, encoder, table, rnnjax.gru(3), start=2)
    with pytest.raises(
        ValueError, match=r"='associative' needs a T known when compiled, got length"
    ):
        export_writer(model.encode, model.step, model.init(jax.random.key(0)))


def test_parameters_of_another_byte_order_are_exported_as_the_numbers_they_are():
    model = rnnjax.classifier(rnnjax.embedding(7, 2), rnnjax.gru(3), 2)
    params, given = model.init(jax.random.key(0)), (np.array([[1, 6]], np.int32), np.array([2]))
    swapped = jax.tree.map(lambda a: np.asarray(a).astype(">f4"), params)
    native, foreign = (
        export.deserialize(export_program(model.apply, p, platforms=["cpu"])).call(*given)
        for p in (params, swapped)
    )
    np.testing.assert_array_equal(native, foreign)


def test_a_model_of_vectors_without_their_size_is_refused():
    layer = rnnjax.recurrent(rnnjax.gru(2))
    params = layer.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match=r"input_size must be .* where apply takes .* got None"):
        export_program(layer.apply, params)
    with pytest.raises(ValueError, match=r"input_size must be .* where step takes .* got None"):
        export_step(layer.step, layer.initial_carry, params)


@pytest.mark.parametrize(
    ("size", "message"), [(None, "^of its own"), (3, "^h must be of floating dtype")]
)
def test_another_error_of_what_is_exported_is_passed_on(size, message):
    def apply(params, inputs, lengths):
        raise ValueError(message.strip("^"))

    with pytest.raises(ValueError, match=message):
        export_program(apply, (), input_size=size)


def test_outputs_of_one_name_are_refused():
    """Of two arrays the program gave one, without a word."""

    def apply(params, ids, lengths):
        return {"a": {"b": ids}, "a.b": -ids, "c": lengths}

    with pytest.raises(ValueError, match=r"must have a name each, got several at \['a.b'\]"):
        export_program(apply, (), platforms=["cpu"])


def test_ids_outside_the_vocabulary_are_the_nearest_ones_in_every_program():
    """A negative index would count from the end."""
    model = rnnjax.classifier(rnnjax.embedding(11, 4), rnnjax.gru(3), 2)
    params = model.init(jax.random.key(0))
    tokens, lengths = np.array([[-1, 3], [99, 3], [-(2**31), 3]], np.int32), np.array([2, 2, 2])
    program = export.deserialize(export_program(model.apply, params, platforms=["cpu"]))
    nearest = np.clip(tokens, 0, 10)
    np.testing.assert_array_equal(program.call(tokens, lengths), program.call(nearest, lengths))

    writer = rnnjax.language_model(rnnjax.embedding(11, 4), rnnjax.gru(3))
    params = writer.init(jax.random.key(0))
    data = export_step(writer.step, writer.initial_carry, params, platforms=["cpu"])
    one, carry, starts = export.deserialize(data), np.zeros((3, 3), np.float32), np.ones(3, bool)
    found, expected = (one.call(carry, ids[:, 0], starts)[1] for ids in (tokens, nearest))
    np.testing.assert_array_equal(found, expected)


def test_packed_rows_of_any_number_of_steps_are_refused():
    model = rnnjax.tagger(None, rnnjax.gru(3), num_classes=2)

    def apply(params, xs, lengths):
        ids = rnnjax.lengths_to_mask(lengths, xs.shape[1]).astype(int)
        return model.apply(params, xs, segment_ids=ids)

    params = model.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match=r"must run for a T that is not known .* segment_ids"):
        export_program(apply, params, input_size=D, platforms=["cpu"])


@pytest.mark.parametrize("reverse", [False, True])
def test_resets_are_exported_forwards_and_refused_in_reverse(reverse):
    layer = rnnjax.recurrent(rnnjax.gru(3), reverse=reverse)
    params = layer.init(jax.random.key(0), D)

    def apply(params, xs, lengths):
        return layer.apply(params, xs, lengths, resets=xs[..., 0] > 0)

    options = {"input_size": D, "platforms": ["cpu"]}
    if reverse:
        with pytest.raises(ValueError, match="resets of a reversed direction"):
            export_program(apply, params, **options)
        return
    program = export.deserialize(export_program(apply, params, **options))
    xs, lengths = np.random.default_rng(0).normal(size=(2, 5, D)), np.array([5, 3], np.int32)
    xs = xs.astype(np.float32)
    expected = apply(params, xs, lengths)[1]
    np.testing.assert_allclose(program.call(xs, lengths)["1"], expected, rtol=1e-6, atol=1e-6)

"""Weight files: round trips, every difference named, broken files refused, saves in one go."""

import json
import os
import pickle
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rnnjax.weights import load_metadata, load_weights, named_parameters, save_weights


class Cell(NamedTuple):
    w_ih: Any
    bias: Any


class Model(NamedTuple):
    encoder: tuple[dict[str, Cell], ...]
    head: Any


def model(dtype=jnp.float32):
    cell = Cell(jnp.arange(6).reshape(2, 3).astype(dtype), jnp.array([0.5, 1.5]).astype(dtype))
    return Model(({"forward": cell},), jnp.array(3.25).astype(dtype))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def header_and_data(header, data=b"", length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_names_are_the_paths_in_the_tree():
    names = named_parameters(model())
    assert list(names) == ["encoder.0.forward.w_ih", "encoder.0.forward.bias", "head"]
    np.testing.assert_array_equal(names["encoder.0.forward.bias"], [0.5, 1.5])


def test_leaves_with_one_name_are_refused(path):
    params = {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1), "c": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"params must have one leaf a name, got several at a\.b$"):
        save_weights(path, params)
    assert not path.exists()


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8, jnp.bool_]
)
def test_a_round_trip_keeps_structure_values_and_dtypes(path, dtype):
    params = model(dtype)
    save_weights(path, params)
    loaded = load_weights(path, params)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for saved, read in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        assert isinstance(read, jax.Array)
        assert read.dtype == saved.dtype
        np.testing.assert_array_equal(read, saved)


def test_other_programs_read_the_file(path):
    save_weights(path, model())
    arrays = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(arrays["encoder.0.forward.w_ih"], [[0, 1, 2], [3, 4, 5]])
    assert arrays["head"].shape == ()


def test_shapes_alone_are_enough_to_load(path):
    save_weights(path, model())
    loaded = load_weights(path, jax.eval_shape(model))
    np.testing.assert_array_equal(loaded.encoder[0]["forward"].w_ih, [[0, 1, 2], [3, 4, 5]])


def test_strided_arrays_are_saved_as_they_read(path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_weights(path, {"transposed": array.T, "every_second": array[:, ::2]})
    loaded = load_weights(
        path, {"transposed": jnp.zeros((3, 2)), "every_second": jnp.zeros((2, 2))}
    )
    np.testing.assert_array_equal(loaded["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(loaded["every_second"], [[0, 2], [3, 5]])


def test_metadata_comes_back(path):
    save_weights(path, model(), {"epoch": "7"})
    assert load_metadata(path) == {"epoch": "7"}
    save_weights(path, model())
    assert load_metadata(path) == {}


def test_every_difference_is_listed_at_once(path):
    save_weights(
        path,
        {
            "same": jnp.ones(2),
            "shape": jnp.ones((2, 3)),
            "dtype": jnp.ones(2, jnp.bfloat16),
            "extra": jnp.ones(()),
        },
    )
    like = {
        "same": jnp.ones(2),
        "shape": jnp.ones((3, 2)),
        "dtype": jnp.ones(2),
        "missing": jnp.ones(4),
    }
    with pytest.raises(ValueError, match="must have the arrays of like, got:") as caught:
        load_weights(path, like)
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "  dtype must be float32[2], got bfloat16[2]",
        "  extra must be absent, got float32[]",
        "  missing must be float32[4], got nothing",
        "  shape must be float32[3,2], got float32[2,3]",
    ]
    assert f"{path}, of which only=['same'] loads what agrees, must" in str(caught.value)


def test_a_part_of_a_file_is_loaded_and_the_rest_stays(path):
    """Fine-tuning: the encoder of one model under the head of another."""
    cell = Cell(jnp.arange(6.0).reshape(2, 3), jnp.array([0.5, 1.5]))
    save_weights(path, {"encoder": [cell], "head": jnp.ones((3, 2)), "old": jnp.ones(1)})
    blank = jax.tree.map(jnp.zeros_like, cell)
    params = {"encoder": [blank], "head": jnp.full((3, 5), 7.0), "new": np.full(2, 8, ">f4")}
    with pytest.raises(ValueError, match=r"of which only=\['encoder'\] loads what agrees, must"):
        load_weights(path, params)
    loaded = load_weights(path, params, only=["encoder"])
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    np.testing.assert_array_equal(loaded["encoder"][0].w_ih, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(loaded["encoder"][0].bias, [0.5, 1.5])
    np.testing.assert_array_equal(loaded["head"], np.full((3, 5), 7.0))
    np.testing.assert_array_equal(loaded["new"], [8, 8])
    # A single leaf; and of shapes alone, where nothing stays.
    loaded = load_weights(path, params, only=["encoder.0.bias"])
    np.testing.assert_array_equal(loaded["encoder"][0].w_ih, np.zeros((2, 3)))
    np.testing.assert_array_equal(loaded["encoder"][0].bias, [0.5, 1.5])
    shapes = jax.eval_shape(lambda: {"encoder": [blank]})
    loaded = load_weights(path, shapes, only=["encoder"])
    np.testing.assert_array_equal(loaded["encoder"][0].bias, [0.5, 1.5])


@pytest.mark.parametrize(
    ("only", "message"),
    [
        # Of what is named nothing may differ, be missing, or be left over.
        (["encoder"], r"safetensors must have .* got:\n  encoder.w must be .*got float32\[2\]$"),
        (["new"], r"  new must be float32\[\], got nothing$"),
        (["part"], r"  part.b must be absent, got float32\[1\]$"),
        (["enc"], "only must name parts of like, such as encoder, new, part, shape, got 'enc'"),
        (["shape", 3], "only must name parts of like, .* got 3"),
        ("encoder", r'only must be names in a list, such as \["encoder"\], got \'encoder\''),
        ([], r"only must be names in a list, .* got \[\]"),
        (["part.a"], r"like, at 'shape', must be an array, which stays .* got its shape alone"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(path, only, message):
    one = jnp.ones(1)
    save_weights(path, {"encoder": {"w": jnp.ones(2)}, "part": {"a": one, "b": one}})
    like = {"encoder": {"w": jnp.ones(3)}, "part": {"a": jnp.ones(1)}, "new": jnp.ones(())}
    like["shape"] = jax.ShapeDtypeStruct((1,), "float32") if only == ["part.a"] else jnp.ones(1)
    with pytest.raises(ValueError, match=message):
        load_weights(path, like, only=only)


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x08\x00", id="shorter than a header length"),
        pytest.param(b"these are not weights at all", id="text"),
        pytest.param(pickle.dumps({"w": [1.0, 2.0]}), id="pickle"),
        pytest.param(header_and_data({"w": TENSOR}, bytes(7)), id="one byte short"),
        pytest.param(header_and_data({"w": TENSOR}, bytes(9)), id="one byte long"),
        pytest.param(header_and_data({"w": TENSOR}, bytes(8), length=2**62), id="huge header"),
        pytest.param(header_and_data({"w": TENSOR}, bytes(8), length=10**8 + 1), id="long header"),
        pytest.param(header_and_data(b"{broken"), id="header is no JSON"),
        pytest.param(
            header_and_data({"w": {**TENSOR, "shape": [2**40], "data_offsets": [0, 2**42]}}),
            id="huge tensor",
        ),
        pytest.param(
            header_and_data({"w": {**TENSOR, "shape": [2**63, 2**63]}}, bytes(8)), id="overflow"
        ),
        pytest.param(header_and_data({"w": {**TENSOR, "shape": [-2]}}, bytes(8)), id="negative"),
    ],
)
def test_a_broken_file_is_refused_by_name(path, content):
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model\.safetensors must be a whole safetensors file, got "
    ):
        load_weights(path, {"w": jnp.ones(2)})
    with pytest.raises(
        ValueError, match=r"model\.safetensors must be a whole safetensors file, got "
    ):
        load_metadata(path)


def test_a_file_cut_anywhere_is_refused(path):
    save_weights(path, model())
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="must be a whole safetensors file, got "):
            load_weights(path, model())


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_weights(path, model())


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch, function):
    save_weights(path, model())
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, function, fail)
    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_weights(path, {"w": jnp.ones(100)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(path):
    old = os.umask(0o022)
    try:
        save_weights(path, model())
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"__metadata__": np.ones(2)}, "no leaf of the name '__metadata__'"),
        ({"a": jnp.ones(2, jnp.float8_e4m3fn)}, "at 'a', must be of one of .*, got dtype float8"),
        ({"a": np.ones(2) + 1j}, "got dtype complex128"),
        ({"a": jax.random.key(0)}, "got dtype key.*: of a train state, save state.params"),
        ({"a": np.array([None])}, "got dtype object"),
        ({"a": "words"}, "got str"),
        ({"\ud800": np.ones(1)}, r"must have names of Unicode .*, got half .* in '\\ud800'"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, params, message):
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match=message):
        save_weights(path, params)
    assert not path.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors.npz", "W.H5", "w.onnx"])
def test_a_name_of_another_format_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"path must end in \.safetensors.*, got '.*{name}'"):
        save_weights(tmp_path / name, {"a": np.ones(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [{"epoch": 7}, {7: "epoch"}, {"a": None}, ["a"], "a"])
def test_metadata_that_are_no_strings_are_named(tmp_path, metadata):
    with pytest.raises(ValueError, match=r"metadata must be .* got"):
        save_weights(tmp_path / "w.safetensors", {"a": np.ones(1)}, metadata)


@pytest.mark.parametrize("params", [{}, {"a": np.ones(1)}], ids=["no arrays", "arrays"])
@pytest.mark.parametrize("metadata", [{"a": "\ud800"}, {"\udfff": "a"}])
def test_metadata_that_no_file_can_hold_are_refused(path, params, metadata):
    with pytest.raises(ValueError, match=r"metadata must be Unicode text, got half of a surrogate"):
        save_weights(path, params, metadata)
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_called_by_its_own_name(tmp_path):
    path = tmp_path / "nowhere" / "w.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        save_weights(path, {"a": np.ones(1)})
    assert caught.value.filename == str(path)


def test_arrays_of_another_byte_order_and_plain_numbers_are_written(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": np.arange(3, dtype=">f4"), "b": True, "c": np.float32(1)})
    found = load_weights(path, {"a": np.zeros(3, "f4"), "b": np.array(False), "c": np.float32(0)})
    assert [np.asarray(leaf).tolist() for leaf in found.values()] == [[0.0, 1.0, 2.0], True, 1.0]
    with pytest.raises(ValueError, match="like must be a tree of arrays or their shapes, got 'a'"):
        load_weights(path, "a")


def test_arguments_in_the_wrong_order_and_what_was_given_away_are_named(tmp_path):
    path, params = tmp_path / "w.safetensors", {"a": jnp.arange(3.0)}
    with pytest.raises(ValueError, match=r"path must be the name of a file, got a dict of a: the"):
        save_weights(params, path)  # pyright: ignore[reportArgumentType]
    jax.jit(lambda tree: tree["a"] + 1, donate_argnums=0)(params)
    with pytest.raises(ValueError, match=r"params\['a'\] must still be there, got .* \(donated\)"):
        save_weights(path, params)
    assert not path.exists()

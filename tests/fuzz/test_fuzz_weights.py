"""Fuzzing of weight files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from fuzzing import examples, mutated
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rnnjax.interop.weight_files import read_keras_file, read_torch_file
from rnnjax.weights import load_metadata, load_weights, save_weights

DTYPES = ["bool", "int8", "uint16", "int32", "float16", "bfloat16", "float32"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
GOOD = safetensors.numpy.save(
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}, {"k": "v"}
)
LIKE = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2, bool)}
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 24, 26, 2**31, 2**63, 2**64, 1.0, True, None])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BOOL", "U8", "I64", "BF16", "F4", "X", 3]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    },
    optional={"extra": NUMBERS},
)
HEADER = st.dictionaries(
    st.sampled_from(["w", "b", "", "__metadata__"]),
    st.one_of(ENTRY, st.dictionaries(NAMES, st.one_of(NAMES, NUMBERS), max_size=2)),
    max_size=3,
)


@st.composite
def crafted(draw):
    """A file whose header is well-formed and says anything."""
    header = json.dumps(draw(HEADER)).encode()
    data = bytes(draw(st.sampled_from([0, 1, 2, 4, 8, 24, 26])))
    return len(header).to_bytes(8, "little") + header + data


@st.composite
def with_damaged_header(draw):
    length = int.from_bytes(GOOD[:8], "little")
    header = draw(mutated(GOOD[8 : 8 + length]))
    return len(header).to_bytes(8, "little") + header + GOOD[8 + length :]


@examples(300)
@given(data=st.one_of(crafted(), with_damaged_header(), mutated(GOOD), st.binary(max_size=40)))
@example(data=GOOD)
@example(data=b"\x02" + bytes(7) + b"{}")
def test_any_bytes_are_refused_by_name_or_read_as_the_header_says(tmp_path, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    try:
        found = read_torch_file(path)
    except ValueError as error:
        assert f"{path} must be a whole safetensors file, got " in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match=r"w\.safetensors"):
            load_weights(path, LIKE)
        return
    header, stored = parsed(data)
    assert load_metadata(path) == (header.pop("__metadata__", None) or {})
    assert found.keys() == header.keys()
    for name, array in found.items():
        begin, end = header[name]["data_offsets"]
        assert array.shape == tuple(header[name]["shape"])
        assert array.tobytes() == stored[begin:end]


def parsed(data):
    """The header of a file, and the bytes behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


@examples(200)
@given(data=mutated(GOOD))
def test_a_damaged_file_is_refused_or_differs_where_the_damage_is(tmp_path, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    try:
        found = load_weights(path, LIKE)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    # The format has no checksum: numbers may differ, but only if their bytes do.
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in LIKE.items()
    }
    header, stored = parsed(data)
    for name, leaf in found.items():
        begin, end = header[name]["data_offsets"]
        assert np.asarray(leaf).tobytes() == stored[begin:end]


@st.composite
def trees(draw):
    leaf = st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(
            np.uint8, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
        ).map(lambda array: (array % 2).astype(jnp.dtype(dtype)))
    )
    name = NAMES.filter(lambda text: text != "__metadata__" and "." not in text)
    inner = st.dictionaries(name, leaf, max_size=3)
    return draw(st.dictionaries(name, st.one_of(leaf, inner, st.tuples(leaf, leaf)), max_size=3))


@examples(40)
@given(params=trees(), metadata=st.dictionaries(NAMES, NAMES, max_size=2))
def test_any_tree_comes_back_bit_for_bit(tmp_path, params, metadata):
    path = tmp_path / "w.safetensors"
    try:
        save_weights(path, params, metadata)
    except ValueError as error:
        assert "must have one leaf a name" in str(error)  # noqa: PT017
        return
    loaded = load_weights(path, params)
    assert flat(loaded) == flat(params)
    assert load_metadata(path) == metadata


def flat(tree):
    """The tree with each array as its dtype, its shape and its bytes."""
    if isinstance(tree, dict):
        return {name: flat(branch) for name, branch in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(flat, tree))
    array = np.asarray(tree)
    return str(array.dtype), array.shape, array.tobytes()


@pytest.fixture(scope="module")
def h5_file(tmp_path_factory):
    h5py = pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("h5") / "good.h5"
    with h5py.File(path, "w") as file:
        layer = file.create_group("layer")
        layer["w"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file.attrs["layer_names"] = ["layer"]
        layer.attrs["weight_names"] = ["w"]
    return path.read_bytes()


@examples(150)
@given(data=st.data())
def test_a_damaged_h5_file_is_refused_by_name_or_gives_numbers_in_bounds(tmp_path, h5_file, data):
    path = tmp_path / "w.h5"
    path.write_bytes(data.draw(mutated(h5_file)))
    try:
        found = read_keras_file(path, max_bytes=1 << 20)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert sum(array.nbytes for array in found) <= 1 << 20
        assert all(array.dtype.kind in "fiub" for array in found)

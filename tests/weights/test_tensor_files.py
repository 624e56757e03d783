"""Malicious and damaged weight files are refused before they take memory or lead elsewhere."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rnnjax.interop.weight_files import read_keras_file, read_torch_file
from rnnjax.weights import load_metadata, load_weights

W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
GIB = 1 << 30


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes):
    return {"w": {**W, **changes}}


def archive():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps([1.0]))
    return stream.getvalue()


MALICIOUS = {
    "a pickle": pickle.dumps({"w": [1.0] * 9}),
    "what torch.save writes": archive(),
    "a header beyond the file": file_of({"w": W}, bytes(8), 2**63),
    "a header over the format's limit": file_of({"w": W}, bytes(8), 100_000_001),
    "offsets beyond the file": file_of(entry(data_offsets=[8, 16]), bytes(8)),
    "more than the file has": file_of(entry(shape=[4], data_offsets=[0, 16]), bytes(8)),
    "less than the file has": file_of({"w": W}, bytes(9)),
    "two arrays of the same bytes": file_of({"w": W, "v": W}, bytes(8)),
    "two arrays that overlap": file_of({"w": W, "v": {**W, "data_offsets": [4, 12]}}, bytes(12)),
    "a gap": file_of({"w": W, "v": {**W, "data_offsets": [12, 20]}}, bytes(20)),
    "an end before its begin": file_of(entry(data_offsets=[8, 0]), bytes(8)),
    "a shape of more bytes": file_of(entry(shape=[3]), bytes(8)),
    "a shape of fewer bytes": file_of(entry(shape=[]), bytes(8)),
    "a shape that overflows": file_of(entry(shape=[2**62, 4]), bytes(8)),
    "an endless empty shape": file_of(entry(shape=[0, 2**62], data_offsets=[0, 0])),
    "too many axes": file_of(entry(shape=[1] * 65 + [2]), bytes(8)),
    "a negative size": file_of(entry(shape=[-2]), bytes(8)),
    "a size that is a fraction": file_of(entry(shape=[2.0]), bytes(8)),
    "a size that is true": file_of(entry(shape=[True, 2]), bytes(8)),
    "an unknown dtype": file_of(entry(dtype="O"), bytes(8)),
    "a dtype of less than a byte": file_of(
        entry(dtype="F4", shape=[16], data_offsets=[0, 8]), bytes(8)
    ),
    "a field too few": file_of({"w": {"dtype": "F32"}}, bytes(8)),
    "half a character": file_of(b'{"\\ud800":' + json.dumps(W).encode() + b"}"),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}}),
    "a header that is a list": file_of(b"[]"),
    "a header in Latin-1": file_of(b'{"\xe9":{}}'),
    "a header without end": file_of(b'{"a":' * 100_000),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_refused_by_every_reader(name, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(MALICIOUS[name])
    like = {"w": np.zeros(2, np.float32)}
    readers = [
        read_torch_file,
        read_keras_file,
        load_metadata,
        lambda path: load_weights(path, like),
    ]
    for reader in readers:
        with pytest.raises(ValueError, match="must be a whole safetensors file, got ") as caught:
            reader(path)
        assert str(path) in str(caught.value)


def peak_of(function):
    """The memory that a call took at most, beyond what was there."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sparse(path, header, size):
    """A file that says it is large, and is, but takes no room on the disk."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)


def refused(reader, path, message, **options):
    def call():
        with pytest.raises(ValueError, match=message):
            reader(path, **options)

    return call


@pytest.mark.parametrize("reader", [read_torch_file, read_keras_file])
def test_more_than_the_bound_is_refused_before_it_is_read(reader, tmp_path):
    path = tmp_path / "w.safetensors"
    size = 9 * GIB
    header = file_of({"0": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    sparse(path, header, len(header) + size)
    assert peak_of(refused(reader, path, "max_bytes=8,589,934,592, got 9,663,676,416")) < 1 << 20


def test_a_bound_can_be_given(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"0": np.arange(4, dtype=np.float32)}, path)
    assert read_torch_file(path, max_bytes=16)["0"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at most max_bytes=15, got 16"):
        read_torch_file(path, max_bytes=15)
    with pytest.raises(ValueError, match="at most max_bytes=15, got 16"):
        read_keras_file(path, max_bytes=15)


def test_what_is_not_expected_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    size = 4 * GIB
    header = file_of({"w": {"dtype": "F32", "shape": [GIB], "data_offsets": [0, size]}})
    sparse(path, header, len(header) + size)
    like = {"w": np.zeros(2, np.float32)}
    message = r"w must be float32\[2\], got float32\[1073741824\]"
    assert peak_of(refused(load_weights, path, message, like=like)) < 1 << 20


def test_arrays_may_be_named_in_any_order(tmp_path):
    path = tmp_path / "w.safetensors"
    second = {"dtype": "F32", "shape": [], "data_offsets": [8, 12]}
    path.write_bytes(file_of({"v": second, "w": W}, np.arange(3, dtype="<f4").tobytes()))
    loaded = load_weights(path, {"v": jnp.zeros(()), "w": jnp.zeros(2)})
    assert (float(loaded["v"]), loaded["w"].tolist()) == (2.0, [0.0, 1.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "bool"])
def test_every_dtype_comes_as_the_library_writes_it(dtype, tmp_path):
    path = tmp_path / "w.safetensors"
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(jnp.dtype(dtype))
    safetensors.numpy.save_file({"w": array, "empty": array[:0]}, path)
    found = read_torch_file(path)
    assert found["w"].dtype == array.dtype
    assert found["w"].tobytes() == array.tobytes()
    assert found["empty"].shape == (0, 3)


# Files .h5


@pytest.fixture
def h5(tmp_path):
    """Makes a .h5 file of one layer with one array, changed by a function."""
    h5py = pytest.importorskip("h5py")

    def make(change):
        path = tmp_path / "w.h5"
        with h5py.File(path, "w") as file:
            layer = file.create_group("layer")
            layer["w"] = np.arange(3, dtype=np.float32)
            file.attrs["layer_names"] = ["layer"]
            layer.attrs["weight_names"] = ["w"]
            change(h5py, file, layer)
        return path

    return make


def test_a_plain_h5_file_is_read(h5):
    path = h5(lambda h5py, file, layer: None)
    assert read_keras_file(path)[0].tolist() == [0, 1, 2]


def to_another_file(h5py, file, layer):
    del layer["w"]
    layer["w"] = h5py.ExternalLink("/etc/hostname", "/w")


def to_a_name(h5py, file, layer):
    del layer["w"]
    layer["w"] = h5py.SoftLink("/layer/v")


def to_bytes_elsewhere(h5py, file, layer):
    del layer["w"]
    layer.create_dataset("w", (3,), "f4", external=[("/etc/hostname", 0, 12)])


def to_arrays_elsewhere(h5py, file, layer):
    del layer["w"]
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "w", (3,))
    layer.create_virtual_dataset("w", layout)


def never_written(h5py, file, layer):
    del layer["w"]
    layer.create_dataset("w", (1 << 28,), "f4", chunks=(1024,))


def of_words(h5py, file, layer):
    del layer["w"]
    layer["w"] = ["a", "b"]


def a_group(h5py, file, layer):
    del layer["w"]
    layer.create_group("w")


def without_names(h5py, file, layer):
    del layer.attrs["weight_names"]


def of_a_missing_layer(h5py, file, layer):
    file.attrs["layer_names"] = ["other"]


def without_end(h5py, file, layer):
    del file.attrs["layer_names"]
    file["layers/x/forward_layer"] = layer
    file["layers/x/backward_layer"] = layer
    layer["forward_layer"] = layer
    layer["backward_layer"] = layer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (to_another_file, "'w' must lie in this file, got a link, which may lead elsewhere"),
        (to_a_name, "'w' must lie in this file, got a link"),
        (to_bytes_elsewhere, "must lie in this file, got another"),
        (to_arrays_elsewhere, "must lie in this file, got another"),
        (never_written, "must be stored whole, in .* bytes, got 0"),
        (of_words, "'/layer/w' must be numbers"),
        (a_group, "'/layer/w' must be numbers"),
        (without_names, "must be a whole HDF5 file, got"),
        (of_a_missing_layer, "must be a whole HDF5 file, got"),
        (without_end, "must be a whole HDF5 file, got"),
    ],
)
def test_an_h5_file_that_leads_elsewhere_or_claims_too_much_is_refused(change, message, h5):
    path = h5(change)
    with pytest.raises(ValueError, match=message) as caught:
        read_keras_file(path)
    assert str(path) in str(caught.value)


def test_an_array_named_many_times_counts_many_times(h5):
    def change(h5py, file, layer):
        layer.attrs["weight_names"] = ["w"] * 100

    with pytest.raises(ValueError, match="at most max_bytes=1,199, got 1,200"):
        read_keras_file(h5(change), max_bytes=1199)

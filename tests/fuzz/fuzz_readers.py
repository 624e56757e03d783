"""Coverage-guided fuzzing of everything that reads a file.

Run:    python tests/fuzz/fuzz_readers.py csv -atheris_runs=1000000
Needs:  pip install ".[fuzz]"

The first argument is one of the targets below; without one, the first byte of an input chooses.
Further arguments are those of libFuzzer, such as -max_total_time=300. Files go to the folder for
temporary ones: TMPDIR=/dev/shm is many times faster than a disk. A reader must give what
another reader of the same format gives, or raise its own error: anything else ends the run and
leaves the input in a file crash-....
"""

import csv
import hashlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parents[2]))

READERS = ["rnnjax.data", "rnnjax.weights", "rnnjax.checkpoint", "json"]
with atheris.instrument_imports(include=[*READERS, "experiments.running.run_settings"]):
    from experiments.running.run_settings import read_config
    from rnnjax.checkpoint import CheckpointError
    from rnnjax.checkpoint._sealing import verified
    from rnnjax.data import DataError, Vocabulary, read_examples
    from rnnjax.data.vectors import read_vectors
    from rnnjax.weights import load_metadata, load_weights, open_tensors

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-readers-"))


def written(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def require(words: str, error: Exception) -> None:
    """The message of the error has the words."""
    if words not in str(error):
        raise AssertionError(f"{words!r} is not in {error!r}")


def fuzz_csv(data: bytes) -> None:
    """Rows are those of the csv module, or the file is refused."""
    path = written("a.csv", data)
    try:
        found = read_examples(path, text="text", label="label", header=("text", "label"))
    except DataError as error:
        require(str(path), error)
        return
    text = data.decode("utf-8").removeprefix("\ufeff")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    assert found.texts == [row[0] for row in rows]
    labels = [row[1].strip() for row in rows]
    names = found.label_names or None
    assert labels == [names[i] for i in found.labels] if names else True
    assert names or list(map(int, labels)) == found.labels


def fuzz_jsonl(data: bytes) -> None:
    """Rows are those of the json module, or the file is refused."""
    path = written("a.jsonl", data)
    try:
        found = read_examples(path)
    except DataError as error:
        require(str(path), error)
        return
    lines = data.decode("utf-8").removeprefix("\ufeff").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    assert found.texts == [row["text"] for row in rows]


def fuzz_vocabulary(data: bytes) -> None:
    """Tokens are those in the JSON, come back from a second file, and are at their places."""
    path = written("vocabulary.json", data)
    try:
        found = Vocabulary.load(path)
    except DataError as error:
        require(str(path), error)
        return
    assert list(found.tokens) == json.loads(data)["tokens"]
    assert found.encode(found.tokens) == [1, 1, *range(2, len(found))]
    assert found.decode(range(len(found))) == list(found.tokens)
    found.save(path)
    assert Vocabulary.load(path) == found


def fuzz_weights(data: bytes) -> None:
    """What is accepted is read as its header says."""
    if data[:1] == b"h":  # the length is the fuzzer's worst guess
        header, _, rest = data[1:].partition(b"\n")
        data = len(header).to_bytes(8, "little") + header + rest
    path = written("w.safetensors", data)
    try:
        with open_tensors(path) as file:
            found = {name: file.read(name) for name in file.entries}
    except ValueError as error:
        require(f"{path} must be a whole safetensors file, got ", error)
        return
    end = 8 + int.from_bytes(data[:8], "little")
    header, stored = json.loads(data[8:end]), data[end:]
    assert load_metadata(path) == (header.pop("__metadata__", None) or {})
    assert found.keys() == header.keys()
    for name, array in found.items():
        begin, end = header[name]["data_offsets"]
        assert array.shape == tuple(header[name]["shape"])
        assert array.tobytes() == stored[begin:end]
    try:
        assert load_weights(path, {"w": np.zeros(2, np.float32)}).keys() == {"w"}
    except ValueError as error:
        require("must have the arrays of like, got:", error)


def fuzz_manifest(data: bytes) -> None:
    """A manifest whose hash is right is a whole one, or refused."""
    folder = FOLDER / "000001-step-3"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  manifest.json\n")
    try:
        found = verified(folder)
    except CheckpointError:
        return
    assert found == json.loads(data)
    assert found["step"] == 3
    assert isinstance(found["extra"], dict)


def fuzz_hashes(data: bytes) -> None:
    """Any list of hashes but the one that was written is refused."""
    folder = FOLDER / "000002-step-3"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(MANIFEST)
    (folder / "SHA256SUMS").write_bytes(data)
    try:
        verified(folder)
    except CheckpointError:
        return
    assert data == f"{hashlib.sha256(MANIFEST).hexdigest()}  manifest.json\n".encode()


def fuzz_config(data: bytes) -> None:
    """Settings are those in the JSON, or the file is refused."""
    path = written("config.json", data)
    try:
        found = read_config(FOLDER)
    except DataError as error:
        require(str(path), error)
        return
    assert repr(found) == repr(json.loads(data))


def fuzz_vectors(data: bytes) -> None:
    """Vectors are those that splitting at spaces gives, or the file is refused."""
    path = written("vectors.txt", data)
    vocabulary = Vocabulary(("<pad>", "<unk>", "a", "b", "é"))
    try:
        found = read_vectors(path, vocabulary)
    except DataError as error:
        require(str(path), error)
        return
    size = found.table.shape[1]
    assert np.isfinite(found.table).all()
    first = {}
    for line in re.split(rb"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf")):
        word, *numbers = line.rstrip(b" \r").rsplit(b" ", size)
        if len(numbers) == size:
            first.setdefault(word, numbers)
    for place in (2, 3, 4):
        word = vocabulary.tokens[place].encode()
        if found.found[place]:
            row = np.array([float(number) for number in first[word]], np.float32)
            assert found.table[place].tobytes() == row.tobytes()
        else:
            assert not found.table[place].any()


TARGETS = {
    "csv": fuzz_csv,
    "jsonl": fuzz_jsonl,
    "vocabulary": fuzz_vocabulary,
    "weights": fuzz_weights,
    "manifest": fuzz_manifest,
    "hashes": fuzz_hashes,
    "config": fuzz_config,
    "vectors": fuzz_vectors,
}

MANIFEST = json.dumps(
    {
        "format": "rnnjax-checkpoint",
        "version": 1,
        "step": 3,
        "leaves": {"['w']": "float32[2]"},
        "extra": {"epoch": 1},
    }
).encode()
HEADER = b'{"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
ODD_JSON = [
    b"[" * 2000,
    b'{"a": ' * 300,
    b'{"a": NaN, "a": -Infinity, "b": 1e999, "c": -0}',
    b'{"a": ' + b"9" * 4400 + b"}",
    b'{"\\ud800": "\\udc00\\u0000", "b": true, "c": null}',
    b'\xef\xbb\xbf{"a": [{}]}\r\n\xe2\x80\xa8',
]
SEEDS = {
    "csv": [
        b"warm,1\r\ncold,0\r\n",
        b'"a ""b"", c",good\n"x\ny",bad\n',
        b"\xef\xbb\xbf\xc3\xa9,0\n",
    ],
    "jsonl": [b'{"text": "a", "label": 1}\n{"text": "\\u00e9", "label": "b"}\n', *ODD_JSON],
    "vocabulary": [
        b'{"format": "rnnjax-vocabulary", "version": 1, "tokens": ["<pad>", "<unk>", "a", "b"]}',
        b'{"format": "rnnjax-vocabulary", "version": 1, "tokens": ["<pad>", "<unk>", "\\ud800"]}',
        *ODD_JSON,
    ],
    "weights": [
        b"h" + HEADER + b"\n" + bytes(8),
        b'h{"a":{"dtype":"BF16","shape":[0,3],"data_offsets":[1,1]},"":{"dtype":"BOOL",'
        b'"shape":[1],"data_offsets":[0,1]}}   \n\1',
        *(b"h" + odd for odd in ODD_JSON),
        safetensors.numpy.save({"w": np.ones(2, np.float32), "b": np.array([True])}),
    ],
    "manifest": [MANIFEST, *ODD_JSON],
    "hashes": [f"{hashlib.sha256(MANIFEST).hexdigest()}  manifest.json\n".encode()],
    "config": [
        b'{"settings": {"epochs": 3, "out": "runs/a"}, "label_names": ["a", "b"]}',
        *ODD_JSON,
    ],
    "vectors": [b"a 0.5 -1\nb 1e-3 2\n", b"2 2\na 1 2 \nthe end 3 4 \n"],
}


def fuzz_any(data: bytes) -> None:
    """The first byte chooses the target."""
    if data:
        list(TARGETS.values())[data[0] % len(TARGETS)](data[1:])


def main() -> None:
    name = sys.argv.pop(1) if sys.argv[1:2] and sys.argv[1] in TARGETS else None
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for index, target in enumerate(TARGETS):
        for number, seed in enumerate(SEEDS[target] if name in (None, target) else []):
            first = bytes([index]) if name is None else b""
            (corpus / f"{target}-{number}").write_bytes(first + seed)
    atheris.Setup([*sys.argv, str(corpus)], TARGETS.get(name, fuzz_any))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

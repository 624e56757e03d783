"""Fuzzing of checkpoints: any change to any file is noticed, or changes nothing."""

import hashlib
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import examples, mutated
from hypothesis import example, given
from hypothesis import strategies as st

from rnnjax.checkpoint import CheckpointError, Checkpoints

TEMPLATE = {"w": jnp.zeros((4, 3)), "n": jnp.zeros((), jnp.int32)}


def state(step):
    return {"w": jnp.full((4, 3), float(step)), "n": jnp.asarray(step, jnp.int32)}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("good")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step})
            checkpoints.wait()
    return folder


def copied(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(folder, copy)


def files_of(folder):
    return sorted(path for path in (folder / "000002-step-2").rglob("*") if path.is_file())


@st.composite
def changes(draw, folder):
    """What happened to which file of the newest checkpoint."""
    path = draw(st.sampled_from(files_of(folder)))
    name = path.relative_to(folder)
    kind = draw(st.sampled_from(["mutate", "mutate", "delete", "add", "rename", "swap"]))
    if kind == "mutate":
        return kind, name, draw(mutated(path.read_bytes()))
    other = draw(st.sampled_from(files_of(folder))).relative_to(folder)
    return kind, name, other


def apply(folder, change):
    kind, name, what = change
    path = folder / name
    if kind == "mutate":
        path.write_bytes(what)
    elif kind == "delete":
        path.unlink()
    elif kind == "add":
        path.with_name(path.name + "x").write_bytes(b"")
    elif kind == "rename":
        path.rename(path.with_name(path.name + "x"))
    else:
        one, two = path.read_bytes(), (folder / what).read_bytes()
        path.write_bytes(two)
        (folder / what).write_bytes(one)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def verdict(folder):
    """Why the newest checkpoint is passed over; None if it is not. No array is read."""
    seen = []
    with Checkpoints(folder) as checkpoints:

        def accept(extra):
            seen.append(extra["step"])
            raise CheckpointError("looked at")

        with pytest.raises(
            CheckpointError, match="must have a whole checkpoint, got none"
        ) as caught:
            checkpoints.restore(TEMPLATE, accept=accept)
    reasons = [line for line in str(caught.value).splitlines() if "000002-step-2" in line]
    assert 1 in seen
    return None if 2 in seen else reasons[0]


@examples(30)
@given(data=st.data())
def test_any_change_to_any_file_is_noticed(tmp_path, good, data):
    change = data.draw(changes(good))
    folder = copied(good, tmp_path)
    apply(folder, change)
    found = verdict(folder)
    if contents(folder) == contents(good):
        assert found is None
    else:
        assert found is not None
        assert found.startswith("  000002-step-2: ")


@examples(10)
@given(data=st.data())
def test_what_is_restored_is_a_state_that_was_saved(tmp_path, good, data):
    change = data.draw(changes(good))
    folder = copied(good, tmp_path)
    apply(folder, change)
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(TEMPLATE)
    same = contents(folder) == contents(good)
    assert found.step == found.extra["step"] == (2 if same else 1)
    assert int(found.state["n"]) == found.step
    assert np.asarray(found.state["w"]).tobytes() == np.asarray(state(found.step)["w"]).tobytes()


LEAVES = {"['n']": "int32[]", "['w']": "float32[4,3]"}
WHOLE = {"format": "rnnjax-checkpoint", "version": 1, "step": 2, "leaves": LEAVES, "extra": {}}
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 3), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(), inner)),
    max_leaves=4,
)


@st.composite
def manifests(draw):
    kind = draw(st.sampled_from(["changed", "mutated", "other", "bytes"]))
    if kind == "changed":
        name = draw(st.sampled_from(sorted(WHOLE)))
        return json.dumps({**WHOLE, name: draw(VALUES)}).encode()
    if kind == "mutated":
        return draw(mutated(json.dumps(WHOLE).encode()))
    return draw(st.binary(max_size=30)) if kind == "bytes" else json.dumps(draw(VALUES)).encode()


def resealed(checkpoint):
    """The list of hashes as whoever changed the files would write it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(checkpoint)}\n"
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))


@examples(120)
@given(data=manifests())
@example(data=b"[" * 100_000)
@example(data=b'{"step": ' + b"9" * 5000 + b"}")
def test_any_manifest_with_the_right_hash_is_whole_or_refused(tmp_path, data):
    folder = tmp_path / "c"
    checkpoint = folder / "000001-step-2"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "manifest.json").write_bytes(data)
    resealed(checkpoint)
    seen = []
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore({"w": np.zeros(5)}, accept=seen.append)
    if seen:
        manifest = json.loads(data)
        assert seen == [manifest["extra"]]
        assert (manifest["step"], manifest["format"]) == (2, "rnnjax-checkpoint")
        assert "must have the leaves of the template, got:" in str(caught.value)
    else:
        assert "000001-step-2: manifest.json must " in str(caught.value)

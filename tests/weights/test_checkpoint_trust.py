"""Checkpoints from elsewhere: they cannot lead out of their folder nor claim what is not theirs."""

import shutil
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from test_fuzz_checkpoint import resealed

from experiments.running.checkpoints import Every, Saver, Snapshot
from experiments.running.run_folder import RunFolder
from rnnjax.checkpoint import CheckpointError, Checkpoints, FolderLock

TEMPLATE = {"w": jnp.zeros(3)}


def saved(folder, state=None):
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state or {"w": jnp.full(3, float(step))})
            checkpoints.wait()
    return folder / "000002-step-2"


def restored(folder, template=TEMPLATE):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(template)


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "state", "state/_METADATA"])
def test_a_link_in_a_checkpoint_is_refused_whatever_it_leads_to(name, tmp_path):
    newest = saved(tmp_path / "c")
    elsewhere = tmp_path / "elsewhere"
    (newest / name).rename(elsewhere)
    (newest / name).symlink_to(elsewhere)
    found = restored(tmp_path / "c")
    assert found.step == 1
    assert found.rejected == (f"000002-step-2: {name} must be a file, got a link",)


def test_a_checkpoint_that_is_a_link_is_none(tmp_path):
    newest = saved(tmp_path / "c")
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    assert restored(tmp_path / "c").step == 1


def test_sweeping_deletes_a_link_and_not_what_it_leads_to(tmp_path):
    saved(tmp_path / "c")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "c" / "000009-step-9.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "c" / "000010-step-9.tmp").write_text("a file in place of a folder")
    assert restored(tmp_path / "c").step == 2
    assert not list((tmp_path / "c").glob("*.tmp"))
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"


@pytest.mark.parametrize("name", ["..", "000003-step-3x", "\u0663-step-\u0663", "000003-step--3"])
def test_only_names_of_checkpoints_are_looked_at(name, tmp_path):
    saved(tmp_path / "c")
    (tmp_path / "c" / name).mkdir(exist_ok=True)
    assert restored(tmp_path / "c").step == 2


def test_a_lock_that_is_a_link_leaves_the_other_file_as_it_was(tmp_path):
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="lock must be a file, got a link"):
        FolderLock(tmp_path / "c")
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_a_renamed_checkpoint_is_refused(tmp_path):
    newest = saved(tmp_path / "c")
    newest.rename(tmp_path / "c" / "000003-step-7")
    found = restored(tmp_path / "c")
    assert found.step == 1
    assert found.rejected == ("000003-step-7: manifest.json must have step 7, got 2",)


@pytest.mark.parametrize(
    "other",
    [
        {"w": jnp.zeros(1_000)},
        {"w": jnp.zeros(3, jnp.int32)},
        {"v": jnp.zeros(3)},
        {"w": jnp.zeros(3), "v": jnp.zeros(3)},
    ],
    ids=["larger", "of another dtype", "of another name", "one more"],
)
@pytest.mark.parametrize(
    "template", [TEMPLATE, {"w": np.zeros(3, np.float32)}], ids=["jax", "numpy"]
)
def test_arrays_that_are_not_those_of_the_manifest_are_refused(
    other, template, tmp_path, monkeypatch
):
    newest = saved(tmp_path / "c")
    strange = saved(tmp_path / "d", other)
    shutil.rmtree(newest / "state")
    shutil.copytree(strange / "state", newest / "state")
    resealed(newest)

    def read(path, names):
        raise AssertionError("arrays are read before their sizes are known to be right")

    monkeypatch.setattr("rnnjax.checkpoint._reading.load_arrays", read)
    with pytest.raises(
        CheckpointError,
        match=r"state must have the arrays of manifest\.json, got others at \['[vw]'\]",
    ):
        restored(tmp_path / "c", template)


def test_the_store_beneath_takes_no_name_that_leaves_its_folder(tmp_path):
    tensorstore = pytest.importorskip("tensorstore")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "c").mkdir()
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{tmp_path}/c/"}).result()
    with pytest.raises(ValueError, match="Invalid key"):
        store.read("../secret").result()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("identity", None),
        ("records", {"bytes": 0}),
        ("best", []),
        ("position", {"epoch": 1, "batch": 0, "step": 2, "path": "/etc/passwd"}),
    ],
)
def test_a_checkpoint_of_no_run_is_passed_over_by_name(part, value, tmp_path):
    whole = {
        "identity": {},
        "records": {"bytes": 0, "sha256": ""},
        "best": {"best_value": 0.0, "best_epoch": None, "epochs_since_best": 0},
        "position": {"epoch": 1, "batch": 0, "step": 2},
    }
    begin = Snapshot(Begin({"w": jnp.zeros(3)}), Begin(None), {})
    with (
        RunFolder(tmp_path / "run", {}) as run,
        Checkpoints(run.checkpoints_path) as checkpoints,
    ):
        checkpoints.save(2, {"w": jnp.zeros(3)}, {**whole, part: value})
        checkpoints.wait()
        saver = Saver(checkpoints, run, {}, every=Every(1, None))
        with pytest.raises(CheckpointError, match=f"of a run must have {part}, got none"):
            saver.restore(begin)


class Begin(NamedTuple):
    """What a snapshot needs to be a template."""

    params: Any
    best_params: Any = None

"""Checkpoints: what comes back, what is refused, and what survives a damaged or full disk."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnjax import _divided_arrays as divided_arrays
from rnnjax.checkpoint import CheckpointError, Checkpoints, FolderLock, _leaves, _reading
from rnnjax.checkpoint import checkpoints as saving
from rnnjax.training import init_train_state, make_train_step


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def tree(seed=0):
    """Every kind of leaf there is: widths, no elements, no axes, keys, NumPy, odd names."""
    key = jax.random.key(seed)
    return {
        "pair": Pair(jax.random.normal(key, (3, 4)), jnp.arange(5, dtype=jnp.int8)),
        "half": jax.random.normal(key, (2, 2)).astype(jnp.bfloat16),
        "a/b.c": [jnp.array(7), jnp.array(True), jnp.zeros((0, 3))],
        "keys": (key, jax.random.split(jax.random.key(seed, impl="rbg"), 3)),
        "numpy": np.arange(6, dtype=np.float64).reshape(2, 3),
        "nan": jnp.array([jnp.nan, jnp.inf, -0.0]),
    }


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.map(bits, first) == jax.tree.map(bits, second)


def saved(folder, *steps, keep=9):
    """A folder with one checkpoint a step, whose state tells them apart."""
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"w": jnp.full((40, 3), float(step))}, {"step": step})
            checkpoints.wait()


TEMPLATE = {"w": jnp.zeros((40, 3))}


def restored(folder, template=TEMPLATE, step=None):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(template, step)


def newest(folder):
    return max(path for path in folder.iterdir() if path.is_dir())


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = tree()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(12, state, {"epoch": 2, "names": ["ä", None], "best": 0.1})
    found = restored(tmp_path, state)
    assert (found.step, found.rejected) == (12, ())
    assert found.extra == {"epoch": 2, "names": ["ä", None], "best": 0.1}
    assert_same_bits(found.state, state)
    assert isinstance(found.state["numpy"], np.ndarray)
    assert_same_bits(jax.random.split(found.state["keys"][0]), jax.random.split(state["keys"][0]))


def test_shapes_alone_are_template_enough(tmp_path):
    state = {name: leaf for name, leaf in tree().items() if name != "numpy"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    assert_same_bits(restored(tmp_path, jax.eval_shape(lambda: state)).state, state)


@pytest.mark.parametrize("state", [{}, {"w": jnp.zeros((0, 3), jnp.int32)}])
def test_a_state_without_a_number_is_a_state(state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"epoch": 3})
    found = restored(tmp_path, state)
    assert_same_bits(found.state, state)
    assert found.extra == {"epoch": 3}


def test_a_whole_checkpoint_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def fail(path, names):
        raise KeyError("no such format")

    saved(tmp_path, 1)
    monkeypatch.setattr(_reading, "load_arrays", fail)
    with pytest.raises(
        CheckpointError, match=r"step-1 must be readable as well as whole, got .*no such format"
    ):
        restored(tmp_path)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path):
    def loss_fn(params, batch, key):
        loss = ((batch @ params["w"] + jax.random.normal(key)) ** 2).mean()
        return loss, {"loss": (loss, jnp.ones(()))}

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    state = init_train_state(jax.random.key(0), {"w": jnp.ones((3, 2))}, optimizer)
    step, batches = make_train_step(loss_fn, optimizer), np.eye(3, dtype=np.float32) + 1
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(1, 9):
            state, _ = step(state, jnp.asarray(batches * number))
            if number == 3:
                checkpoints.save(number, state)  # and the next step is given its memory
    template = init_train_state(jax.random.key(9), {"w": jnp.zeros((3, 2))}, optimizer)
    again = restored(tmp_path, template).state
    for number in range(4, 9):
        again, _ = step(again, jnp.asarray(batches * number))
    assert_same_bits(again, state)


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    array = np.zeros(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": array})
        array += 1
    assert (restored(tmp_path, {"w": array}).state["w"] == 0).all()


def test_restored_arrays_are_where_those_of_the_template_are(tmp_path):
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    there = NamedSharding(mesh, PartitionSpec("data"))
    saved(tmp_path, 1)
    assert restored(tmp_path, jax.device_put(TEMPLATE, there)).state["w"].sharding == there
    assert not restored(tmp_path).state["w"].committed
    abstract = {"w": jax.ShapeDtypeStruct((40, 3), jnp.float32, sharding=there)}
    assert restored(tmp_path, abstract).state["w"].sharding == there
    keys = {"keys": jax.device_put(jax.random.split(jax.random.key(0)), there)}
    with Checkpoints(tmp_path / "keys") as checkpoints:
        checkpoints.save(1, keys)
    assert restored(tmp_path / "keys", keys).state["keys"].sharding == there


def test_the_newest_is_the_last_one_saved_and_a_step_can_be_asked_for(tmp_path):
    saved(tmp_path, 5, 20, 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == (5, 20, 10)
    assert restored(tmp_path).step == 10
    assert float(restored(tmp_path, step=20).state["w"][0, 0]) == 20
    with pytest.raises(CheckpointError, match="must have a whole checkpoint of step 7, got none"):
        restored(tmp_path, step=7)
    (tmp_path / "000003-step-10").rename(tmp_path / "999999-step-10")
    saved(tmp_path, 15)  # the number of this one has a seventh digit
    assert restored(tmp_path).step == 15


def test_only_the_last_ones_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert names(tmp_path) == ["000004-step-4", "000005-step-5"]
    saved(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["000006-step-6"]
    assert restored(tmp_path).step == 6


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "new" / "one") as checkpoints:
        assert checkpoints.steps == ()
        with pytest.raises(CheckpointError, match=r"must have a whole checkpoint, got none$"):
            checkpoints.restore(TEMPLATE)


# Damage


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_noticed_and_the_one_before_is_taken(damage, tmp_path):
    saved(tmp_path / "good", 1, 2)
    files = [path for path in newest(tmp_path / "good").rglob("*") if path.is_file()]
    assert len(files) >= 8  # those of Orbax, the manifest and the list
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        broken = folder / file.relative_to(tmp_path / "good")
        DAMAGES[damage](broken)
        found = restored(folder)
        assert found.step == 1
        assert (found.state["w"] == 1).all()
        assert len(found.rejected) == 1
        assert "000002-step-2: " in found.rejected[0]
        # A damaged list may name files that never were.
        assert broken.name in found.rejected[0] or broken.name == "SHA256SUMS"


def test_a_line_cut_from_the_list_of_hashes_is_noticed(tmp_path):
    saved(tmp_path, 1, 2)
    sums = newest(tmp_path) / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:-1]))
    assert restored(tmp_path).step == 1


def test_where_none_is_good_each_is_named_with_its_reason(tmp_path):
    saved(tmp_path, 1, 2)
    for path in tmp_path.glob("*-step-*"):
        flip_a_bit(path / "manifest.json")
    with pytest.raises(CheckpointError) as caught:
        restored(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path} must have a whole checkpoint, got none:"
    reason = "manifest.json must have the SHA-256 in SHA256SUMS, got another: it is damaged"
    assert lines[1:] == [f"  000002-step-2: {reason}", f"  000001-step-1: {reason}"]


def test_the_list_is_what_sha256sum_checks(tmp_path):
    saved(tmp_path, 1)
    for line in (newest(tmp_path) / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((newest(tmp_path) / name).read_bytes()).hexdigest() == digest


def test_a_damaged_one_never_pushes_a_good_one_out(tmp_path):
    saved(tmp_path, 1, 2)
    flip_a_bit(newest(tmp_path) / "manifest.json")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(TEMPLATE).step == 1
        checkpoints.save(3, TEMPLATE)
    assert restored(tmp_path).step == 3
    saved(tmp_path / "two", 1, 2)
    flip_a_bit(newest(tmp_path / "two") / "manifest.json")
    with Checkpoints(tmp_path / "two", keep=2) as checkpoints:
        checkpoints.restore(TEMPLATE)
        checkpoints.save(3, TEMPLATE)
    assert "000001-step-1" in names(tmp_path / "two")


def test_what_was_passed_over_stays_until_there_are_as_many_newer_ones(tmp_path):
    saved(tmp_path, 10, 20, 30)

    def accept(extra):
        raise CheckpointError("of another run")

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match="of another run"):
            checkpoints.restore(TEMPLATE, accept=accept)
        checkpoints.save(1, TEMPLATE)
        checkpoints.wait()
        assert checkpoints.steps == (10, 20, 30, 1)
        checkpoints.save(2, TEMPLATE)
        checkpoints.wait()
        checkpoints.save(3, TEMPLATE)
        checkpoints.wait()
        assert checkpoints.steps == (2, 3)


def test_a_disk_that_could_not_be_read_for_a_while_costs_no_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 10, 20, 30)

    def fail(path):
        raise OSError(5, "Input/output error")

    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr("rnnjax.checkpoint.checkpoints.verified", fail)
            with pytest.raises(CheckpointError, match="Input/output error"):
                checkpoints.restore(TEMPLATE)
        assert checkpoints.restore(TEMPLATE).step == 30
        checkpoints.save(40, TEMPLATE)
        checkpoints.wait()
        assert checkpoints.steps == (10, 20, 30, 40)


def test_what_another_process_writes_is_read_without_its_lock(tmp_path):
    saved(tmp_path, 1, 2)
    with Checkpoints(tmp_path / "new") as writing:
        shutil.copytree(tmp_path / "000002-step-2", tmp_path / "new" / "000001-step-2")
        with Checkpoints(tmp_path / "new", read_only=True) as reading:
            assert reading.restore(TEMPLATE).step == 2
            with pytest.raises(ValueError, match="must not be read_only to save"):
                reading.save(3, TEMPLATE)
        writing.save(4, TEMPLATE)
    (tmp_path / "000003-step-3.tmp").mkdir()
    with Checkpoints(tmp_path, read_only=True) as reading:
        assert reading.steps == (1, 2)
    assert (tmp_path / "000003-step-3.tmp").is_dir()
    with pytest.raises(CheckpointError, match="must be a folder of checkpoints, got none"):
        Checkpoints(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_closed_ones_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, TEMPLATE)
    for use in (lambda: checkpoints.save(2, TEMPLATE), lambda: checkpoints.restore(TEMPLATE)):
        with pytest.raises(ValueError, match="must be used inside their with block, got them clo"):
            use()


def test_a_caller_may_pass_over_what_does_not_suit_it(tmp_path):
    saved(tmp_path, 1, 2)

    def accept(extra):
        if extra["step"] == 2:
            raise CheckpointError("not this one")

    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(TEMPLATE, accept=accept)
    assert (found.step, found.rejected) == (1, ("000002-step-2: not this one",))


def test_what_an_unfinished_save_left_is_swept_and_nothing_else(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(newest(tmp_path), tmp_path / "000002-step-2.tmp")
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / "mine").mkdir()
    assert restored(tmp_path).step == 1
    assert names(tmp_path) == ["000001-step-1", "mine"]
    assert (tmp_path / "notes.tmp").exists()


# Another state


def test_every_difference_of_shape_dtype_and_path_is_named(tmp_path):
    state = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2), "c": Pair(jnp.zeros(1), jnp.zeros(1)),
             "k": jax.random.key(0)}  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    other = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2, jnp.bfloat16), "d": jnp.zeros(1),
             "k": jnp.zeros(2, jnp.uint32)}  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        restored(tmp_path, other)
    assert str(caught.value).splitlines()[1:] == [
        "  ['a'] must be float32[3,2], got float32[2,3]",
        "  ['b'] must be bfloat16[2], got float32[2]",
        "  ['c'].first must be absent, got float32[1]",
        "  ['c'].second must be absent, got float32[1]",
        "  ['d'] must be float32[1], got nothing",
        "  ['k'] must be uint32[2], got key<fry>[]",
    ]


def test_a_part_is_read_where_it_is_asked_for(tmp_path, monkeypatch):
    """As the parameters of a run whose optimizer is not at hand."""
    load, loaded = _reading.load_arrays, {}

    def loading(path, names):
        loaded.update(found := load(path, names))
        return found

    monkeypatch.setattr(_reading, "load_arrays", loading)
    params = {"w": jax.random.normal(jax.random.key(1), (3, 2)), "b": jnp.zeros((0, 2))}
    state = init_train_state(jax.random.key(2), params, optax.adam(0.1))
    blank = jax.tree.map(jnp.zeros_like, params)
    template = init_train_state(jax.random.key(0), blank, optax.identity())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state._replace(skipped=jnp.int32(3)))
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"\(give partial=True to read a part\), got:"):
            checkpoints.restore(template)
        found = checkpoints.restore(template, partial=True).state
        assert_same_bits(found, state._replace(opt_state=template.opt_state, skipped=jnp.int32(3)))
        # Nothing else is loaded: an optimizer's state may be larger than what there is room for.
        assert all(name.startswith((".params", ".key", ".step", ".skipped")) for name in loaded)
        # Of what is asked for nothing may be missing, nor of another shape.
        for wrong in ({"w": jnp.zeros((3, 2)), "c": jnp.zeros(2)}, {"w": jnp.zeros((3, 3))}):
            with pytest.raises(CheckpointError, match=r"template, got:\n  \.params\['[cw]'\] must"):
                checkpoints.restore(template._replace(params=wrong), partial=True)


@pytest.mark.parametrize("numpy_saved", [False, True])
@pytest.mark.parametrize("numpy_template", [False, True])
def test_shapes_are_compared_for_arrays_of_numpy_too(numpy_saved, numpy_template, tmp_path):
    make = {False: jnp.zeros, True: lambda shape: np.zeros(shape, np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": make[numpy_saved]((3, 4))})
    with pytest.raises(CheckpointError, match=r"must be float32\[5\], got float32\[3,4\]"):
        restored(tmp_path, {"w": make[numpy_template](5)})
    assert (restored(tmp_path, {"w": make[numpy_template]((3, 4))}).state["w"] == 0).all()


def test_doubles_are_not_cut_to_floats_without_a_word(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": np.zeros(3)})
    abstract = {"w": jax.ShapeDtypeStruct((3,), np.float64)}
    with pytest.raises(
        CheckpointError, match=r"\['w'\] must be float64\[3\], got float32\[3\], which JAX makes"
    ):
        restored(tmp_path, abstract)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, {"rate": 0.5}), ValueError, r"state\['rate'\] must be an array of .*, got 0.5"),
        ((1, {"a": np.array("abc")}), ValueError, r"state\['a'\] must be .* got dtype <U3"),
        ((1, {"a": np.array([1, None])}), ValueError, "numbers or flags, got dtype object"),
        ((1, {"a": np.array(["2020-01-01"], "M8[D]")}), ValueError, "got dtype datetime64"),
        ((1, {"a": jnp.zeros(3, jnp.uint4)}), ValueError, "numbers or flags, got dtype uint4"),
        ((-1, {"w": jnp.zeros(1)}), ValueError, "step must be a whole number .* got -1"),
        ((True, {"w": jnp.zeros(1)}), ValueError, "step must be a whole number .* got True"),
        ((1.0, {"w": jnp.zeros(1)}), ValueError, "step must be a whole number .* got 1.0"),
        ((jnp.ones(1, int), {"w": jnp.zeros(1)}), ValueError, "step must be a whole number"),
        (({"w": jnp.zeros(1)}, 1), ValueError, "step must be a whole number .* got a dict of w$"),
        (
            (1, {}, {"a": [{"b": object()}]}),
            ValueError,
            r"extra\['a'\]\[0\]\['b'\] must be .* got object",
        ),
        ((1, {}, {"a": jnp.ones(2)}), ValueError, r"extra\['a'\] must be a number, .* got Array"),
        ((1, {}, {"a": {1: 2}}), ValueError, r"extra\['a'\] must have strings for names, got 1"),
    ],
)
def test_what_cannot_be_saved_is_named_at_once(arguments, error, message, tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(error, match=message):
        checkpoints.save(*arguments)


def test_tensors_of_pytorch_are_named_at_once(tmp_path):
    torch = pytest.importorskip("torch")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"state\['w'\] must be an array of .*, got Tensor"),
    ):
        checkpoints.save(1, {"w": torch.ones(2)})


@pytest.mark.parametrize("dtype", sorted(_leaves._WRITTEN))
def test_numbers_of_every_dtype_come_back_bit_for_bit(dtype, tmp_path):
    numbers = jnp.array([[0, 1, 0], [1, 1, 0]]).astype(bool)
    state = {"a": np.asarray(numbers).astype(jnp.dtype(dtype))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    found = restored(tmp_path, state).state["a"]
    assert (found.dtype, found.tobytes()) == (state["a"].dtype, state["a"].tobytes())


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep must be a positive integer, got 0"):
        Checkpoints(tmp_path, keep=0)


# The disk and the neighbours


def full_after(monkeypatch, count):
    """Lets so many checkpoints be written; then the disk is full, in the middle of one."""
    write, calls = saving.save_arrays, []

    def write_or_fail(path, arrays):
        calls.append(path)
        write(path, arrays)
        if len(calls) > count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "save_arrays", write_or_fail)


def test_a_full_disk_is_reported_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    full_after(monkeypatch, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.full((40, 3), 1.0)})
        checkpoints.wait()
        checkpoints.save(2, TEMPLATE)
        with pytest.raises(CheckpointError, match=r"save step 2.*No space left.*there are: 1$"):
            checkpoints.wait()
    assert names(tmp_path) == ["000001-step-1"]  # nothing half-written takes up room
    monkeypatch.undo()
    assert (restored(tmp_path).state["w"] == 1).all()


def test_a_save_that_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, TEMPLATE)
        with pytest.raises(
            CheckpointError, match="must have 1,049,056 bytes of space left, got 1,000"
        ):
            checkpoints.wait()
    assert restored(tmp_path).step == 1


def test_the_size_of_an_array_that_several_write_is_that_of_its_numbers():
    assert divided_arrays.form_of(jnp.ones((3, 5), jnp.bfloat16)).nbytes == 30


def test_a_lost_part_of_an_array_is_not_read_as_zeros(tmp_path):
    array = jnp.ones((3, 5))
    divided_arrays.create(tmp_path, divided_arrays.form_of(array))
    [part] = divided_arrays.write(tmp_path, divided_arrays.own_parts(array))
    assert (divided_arrays.read(divided_arrays.open_array(tmp_path)) == 1).all()
    part.unlink()
    with pytest.raises(ValueError, match="missing"):
        divided_arrays.read(divided_arrays.open_array(tmp_path))


def test_of_the_long_errors_of_a_library_the_words_of_the_system_are_told(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError(
            'RESOURCE_EXHAUSTED: Error writing "[0]/0" in OCDBT: Failed to write 239 bytes to '
            "file 18: No space left on device [os_error_code='28']"
        )

    monkeypatch.setattr(saving, "save_arrays", fail)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, TEMPLATE)
        with pytest.raises(CheckpointError, match=r"save step 2 \(No space left on device\);"):
            checkpoints.wait()


def test_a_failed_save_is_reported_by_the_next_one_or_by_the_end(tmp_path, monkeypatch):
    full_after(monkeypatch, 0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, TEMPLATE)
    while not checkpoints._jobs[0].done():
        threading.Event().wait(0.01)
    with pytest.raises(CheckpointError, match="could not save step 1"):
        checkpoints.save(2, TEMPLATE)
    checkpoints.save(3, TEMPLATE)
    with pytest.raises(CheckpointError, match="could not save step 3"):
        checkpoints.__exit__(None, None, None)
    checkpoints, error = Checkpoints(tmp_path), KeyError("the run's own")
    checkpoints.save(4, TEMPLATE)
    checkpoints.__exit__(KeyError, error, None)  # which goes on, with the other beside it
    assert "could not save step 4" in error.__notes__[0]


@pytest.mark.parametrize("second_fails", [False, True])
def test_wait_waits_for_all_saves_and_tells_every_failure(second_fails, tmp_path, monkeypatch):
    write, gate, begun = saving.save_arrays, threading.Event(), threading.Event()
    fails = iter((True, second_fails))

    def failing(path, arrays):
        begun.set()
        gate.wait()
        if next(fails):
            raise OSError(f"no room for {path.name}")
        write(path, arrays)

    monkeypatch.setattr(saving, "save_arrays", failing)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, TEMPLATE)
        begun.wait()
        checkpoints.save(2, TEMPLATE)
        gate.set()
        with pytest.raises(CheckpointError, match="could not save step 1") as caught:
            checkpoints.wait()
        notes = "".join(getattr(caught.value, "__notes__", []))
        assert ("could not save step 2" in notes) == second_fails
        assert checkpoints.steps == (() if second_fails else (2,))


def test_a_slow_disk_makes_nobody_wait_and_drops_saves_in_between(tmp_path, monkeypatch):
    write, gate, begun = saving.save_arrays, threading.Event(), threading.Event()

    def slow(path, arrays):
        begun.set()
        gate.wait()
        write(path, arrays)

    monkeypatch.setattr(saving, "save_arrays", slow)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, TEMPLATE)
        begun.wait()
        for step in (2, 3, 4):
            checkpoints.save(step, TEMPLATE)  # none of them waits for the gate
        assert checkpoints.steps == ()
        gate.set()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == (1, 4)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_second_run_in_the_folder_is_refused_until_the_first_has_died(tmp_path):
    code = f"""
import sys, time
from rnnjax.checkpoint import FolderLock
lock = FolderLock({str(tmp_path)!r})
print("held", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"in use by process {holder.pid}"):
        Checkpoints(tmp_path)
    holder.kill()
    holder.communicate()
    saved(tmp_path, 1)
    with FolderLock(tmp_path), pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        saved(tmp_path, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_was_forked_holds_no_folder(tmp_path):
    """Neither when the one that locked it closes it, nor when that one has died."""
    code = f"""
import os, sys, time
from rnnjax.checkpoint import FolderLock
lock = FolderLock({str(tmp_path)!r})
child = os.fork()
if not child:
    sys.stdin.read()
    os._exit(0)
lock.close()
lock = FolderLock({str(tmp_path)!r})
print(child, flush=True)
os._exit(1)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        os.kill(int(holder.stdout.readline()), 0)
        holder.wait()
        FolderLock(tmp_path).close()


def test_orbax_is_loaded_when_needed_and_asked_for_by_name(tmp_path):
    code = """
import sys, rnnjax.checkpoint as c
assert not any(name.startswith("orbax") for name in sys.modules)
sys.modules["orbax"] = None
try:
    c.Checkpoints(sys.argv[1])
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "needs the package orbax-checkpoint" in done.stdout


def test_orbax_alone_can_read_the_arrays(tmp_path):
    import orbax.checkpoint

    saved(tmp_path, 3)
    path = newest(tmp_path)
    with orbax.checkpoint.Checkpointer(orbax.checkpoint.StandardCheckpointHandler()) as reader:
        found = reader.restore(path / "state", args=orbax.checkpoint.args.StandardRestore())
    assert list(found) == ["['w']"]
    assert (found["['w']"] == 3).all()
    assert json.loads((path / "manifest.json").read_text())["leaves"] == {"['w']": "float32[40,3]"}


@pytest.mark.parametrize(
    "number", [7, np.int64(7), np.uint8(7), np.array(7), jnp.array(7), jnp.array(7, jnp.int8)]
)
def test_whole_numbers_of_any_kind_are_steps(number, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(number, {"w": jnp.ones(1)})
        checkpoints.wait()
        assert checkpoints.restore({"w": jnp.zeros(1)}, step=number).step == 7
        assert checkpoints.steps == (7,)


def test_scalars_of_numpy_and_jax_in_the_extra_come_back_as_those_of_python(tmp_path):
    extra = {"loss": np.float32(0.5), "best": jnp.array(3), "flags": (np.True_, None, "a")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(1)}, extra)
        extra["loss"] = "changed after the call"
        found = checkpoints.restore({"w": jnp.zeros(1)}).extra
    assert found == {"loss": 0.5, "best": 3, "flags": [True, None, "a"]}
    assert [type(value) for value in found.values()] == [float, int, list]


def test_what_cannot_be_saved_is_told_at_the_call_and_leaves_the_folder_usable(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="extra"):
            checkpoints.save(1, {"w": jnp.ones(1)}, {"a": {1, 2}})
        checkpoints.save(2, {"w": jnp.ones(1)})
        checkpoints.wait()
        assert checkpoints.steps == (2,)


def test_where_there_is_no_flock_a_range_of_bytes_is_locked(tmp_path, monkeypatch):
    """As on Windows: a module of Python that cannot be had elsewhere, acted here."""
    locked = set()

    def locking(descriptor, mode, count):
        assert (mode, count) == ("no waiting", 1)
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if place in locked:
            raise PermissionError(13, "Permission denied")
        locked.add(place)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    windows = types.SimpleNamespace(locking=locking, LK_NBLCK="no waiting")
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with FolderLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
            FolderLock(tmp_path)
    ((_, place),) = locked
    assert place > 1_000_000  # behind the process id, which others must be able to read


@jax.tree_util.register_pytree_with_keys_class
class Twins(list):
    """A tree whose leaves all have one path."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("w"), leaf) for leaf in self], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(leaves)


def test_leaves_of_one_path_are_named(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"state must have one leaf a path, got several at \.w"),
    ):
        checkpoints.save(1, Twins([jnp.zeros(2), jnp.ones(2)]))


def test_an_array_that_was_given_away_is_named(tmp_path):
    w = jnp.arange(3.0)
    jax.jit(lambda a: a + 1, donate_argnums=0)(w)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            ValueError, match=r"state\['w'\] must still be there, got .* \(donated\)"
        ):
            checkpoints.save(1, {"w": w})
        with pytest.raises(ValueError, match="extra must be a dict, got list"):
            checkpoints.save(1, {"w": jnp.zeros(1)}, [1])


def test_an_array_of_another_byte_order_comes_back(tmp_path):
    state = {"w": np.arange(3, dtype=">f4")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for template in (state, {"w": np.zeros(3, np.float32)}):
            assert checkpoints.restore(template).state["w"].tolist() == [0.0, 1.0, 2.0]

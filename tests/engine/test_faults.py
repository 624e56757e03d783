"""Faults that no other file tries: gates at their limits, a folder not to be written, a clock."""

import errno
import itertools
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, D

import rnnjax
from experiments import classify
from rnnjax.checkpoint import Checkpoints

OTHERS = [name for name in CELLS if name not in ("vanilla", "lstm", "gru")]  # see test_nonfinite


@pytest.mark.parametrize("name", OTHERS)
def test_saturated_gates_stay_finite_in_every_cell(name):
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), D)
    xs = jnp.full((2, 5, D), 1e4).at[1].multiply(-1)

    @jax.jit
    def results(params, xs):
        def loss(params, xs):
            carry, ys = rnnjax.unroll(cell, params, xs)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((carry, ys))), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)

    (value, ys), grads = results(params, xs)
    for leaf in jax.tree.leaves((value, ys, grads)):
        assert jnp.all(jnp.isfinite(leaf))
    assert jnp.any(ys != 0)


def test_a_read_only_file_system_is_told_by_name_before_anything_is_trained(
    tmp_path, monkeypatch, capsys
):
    """Root may write where modes forbid it, so the system's answer is given in its place."""
    folder, make = tmp_path / "run", Path.mkdir

    def refuse(path, *given, **named):
        if path == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *given, **named)

    (tmp_path / "train.csv").write_text("text,label\n" + "warm,0\ncold,1\n" * 8)
    (tmp_path / "test.csv").write_text("text,label\nwarm,0\ncold,1\n")
    monkeypatch.setattr(Path, "mkdir", refuse)
    given = ["--dataset", "local", "--data-dir", str(tmp_path), "--out", str(folder)]
    assert classify.main(given) == 2
    said = capsys.readouterr().err
    assert said == f"error: {folder} must be writable, got Read-only file system\n"


def test_the_newest_checkpoint_is_the_last_one_saved_though_the_clock_went_back(
    tmp_path, monkeypatch
):
    now, ticks = [2_000_000_000.0], itertools.count()
    # It goes on, as Orbax divides by how long something took.
    monkeypatch.setattr(time, "time", lambda: now[0] + next(ticks) / 1000)
    for step in (1, 2, 3):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, {"w": jnp.full((3,), float(step))})
        for path in tmp_path.glob(f"*-step-{step}"):
            os.utime(path, (now[0], now[0]))
        now[0] -= 86_400
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore({"w": jnp.zeros(3)})
    assert found.step == 3
    np.testing.assert_array_equal(found.state["w"], [3, 3, 3])

"""Checkpoints that several processes write together: what comes back, and what a death leaves."""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import outputs, program, start

from rnnjax.checkpoint import Checkpoints

pytestmark = [pytest.mark.full, pytest.mark.devices]  # programs of two processes


def state(seed):
    """Arrays, a key and no elements; those of ``DIVIDED`` lie in parts on two processes."""
    draw = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(draw.normal(size=(3, 2)), jnp.float32),
        "key": jax.random.key(seed),
        "step": np.asarray(seed),
        "empty": jnp.zeros((0, 2)),
        "table": jnp.asarray(draw.normal(size=(8, 6)), jnp.float32),
        "half": jnp.asarray(draw.normal(size=4), jnp.bfloat16),
        "zeros": jnp.zeros((2, 2), jnp.int8),
    }


DIVIDED = ("table", "half", "zeros")


def bits(tree):
    plain = [jax.random.key_data(leaf) if str(leaf.dtype).startswith("key") else leaf
             for leaf in jax.tree.leaves(tree)]  # fmt: skip
    return [[str(leaf.dtype), [*leaf.shape], np.asarray(leaf).tobytes().hex()] for leaf in plain]


TOGETHER = """
import json, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from rnnjax import _divided_arrays
from rnnjax.checkpoint import CheckpointError, Checkpoints, FolderLock
from rnnjax.checkpoint import checkpoints as saving
from test_checkpoint_processes import DIVIDED, bits, state

mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,))


def placed(tree, table=P("model")):
    specs = {n: P("model") if n in DIVIDED else P() for n in tree} | {"table": table}
    where = {n: NamedSharding(mesh, spec) for n, spec in specs.items() if n != "step"}
    arrays = {n: tree[n] for n in where}
    return {**jax.jit(lambda: arrays, out_shardings=where)(), "step": tree["step"]}


def whole(tree):
    arrays = {n: a for n, a in tree.items() if n != "step"}
    everywhere = jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, P()))(arrays)
    return bits({**everywhere, "step": tree["step"]})


equal = placed(state(1))["w"]
said, verify, verified = {"parts": len(_divided_arrays.own_parts(equal))}, saving.verified, []
saving.verified = lambda path: verified.append(path) or verify(path)
with Checkpoints(given[0]) as of_one:
    said["of one"] = whole(of_one.restore(placed(state(9))).state)
with Checkpoints(given[1], keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, placed(state(step)), {"number": step})
    checkpoints.wait()
    write = _divided_arrays.write
    if number == 1:
        def full(*_):
            raise OSError(28, "No space left on device")
        _divided_arrays.write = full
    checkpoints.save(4, placed(state(4)))
    try:
        checkpoints.wait()
    except CheckpointError as error:
        said["full"] = str(error)
    _divided_arrays.write = write
    del verified[:]
    columns = placed(state(9), P(None, "model"))
    found = checkpoints.restore(columns)
    said |= {"steps": checkpoints.steps, "verified": len(verified), "step": found.extra["number"]}
    said["kept"] = found.state["table"].sharding == columns["table"].sharding
    said["again"] = whole(found.state)
    try:
        checkpoints.restore({"w": columns["w"]})
    except CheckpointError as error:
        said["other"] = str(error).splitlines()[1]
    def refuse(extra):
        raise KeyError("not this one")
    try:
        checkpoints.restore(columns, accept=refuse)
    except (KeyError, CheckpointError) as error:
        said["refused"] = type(error).__name__
try:
    FolderLock(given[1]).close()
except CheckpointError as error:
    said["lock"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes said, the folder they left, and the one they found."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    with Checkpoints(one) as checkpoints:
        checkpoints.save(7, state(7))
    said = outputs(start(2, *program(TOGETHER), str(one), str(two)))
    return [json.loads(line.splitlines()[-1]) for line in said], two


def test_what_one_process_saved_two_restore_divided(together):
    said, _ = together
    assert said[0]["of one"] == said[1]["of one"] == bits(state(7))


def test_what_two_processes_saved_comes_back_divided_otherwise_and_in_one(together):
    said, folder = together
    for found in said:
        assert (found["step"], found["kept"], found["again"]) == (3, True, bits(state(3)))
    with Checkpoints(folder) as checkpoints:
        for step in (2, 3):
            found = checkpoints.restore(state(0), step)
            assert (bits(found.state), found.extra) == (bits(state(step)), {"number": step})


def test_the_first_process_alone_writes_what_all_have_and_verifies(together):
    said, _ = together
    assert [found["parts"] for found in said] == [1, 0]
    assert [found["verified"] for found in said] == [1, 0]


def test_a_full_disk_in_one_process_is_an_error_in_all_and_leaves_the_earlier_ones(together):
    said, folder = together
    assert said[0]["full"] == said[1]["full"]
    reason = "in process 1: OSError: [Errno 28] No space left on device"
    assert f"could not save step 4 ({reason});" in said[0]["full"]
    assert "the steps there are: 2, 3" in said[0]["full"]
    assert said[0]["steps"] == said[1]["steps"] == [2, 3]
    assert not list(folder.glob("*.tmp"))


def test_what_the_caller_refuses_in_the_first_process_is_refused_in_all(together):
    said, _ = together
    assert [found["refused"] for found in said] == ["KeyError", "CheckpointError"]
    assert said[0]["other"] == said[1]["other"]
    assert "['empty'] must be absent, got float32[0,2]" in said[0]["other"]


def test_damage_to_a_part_is_noticed_and_the_checkpoint_before_is_taken(together):
    _, folder = together
    newest = max(folder.glob("*-step-3"))
    part = max(path for path in newest.glob("divided/*/c/**/*") if path.is_file())
    data = part.read_bytes()
    try:
        for broken in (None, data[:-1] + bytes([data[-1] ^ 1])):
            part.unlink() if broken is None else part.write_bytes(broken)
            with Checkpoints(folder) as checkpoints:
                found = checkpoints.restore(state(0))
            assert found.step == 2
            assert part.relative_to(newest).as_posix() in found.rejected[0]
    finally:
        part.write_bytes(data)


UNTIL_KILLED = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from rnnjax.checkpoint import Checkpoints

mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,))
rows = NamedSharding(mesh, P("model"))
make = jax.jit(lambda step: jax.numpy.full((64, 64), step), out_shardings=rows)
with Checkpoints(given[0]) as checkpoints:
    for step in range(1, 10**6):
        checkpoints.save(step, {"table": make(float(step))})
"""


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_process_is_killed_the_other_ends_with_the_reason(dead, tmp_path):
    processes = start(2, *program(UNTIL_KILLED), str(tmp_path))
    try:
        while not (len(list(tmp_path.glob("*-step-?"))) > 1 and list(tmp_path.glob("*.tmp"))):
            assert all(process.poll() is None for process in processes), processes[0].communicate()
            time.sleep(0.001)
        processes[dead].kill()
        killed = time.monotonic()
        _, errors = processes[1 - dead].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert time.monotonic() - killed < 60  # a heartbeat of 10 seconds, on a machine that is busy
    assert "another task died" in errors or "UNAVAILABLE" in errors
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore({"table": np.zeros((64, 64), np.float32)})
    assert found.step >= 2
    assert (found.state["table"] == found.step).all()
    assert not list(Path(tmp_path).glob("*.tmp"))

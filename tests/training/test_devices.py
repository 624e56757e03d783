"""One computation on several devices, or of several processes, is that of one device.

Each test starts processes of its own: how many devices there are is fixed when JAX starts.
"""

import hashlib
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from mesh_cases import CASES
from processes import TESTS, environment, outputs, program, start

from rnnjax.training import replicate, shard_batch

KINDS = ("Auto", "Explicit")
PARTS = 4  # each a process, whose cases are one program


# No more devices than cores: on a CPU a device that waits for the others holds a thread of a pool
# that has as many as there are cores.
def run(*arguments, devices=2):
    command = [sys.executable, "-W", "error", *arguments]
    # Compiling is most of the time, as for the fixture quick_compile.
    env = environment(devices) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.full
def test_what_a_divided_batch_gives_is_what_one_device_gives(part):
    run(str(TESTS / "mesh_cases.py"), *list(CASES)[part::PARTS])


def test_the_gradient_of_a_recurrent_classifier_is_that_of_one_device():
    run(str(TESTS / "mesh_cases.py"), "a classifier by last")


PROGRAM = """
    import sys, jax
    import mesh_cases
    from jax.sharding import AxisType
    from rnnjax.training import replicate, shard_batch

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(getattr(AxisType, sys.argv[1]),))
    step, state, batch = mesh_cases.train_step()
    placed = replicate(mesh, state), shard_batch(mesh, batch)
    print(jax.jit(step.function).lower(*placed).compile().as_text())
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.full
def test_a_train_step_adds_up_its_gradients_over_the_devices_once(kind):
    text = run("-c", textwrap.dedent(PROGRAM), kind)
    reductions = re.findall(r" = (.*) all-reduce(?:-start)?\(", text)
    of_arrays = [shapes for shapes in reductions if re.search(r"f32\[\d", shapes)]
    assert len(of_arrays) == 1, reductions
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {other}(" not in text


REFUSED = """
    import jax, numpy as np
    from rnnjax.training import shard_batch

    mesh = jax.make_mesh((2,), ("batch",))
    for batch, axis in (({"x": np.ones(4), "y": np.ones((5, 2))}, None), ({"x": 1.0}, None),
                        (np.ones(4), "model")):
        try:
            shard_batch(mesh, batch, axis)
        except ValueError as error:
            print(error)
"""


def test_a_batch_that_does_not_divide_is_refused_by_name():
    rows = "must have shape [B, ...] with B a multiple of the 2 devices on axis 'batch'"
    assert run("-c", textwrap.dedent(REFUSED)).splitlines() == [
        f"batch['y'] {rows}, got shape (5, 2)",
        f"batch['x'] {rows}, got shape ()",
        "axis must be one of the axes ('batch',) of mesh, got 'model'",
    ]


PROCESS = """
    import numpy as np
    import mesh_cases
    from rnnjax.training import replicate, shard_batch

    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    step, state, batch = mesh_cases.train_step()
    state, of_steps = replicate(mesh, state), []
    for _ in range(20):
        state, metrics = step(state, shard_batch(mesh, batch))
        of_steps.append(metrics)
    leaves = [np.asarray(a) for a in jax.tree.leaves((state.params, of_steps))]
    np.savez(given[0] + f"/{number}of{count}.npz", *leaves)
"""


def in_processes(count, folder):
    """What each process had in the end: the parameters, and the metrics of all 20 steps."""
    outputs(start(count, *program(PROCESS), str(folder)))
    return [folder / f"{n}of{count}.npz" for n in range(count)]


@pytest.mark.full
def test_two_processes_train_to_what_one_trains_to(tmp_path):
    (alone,) = in_processes(1, tmp_path)
    first, second = in_processes(2, tmp_path)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}
    assert len(digests) == 1
    one, both = np.load(alone), np.load(first)
    assert one.files == both.files
    for name in one.files:
        np.testing.assert_allclose(both[name], one[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda mesh: replicate(None, {}), "mesh must be a jax.sharding.Mesh, got NoneType"),
        (lambda mesh: shard_batch({}, mesh), "mesh must be a jax.sharding.Mesh, got dict"),
        (lambda mesh: replicate(mesh, {"w": "a"}), r"tree\['w'\] must be an array of numbers"),
        (lambda mesh: replicate(mesh, [np.int64(2**40)]), r"tree\[0\] must fit int32"),
        (lambda mesh: shard_batch(mesh, {"x": np.array(["a"])}), r"batch\['x'\] must be an array"),
        (lambda mesh: shard_batch(mesh, np.array([2**40])), "batch must fit int32"),
        (lambda mesh: shard_batch(mesh, [1.0]), r"batch\[0\] must have shape \[B, ...\]"),
    ],
)
def test_what_cannot_be_placed_is_named(place, message):
    with pytest.raises(ValueError, match=message):
        place(jax.make_mesh((1,), ("batch",)))

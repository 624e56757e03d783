"""One computation on several devices, or of several processes, is that of one device.

Each test starts processes of its own: how many devices there are is fixed when JAX starts.
"""

import functools
import hashlib
import json
import re
import textwrap

import jax
import numpy as np
import processes
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_cases import CASES
from processes import TESTS, outputs, program, start

from rnnjax.training import devices, replicate, shard_batch

run = functools.partial(processes.run, devices=2)
PARTS = 4  # each a process, whose cases are one program


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.full
def test_what_a_divided_batch_gives_is_what_one_device_gives(part):
    run(str(TESTS / "mesh_cases.py"), *list(CASES)[part::PARTS])


@pytest.mark.devices
def test_the_gradient_of_a_recurrent_classifier_is_that_of_one_device():
    run(str(TESTS / "mesh_cases.py"), "a classifier by last")


PROGRAM = """
    import json, jax
    import mesh_cases
    from jax.sharding import AxisType
    from rnnjax.training import replicate, shard_batch

    step, state, batch = mesh_cases.train_step()
    texts = []
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
        placed = replicate(mesh, state), shard_batch(mesh, batch)
        texts.append(jax.jit(step.function).lower(*placed).compile().as_text())
    print(json.dumps(texts))
"""


@pytest.mark.full
@pytest.mark.devices
def test_a_train_step_adds_up_its_gradients_over_the_devices_once():
    texts = json.loads(run("-c", textwrap.dedent(PROGRAM)))
    assert len(texts) == 2  # of both kinds of mesh
    for text in texts:
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
    both = jax.make_mesh((1, 2), ("batch", "model"))
    print(shard_batch(both, np.ones(3)).shape)
"""


def test_a_mask_of_numpy_is_placed_as_it_is():
    mask = np.array([True, False])
    placed = shard_batch(jax.make_mesh((1,), ("batch",)), {"mask": mask})["mask"]
    np.testing.assert_array_equal(placed, mask, strict=True)


def test_what_is_replicated_is_a_copy():
    tree = {"w": jax.numpy.ones(3), "key": jax.random.key(0)}
    placed = replicate(jax.make_mesh((1,), ("batch",)), tree)
    jax.tree.map(lambda leaf: leaf.delete(), placed)
    np.testing.assert_array_equal(tree["w"], np.ones(3))
    assert not tree["key"].is_deleted()


def test_a_key_of_any_kind_is_placed_as_it_is_on_devices_of_several_processes():
    key = jax.random.key(3, impl="rbg")
    placed = devices._of_all_processes(key, NamedSharding(jax.make_mesh((1,), ("batch",)), P()))
    assert placed.dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(placed), jax.random.key_data(key))


@pytest.mark.devices
def test_a_batch_that_does_not_divide_is_refused_by_name():
    rows = "must have shape [B, ...] with B a multiple of the 2 devices on axis 'batch'"
    assert run("-c", textwrap.dedent(REFUSED)).splitlines() == [
        f"batch['y'] {rows}, got shape (5, 2)",
        f"batch['x'] {rows}, got shape (): what has no rows goes through replicate",
        "axis must be one of the axes ('batch',) of mesh, got 'model'",
        "(3,)",  # rows are divided over the devices of their axis alone
    ]


BESIDE = """
    import jax, jax.numpy as jnp, numpy as np, optax
    from jax.sharding import PartitionSpec as P
    from rnnjax.training import init_train_state, make_train_step, replicate, shard_batch

    mesh = jax.make_mesh((2,), ("batch",))
    params = {"w": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
    for divided in ({}, {"w": P("batch")}):
        optimizer = optax.adam(0.1)
        placed = replicate(mesh, params, divided=divided)
        state = init_train_state(jax.random.key(0), placed, optimizer)
        loss_fn = lambda p, x, key: (jnp.mean(x @ p["w"]) + p["bias"][0], {})
        step = make_train_step(loss_fn, optimizer)
        for _ in range(3):
            state, _ = step(state, shard_batch(mesh, np.ones((6, 4), np.float32)))
        print(len(step.compilations), state.opt_state[0].mu["w"].sharding.is_fully_replicated)
"""


@pytest.mark.devices
def test_a_step_is_compiled_once_for_a_state_made_of_parameters_on_a_mesh():
    assert run("-c", textwrap.dedent(BESIDE)).splitlines() == [
        "1 True",
        "1 False",
    ]


TRAINED = """
    import numpy as np
    import mesh_cases
    from rnnjax.training import make_eval_step, replicate, shard_batch

    mesh = jax.make_mesh((jax.device_count(),), ("batch",))


    def sums(place_state=lambda state: state, place_batch=lambda batch: batch):
        step, state, batch = mesh_cases.train_step()
        state, of_steps = place_state(state), []
        for _ in range(20):
            state, metrics = step(state, place_batch(batch))
            of_steps.append(tuple(metrics["loss"]))
        judged = make_eval_step(mesh_cases.language_loss)(state.params, place_batch(batch))
        sums, counts = zip(*of_steps, tuple(judged["loss"]))
        params = [np.asarray(a) for a in jax.tree.leaves(state.params)]
        return {"sums": np.array(sums), "counts": np.array(counts),
                **{f"params {n}": a for n, a in enumerate(params)}}


    found = sums(lambda s: replicate(mesh, s), lambda b: shard_batch(mesh, b))
    np.savez(given[0] + f"/{number}of{count}.npz", **found)
    if count == 1:
        np.savez(given[0] + "/alone.npz", **sums())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What 20 steps came to, and an evaluation after them: on one device, on two of a process, and
    in each of two processes. Rows are of different lengths, so their counts differ."""
    folder = tmp_path_factory.mktemp("trained")
    outputs(start(1, *program(TRAINED), str(folder), devices=2))
    outputs(start(2, *program(TRAINED), str(folder)))
    return folder


@pytest.mark.full
@pytest.mark.devices
@pytest.mark.parametrize("name", ["0of1", "0of2"])
def test_two_devices_and_two_processes_train_to_what_one_trains_to(name, trained):
    one, both = np.load(trained / "alone.npz"), np.load(trained / f"{name}.npz")
    assert one.files == both.files
    np.testing.assert_array_equal(both["counts"], one["counts"])
    np.testing.assert_allclose(both["sums"], one["sums"], rtol=1e-6)
    for params in one.files[2:]:
        np.testing.assert_allclose(both[params], one[params], rtol=1e-5, atol=1e-6)


@pytest.mark.full
@pytest.mark.devices
def test_two_processes_have_equal_bits(trained):
    of_both = [(trained / f"{n}of2.npz").read_bytes() for n in range(2)]
    assert len({hashlib.sha256(data).hexdigest() for data in of_both}) == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda mesh: replicate(None, {}), "mesh must be a jax.sharding.Mesh, got NoneType"),
        (lambda mesh: shard_batch({}, mesh), "mesh must be a jax.sharding.Mesh, got dict"),
        (lambda mesh: replicate(mesh, {"w": "a"}), r"tree\['w'\] must be an array of numbers"),
        (
            lambda mesh: replicate(
                mesh,
                {"a": {"w": np.ones(2)}},
                divided={"w": P(), "a.w": P(None)},
            ),
            "divided must name each array once, got w, a.w",
        ),
        (
            lambda mesh: replicate(mesh, {"b": np.ones(2)}, divided={"b": P(None, "batch")}),
            r"b must have the 2 axes of \S+\(None, 'batch'\), got shape \(2,\)",
        ),
        (
            lambda mesh: replicate(mesh, {"b": np.ones(2)}, divided={"b": "batch"}),
            "divided must have a PartitionSpec for b, got 'batch'",
        ),
        (
            lambda mesh: replicate(mesh, {"b": np.ones(2)}, divided={"b": P("model")}),
            r"divided must name axes of the mesh, \('batch',\), got 'model' for b",
        ),
        (lambda mesh: replicate(mesh, [np.int64(2**40)]), r"tree\[0\] must fit int32"),
        (lambda mesh: shard_batch(mesh, {"x": np.array(["a"])}), r"batch\['x'\] must be an array"),
        (lambda mesh: shard_batch(mesh, np.array([2**40])), "batch must fit int32"),
        (lambda mesh: shard_batch(mesh, [1.0]), r"batch\[0\] must have shape \[B, ...\]"),
        (lambda mesh: shard_batch(mesh, jax.random.key(0)), "no rows goes through replicate"),
    ],
)
def test_what_cannot_be_placed_is_named(place, message):
    with pytest.raises(ValueError, match=message):
        place(jax.make_mesh((1,), ("batch",)))

"""A vocabulary divided over a second axis of a mesh: table, head and softmax, never gathered.

Each test starts a process of its own: how many devices there are is fixed when JAX starts.
"""

import json
import re
import textwrap

import processes
import pytest

KINDS = ("Auto", "Explicit")

MODEL = """
    import json, re, sys, jax, jax.numpy as jnp, numpy as np, optax, rnnjax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from rnnjax.metrics import accuracy, cross_entropy
    from rnnjax.training import replicate, shard_batch, state_shardings

    V, H, B, T = 512, 8, 4, 3
    HEAD = {"head.w": P(None, "model"), "head.bias": P("model")}
    kind, devices = getattr(AxisType, sys.argv[1]), jax.device_count()
    of_model = max(2, devices // 2)
    mesh = jax.make_mesh((devices // of_model, of_model), ("batch", "model"), (kind,) * 2)


    def divided(tie):
        return {"embedding.vectors": P("model"), **({"head.bias": P("model")} if tie else HEAD)}


    def training(tie):
        model = rnnjax.language_model(rnnjax.embedding(V, H), rnnjax.lstm(H), tie=tie)

        def loss_fn(params, batch, key):
            logits = model.apply(params, batch["tokens"], batch["lengths"])[1]
            mask = rnnjax.lengths_to_mask(batch["lengths"], T)
            loss = cross_entropy(logits, batch["targets"], mask)
            right = accuracy(logits, batch["targets"], mask)
            pair = batch["tokens"], batch["targets"]
            scored = jnp.sum(model.score(params, pair, batch["lengths"])[1], where=mask)
            return loss.value, {"loss": loss, "accuracy": right, "scored": (scored, 1.0)}

        optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01))
        step = rnnjax.make_train_step(loss_fn, optimizer, donate_state=False)

        def make():
            params = model.init(jax.random.key(0))
            return rnnjax.init_train_state(jax.random.key(1), params, optimizer)

        return step, make


    draw = np.random.default_rng(0)
    BATCH = {"tokens": draw.integers(0, V, (B, T)), "targets": draw.integers(0, V, (B, T)),
             "lengths": np.array([3, 0, 1, 3])}
"""

LOWERED = """
    found = {}
    for tie in (False, True):
        step, make = training(tie)
        shapes = jax.eval_shape(make)
        where = state_shardings(mesh, shapes, divided(tie))
        rows = NamedSharding(mesh, P("batch"))
        place = lambda a, at: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at)
        state = jax.tree.map(place, shapes, where)
        batch = {n: place(a.astype(np.int32), rows) for n, a in BATCH.items()}
        text = jax.jit(step.function).lower(state, batch).compile().as_text()
        parts = [s.shard_shape(a.shape) for a, s in zip(
            jax.tree.leaves(shapes.params), jax.tree.leaves(where.params))]
        kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        sent = re.findall(rf" = (.*?) ({kinds})(?:-start)?\\\\(", text)
        found[str(tie)] = {"parts": parts, "sent": sent}
    print(json.dumps(found))
"""

VALUES = """
    tie = sys.argv[1] == "Explicit"
    step, make = training(tie)
    state = make()
    placed = replicate(mesh, state, divided=divided(tie))
    made = jax.jit(make, out_shardings=state_shardings(mesh, state, divided(tie)))()
    for one, two in zip(jax.tree.leaves(made.params), jax.tree.leaves(placed.params)):
        assert one.sharding == two.sharding
        np.testing.assert_allclose(one, two, rtol=1e-6)
    for _ in range(2):
        state, metrics = step(state, BATCH)
        placed, of_mesh = step(placed, shard_batch(mesh, BATCH))
    assert placed.params.embedding.vectors.sharding.shard_shape((V, H)) == (V // 2, H)
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(placed.params)):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(of_mesh[name], metrics[name], rtol=1e-5, err_msg=name)
"""


def run(code, kind, devices):
    code = textwrap.dedent(MODEL) + textwrap.dedent(code).replace("\\\\", "\\")
    return processes.run("-c", code, kind, devices=devices)


def axes(shapes):
    """The axes of each float array in a result, sorted, as XLA may transpose."""
    found = re.findall(r"f32\[([\d,]*)\]", shapes)
    return [tuple(sorted(map(int, filter(None, shape.split(","))))) for shape in found]


@pytest.mark.full
@pytest.mark.devices
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_adds_up_its_gradients_once_and_never_gathers_the_logits(kind):
    for case in json.loads(run(LOWERED, kind, 8)).values():  # 2 x 4 devices: compiled, not run
        sent = [axes(shapes) for shapes, _ in case["sent"]]
        parts = {tuple(sorted(part)) for part in case["parts"]}
        assert (8, 128) in parts
        of_gradients = [shapes for shapes in sent if parts & set(shapes)]
        assert len(of_gradients) == 1
        assert parts <= set(of_gradients[0])
        # All else is of hidden states, of sums over the words, or of one word a device, the best.
        others = [shape for shapes in sent for shape in shapes if shapes != of_gradients[0]]
        assert max(size for shape in others for size in shape) <= 8


@pytest.mark.full
@pytest.mark.devices
@pytest.mark.parametrize("kind", KINDS)
def test_a_divided_vocabulary_trains_to_what_a_whole_one_trains_to(kind):
    run(VALUES, kind, 2)


NARROW = """
    table = rnnjax.embedding(V, H)
    tokens = np.random.default_rng(0).integers(0, 4, (B, 600))


    def loss(vectors, tokens):
        rows = table.apply(rnnjax.models.EmbeddingParams(vectors), tokens)
        return jnp.sum(rows.astype(jnp.float32))


    vectors = table.init(jax.random.key(0)).vectors.astype(jnp.bfloat16)
    placed = jax.device_put(vectors, NamedSharding(mesh, P("model")))
    rows = jax.device_put(jnp.asarray(tokens), NamedSharding(mesh, P("batch")))
    found = jax.jit(jax.grad(loss))(placed, rows)
    assert found.dtype == jnp.bfloat16
    counts = np.repeat(np.bincount(tokens.ravel(), minlength=V)[:, None], H, axis=1)
    np.testing.assert_allclose(np.asarray(found, float), counts, rtol=2.0**-8)
"""


@pytest.mark.full
@pytest.mark.devices
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_divided_table_of_16_bits_is_summed_in_32(kind):
    run(NARROW, kind, 4)


REFUSED = """
    for divided, shape in (({"head.w": P("model")}, (4, 3)), ({"tail": P("model")}, (4, 4))):
        try:
            replicate(mesh, {"head": {"w": np.ones(shape)}}, divided=divided)
        except ValueError as error:
            print(error)
"""


@pytest.mark.devices
def test_a_division_that_cannot_be_is_refused_by_name():
    refused = textwrap.dedent(REFUSED).replace("(4, 3)", "(3, 4)")
    assert run(refused, "Auto", 4).splitlines() == [
        "head.w must have axes that P('model',) divides evenly on a mesh of "
        "{'batch': 2, 'model': 2}, got shape (3, 4)",
        "divided must name arrays of the tree, got tail",
    ]

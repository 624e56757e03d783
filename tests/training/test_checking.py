"""Wrong values inside compiled functions: an error under ``checked``, and no trace without it."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from experiments.classify import Settings, build_model, main
from experiments.running import classifier_fitting
from rnnjax import checked
from rnnjax.data import Vocabulary
from rnnjax.metrics import accuracy, cross_entropy
from rnnjax.weights import save_weights

pytestmark = pytest.mark.usefixtures("quick_compile")

CELL = rnnjax.vanilla(2)
PARAMS = CELL.init(jax.random.key(0), 3)
XS = jax.random.normal(jax.random.key(1), (2, 5, 3))
GOOD, LONG = jnp.array([5, 2]), jnp.array([5, 9])
TOO_LONG = r"lengths must lie in \[0, 5\] \(a row has 5 steps\), got 9"


def run(lengths, xs=XS, params=PARAMS):
    return rnnjax.unroll(CELL, params, xs, lengths)


CHECKED_RUN = checked(jax.jit(run))


def total(params, lengths):
    return run(lengths, params=params)[1].sum()


def by_row(lengths):
    return jax.vmap(lambda x, n: rnnjax.unroll(CELL, PARAMS, x, n))(XS, lengths)


def in_a_loop(lengths):
    return jax.lax.scan(lambda c, scale: (c + scale, run(lengths)), 0.0, jnp.ones(2))


WAYS = {
    "jit": jax.jit(run),
    "vmap": jax.jit(by_row),
    "grad of checkpoint": lambda lengths: jax.grad(jax.checkpoint(total))(PARAMS, lengths),
    "scan": jax.jit(in_a_loop),
}


@pytest.mark.parametrize("name", ["cfc", "s4d", "s5"])
def test_an_elapsed_time_below_0_is_an_error_where_it_is_read(name):
    cell = getattr(rnnjax, name)(3)
    params = cell.init(jax.random.key(0), 3)
    elapsed = jnp.ones((2, 5, 1)).at[1, 3].set(-0.5)
    for layer in (rnnjax.recurrent(cell), rnnjax.bidirectional(cell)):
        weights = layer.init(jax.random.key(0), 3)
        run_layer = checked(jax.jit(layer.apply))
        run_layer(weights, (XS, elapsed), jnp.array([5, 3]))  # there it is padding
        with pytest.raises(ValueError, match=r"^elapsed times must be at least 0, got -0\.5"):
            run_layer(weights, (XS, elapsed), jnp.array([5, 4]))
    with pytest.raises(ValueError, match=r"^elapsed times must be at least 0, got -0\.5"):
        checked(cell.step)(params, None, (XS[:, 3], elapsed[:, 3]))


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_length_is_an_error_wherever_it_is_traced(way):
    plain, with_checks = WAYS[way], checked(WAYS[way])
    expected = plain(GOOD)
    plain(LONG)  # clipped in silence; now every cache holds the function without checks
    with pytest.raises(ValueError, match=TOO_LONG):
        with_checks(LONG)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), with_checks(GOOD), expected
    )


def test_checks_come_and_go_with_checked_alone():
    step = jax.jit(lambda lengths: jax.jit(run)(lengths))
    before = str(jax.make_jaxpr(step)(GOOD))
    clipped = step(LONG)
    with pytest.raises(ValueError, match=TOO_LONG):
        checked(step)(LONG)
    np.testing.assert_array_equal(step(LONG)[1], clipped[1])
    assert str(jax.make_jaxpr(step)(GOOD)) == before
    assert "check" not in before


def test_a_training_step_without_checks_holds_none():
    jaxpr = str(jax.make_jaxpr(STEP.function)(state(), BATCH))
    assert "check" not in jaxpr
    assert "scan" in jaxpr


def test_the_index_names_the_row():
    with pytest.raises(ValueError, match=r"got 9 at index \(1,\)"):
        CHECKED_RUN(LONG, XS)
    with pytest.raises(ValueError, match=r"got -3 at index \(0,\)"):
        CHECKED_RUN(jnp.array([-3, 9]), XS)


@pytest.mark.parametrize("around", [jax.jit, jax.vmap, jax.grad])
def test_a_checked_function_inside_another_transformation_is_refused(around):
    function = around(checked(lambda params: total(params, GOOD)))
    params = jax.tree.map(lambda a: a[None], PARAMS) if around is jax.vmap else PARAMS
    with pytest.raises(ValueError, match=r"wrap the outermost function, as in checked\(jax.jit"):
        function(params)


def test_a_checked_function_inside_a_checked_one_is_simply_called():
    with pytest.raises(ValueError, match=TOO_LONG):
        checked(jax.jit(checked(run)))(LONG)


def test_arguments_that_are_no_arrays_stay_what_they_are():
    def scaled(name, count, flag, xs, *, power):
        assert (name, count, flag, power) in (("a", 1, True, 2), ("a", 1, 1, 2))
        return (xs * count) ** power if flag is True else -xs

    function = checked(scaled)
    np.testing.assert_array_equal(function("a", 1, True, jnp.full(2, 3.0), power=2), [9, 9])
    np.testing.assert_array_equal(function("a", 1, 1, jnp.full(2, 3.0), power=2), [-3, -3])
    assert inspect.signature(function) == inspect.signature(scaled)


def test_one_compilation_serves_all_calls_of_a_shape():
    traced = []
    function = checked(lambda xs: traced.append(xs.shape) or xs + 1)
    for size in (2, 2, 3, 2):
        function(jnp.ones(size))
    assert traced == [(2,), (3,)]


def test_integers_that_would_be_cut_to_32_bits_are_named():
    with pytest.raises(ValueError, match=r"must fit int32 .* got 8589934594 at index \(1,\)"):
        checked(run)(np.array([5, 2**33 + 2]))


# Ids and labels

TABLE = rnnjax.embedding(4, vectors=np.eye(4))
MODEL = rnnjax.classifier(TABLE, CELL, 3, pooling="mean")
WEIGHTS = MODEL.init(jax.random.key(0))


@pytest.mark.parametrize("table", [TABLE, rnnjax.one_hot(4)], ids=["embedding", "one_hot"])
@pytest.mark.parametrize("bad", [4, -1])
def test_an_id_outside_the_vocabulary_is_named(table, bad):
    look_up = jax.jit(lambda tokens: table.apply(WEIGHTS.embedding, tokens))
    look_up(jnp.array([[0, bad]]))
    with pytest.raises(ValueError, match=rf"tokens .* \[0, 4\), got {bad} at index \(0, 1\)"):
        checked(look_up)(jnp.array([[0, bad]]))
    np.testing.assert_array_equal(checked(look_up)(jnp.array([3])), [[0, 0, 0, 1]])


def test_of_a_text_only_what_is_real_is_looked_at():
    classify = checked(jax.jit(MODEL.apply))
    tokens = jnp.array([[1, 2, -99], [3, 9, 9]])
    assert np.all(np.isfinite(classify(WEIGHTS, tokens, jnp.array([2, 1]))))
    with pytest.raises(ValueError, match=r"tokens must lie .* got 9 at index \(1, 1\)"):
        classify(WEIGHTS, tokens, jnp.array([2, 2]))


def test_a_segment_beyond_their_number_is_named():
    def classify(tokens, ids):
        return MODEL.apply(WEIGHTS, tokens, segment_ids=ids, num_segments=2)

    with pytest.raises(ValueError, match=r"segment_ids must lie in \[0, 2\] .* got 3"):
        checked(classify)(jnp.array([[1, 2]]), jnp.array([[1, 3]]))


@pytest.mark.parametrize("metric", [cross_entropy, accuracy])
@pytest.mark.parametrize("bad", [3, -1])
def test_a_label_outside_the_classes_is_named_where_its_row_counts(metric, bad):
    function = checked(jax.jit(metric))
    logits, labels = jnp.zeros((3, 3)), jnp.array([0, bad, 2])
    assert function(logits, labels, jnp.array([1.0, 0.0, 1.0])).count == 2
    for weights in ((), (jnp.ones(3),)):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 3\), got {bad} at index"):
            function(logits, labels, *weights)


# Numbers that are not finite


def test_nan_is_named_at_a_real_step_and_not_looked_at_in_the_padding():
    xs = XS.at[1, 2, 0].set(jnp.nan)
    np.testing.assert_allclose(CHECKED_RUN(GOOD, xs)[1], run(GOOD)[1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"xs must be finite, got nan at index \(1, 2, 0\)"):
        CHECKED_RUN(jnp.array([5, 3]), xs)


def test_the_first_cause_is_told():
    poor = PARAMS._replace(w_hh=PARAMS.w_hh.at[1, 0].set(jnp.inf))
    with pytest.raises(ValueError, match=r"params.w_hh must be finite, got inf at index \(1, 0\)"):
        checked(run)(LONG - 4, XS * jnp.nan, poor)


def test_what_overflows_in_the_loop_is_named():
    cell = rnnjax.vanilla(2, lambda a: a * 1e30)
    function = checked(lambda xs: rnnjax.unroll(cell, PARAMS, xs))
    with pytest.raises(ValueError, match=r"the outputs must be finite, got -?(inf|nan) at index"):
        function(XS)


def test_an_initial_carry_that_is_not_finite_is_named():
    function = checked(lambda carry: rnnjax.unroll(CELL, PARAMS, XS, initial_carry=carry))
    with pytest.raises(ValueError, match=r"initial_carry must be finite, got nan at index \(1, 0"):
        function(jnp.zeros((2, 2)).at[1, 0].set(jnp.nan))


def test_a_cross_entropy_that_is_not_finite_is_named_where_its_row_counts():
    logits = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
    function = checked(cross_entropy)
    assert function(logits, jnp.array([0, 0])).value < 1
    assert function(logits, jnp.array([1, 0]), jnp.array([0, 1])).value < 1
    with pytest.raises(ValueError, match=r"the cross entropy must be finite, got inf at index"):
        function(logits, jnp.array([1, 0]))


# Training

BATCH = {"tokens": jnp.array([[1, 2, 0], [3, 0, 0]]), "lengths": jnp.array([2, 1])}
BATCH["labels"] = jnp.array([0, 2])
OPTIMIZER = optax.sgd(0.1)


def loss_fn(params, batch, key):
    logits = MODEL.apply(params, batch["tokens"], batch["lengths"], key=key)
    loss = cross_entropy(logits, batch["labels"])
    return loss.value, {"loss": loss, "accuracy": accuracy(logits, batch["labels"])}


STEP = rnnjax.make_train_step(loss_fn, OPTIMIZER)
CHECKED_STEP = checked(STEP)
CHECKED_EVALUATION = checked(rnnjax.make_eval_step(loss_fn))


def state(params=WEIGHTS):
    return rnnjax.init_train_state(jax.random.key(3), params, OPTIMIZER)


def test_a_checked_step_trains_as_the_plain_one_and_gives_no_state_away():
    begin = state()
    CHECKED_STEP(begin, BATCH)
    with jax.transfer_guard("disallow"):
        found, metrics = CHECKED_STEP(begin, BATCH)
    expected, plain = STEP(state(), BATCH)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert metrics["loss"][0] == pytest.approx(float(plain["loss"][0]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("labels", [0, 3], r"labels must lie in \[0, 3\), got 3 at index \(1,\)"),
        ("lengths", [2, 4], r"lengths must lie in \[0, 3\] .*, got 4 at index \(1,\)"),
        ("tokens", [[1, 2, 0], [7, 0, 0]], r"tokens must lie in \[0, 4\), got 7 at index \(1, 0"),
    ],
)
def test_a_bad_batch_ends_a_checked_step_and_an_evaluation(name, values, message):
    batch = {**BATCH, name: jnp.array(values)}
    with pytest.raises(ValueError, match=message):
        CHECKED_STEP(state(), batch)
    with pytest.raises(ValueError, match=message):
        CHECKED_EVALUATION(WEIGHTS, batch)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w: jnp.log(w[0] - w[0]), "the loss must be finite, got -inf"),
        (lambda w: jnp.sqrt(w[1]), r"the gradient of params\['w'\] .* got (inf|nan) at index"),
        (lambda w: w[0] * 3e38, r"the norm of the gradient must be finite, got inf"),
    ],
)
def test_a_step_that_would_be_left_out_is_an_error(loss, message):
    optimizer = optax.sgd(0.1)
    step = rnnjax.make_train_step(lambda params, batch, key: (loss(params["w"]), {}), optimizer)
    begin = rnnjax.init_train_state(jax.random.key(0), {"w": jnp.array([1.0, 0.0])}, optimizer)
    with pytest.raises(ValueError, match=message):
        checked(step)(begin, jnp.ones(1))


# The option of the experiment


SMALL = {"cell": "vanilla", "bidirectional": False, "hidden_size": 2, "embedding_size": 2}


def test_classify_wraps_the_steps_of_a_run_where_it_is_told_to(tmp_path, capsys, monkeypatch):
    wrapped = []

    def wrap(step):
        wrapped.append(step)
        if len(wrapped) == 2:
            raise ValueError("all are wrapped")
        return step

    monkeypatch.setattr(classifier_fitting, "checked", wrap)
    for part in ("train.csv", "test.csv"):
        (tmp_path / part).write_text("text,label\n" + "a warm film,1\na cold film,0\n" * 8)
    folder = tmp_path / "run"
    given = ["--dataset", "local", "--data-dir", str(tmp_path), "--out", str(folder)]
    small = ["--cell", "vanilla", "--no-bidirectional", "--hidden-size", "2"]
    assert main([*given, *small, "--debug-checks"]) == 2
    assert capsys.readouterr().err.endswith("error: all are wrapped\n")
    assert all(isinstance(step, rnnjax.CompiledStep) for step in wrapped)
    # Without the option the run would be the same but for its times.
    assert "debug_checks" not in (folder / "config.json").read_text()
    assert '"debug_checks": true' in (folder / "timings.jsonl").read_text()


def test_predictions_can_be_made_through_checks(tmp_path, capsys):
    vocabulary, settings = Vocabulary.fit([["warm", "film"]]), Settings(**SMALL)
    config = {"settings": settings.written(), "label_names": ["no", "yes"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vocabulary.save(tmp_path / "vocabulary.json")
    params = build_model(settings, len(vocabulary), 2).init(jax.random.key(0))
    predict = ["predict", str(tmp_path), "a warm film"]
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, params)
    assert main(predict) == main([*predict, "--debug-checks"]) == 0
    plain, looked_at = capsys.readouterr().out.splitlines()
    assert plain == looked_at
    weights.unlink()
    # Finite, as the weights of a file must be; ∞ - ∞, the sum of two products at step 2, is not.
    large = jax.tree.map(lambda a: jnp.full(a.shape, 3e38), params)
    cell = large.encoder[0]._replace(w_hh=jnp.full((2, 2), -3e38))
    save_weights(weights, large._replace(encoder=(cell,)))
    assert main([*predict, "--debug-checks"]) == 2
    assert (
        "error: the outputs must be finite, got nan at index (0, 1, 0)" in capsys.readouterr().err
    )

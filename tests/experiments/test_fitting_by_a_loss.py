"""What a run by a loss comes to, beside the same steps in NumPy."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.running import loss_fitting
from experiments.running.devices import find_devices
from experiments.running.loss_fitting import Parts, TrainingSettings, fit_by_loss
from experiments.running.opening import open_run
from experiments.write import training
from experiments.write.model import build_model
from experiments.write.settings import Settings
from experiments.write.training import cut, make_optimizer
from rnnjax.training import NonFiniteError

pytestmark = pytest.mark.usefixtures("quick_compile")

EPOCHS, RATE, CLIP, DECAY = 2, 0.1, 0.5, 0.1
# Gradients of very different norms: without clipping the second moments would be others.
TRAIN = [np.array(x, np.float32) for x in ([30.0, 40.0], [0.1, -0.2], [3.0, 1.0])]
VALIDATION, TEST = (np.array(x, np.float32) for x in ([1.0, 2.0], [5.0, 7.0]))


class Points(NamedTuple):
    """Batches of one point each, which are told when they are taken."""

    points: list
    taken: list

    def __len__(self):
        return len(self.points)

    def epoch(self, n):
        for point in self.points:
            if n:  # epochs count from 1; of 0 there is what is evaluated
                self.taken.append(point)
            yield point


def squared_distance(params, point, key):
    """Half the squared distance, whose gradient is the difference; and a number that is drawn."""
    loss = ((params["w"] - point) ** 2).sum() / 2
    drawn = jnp.zeros(()) if key is None else jax.random.uniform(key)
    return loss, {"loss": (loss, jnp.ones(())), "drawn": (drawn, jnp.ones(()))}


def fit(folder, train=TRAIN, **options):
    options = {"epochs": EPOCHS, "patience": 9, "learning_rate": RATE, "clip_norm": CLIP, **options}
    settings = TrainingSettings(average_decay=DECAY, **options)
    parts = Parts(*(Points(points, []) for points in (train, [VALIDATION], [TEST])))
    params = {"w": jnp.zeros(2)}
    what = settings, folder, None, {}, ()
    with open_run(*what, init=lambda key: params) as (run, saver):
        try:
            return fit_by_loss(
                squared_distance, params, parts, settings, run, saver, find_devices(1),
                tokens=lambda point: 1,
            )  # fmt: skip
        finally:
            folder.joinpath("taken").write_text(str(len(parts.train.taken)))


def by_hand(gradients_of, steps, rate, clip):
    """Weights after each step of Adam under a cosine from the rate to its hundredth."""
    w, m, v, found = np.zeros(2), np.zeros(2), np.zeros(2), []
    for t in range(steps):
        g = np.asarray(gradients_of(w, t), float)
        g *= min(1, clip / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        w = w - rate * (0.01 + 0.99 * (1 + np.cos(np.pi * t / steps)) / 2) * step
        found.append(w)
    return found


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    return fit(folder), folder


def records(folder, kind):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_the_weights_of_a_run_are_those_of_the_formulas(fitted):
    one, _ = fitted
    steps = EPOCHS * len(TRAIN)
    path = by_hand(lambda w, t: w - TRAIN[t % len(TRAIN)], steps, RATE, CLIP)
    average = np.zeros(2)
    for t, w in enumerate(path, start=1):
        decay = min(DECAY, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * w
    assert one.epoch == EPOCHS
    np.testing.assert_allclose(one.params["w"], average, rtol=1e-5)


def test_each_part_is_judged_by_its_own_figures(fitted):
    one, _ = fitted
    for figures, point in ((one.validation, VALIDATION), (one.test, TEST)):
        expected = ((np.asarray(one.params["w"]) - point) ** 2).sum() / 2
        assert figures["loss"] == pytest.approx(expected, rel=1e-5)
        assert figures["drawn"] == 0  # no key where nothing is trained


def test_what_is_drawn_is_drawn_anew_at_every_step_and_by_the_seed(fitted, tmp_path):
    _, folder = fitted
    drawn = [record["drawn"] for record in records(folder, "step")]
    assert len(set(drawn)) == len(drawn) == EPOCHS * len(TRAIN)
    fit(tmp_path / "other", epochs=1, seed=1)
    other = [record["drawn"] for record in records(tmp_path / "other", "step")]
    assert not set(other) & set(drawn)


def by_loss():
    settings = TrainingSettings(epochs=1, patience=1, learning_rate=RATE, clip_norm=CLIP)
    parts = Parts(*(Points(points, []) for points in (TRAIN, [VALIDATION], [TEST])))
    params = {"w": jnp.zeros(2)}
    loss_fitting.fit_by_loss(squared_distance, params, parts, settings, None, None, find_devices(1))


def by_truncated_windows():
    settings = Settings(hidden_size=2, embedding_size=2, rows=3, window=4, epochs=1)
    pieces = cut(np.arange(124, dtype=np.int32) % 5, settings.rows, 32)
    model = build_model(settings, 5)
    texts = training.Texts(pieces, None, None)
    params = model.init(jax.random.key(settings.seed))
    training.fit(model, params, texts, settings, None, None, find_devices(1), None)


@pytest.mark.parametrize(
    ("where", "run"), [(loss_fitting, by_loss), (training, by_truncated_windows)]
)
def test_noise_is_of_a_key_apart_from_those_of_the_first_weights(where, run, monkeypatch):
    class BegunError(Exception):
        """What it is begun with is known."""

    def begin(key, *_):
        raise BegunError(jax.random.key_data(key).tolist())

    monkeypatch.setattr(where, "init_train_state", begin)
    with pytest.raises(BegunError) as begun:
        run()
    of_weights = jax.random.split(jax.random.key(0), 100)
    assert begun.value.args[0] not in jax.random.key_data(of_weights).tolist()


def test_a_run_whose_steps_are_all_lost_ends_before_its_epoch_does(tmp_path):
    lost = [np.full(2, np.nan, np.float32)] * 200
    with pytest.raises(NonFiniteError, match="in the last 64 steps"):
        fit(tmp_path / "run", train=lost)
    assert int((tmp_path / "run" / "taken").read_text()) <= 65


def test_only_what_trains_is_shuffled():
    parts = Parts.of(lambda part, shuffle: (part, shuffle), "train", "validation", "test")
    assert parts == (("train", True), ("validation", False), ("test", False))


def test_steps_of_a_program_that_writes_are_those_of_the_formulas():
    settings = Settings(epochs=3, learning_rate=RATE, clip_norm=CLIP, window=4)
    pieces = cut(np.zeros(2 * 64 + 1, np.int32), rows=2, steps=32)
    optimizer = make_optimizer(settings, pieces)
    steps = 3 * 64 // 4  # epochs, and windows of a row
    gradients = [point * (1 + t % 5) for t in range(16) for point in TRAIN]
    expected = by_hand(lambda w, t: gradients[t], steps, RATE, CLIP)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jnp.zeros(2)
    _, found = jax.lax.scan(step, (params, optimizer.init(params)), jnp.stack(gradients))
    np.testing.assert_allclose(found, expected, rtol=1e-4)

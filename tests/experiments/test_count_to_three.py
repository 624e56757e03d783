"""The lesson whose network is given as a NumPy program: its weights by name, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lessons import count_to_three
from experiments.lessons.lesson import run_lesson


def numpy_network(arrays, x):
    """The lesson's program: the output is made of the state after the step."""
    state, outputs = np.zeros(15), []
    for row in x:
        state = np.tanh(arrays["W_ih"].T @ row + arrays["W_hh"].T @ state + arrays["b_ih"])
        outputs.append(1 / (1 + np.exp(-(arrays["W_hk"].T @ state + arrays["b_hk"]))))
    return np.array(outputs)


def random_arrays():
    random = np.random.default_rng(3)
    return {name: random.normal(size=shape) for name, shape in count_to_three.SHAPES.items()}


def test_the_network_from_named_weights_is_the_numpy_one(tmp_path):
    arrays = random_arrays()
    np.savez(tmp_path / "net.npz", **arrays)
    params = count_to_three.load_named_weights(tmp_path / "net.npz")
    xs, _ = count_to_three.sequences()
    _, logits = count_to_three.network().apply(params, jnp.asarray(xs[:5]))
    expected = [numpy_network(arrays, x) for x in xs[:5].astype(np.float64)]
    np.testing.assert_allclose(jax.nn.sigmoid(logits), expected, rtol=2e-4, atol=2e-6)
    written = count_to_three.named_weights(params)
    for name, array in arrays.items():
        np.testing.assert_allclose(written[name], array, rtol=1e-6)


def test_the_sequences_are_those_of_the_lesson():
    np.random.seed(1)
    expected = np.random.randn(100, 10, 5)
    xs, targets = count_to_three.sequences()
    np.testing.assert_allclose(xs, expected, rtol=1e-6)
    assert [t for t in range(10) if targets[7, t, 0] == 1] == [2, 5, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_hh": np.ones((15, 14))}, r"W_hh must be \(15, 15\), got \(15, 14\)"),
        ({"b_hk": None}, r"b_hk must be \(1,\), got nothing"),
        ({"W_ho": np.ones(3)}, r"W_ho must be absent, got \(3,\)"),
        ({"b_ih": np.full(15, np.nan)}, "b_ih.*NaN or infinity"),
        ({"b_ih": np.array(["a"] * 15)}, "b_ih must be"),
        ({"b_ih": np.array([None] * 15)}, "must be an .npz file of plain arrays"),
    ],
)
def test_other_weights_are_refused(change, message, tmp_path):
    arrays = {**random_arrays(), **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        count_to_three.load_named_weights(tmp_path / "net.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "net.npz").write_text("not weights")
    with pytest.raises(ValueError, match=r"must be an \.npz file"):
        count_to_three.load_named_weights(tmp_path / "net.npz")
    with pytest.raises(FileNotFoundError, match="got no such file"):
        count_to_three.load_named_weights(tmp_path / "other.npz")


@pytest.mark.full
def test_counting_is_learned_without_an_error(tmp_path):
    np.savez(tmp_path / "net.npz", **random_arrays())
    settings = count_to_three.Settings(
        seeds=1, lesson_epochs=1, weights=tmp_path / "net.npz", out=tmp_path / "run"
    )
    rows = run_lesson(count_to_three, settings)
    right = {row.system: row.figures["right steps, fresh inputs"] for row in rows}
    assert right["Adam"] == 1.0
    assert right["the lesson's recipe"] == pytest.approx(0.7)  # after one epoch: never a 1
    arrays, (xs, targets) = random_arrays(), count_to_three.sequences(seed=2)
    said = [numpy_network(arrays, x) > 0.5 for x in xs.astype(np.float64)]
    assert right["weights from the file"] == pytest.approx((said == (targets > 0.5)).mean())

"""The figures of forecasts: from which part each comes, and what is said of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.forecast import command
from experiments.forecast.baselines import mase, scale_of
from experiments.forecast.calibration import least_futures
from experiments.forecast.model import Network, build_network, forecast, pinball
from experiments.forecast.series import Window, cut, read_ends
from experiments.forecast.settings import Request, Settings
from experiments.running.trained import WEIGHTS
from rnnjax.data import Batch

SMALL = Settings(season=4, window=8, horizon=4)


def network_of(quantiles):
    """One that gives these quantiles [B, h, 3] whatever it reads."""
    head = build_network(SMALL).head
    return Network(None, lambda params, past, key: jnp.asarray(quantiles), head)


def test_the_loss_is_the_pinball_loss_of_a_step_over_the_rows_that_are_real():
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.normal(size=(3, 4, 3)), axis=-1).astype(np.float32)
    future = rng.normal(size=(3, 4)).astype(np.float32)
    batch = Batch(np.ones((3, 8, 1)), np.full(3, 8), future, np.float32([1, 1, 0]))
    loss, metrics = pinball(network_of(quantiles))(None, batch, None)
    errors = future[..., None] - quantiles
    # The end below which there is a tenth of what comes, the middle, and the end above.
    each = np.where(errors > 0, errors * [0.1, 0.5, 0.9], -errors * [0.9, 0.5, 0.1])
    expected = each[:2].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    total, count = metrics["loss"]
    assert (float(total), float(count)) == (pytest.approx(2 * expected, rel=1e-5), 2)


def test_scales_and_errors_are_means():
    window = Window(
        np.array([[0.0, 0, 0, 4]]), np.array([[1.0, 5.0]]), np.array([2.0]), np.zeros(1)
    )
    mean, spread = scale_of(window.past, window.unit)
    assert (mean.tolist(), spread.tolist()) == ([[1.0]], [[1.5]])
    assert mase(np.array([[0.0, 2.0]]), window) == 1.0  # 1 and 3, in units of 2


def test_what_is_forecast_is_told_in_the_units_of_the_series():
    """Of a network that goes on with the last season, scaled, and one spread to either side."""

    def apply(params, past, key):
        last = past[:, -4:, 0]
        return jnp.stack([last - 1, last, last + 1], axis=-1)

    past = np.random.default_rng(0).normal(50, 9, size=(3, 8))
    window = Window(past, np.empty((3, 4)), np.ones(3), np.zeros(3))
    quantiles = forecast(Network(None, apply, None), None, window)
    spread = np.abs(past - past.mean(axis=1)[:, None]).mean(axis=1)[:, None]
    for k, moved in enumerate((-spread, 0, spread)):
        np.testing.assert_allclose(quantiles[..., k], past[:, -4:] + moved, rtol=1e-5)


# A network that expects the mean of the past, whose band reaches farther up than down.
def expected_by(network, params, window):
    middle = window.past.mean(axis=1)[:, None] + 0 * window.future
    return np.stack([middle - 0.5, middle, middle + 1.0], axis=-1)


@pytest.fixture
def compared(monkeypatch):
    """Figures of series that are rougher in validation than in training, and most in the test."""
    rng = np.random.default_rng(0)
    rough = np.repeat([1.0, 3.0, 9.0], [84, 18, 18])
    windows = cut([rng.normal(size=120) * rough for _ in range(5)], SMALL)
    monkeypatch.setattr(command, "forecast", expected_by)
    figures, shown = command.compare(None, None, windows, SMALL)
    return windows, figures, shown


def test_the_band_is_moved_by_the_validation_part_and_held_against_the_test(compared):
    windows, figures, shown = compared
    past, future, unit, _ = windows.validation
    spread = np.abs(past - past.mean(axis=1, keepdims=True)).mean(axis=1, keepdims=True)
    spread = np.maximum(spread, 0.1 * unit[:, None])
    quantiles = expected_by(None, None, windows.validation)
    beyond = np.maximum(quantiles[..., 0] - future, future - quantiles[..., 2]) / spread
    shift = np.sort(beyond.ravel())[int(np.ceil((beyond.size + 1) * 0.8)) - 1]
    assert shift > 0
    assert figures["band shift"] == pytest.approx(shift)

    past, future, unit, _ = windows.test
    spread = np.abs(past - past.mean(axis=1, keepdims=True)).mean(axis=1, keepdims=True)
    low, middle, high = np.moveaxis(expected_by(None, None, windows.test), -1, 0)
    within = (low <= future) & (future <= high)
    assert figures["coverage as learnt"] == pytest.approx(within.mean())
    low, high = low - shift * spread, high + shift * spread
    within = (low <= future) & (future <= high)
    assert figures["coverage"] == pytest.approx(within.mean())
    assert figures["coverage"] > figures["coverage as learnt"]
    np.testing.assert_allclose(shown.quantiles, np.stack([low, middle, high], axis=-1)[0])
    assert figures["futures"] == 5 * (1 + (len(windows.validation.past) // 5 - 1) // 4)


def test_every_forecast_is_held_against_the_test_and_fitted_to_the_training_part(compared):
    windows, figures, shown = compared
    past, future, unit, _ = windows.test

    def error(forecast):
        return pytest.approx(np.mean(np.abs(forecast - future) / unit[:, None]))

    assert figures["network"] == error(past.mean(axis=1, keepdims=True))
    assert figures["last value"] == error(past[:, -1:])
    assert figures["seasonal naive"] == error(past[:, -4:])
    np.testing.assert_array_equal(shown.naive, past[0, -4:])
    np.testing.assert_array_equal(shown.future, future[0])

    def scaled(window):
        mean, spread = scale_of(window.past, window.unit)
        inputs = np.hstack([(window.past - mean) / spread, np.ones_like(mean)])
        return inputs, (window.future - mean) / spread, mean, spread

    # Least squares with a little ridge, as rows that pull every weight towards 0.
    x, y, _, _ = scaled(windows.train)
    pulled = np.sqrt(1e-3 * len(x)) * np.eye(x.shape[1])
    weights, *_ = np.linalg.lstsq(
        np.vstack([x, pulled]), np.vstack([y, np.zeros((x.shape[1], 4))]), rcond=None
    )
    x, _, mean, spread = scaled(windows.test)
    assert figures["linear autoregression"] == error(x @ weights * spread + mean)


def figures_of(network, last, naive, linear, futures=99):
    return {
        "network": network,
        "last value": last,
        "seasonal naive": naive,
        "linear autoregression": linear,
        "coverage": 0.8125,
        "coverage as learnt": 0.5,
        "band shift": 0.25,
        "futures": futures,
    }


def test_what_is_not_better_and_what_could_not_be_moved_is_said(capsys):
    few = least_futures() - 1
    command._report(
        {
            "best": figures_of(0.5, 0.6, 0.7, 0.8),
            "equal": figures_of(0.5, 0.5, 0.7, 0.4, futures=few + 1),
            "short": figures_of(0.5, 0.4, 0.4, 0.4, futures=few),
        }
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "best 0.500 0.600 0.700 0.800 0.812" in said
    assert "best: the network is not better" not in said
    assert "equal: the network is not better than last value and linear autoregression" in said
    assert (
        "short: the network is not better than last value, seasonal naive and linear "
        "autoregression" in said
    )
    assert f"short: the band is as it was learnt: it takes {few + 1} futures" in said
    assert f"has {few}" in said
    assert said.count("as it was learnt") == 1


def test_the_unit_of_a_series_is_that_of_its_training_part(tmp_path):
    """Beyond the first 70 of 100 steps the series leaps about, which is not known in training."""
    season, path = np.tile([1.0, 5.0, 2.0, 8.0], 25) + np.arange(100) / 10, tmp_path / "own.csv"
    season[70:] += 50 * (-1) ** np.arange(30)
    path.write_text("a\n" + "".join(f"{value}\n" for value in season))
    _, ends = read_ends(path, SMALL)
    assert ends.unit == pytest.approx([0.4])  # of a line that rises by 0.1 a step
    assert cut([season], SMALL).test.unit[0] == pytest.approx(0.4)
    np.testing.assert_allclose(ends.past, season[None, -8:])


def test_what_is_predicted_has_the_band_of_the_run(monkeypatch, tmp_path, capsys):
    own, run = tmp_path / "own.csv", tmp_path / "run"
    season = np.tile([1.0, 5.0, 2.0, 8.0], 25) + np.arange(100) / 10
    own.write_text("a\n" + "".join(f"{value}\n" for value in season))
    run.mkdir()
    settings = Settings(**{**vars(SMALL), "dataset": str(own)})
    (run / "config.json").write_text(json.dumps({"settings": settings.written()}))
    (run / command.KNOWN).write_text(json.dumps({"shift": 0.75}))
    (run / WEIGHTS).touch()
    past = season[-8:]
    quantiles = np.tile(past.mean() + np.array([-0.5, 0, 1.0]), (1, 4, 1))
    monkeypatch.setattr(command, "load_trained", lambda init, folder: None)
    monkeypatch.setattr(command, "forecast", lambda network, params, window: quantiles)
    command.predict(Request(run, own))
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    spread = np.abs(past - past.mean()).mean()
    expected = past.mean() + np.array([-0.5 - 0.75 * spread, 0, 1 + 0.75 * spread])
    assert [row[:2] for row in rows] == [["a", str(step)] for step in range(1, 5)]
    np.testing.assert_allclose(
        np.array([row[2:] for row in rows], float), [expected] * 4, rtol=1e-5
    )

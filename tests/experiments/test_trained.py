"""What a run left in its folder, damaged."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from experiments.anomaly.command import PROGRAM, Alarm, Known
from experiments.running.run_settings import config_value
from experiments.running.scaling import Scale
from experiments.running.trained import WEIGHTS, load_notes, load_trained
from rnnjax.data import DataError
from rnnjax.weights import save_weights

NOTES = {"channels": ["a"], "scale": {"mean": [0.5], "spread": [2]}, "alarm": None}


class Weights(NamedTuple):
    w: jax.Array
    bias: jax.Array


def init(key):
    return Weights(jnp.zeros((2, 3)), jnp.zeros(3))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_weights_that_are_not_finite_are_refused_by_their_name(value, tmp_path):
    save_weights(tmp_path / WEIGHTS, Weights(jnp.zeros((2, 3)), jnp.zeros(3).at[1].set(value)))
    with pytest.raises(DataError, match="must have finite weights, got NaN or infinity in bias"):
        load_trained(init, tmp_path)


def test_notes_are_read_as_they_were_left(tmp_path):
    path = tmp_path / "alarm.json"
    path.write_text(json.dumps({**NOTES, "alarm": {"width": 3, "level": 0.25}}))
    assert load_notes(PROGRAM, path, Known) == Known(["a"], Scale([0.5], [2]), Alarm(3, 0.25))


@pytest.mark.parametrize(
    ("alarm", "words"),
    [
        (None, "got alarm None"),
        ({"width": 3}, "got alarm {'width': 3}"),
        ({"width": 3.5, "level": 1.0}, "got width 3.5"),
        ({"width": True, "level": 1.0}, "got width True"),
        ({"width": 3, "level": "high"}, "got level 'high'"),
        ({"width": 3, "level": [1.0]}, "got level"),
    ],
)
def test_notes_of_another_kind_are_refused(alarm, words, tmp_path):
    path = tmp_path / "alarm.json"
    path.write_text(json.dumps({**NOTES, "alarm": alarm}))
    with pytest.raises(DataError, match=r"alarm\.json must be what a run left there, ") as refused:
        load_notes(PROGRAM, path, Known)
    assert words in str(refused.value)


def test_notes_that_are_gone_are_named_once(tmp_path):
    with pytest.raises(DataError, match=r"alarm.json must .* there, got none; go on: ") as refused:
        load_notes(PROGRAM, tmp_path / "alarm.json", Known)
    assert str(refused.value).endswith(f"{PROGRAM} --out {tmp_path} --resume")
    (tmp_path / "alarm.json").mkdir()
    with pytest.raises(DataError, match=r"there, got Is a directory$"):
        load_notes(PROGRAM, tmp_path / "alarm.json", Known)


@pytest.mark.parametrize("values", [["a", 1], "a", None, {}])
def test_lists_of_another_kind_are_refused(values, tmp_path):
    path = tmp_path / "alarm.json"
    path.write_text(json.dumps({**NOTES, "alarm": {"width": 3, "level": 1}, "channels": values}))
    with pytest.raises(DataError, match=r"alarm\.json must be what a run left there, got channels"):
        load_notes(PROGRAM, path, Known)


@pytest.mark.parametrize("more", [{}, {"label_names": None}, {"label_names": "ab"}])
def test_a_config_without_a_value_that_is_needed_is_refused(more, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}, **more}))
    with pytest.raises(DataError, match=r"config\.json must have label_names, list, got"):
        config_value(tmp_path, "label_names", list)

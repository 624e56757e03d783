"""The console, the run folder and the curves, read back as a user or a program would."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.console import Progress, RunFolder, environment, parameter_table
from experiments.curves import draw, read_records
from rnnjax.training import Compilation

PARAMS = {"encoder": ({"w_hh": jnp.ones((30, 120)), "bias": jnp.ones(120, jnp.bfloat16)},)}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def records_of(run):
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def test_the_table_outside_a_terminal_is_aligned_text_with_the_total():
    file = io.StringIO()
    parameter_table(PARAMS, file)
    assert [re.split(r"  +", line.strip()) for line in file.getvalue().splitlines()] == [
        ["parameter", "shape", "dtype", "count"],
        ["encoder.0.bias", "(120,)", "bfloat16", "120"],
        ["encoder.0.w_hh", "(30, 120)", "float32", "3,600"],
        ["total", "3,720"],
    ]
    assert len({len(line) for line in file.getvalue().splitlines()}) == 1
    assert "\x1b" not in file.getvalue()


def test_the_table_in_a_terminal_says_the_same():
    file = Terminal()
    parameter_table({**PARAMS, "[red]": jnp.ones(())}, file)
    for text in ("encoder.0.w_hh", "(30, 120)", "bfloat16", "3,600", "3,721", "[red]", "total"):
        assert text in file.getvalue()


def test_shapes_alone_are_enough_for_a_table():
    plain, abstract = io.StringIO(), io.StringIO()
    parameter_table(PARAMS, plain)
    parameter_table(jax.eval_shape(lambda: PARAMS), abstract)
    assert plain.getvalue() == abstract.getvalue()


def test_a_log_gets_a_line_every_ten_seconds_and_no_carriage_return():
    clock, file, reads = Clock(), io.StringIO(), []

    def figures():
        reads.append(clock.now)
        return {"loss": 0.5, "accuracy": 0.75}

    with Progress(100, file, clock) as progress:
        for _ in range(25):
            clock.now += 1.0
            progress.advance(figures, tokens=300)
    assert file.getvalue() == (
        "step 10/100 loss 0.5000 accuracy 0.7500 300 tokens/s, 01:30 left\n"
        "step 20/100 loss 0.5000 accuracy 0.7500 300 tokens/s, 01:20 left\n"
    )
    assert reads == [110.0, 120.0]  # the device was asked for numbers twice, not 25 times
    assert progress.tokens_per_second == 300


def test_a_rate_counts_the_wait_for_the_device_but_no_compilation():
    clock, file = Clock(), io.StringIO()

    def figures():
        clock.now += 10.0  # what was only dispatched is worked off
        return {}

    with Progress(2, file, clock) as progress:
        clock.now += 60.0
        progress.compiled(Compilation("train step", {"tokens": "int32[64,32]"}, 60.0))
        clock.now += 10.0
        progress.advance(figures, tokens=2000)
    assert progress.tokens_per_second == 100
    assert file.getvalue().splitlines() == [
        "compiled train step for tokens int32[64,32] in 60.0 s",
        "step 1/2  100 tokens/s, 00:20 left",
    ]


def test_validation_at_the_end_of_an_epoch_does_not_slow_the_rate():
    clock, file = Clock(), io.StringIO()
    record = {"epoch": 1, "train_loss": 0.5, "validation_loss": 0.625, "seconds": 41.0}
    with Progress(11, file, clock) as progress:
        progress.advance(dict, tokens=7000)
        clock.now += 40.0
        progress.epoch(record)
        for _ in range(10):
            clock.now += 1.0
            progress.advance(dict, tokens=300)
    assert progress.tokens_per_second == 300
    assert file.getvalue().splitlines()[0] == (
        "epoch 1: train loss 0.5000 | validation loss 0.6250 | 41.0 s"
    )


def test_a_terminal_gets_a_bar_and_whole_lines_above_it():
    clock, file = Clock(), Terminal()
    with Progress(4, file, clock) as progress:
        for _ in range(2):
            clock.now += 2.0
            progress.advance(lambda: {"loss": 0.25}, tokens=1000)
        progress.compiled(Compilation("eval step", {"x": "f32[2]"}, 1.94))
    assert "compiled eval step for x f32[2] in 1.9 s\n" in file.getvalue()
    assert "2/4" in file.getvalue()
    assert "loss 0.2500 500 tokens/s" in file.getvalue()


def test_an_empty_log_stays_empty():
    file = io.StringIO()
    with Progress(10, file):
        pass
    assert file.getvalue() == ""


def test_a_run_folder_keeps_settings_and_records(tmp_path):
    config = {"rate": np.float32(0.5), "path": Path("a/b"), "sizes": (1, 2), "name": None}
    with RunFolder(tmp_path / "runs" / "first", config) as run:
        run.write({"kind": "step", "step": jnp.array(3), "loss": np.float64(0.25), "ok": True})
        # Readable before the run has ended, or died.
        assert records_of(run) == [{"kind": "step", "step": 3, "loss": 0.25, "ok": True}]
    assert json.loads(run.config_path.read_text()) == {
        "rate": 0.5,
        "path": "a/b",
        "sizes": [1, 2],
        "name": None,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_json_cannot_say_becomes_null(tmp_path, value):
    with RunFolder(tmp_path / "run", {"limit": value}) as run:
        run.write({"kind": "test", "loss": value, "each": [value, 1.0]})
    for text in (run.metrics_path.read_text(), run.config_path.read_text()):
        assert not re.search("nan|inf", text, re.IGNORECASE)
    assert records_of(run) == [{"kind": "test", "loss": None, "each": [None, 1.0]}]


def test_a_folder_with_something_in_it_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty.*existing="):
        RunFolder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_existing_run_is_resumed_or_replaced_when_told_so(tmp_path):
    def written(existing, number):
        with RunFolder(tmp_path / "run", {"number": number}, existing) as run:
            run.write({"kind": "step", "step": number})
        steps = [record["step"] for record in records_of(run)]
        return json.loads(run.config_path.read_text())["number"], steps

    assert written("refuse", 1) == (1, [1])
    assert written("resume", 2) == (1, [1, 2])
    assert written("replace", 3) == (3, [3])
    with pytest.raises(ValueError, match="existing: expected"):
        written("overwrite", 4)


def test_the_environment_is_what_runs():
    values = environment()
    assert values["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (values["jax"], values["numpy"]) == (jax.__version__, np.__version__)
    assert values["device_count"] == len(jax.devices())
    assert values["backend"] == jax.default_backend()
    assert json.loads(json.dumps(values)) == values


RECORDS = [
    {"kind": "compile", "name": "train step", "shapes": {"x": "float32[2]"}, "seconds": 1.0},
    {"kind": "step", "step": 1, "epoch": 1, "loss": 0.7, "accuracy": 0.5, "tokens_per_second": 9},
    {"kind": "step", "step": 2, "epoch": 1, "loss": None, "accuracy": 0.6},
    {"kind": "epoch", "epoch": 1, "step": 2, "train_loss": 0.6, "train_accuracy": 0.5,
     "validation_loss": 0.65, "validation_accuracy": 0.5, "seconds": 2.0},
    {"kind": "test", "loss": 0.66, "accuracy": 0.55},
]  # fmt: skip


def lines_file(folder, records):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def picture(path):
    """Width, height and the share of pixels that are not white."""
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    return pixels.shape[1], pixels.shape[0], (pixels.min(axis=-1) < 0.95).mean()


def test_curves_are_drawn_from_the_lines_and_more_lines_make_another_picture(tmp_path):
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    draw(lines_file(tmp_path, RECORDS[:3]), few)
    draw(lines_file(tmp_path, RECORDS), many)
    assert picture(many)[:2] == (1560, 600)
    assert 0 < picture(few)[2] < picture(many)[2]


def test_a_run_without_accuracy_gets_one_panel(tmp_path):
    records = [{"kind": "step", "step": n, "epoch": 1, "loss": 1 / n} for n in range(1, 9)]
    draw(lines_file(tmp_path, records), tmp_path / "curves.png")
    assert picture(tmp_path / "curves.png")[:2] == (780, 600)


def test_a_file_with_nothing_to_draw_is_refused(tmp_path):
    for records in ([], RECORDS[:1]):
        with pytest.raises(ValueError, match=r"metrics\.jsonl: no step or epoch record"):
            draw(lines_file(tmp_path, records), tmp_path / "curves.png")


def test_a_line_cut_short_at_the_end_is_passed_over_but_not_one_before(tmp_path):
    path = lines_file(tmp_path, RECORDS)
    whole = path.read_text()
    path.write_text(whole + '{"kind": "st')
    assert read_records(path) == RECORDS
    path.write_text('{"kind": "st\n' + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not JSON"):
        read_records(path)
    path.write_text(whole + "[1, 2]\n")
    with pytest.raises(ValueError, match=r'line 6: expected an object with a "kind"'):
        read_records(path)


def test_plots_and_bars_are_not_loaded_before_they_are_needed():
    code = (
        "import sys, experiments.console, experiments.curves, rnnjax.training, rnnjax.weights, "
        "rnnjax.metrics; "
        "print({'matplotlib', 'tqdm', 'rich', 'optax', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""The console, the run folder and the curves, read back as a user or a program would."""

import contextlib
import errno
import importlib
import io
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import curves
from experiments.running.console import Progress, exit_code, parameter_table, print_table
from experiments.running.curves import draw, read_records
from experiments.running.interrupts import Interrupted, resumable, telling_how_to_go_on
from experiments.running.prefetching import prefetched
from experiments.running.run_folder import RunFolder, environment
from rnnjax.checkpoint import CheckpointError
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
        "step 1/2  100 tokens/s, 00:20 left",
        "compiled train step for 1 shape in 60.0 s",
    ]


def test_all_that_was_compiled_is_one_line_with_the_epoch_in_which_it_was():
    file = io.StringIO()
    record = {"epoch": 1, "train_loss": 0.5, "validation_loss": 0.625, "seconds": 1.0}
    with Progress(8, file) as progress:
        for name in ("train step", "train step", "eval step"):
            progress.compiled(Compilation(name, {"tokens": "int32[64,32]"}, 1.25))
        for epoch in (1, 2):
            progress.epoch({**record, "epoch": epoch})
    compiled, above, head, *epochs = file.getvalue().splitlines()
    assert compiled == "compiled train step for 2 shapes, eval step for 1 shape in 3.8 s"
    assert above.split() == ["training", "validation"]
    assert head.split() == ["epoch", "loss", "loss", "seconds"]
    assert [line.split() for line in epochs] == [
        [str(epoch), "0.5000", "0.6250", "1.0"] for epoch in (1, 2)
    ]


def test_no_line_of_a_long_run_is_wider_than_a_terminal():
    clock, file = Clock(), io.StringIO()
    figures = {"accuracy": 0.875, "loss": 12.5}
    record = {"epoch": 1234, "seconds": 1234.5, "best": True, "skipped": 17}
    for split in ("train", "validation"):
        record |= {f"{split}_{name}": value for name, value in figures.items()}
    with Progress(140_000, file, clock, done=123_455, may_end_early=True) as progress:
        for _ in range(3):
            clock.now += 20.0
            progress.advance(lambda: figures, tokens=765_432_1)
        for name in ("train step", "eval step") * 50:
            progress.compiled(Compilation(name, {"tokens": "int32[64,32]"}, 11.25))
        progress.epoch({**record, "validation_macro_f1": 0.75})
    lines = file.getvalue().splitlines()
    assert "at most" in lines[0]
    assert "17 steps were skipped" in lines[-1]
    assert max(map(len, lines)) <= 80, lines


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
    assert file.getvalue().splitlines()[2].split() == ["1", "0.5000", "0.6250", "41.0"]


def test_a_terminal_gets_a_bar_and_whole_lines_above_it():
    clock, file = Clock(), Terminal()
    with Progress(4, file, clock) as progress:
        for _ in range(2):
            clock.now += 2.0
            progress.advance(lambda: {"loss": 0.25}, tokens=1000)
        progress.compiled(Compilation("eval step", {"x": "f32[2]"}, 1.94))
    assert "compiled eval step for 1 shape in 1.9 s\n" in file.getvalue()
    assert "2/4" in file.getvalue()
    assert "loss 0.2500 500 tokens/s" in file.getvalue()


def test_the_time_that_is_left_counts_no_compilation():
    terminal = Terminal()
    with Progress(101, terminal) as progress:
        progress._bar.start_t -= 3601.0  # as if it had begun then, an hour of it compiling
        progress.compiled(Compilation("train step", {}, 3600.0))
        progress.advance(lambda: {"loss": 0.25}, tokens=1000)
        progress._bar.refresh()
    assert re.search(r"1/101, 01:4\d left", terminal.getvalue())


def test_a_run_that_goes_on_counts_from_where_it_was_and_times_only_itself():
    clock, log, terminal = Clock(), io.StringIO(), Terminal()
    with Progress(100, log, clock, done=80) as progress, Progress(100, terminal, done=80):
        clock.now += 30.0
        progress.advance(dict, tokens=300)
    assert log.getvalue() == "step 81/100  10 tokens/s, 09:30 left\n"  # 19 steps of 30 s
    assert "80/100" in terminal.getvalue()


@pytest.mark.parametrize(
    ("stop", "said"),
    [(Interrupted(signal.SIGTERM), "stopped by SIGTERM"), (KeyboardInterrupt(), "stopped at once")],
)
def test_a_run_that_is_stopped_tells_by_what_command_it_goes_on(stop, said, tmp_path, capsys):
    folder, inner = tmp_path / "my run", tmp_path / "my run" / "seed-0"
    program = "python -m experiments.tag"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(type(stop)))
        stack.enter_context(telling_how_to_go_on(program))
        stack.enter_context(resumable(folder))
        stack.enter_context(resumable(inner))
        raise stop
    expected = f"{said}; go on with:\n  {program} --out '{folder}' --resume\n"
    assert capsys.readouterr().out == expected


def test_a_program_whose_streams_are_closed_works_without_a_word(monkeypatch):
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert exit_code(lambda: sys.stdout.isatty() or print(sys.stdin.read())) == 0
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)
    assert exit_code(lambda: int("one")) == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


def test_a_letter_that_a_stream_cannot_show_is_spelled_and_ends_nothing(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert exit_code(lambda: print("0.5 \u00b1 0.1")) == 0
    sys.stdout.flush()
    assert shown.getvalue() == b"0.5 \\xb1 0.1\n"


def test_a_folder_whose_name_is_no_text_is_refused():
    with pytest.raises(ValueError, match="run folder must have a name in UTF-8"):
        RunFolder("\udcc3", {})


def test_too_little_memory_is_said_to_be_so_whatever_jax_calls_it(capsys):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 4000000000000 bytes.")

    assert exit_code(fail) == 2
    assert capsys.readouterr().err.startswith("error: out of memory (INTERNAL: Out of memory alloc")


def test_an_action_has_the_last_word_on_the_exit_code_and_a_folder_in_use_is_no_fault(
    tmp_path, capsys
):
    assert [exit_code(lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]
    with RunFolder(tmp_path, {}):
        assert exit_code(lambda: RunFolder(tmp_path, {}, "resume")) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")


def test_a_package_that_is_not_installed_is_said_and_a_part_of_ours_is_a_fault(capsys):
    assert exit_code(lambda: importlib.import_module("no_such_package.part")) == 2
    expected = "error: the package no_such_package must be installed, got none\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(ModuleNotFoundError):
        exit_code(lambda: importlib.import_module("rnnjax.no_such_part"))


def test_a_file_that_is_where_a_folder_should_be_is_said_to_be_one(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="run must be a folder, got a file"):
        RunFolder(tmp_path / "run", {})


def test_a_file_that_cannot_be_opened_is_named_without_numbers_of_the_system(tmp_path, capsys):
    assert exit_code(lambda: (tmp_path / "none" / "file").read_text()) == 2
    expected = f"error: {tmp_path / 'none' / 'file'} must be usable, got No such file or directory"
    assert capsys.readouterr().err == f"{expected}\n"


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
    for existing, message in (("refuse", "--resume.*--replace"), ("resume", "no config.json")):
        with pytest.raises(FileExistsError, match=message):
            RunFolder(tmp_path, {}, existing)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_existing_run_is_resumed_or_replaced_when_told_so(tmp_path):
    def written(existing, number):
        with RunFolder(tmp_path / "run", {"number": number}, existing, ["w.bin"]) as run:
            run.write({"kind": "step", "step": number})
            if number == 5:
                run.update_config()
        steps = [record["step"] for record in records_of(run)]
        return json.loads(run.config_path.read_text())["number"], steps

    assert written("refuse", 1) == (1, [1])
    (tmp_path / "run" / "w.bin").write_text("weights of 1")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert written("resume", 2) == (1, [1, 2])
    assert written("resume", 5) == (5, [1, 2, 5])
    assert {"w.bin", "checkpoints"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert written("replace", 3) == (3, [3])
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "timings.jsonl", "lock", "notes.txt"}
    with pytest.raises(ValueError, match="existing must be"):
        written("overwrite", 4)


def test_records_go_back_to_a_position_and_to_no_other(tmp_path):
    with RunFolder(tmp_path / "run", {}) as run:
        run.write({"step": 1})
        position = run.position
        run.write({"step": 2})
        later = run.position
    with RunFolder(tmp_path / "run", {}, "resume") as run:
        assert run.position == later
        assert run.reaches(position)
        run.rewind(position)
        run.write({"step": 3})
        assert records_of(run) == [{"step": 1}, {"step": 3}]
        assert not run.reaches(later)
        with pytest.raises(
            ValueError, match=r"metrics\.jsonl must begin as it did at byte 24, got"
        ):
            run.rewind(later)
        run.rewind(None)
        assert records_of(run) == []


def test_a_record_that_was_cut_short_is_not_glued_to_the_next(tmp_path):
    with RunFolder(tmp_path / "run", {}) as run:
        run.write({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write('{"st')
    with RunFolder(tmp_path / "run", {}, "resume") as run:
        run.write({"step": 2})
    assert records_of(run) == [{"step": 1}, {"step": 2}]


def test_what_depends_on_the_clock_has_a_file_of_its_own(tmp_path):
    with RunFolder(tmp_path / "run", {}) as run:
        run.write_timing({"kind": "epoch", "seconds": 1.5})
    assert run.metrics_path.read_text() == ""
    assert (tmp_path / "run" / "timings.jsonl").read_text() == '{"kind": "epoch", "seconds": 1.5}\n'


def test_two_runs_in_one_folder_are_one_too_many(tmp_path):
    with RunFolder(tmp_path / "run", {}) as run:
        run.write({"step": 1})
        for existing in ("resume", "replace"):
            with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
                RunFolder(tmp_path / "run", {"other": 1}, existing)
        assert (run.config_path.read_text(), records_of(run)) == ("{}\n", [{"step": 1}])


def test_a_run_that_died_at_its_start_is_not_in_the_way(tmp_path):
    (tmp_path / "lock").write_text("123\n")
    (tmp_path / ".config.json.123").write_text('{"a')
    with RunFolder(tmp_path, {}):
        pass
    assert not (tmp_path / ".config.json.123").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(code, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    expected = re.escape(f"{tmp_path / 'run'} must be writable, got {os.strerror(code)}")
    with pytest.raises(OSError, match=expected):
        RunFolder(tmp_path / "run", {})


def test_prefetching_changes_neither_items_nor_order_nor_errors():
    def items():
        yield from range(5)
        raise KeyError("six")

    for ahead in (0, 1, 3, 9):
        got, made = [], prefetched(items(), ahead)
        with pytest.raises(KeyError, match="six"):
            got.extend(made)  # keeps what came before the error
        assert got == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="ahead must be at least 0, got -1"):
        prefetched([], -1)


def test_who_stops_early_does_not_wait_for_all_that_were_ordered():
    made = []

    def items():
        for n in range(1000):
            time.sleep(0.01)
            made.append(n)
            yield n

    batches = prefetched(items(), 500)
    assert next(batches) == 0
    batches.close()
    assert len(made) < 250


def test_the_environment_is_what_runs():
    values = environment()
    assert values["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (values["jax"], values["numpy"]) == (jax.__version__, np.__version__)
    assert values["device_count"] == len(jax.devices())
    assert values["backend"] == jax.default_backend()
    assert json.loads(json.dumps(values)) == values


RECORDS = [
    {"kind": "another", "name": "passed over"},
    {"kind": "step", "step": 1, "epoch": 1, "loss": 0.7, "accuracy": 0.5, "grad_norm": 9},
    {"kind": "step", "step": 2, "epoch": 1, "loss": None, "accuracy": 0.6},
    {"kind": "epoch", "epoch": 1, "step": 2, "train_loss": 0.6, "train_accuracy": 0.5,
     "validation_loss": 0.65, "validation_accuracy": 0.5},
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
    assert picture(many)[:2] == (1560, 750)
    assert 0 < picture(few)[2] < picture(many)[2]


def test_the_figure_marks_the_epoch_that_was_kept_and_says_what_was_measured(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    last = {**RECORDS[-1], "epoch": 1, "chance_loss": 0.69, "chance_accuracy": 0.5}
    draw(lines_file(tmp_path, [*RECORDS[:-1], last]), tmp_path / "curves.png")
    for axes, value, chance in zip(figures[0].axes, (0.65, 0.5), (0.69, 0.5), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert "validation" in lines
        assert any(label.startswith("test, ") for label in lines)
        assert set(lines[f"chance, {chance}"].get_ydata()) == {chance}
        kept = lines["weights kept, epoch 1"]
        assert (list(kept.get_xdata()), list(kept.get_ydata())) == ([2], [value])


def test_a_run_without_accuracy_gets_one_panel(tmp_path):
    records = [{"kind": "step", "step": n, "epoch": 1, "loss": 1 / n} for n in range(1, 9)]
    draw(lines_file(tmp_path, records), tmp_path / "curves.png")
    assert picture(tmp_path / "curves.png")[:2] == (780, 750)


def test_a_file_with_nothing_to_draw_is_refused(tmp_path):
    for records in ([], RECORDS[:1]):
        with pytest.raises(ValueError, match=r"metrics\.jsonl must have steps or epochs"):
            draw(lines_file(tmp_path, records), tmp_path / "curves.png")


def test_a_line_cut_short_at_the_end_is_passed_over_but_not_one_before(tmp_path):
    path = lines_file(tmp_path, RECORDS)
    whole = path.read_text()
    path.write_text(whole + '{"kind": "st')
    assert read_records(path) == RECORDS
    path.write_text('{"kind": "st\n' + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 must be JSON"):
        read_records(path)
    path.write_text(whole + "[1, 2]\n")
    with pytest.raises(ValueError, match=r'line 6 must be an object with a "kind"'):
        read_records(path)


def test_curves_of_a_file_that_is_not_there_are_one_line(tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "nowhere.jsonl"
    monkeypatch.setattr(sys, "argv", ["curves", str(nowhere), str(tmp_path / "x.png")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(curves.__file__, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {nowhere} must be usable, got No such file")


def test_plots_and_bars_are_not_loaded_before_they_are_needed():
    code = (
        "import sys; from experiments.running import console, curves, run_folder; "
        "import rnnjax.training, rnnjax.weights, rnnjax.metrics; "
        "print({'matplotlib', 'tqdm', 'rich', 'optax', 'orbax', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


METHODS = [
    {"method": name, **dict.fromkeys(("area under ROC", "average precision"), "0.574"),
     **{f"{kind} found": "1.000" for kind in ("spike", "level", "missing", "faster", "other")}}
    for name in ("network", "linear autoregression")
]  # fmt: skip


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_table_of_many_columns_is_at_most_80_wide_with_all_its_words(kind):
    file = kind()
    print_table(METHODS, file)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[-2:]] == [
        ["network", *["0.574"] * 2, *["1.000"] * 5],
        ["linear", "autoregression", *["0.574"] * 2, *["1.000"] * 5],
    ]
    words = " ".join(lines[:-2]).split()
    assert sorted(words) == sorted(" ".join(METHODS[0]).split())


def test_a_table_whose_cells_are_wide_breaks_them_between_words():
    file, times = io.StringIO(), "12.3 (11.1-14.2)"
    names = ("jit(step), µs", "step, µs", "stream, µs", "step / jit(step)", "stream / jit(step)")
    print_table([{"cell": "LSTM, 64 units, batch 1", **dict.fromkeys(names, times)}] * 2, file)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert file.getvalue().split().count("(11.1-14.2)") == 10
    first, second = lines[-3:-1]  # of the last row; its third line ends the name
    assert first.split() == ["LSTM,", "64", *["12.3"] * 5]
    assert second.split()[-5:] == ["(11.1-14.2)"] * 5


def test_an_error_breaks_no_word_in_a_terminal_and_no_line_of_a_log(monkeypatch):
    long = "nowhere.csv must be a CSV file with a header line and with some more words behind it"

    def fail():
        raise ValueError(f"{long}:\n  go on: python -m experiments.forecast --out {'x' * 60}")

    said = {}
    for kind in (Terminal, io.StringIO):
        monkeypatch.setattr("sys.stderr", kind())
        assert exit_code(fail) == 2
        said[kind] = sys.stderr.getvalue()
    first, second, command = said[Terminal].splitlines()
    assert (len(first) <= 80, second) == (True, "  words behind it:")
    assert said[io.StringIO].splitlines() == [f"error: {long}:", command]


def test_the_curves_say_what_their_loss_is(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    path, seen = tmp_path / "metrics.jsonl", []
    path.write_text('{"kind": "step", "step": 1, "epoch": 1, "loss": 0.5, "accuracy": 0.25}\n')
    kept = Axes.set
    monkeypatch.setattr(Axes, "set", lambda axes, **to: seen.append(to) or kept(axes, **to))
    draw(path, tmp_path / "curves.png", "nats a frame")
    assert [to["ylabel"] for to in seen] == ["nats a frame", "accuracy"]

"""The comparison of libraries: what is measured, what is refused, what is kept and compared."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.throughput import cases, command, limits, measuring, problems, report
from experiments.throughput.cases import Case, Shape
from experiments.throughput.libraries import LIBRARIES
from experiments.throughput.libraries.entries import Entry, Refusal, Running, reversed_in_time
from experiments.throughput.measuring import Effort, measure
from experiments.throughput.results import Results, changes, differences, read_results

TINY = Case("lstm", Shape(2, 5, 3, 4), lengths="ragged")
QUICK = ["--rounds", "2", "--seconds", "0.0001"]


@pytest.fixture(scope="module")
def problem():
    return problems.make_problem(TINY)


def entry(name, result):
    """An entry that gives this array."""
    return Entry(name, lambda: Running(lambda: result, lambda found: found, 0.5, 2**20))


def raising(name, error, when="made"):
    def fail():
        raise error

    if when == "made":
        return Entry(name, fail)
    calls = iter([1.0])  # the one that is checked

    def call():
        return next(calls, None) or fail()

    return Entry(name, lambda: Running(call, lambda _: np.ones((2, 5, 3), np.float32)))


@pytest.fixture
def records(problem, monkeypatch):
    """What became of a good peer, and of peers that fail in every way there is."""
    monkeypatch.setattr(measuring, "limits", lambda *_: {"products": 1e-9})
    right = np.ones((2, 5, 3), np.float32)
    wrong = right + 0.25
    wrong_in_padding = right.copy()
    wrong_in_padding[np.arange(5) >= problem.lengths[:, None]] = np.nan
    entered = [
        entry("rnnjax", right),
        entry("good", wrong_in_padding),
        entry("wrong", wrong),
        entry("nan", np.full_like(right, np.nan)),
        entry("misshapen", right[:1]),
        raising("broken", TypeError("not\ntoday")),
        raising("huge", MemoryError("needs 90.0 GiB")),
        raising("xla", RuntimeError("RESOURCE_EXHAUSTED: 99 bytes")),
        raising("late", RuntimeError("DefaultCPUAllocator: can't allocate memory"), "timed"),
        Refusal("small", "it has no such cell"),
    ]
    return {r["library"]: r for r in measure(problem, right, entered, Effort(2, 1e-4))}


def test_whatever_a_peer_does_is_a_row_and_the_next_one_runs(records):
    status = {name: (r["status"], r["note"]) for name, r in records.items()}
    assert status["good"] == ("measured", "")
    assert status["broken"] == ("failed", "TypeError: not today")
    assert status["huge"] == ("out of memory", "needs 90.0 GiB")
    assert status["xla"] == ("out of memory", "RESOURCE_EXHAUSTED: 99 bytes")
    assert status["late"][0] == "out of memory"
    assert status["small"] == ("cannot", "it has no such cell")
    assert status["misshapen"][0] == "failed"
    assert len(records["good"]["rounds"]) == len(records["rnnjax"]["rounds"]) == 2


def test_another_answer_is_told_with_its_difference_and_not_ranked(records):
    assert records["wrong"]["status"] == records["nan"]["status"] == "different"
    assert records["wrong"]["difference"] == 0.25
    assert "off by 2.5e-01 where 1e-03 is allowed" in records["wrong"]["note"]
    assert "ratio" not in records["wrong"]
    assert "seconds" in records["wrong"]
    rounds = [records[name]["rounds"] for name in ("good", "rnnjax")]
    each = [one / other for one, other in zip(*rounds, strict=True)]
    expected = {"median": sum(each) / 2, "least": min(each), "most": max(each)}
    assert records["good"]["ratio"] == pytest.approx(expected)


def test_only_valid_tokens_count(problem, records):
    assert problem.valid_tokens == problem.lengths.sum() < 2 * 5
    good = records["good"]
    assert good["tokens_per_second"] * good["seconds"]["median"] == pytest.approx(
        problem.lengths.sum()
    )
    assert good["share_of_products"] == pytest.approx(1e-9 / good["seconds"]["median"])


def test_padding_takes_no_part_in_the_loss(problem):
    padding = np.arange(5) >= problem.lengths[:, None]
    assert padding.any()
    assert not problem.weights[padding].any()
    assert not problem.xs[padding].any()
    assert problem.lengths.max() == 5
    assert problem.lengths.min() >= 1


def test_a_layer_of_another_library_is_measured_beside_ours_and_kept(tmp_path, capsys, monkeypatch):
    pytest.importorskip("flax.linen", reason="flax is not installed: no second library here")
    out = tmp_path / "run"
    arguments = ["--shapes", "2,5,3,4", "--modes", "training", *QUICK, "--out", str(out)]
    arguments += ["--libraries", "rnnjax", "flax.linen"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "[1/1] lstm 2,5,3,4 training" in printed
    found = json.loads((out / "results.json").read_text())
    ours, theirs = found["cases"]["lstm 2,5,3,4 training"]
    assert (ours["library"], theirs["library"]) == ("rnnjax", "flax.linen")
    assert theirs["status"] == "measured"
    assert 0 < theirs["difference"] < 1e-5
    assert theirs["compile_seconds"] > 0
    assert theirs["peak_bytes"] > 0
    assert found["environment"]["jax"] == jax.__version__
    assert found["environment"]["threads"] > 0
    text = (out / "report.md").read_text()
    assert "| lstm 2,5,3,4 training |" in text
    assert (out / "ratios.png").read_bytes().startswith(b"\x89PNG")

    # A second run measures nothing, and compares with a file in which one row was slower by far.
    def measured(*_):
        raise AssertionError("measured again")

    old = json.loads((out / "results.json").read_text())
    old["environment"]["jax"] = "0.0.1"
    slow = old["cases"]["lstm 2,5,3,4 training"][1]
    slow["seconds"] = {name: 1e3 * value for name, value in slow["seconds"].items()}
    (tmp_path / "old.json").write_text(json.dumps(old))
    monkeypatch.setattr(command, "measure", measured)
    assert command.main([*arguments, "--compare", str(tmp_path / "old.json")]) == 0
    printed = capsys.readouterr().out
    assert f"jax: 0.0.1 then, {jax.__version__} now" in printed
    verdicts = {}
    for line in printed.splitlines():
        if line.startswith("lstm 2,5,3,4 training: "):
            verdicts[line.split(": ")[1].split()[0]] = line
    assert verdicts["flax.linen"].endswith("faster")
    assert verdicts["rnnjax"].endswith("within the spread")

    # Times of another environment cannot stand beside these.
    (out / "results.json").write_text(json.dumps(old))
    assert command.main(arguments) == 2
    assert "must be measured as it was before" in capsys.readouterr().err


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path, capsys, monkeypatch):
    def measured(problem, expected, entered, effort):
        if problem.case.shape.steps == 6:
            raise KeyboardInterrupt
        return [{"library": one.name, "status": "cannot", "note": "not here"} for one in entered]

    monkeypatch.setattr(command, "measure", measured)
    out = ["--libraries", "rnnjax", "--modes", "forward", "--out", str(tmp_path)]
    assert command.main(["--shapes", "2,5,3,4", "2,6,3,4", *out]) == 130
    assert "what was measured until now is kept" in capsys.readouterr().err
    kept = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert list(kept) == ["lstm 2,5,3,4 forward"]
    assert (tmp_path / "report.md").exists()


def of_cases(folder):
    cases = json.loads((folder / "results.json").read_text())["cases"]
    return {name: [row["of"] for row in rows] for name, rows in cases.items()}


def test_nothing_in_a_folder_is_lost_when_more_is_measured(tmp_path, capsys, monkeypatch):
    """Other libraries race with those of before; other settings or versions are refused."""
    monkeypatch.setattr(command, "measure", lambda problem, _, entered, __: [
        {"library": one.name, "status": "cannot", "note": "not here"} for one in entered
    ])  # fmt: skip
    names = ["rnnjax", "one", "other"]
    libraries = {
        name: SimpleNamespace(missing=None, enter=lambda _, name=name: [Refusal(name, "no")])
        for name in names
    }
    monkeypatch.setattr(command, "LIBRARIES", libraries)
    monkeypatch.setattr(report, "print_case", lambda _: None)
    monkeypatch.setattr(report, "write", lambda *_: [])
    shapes, out = ["--shapes", "2,5,3,4"], ["--modes", "forward", "--out", str(tmp_path)]
    monkeypatch.setattr(command, "check", lambda _: None)
    for taking in (["rnnjax", "one"], ["rnnjax", "other"]):
        assert command.main([*shapes, *out, "--libraries", *taking]) == 0
    assert set(of_cases(tmp_path)["lstm 2,5,3,4 forward"]) == set(names)
    assert command.main(["--shapes", "2,6,3,4", *out, "--libraries", "rnnjax"]) == 0
    before = of_cases(tmp_path)
    capsys.readouterr()
    assert command.main([*shapes, *out, "--rounds", "9"]) == 2
    assert "rounds must be 5" in capsys.readouterr().err
    monkeypatch.setattr(command, "here", lambda: {"jax": "0.0.1"})
    assert command.main([*shapes, *out, "--again", "--libraries", "rnnjax"]) == 2
    assert "got further ones: lstm 2,6,3,4 forward" in capsys.readouterr().err
    assert of_cases(tmp_path) == before


def test_a_case_too_large_for_any_answer_and_a_broken_library_are_rows(monkeypatch):
    def too_large(_):
        raise MemoryError("needs 99 GiB")

    def broken(_):
        raise ImportError("no such symbol")

    libraries = {"rnnjax": LIBRARIES["rnnjax"], "broken": SimpleNamespace(enter=broken)}
    monkeypatch.setattr(command, "LIBRARIES", libraries)
    settings, effort = command.Settings(), Effort(2, 1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(command, "answer", too_large)
        rows = command._measured(TINY, list(libraries), effort, settings)
        assert {row["note"] for row in rows} == {"needs 99 GiB"}
        assert {row["status"] for row in rows} == {"out of memory"}
    monkeypatch.setattr(command, "answer", lambda _: None)
    monkeypatch.setattr(
        command, "measure", lambda problem, _, entered, __: [one._asdict() for one in entered]
    )
    *_, row = command._measured(TINY, list(libraries), effort, settings)
    assert (row["name"], row["of"]) == ("broken", "broken")
    assert row["reason"] == "ImportError: no such symbol"


def test_results_of_the_vanilla_cell_are_read_by_its_former_name(tmp_path):
    stored = {"environment": {}, "cases": {"simple 1,1,3,4 forward": [], "lstm 1,1,3,4 step": []}}
    (tmp_path / "results.json").write_text(json.dumps(stored))
    found = read_results(tmp_path / "results.json")
    assert list(found.cases) == ["vanilla 1,1,3,4 forward", "lstm 1,1,3,4 step"]


def test_settings_that_mean_nothing_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert command.main(["--libraries", "tensorflow", *out]) == 2
    assert "--libraries must be 1 or more, each one of rnnjax, flax.nnx" in capsys.readouterr().err
    assert command.main(["--shapes", "H33", *out]) == 2
    assert "--shapes must be of H32, H128" in capsys.readouterr().err
    assert command.main(["--quick", "--cells", "lstm", "--modes", "forward", *out]) == 2
    assert "must be without --cells, --modes, got both" in capsys.readouterr().err
    assert command.main(["--compare", str(tmp_path / "none.json"), *out]) == 2
    assert "must be the results of a run" in capsys.readouterr().err


def test_the_folder_of_another_program_is_refused_and_left_as_it_is(tmp_path, capsys):
    config = json.dumps({"settings": {"epochs": 3, "seed": 0}})
    (tmp_path / "config.json").write_text(config)
    assert command.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "must hold a run of this program and version, got one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == config


def test_the_table_of_a_case_fits_a_terminal(capsys):
    record = {
        "library": "jax.experimental.rnn", "status": "measured", "note": "", "difference": 1e-7,
        "seconds": {"median": 1.23e-4, "least": 1.11e-4, "most": 1.34e-4},
        "ratio": {"median": 0.123, "least": 0.111, "most": 0.134}, "tokens_per_second": 217_900,
        "share_of_floor": 1.23, "microseconds_per_step": 83.3, "compile_seconds": 1.82,
        "peak_bytes": 17_000,
    }  # fmt: skip
    report.print_case([record])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    heads = "library ms tokens/s x rnnjax of the limit"
    cells = "jax.experimental.rnn 0.123 (0.111-0.134) 217.9 k 0.123 (0.111-0.134) 123%"
    assert sorted(said.split()) == sorted(f"{heads} {cells}".split())


def test_rows_are_new_gone_within_the_spread_or_beyond_it():
    def results(**rows):
        records = [
            {"library": name, "seconds": dict(zip(("median", "least", "most"), s, strict=True))}
            for name, s in rows.items()
        ]
        return Results({}, {"a": [*records, {"library": "broken", "status": "failed"}]})

    then = results(same=(2, 1, 3), slow=(2, 1, 3), fast=(2, 1.5, 3), gone=(1, 1, 1))
    now = results(same=(3, 2.9, 4), slow=(4, 3.1, 5), fast=(1, 1, 1.4), new=(1, 1, 1))
    assert {change.library: change.verdict for change in changes(then, now)} == {
        "same": "within the spread",
        "slow": "slower",
        "fast": "faster",
        "gone": "gone",
        "new": "new",
    }
    assert list(differences({"a": 1, "b": 2}, {"a": 1, "b": 3})) == ["b: 2 then, 3 now"]


def test_the_report_says_what_a_row_is():
    row = {"library": "rnnjax", "status": "out of memory", "note": "needs 9 GiB"}
    row["date"] = "2026-11-22"
    environment = {"device_kind": "cpu", "backend": "cpu", "threads": 2, "python": "3.11.8"}
    text = report.markdown(Results(environment, {"a": [row, row | {"library": "b"}]}))
    assert text.startswith("Measured 2026-11-22: cpu (cpu), 2 threads")
    assert "| a |  |  |  | out of memory |" in text
    assert "out of memory: needs 9 GiB |" in text


@pytest.mark.parametrize("lengths", [None, [2, 4, 1]])
def test_reversing_twice_is_nothing_and_padding_stays(lengths):
    xs = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    given = None if lengths is None else jnp.asarray(lengths)
    found = np.asarray(reversed_in_time(jnp.asarray(xs), given))
    for column, length in enumerate(lengths or [4, 4, 4]):
        np.testing.assert_array_equal(found[:length, column], xs[:length, column][::-1])
        np.testing.assert_array_equal(found[length:, column], xs[length:, column])


def test_floating_point_operations_are_those_of_the_products():
    for layers, products in (
        ("one", 4 * 4 * (3 + 4)),
        ("bidirectional2", 2 * 4 * 4 * (3 + 4) + 2 * 4 * 4 * (8 + 4)),
    ):
        case = TINY._replace(layers=layers, lengths="full", mode="forward")
        assert problems.make_problem(case).flops == 2 * 2 * 5 * products


@pytest.mark.parametrize(
    ("shape", "forward", "training"),
    [
        (Shape(16, 50, 64, 32), 25, 62.5),
        (Shape(32, 80, 128, 128), 56, 140),
        (Shape(64, 128, 256, 256), 115, 288),
        (Shape(32, 512, 512, 512), 666, 1664),
        (Shape(128, 256, 1024, 1024), 687, 2062),
    ],
)
def test_the_floor_of_a_device_is_the_larger_of_its_three_limits(shape, forward, training):
    batch, steps, size, hidden = shape
    flops = 8 * batch * steps * hidden * (size + hidden)
    hopper = limits.Device({"bfloat16": 800e12}, 3.0e12, limits.HOPPER_LATENCIES)
    for mode, factor, expected in (("forward", 1, forward), ("training", 3, training)):
        case = Case("lstm", shape, dtype="bfloat16", mode=mode)
        found = limits.floor_seconds(case, factor * flops, hopper)
        assert 1e6 * found == pytest.approx(expected, rel=0.01)


def test_of_a_device_that_is_not_known_products_and_copies_are_measured():
    device = limits.measure_device(size=64, copied=2**16, seconds=0.001)
    assert device.flops["float32"] > 0
    assert device.bandwidth > 0
    case = Case("lstm", Shape(16, 50, 64, 32), mode="forward")
    # Here the model of how long a step waits is not known, so it does not count.
    assert limits.floor_seconds(case, 0, device._replace(bandwidth=float("inf"))) == 0


def test_the_cases_of_a_run_are_those_asked_for():
    parse = command.Settings
    assert len(command.wanted(parse(take="all"))) == 3 * (5 * 16 + 2)
    assert command.wanted(parse(cells=("gru",), shapes=("H128",), modes=("training",))) == [
        Case("gru", Shape(32, 80, 128, 128))
    ]
    one = Case("lstm", Shape(1, 1, 256, 256), mode="forward")
    assert command.wanted(parse(shapes=("streaming",))) == [one]
    assert set(command.wanted(parse())) <= set(cases.everything())
    assert str(Case("gru", Shape(1, 2, 3, 4), "ragged", "bidirectional2", "bfloat16")) == (
        "gru 1,2,3,4 ragged 2 x bidirectional bfloat16 training"
    )
    assert json.loads(json.dumps(one)) == [*one[:1], list(one.shape), *one[2:]]
    assert cases.from_json(json.loads(json.dumps(one))) == one


def test_deepbench_has_its_problems():
    found = {cell: set(cases.deepbench(cell)) for cell in ("vanilla", "lstm", "gru")}
    assert {cell: len(shapes) for cell, shapes in found.items()} == {
        "vanilla": 12 + 2,
        "lstm": 3 * 7 + 4 + 6 + 6,
        "gru": 3 + 12 + 48 + 4 + 5,
    }
    assert Shape(16, 50, 1760, 1760) in found["vanilla"]
    assert Shape(64, 1500, 1024, 1024) in found["gru"]


def test_a_library_that_cannot_take_part_says_why():
    assert LIBRARIES["rnnjax"].missing is None
    assert LIBRARIES["rnnjax"]._replace(module="no_such_library").missing == "not installed"
    if jax.default_backend() != "gpu":
        assert LIBRARIES["jax.experimental.rnn"].missing == "runs on a GPU only"

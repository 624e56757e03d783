"""What the programs say of themselves."""

import importlib
import itertools
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from processes import run

from experiments import classify
from experiments.running.loss_fitting import TrainingSettings
from experiments.running.run_settings import RunSettings

MEASUREMENTS = (
    "batching dynamic_evaluation endurance generation million_texts parallel_in_time ppo_peer "
    "processes remat scale scaling series_peers step_latency translation"
)
WITH_REQUESTS = {
    "anomaly.command": ["watch"],
    "caption.command": ["caption", "export"],
    "classify": ["predict"],
    "convert": ["import", "predict", "export"],
    "forecast.command": ["predict"],
    "handwriting.command": ["write"],
    "music.command": ["compose"],
    "recognize.command": ["predict"],
    "recurrent_ppo.command": ["play", "compare"],
    "tag.command": ["label"],
    "translate.command": ["translate", "export"],
    "write.command": ["generate"],
}
PROGRAMS = [
    *WITH_REQUESTS,
    "ensemble",
    "memory_task",
    "apis.command",
    "epochs.command",
    "features.command",
    "gpu_check.__main__",
    "lessons.__main__",
    "sweep",
    "throughput.command",
    "tune",
    *(f"measurements.{name}" for name in MEASUREMENTS.split()),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_terminal(program, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    main = importlib.import_module(f"experiments.{program}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80
    if program != "convert":  # which is only a list of commands
        assert not broken(lines)


WITHOUT_TYRO = """
import importlib, sys
sys.modules["tyro"] = None
for program in sys.argv[1:]:
    for module in [name for name in sys.modules if name.startswith("experiments.")]:
        del sys.modules[module]
    try:
        importlib.import_module(f"experiments.{program}")
    except ModuleNotFoundError as error:
        assert 'pip install ".[experiments]"' in str(error), error
        print(program)
"""


def test_a_program_without_its_packages_says_what_to_install():
    programs = sorted(set(PROGRAMS) - {"gpu_check.__main__"})
    assert run("-c", WITHOUT_TYRO, *programs).split() == programs


@pytest.mark.parametrize("program", WITH_REQUESTS)
def test_help_for_what_is_asked_of_a_trained_network_fits_a_terminal(program, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    main = importlib.import_module(f"experiments.{program}").main
    for word in WITH_REQUESTS[program]:
        with pytest.raises(SystemExit) as ended:
            main([word, "--help"])
        assert ended.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("usage: python -m experiments.")
        assert max(map(len, lines)) <= 80


def test_defaults_that_say_nothing_are_not_shown(capsys):
    for program, words in (("translate.command", []), ("throughput.command", [])):
        main = importlib.import_module(f"experiments.{program}").main
        for _ in range(2):  # what is arranged once stays
            with pytest.raises(SystemExit):
                main([*words, "--help"])
            text = capsys.readouterr().out
            assert "(default: None)" not in text
            assert "(default: )" not in text
            assert "(default: 5)" in text


def broken(lines):
    """The lines of texts on options behind which the first word of the next would have fitted."""
    rule = next((number for number, line in enumerate(lines) if "-----" in line), len(lines))
    inside = [line.rstrip() for line in lines[rule + 1 :]]
    # Where the texts stand.
    column = max((len(line) - len(line.lstrip()) for line in inside), default=0)
    return [
        line
        for line, after in itertools.pairwise(inside)
        if line[column:] and line[:column].endswith("  ")
        if after[column:] and not after[:column].strip()
        if len(line) + 1 + len(after.split()[0]) <= 80
    ]


@pytest.mark.parametrize("program", [name for name in WITH_REQUESTS if name != "convert"])
def test_help_names_what_can_be_asked_of_a_trained_network(program, capsys):
    main = importlib.import_module(f"experiments.{program}").main
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    name = program.removesuffix(".command")
    for word in WITH_REQUESTS[program]:
        assert f"  python -m experiments.{name} {word} --help" in out


@pytest.mark.parametrize(
    ("given", "said"),
    {
        "a broken number": (["--epochs", "1.5"], "--epochs: it must be a whole number, got '1.5'"),
        "one that may be left out": (["--take", "all"], "it must be a whole number, got 'all'"),
        "a word": (["--learning-rate", "high"], "it must be a number, got 'high'"),
        "too long for a machine": (["--patience", "9" * 20], "at most 1,000,000,000,000, got 999"),
    }.values(),
)
def test_a_value_of_another_kind_is_refused_in_words(given, said, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        classify.main(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "given", "said"),
    [
        ("tag", "--dataset a --sentences 9", "--sentences must be given without --dataset, as"),
        ("forecast", "--column a", "--column must be given with a --dataset that is a file, as"),
        ("forecast", "--dataset a --length 99", "--length must be given without --dataset, as"),
        ("anomaly", "--normal 0.5", "--normal must be given with a --dataset that is a file, as"),
        ("recognize", "--dataset a --series 99", "--series must be given without --dataset, as"),
        ("caption", "--captions a --scenes 9", "--scenes must be given without --captions, as"),
        ("caption", "--entropy 0.5", "--entropy must be given with --attention hard, as"),
        ("handwriting", "--pairs a --words 99", "--words must be given without --pairs, as"),
        ("music", "--dataset a --pieces 99", "--pieces must be given with --dataset progressions"),
        ("translate", "--digits 5", "--digits must be given with --task add, as nothing reads it"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(program, given, said, capsys):
    main = importlib.import_module(f"experiments.{program}.command").main
    assert main(given.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_what_may_be_left_out_shows_its_kind_alone(capsys):
    with pytest.raises(SystemExit):
        classify.main(["--help"])
    out = capsys.readouterr().out
    assert "--take INT " in out
    assert "--out PATH " in out


def test_help_begins_with_what_a_program_has_of_its_own_and_boxes_what_all_have(capsys):
    tag = importlib.import_module("experiments.tag.command")
    with pytest.raises(SystemExit):
        tag.main(["--help"])
    out = capsys.readouterr().out
    order = (
        "--dataset --buckets training --epochs --learning-rate --devices run --out --replace "
        "several-processes --distributed"
    )
    shown = re.findall(r"^\W* (--[a-z-]+|[a-z-]+(?= options))\b", out, re.M)
    assert [word for word in shown if word in order.split()] == order.split()


def test_a_first_word_that_no_program_knows_is_named(capsys):
    assert classify.main(["predit", "runs/a"]) == 2
    expected = "the first word must be an option or predict (see --help), got 'predit'"
    assert expected in capsys.readouterr().err


def test_every_path_that_a_run_is_given_is_marked_as_a_place_but_for_its_folder():
    for program in PROGRAMS:
        importlib.import_module(f"experiments.{program}")
    kinds = [*TrainingSettings.__subclasses__(), *RunSettings.__subclasses__()]
    assert len(kinds) > 10
    for kind in kinds:
        hints = get_type_hints(kind).items()
        paths = {name for name, hint in hints if Path in (hint, *get_args(hint))}
        assert paths - {"out"} == kind.places() - {"dataset", "pair"}, kind  # a name or a path


def test_a_text_that_begins_with_a_dash_is_told_how_to_be_one(capsys):
    hint = "a text that begins with - must come last, behind --"
    with pytest.raises(SystemExit):
        classify.main(["predict", "runs/none", "--x", "y"])
    assert hint not in capsys.readouterr().err
    try:
        classify.main(["predict", "runs/none", "-x y"])  # tyro 1.0 takes it for what it is
    except SystemExit:
        assert hint in capsys.readouterr().err
        classify.main(["predict", "runs/none", "--", "-x y"])
    assert "runs/none must be the folder of a run" in capsys.readouterr().err

"""An option that nothing reads beside the others is refused, and leaves no trace."""

import importlib

import pytest

CASES = [
    ("classify", "--batching packed --buckets 2", "buckets must be given with --batching bucketed"),
    ("classify", "--batching padded --buckets 2", "buckets must be given with --batching bucketed"),
    ("classify", "--data-dir .", "data-dir must be given with a --dataset that lies in it"),
    ("classify", "--dataset own.csv --data-dir .", "data-dir must be given with a --dataset that"),
    ("classify", "--replace", "out must name the folder of the run to replace, got none"),
    ("write.command", "--data-dir .", "data-dir must be given with a --dataset that lies in it"),
    ("write.command", "generate no --temperature 0 --top-k 3", "top-k must be given with --temp"),
    ("write.command", "generate no --temperature 0 --seed 3", "seed must be given with --temp"),
    ("music.command", "--dataset progressions --data-dir .", "data-dir must be given with --data"),
    ("music.command", "--dataset own.json --data-dir .", "data-dir must be given with --dataset"),
    ("handwriting.command", "write no a --like-line 2", "like-line must be given with --like"),
    ("translate.command", "--pair own.csv --data-dir .", "data-dir must be given with two lang"),
    ("translate.command", "translate no a --beam 1 --length-penalty 0", "length-penalty must be"),
    ("caption.command", "caption no a --beam 1 --length-penalty 0", "length-penalty must be"),
    ("recurrent_ppo.command", "--cell mlp --layers 2", "layers must be given with a recurrent"),
    ("recurrent_ppo.command", "--cell mlp --resets late", "resets must be given with a recurrent"),
    ("ensemble", "--data-dir .", "data-dir must be given with a --dataset that lies in it"),
    ("sweep", "--data-dir .", "data-dir must be given with a --dataset that lies in it"),
    ("apis.command", "--data-dir .", "data-dir must be given with a --dataset that lies in it"),
    ("epochs.command", "--data-dir .", "data-dir must be given with a --dataset that lies in it"),
    ("measurements.batching", "--data-dir .", "data-dir must be given with a --dataset that lies"),
    ("measurements.series_peers", "--out new", "out must be given to experiments.recognize"),
    ("lessons.__main__", "--lessons parity --take 9", "take must be given with --lessons that"),
]


@pytest.mark.parametrize(("program", "line", "words"), CASES, ids=range(len(CASES)))
def test_an_option_that_nothing_reads_is_refused(
    program, line, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RNNJAX_DATA", raising=False)
    own = tmp_path / "own.csv"
    own.write_text("text,label\nwarm,good\ncold,bad\n")
    main = importlib.import_module(f"experiments.{program}").main
    assert main(line.split()) == 2
    assert f"error: --{words}" in capsys.readouterr().err
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [own]


CONVERSIONS = [
    ("--kind lstm --activation relu", "activation must be given with --kind vanilla"),
    ("--kind lstm --tokenizer characters", "tokenizer must be given with --vocabulary"),
    ("--kind lstm --unknown-id 3", "unknown-id must be given with --vocabulary"),
    ("--kind lstm --pad-id 3", "pad-id must be given with --padding right or left"),
    ("--kind lstm --keep tail", "keep must be given with --length"),
]


@pytest.mark.parametrize(("line", "words"), CONVERSIONS)
def test_an_option_that_nothing_reads_is_refused_where_weights_are_imported(
    line, words, tmp_path, capsys
):
    main = importlib.import_module("experiments.convert").main
    given = ["import", "no.safetensors", "--from", "torch", "--classes", "a", "b", "--out"]
    assert main([*given, str(tmp_path / "run"), *line.split()]) == 2
    assert f"error: --{words}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_lesson_has_no_option_that_it_does_not_read(capsys):
    main = importlib.import_module("experiments.lessons.lesson").main
    importlib.import_module("experiments.lessons.parity")
    for option in ("--take", "--data-dir"):
        with pytest.raises(SystemExit) as ended:
            main("experiments.lessons.parity", [option, "9"])
        assert ended.value.code == 2
        assert option in capsys.readouterr().err


FOLDERS = [
    ("classify", "--dataset local"),
    ("write.command", "--dataset tiny_shakespeare"),
    ("ensemble", "--dataset ag_news"),
    ("translate.command", "--pair de-en"),
    ("music.command", "--dataset jsb_chorales"),
    ("music.command", ""),
]


@pytest.mark.parametrize(("program", "line"), FOLDERS)
def test_what_named_a_folder_that_is_not_there_is_said(
    program, line, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RNNJAX_DATA", "there")
    main = importlib.import_module(f"experiments.{program}").main
    said = "error: {} must be a folder, got {}\n"
    assert main(line.split()) == 2
    assert capsys.readouterr().err == said.format("the variable RNNJAX_DATA", "there")
    assert main([*line.split(), "--data-dir", "here"]) == 2
    assert capsys.readouterr().err == said.format("data_dir (--data-dir)", "here")
    assert list(tmp_path.iterdir()) == []

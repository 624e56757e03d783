"""The program that gives every word of a sentence a label."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from experiments.running.loss_fitting import Fitted
from experiments.running.trained import load_notes
from experiments.tag import command
from experiments.tag.pictures import confusion, draw_confusion
from experiments.tag.sentences import (
    Corpus,
    make_sentence,
    most_frequent,
    read_corpus,
    read_sentences,
)
from experiments.tag.settings import Settings
from rnnjax.data import DataError

QUICK = ["--hidden-size", "8", "--embedding-size", "8", "--epochs", "2", "--buckets", "1"]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.mark.full
def test_a_file_of_ones_own_is_learned_and_labels_are_given(tmp_path, capsys):
    """A number is what the word before it says, and the word behind the first one."""
    path, folder = tmp_path / "own.conll", tmp_path / "run"
    path.write_text("one\tA\ntwo\tB\none\tA\n\n" * 30 + "two\tB\n\n" * 30)
    assert run("--dataset", path, "--out", folder, *QUICK, "--learning-rate", "0.1") == 0
    said = capsys.readouterr().out
    assert "own: 36 sentences to train, 12 to validate, 12 to test; 2 labels" in said
    assert "test: 1.0000 of the labels right" in said
    assert (folder / "tags.png").stat().st_size
    assert json.loads((folder / "labels.json").read_text()) == ["A", "B"]
    assert run("label", folder, "two one three") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["two", "B"], ["one", "A"]]
    assert "not in the training sentences" in lines[2]


@pytest.mark.parametrize("words", [["two", "one"], ["-", "one"], ["--out", "two"]])
def test_the_command_that_is_printed_can_be_run(words, tmp_path, capsys):
    sentence = [(word, "A") for word in words]
    corpus = Corpus("own", "", [sentence], [sentence], [sentence])
    fitted = Fitted(None, 1, {}, {"accuracy": 1.0, "loss": 0.0})
    command._report(corpus, fitted, 1.0, tmp_path)
    line = capsys.readouterr().out.splitlines()[-1]
    assert run(*shlex.split(line)[3:]) == 2
    assert "must be the folder of a run, got no config.json" in capsys.readouterr().err


@pytest.mark.full
def test_a_run_goes_on_with_the_same_file_elsewhere_and_with_no_other(tmp_path, capsys):
    path, moved, other = (tmp_path / name for name in ("own.conll", "moved.conll", "other.conll"))
    path.write_text("one\tA\ntwo\tB\n\n" * 20)
    arguments = ["--out", tmp_path / "run", *QUICK, "--epochs", "1"]
    assert run("--dataset", path, *arguments) == 0
    path.rename(moved)
    other.write_text("one\tB\ntwo\tB\n\n" * 20)
    assert run("--dataset", moved, *arguments, "--resume") == 0
    capsys.readouterr()
    assert run("--dataset", other, *arguments, "--resume") == 2
    assert "sha256: '" in capsys.readouterr().err


def test_files_are_read_with_any_columns_between_word_and_label(tmp_path):
    path = tmp_path / "own.conll"
    path.write_text("EU NNP B-NP I-ORG\nrejects VBZ B-VP O\n\n\nYork NNP B-NP I-ORG\n")
    assert read_sentences(path) == [[("EU", "I-ORG"), ("rejects", "O")], [("York", "I-ORG")]]
    path.write_text("New York\tplace\nis\tO\n")
    assert read_sentences(path) == [[("New York", "place"), ("is", "O")]]
    for other in ("New York place\n", "# text = He runs\n", "is\tV\tO\n"):
        path.write_text("one A\n" + other)
        with pytest.raises(DataError, match="line 2: must have 2 columns as the lines before, got"):
            read_sentences(path)
    path.write_text("one A\ntwo\n")
    with pytest.raises(DataError, match=r"own\.conll, line 2: must be a word and its label"):
        read_sentences(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"must have UTF-8 text .*, got line 1"):
        read_sentences(path)


BAD = {
    "too few sentences": (
        ["--sentences", "4"],
        "--sentences must be a whole number from 5 to 10,000,000",
    ),
    "no file": (["--dataset", "nowhere.conll"], "nowhere.conll must be a file, got none"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
    wrong, words = BAD[case]
    assert run("--out", tmp_path / "run", *wrong) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sentences_of_the_grammar_have_clauses_with_a_verb_each():
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels = [label for _, label in make_sentence(rng)]
        clauses = labels.count("conjunction") + 1
        assert labels.count("verb") == clauses
        for place, label in enumerate(labels):
            if label == "noun":
                before = [x for x in labels[:place] if x != "adjective"]
                assert before[-1] == "determiner"
            if label == "auxiliary":
                assert labels[place + 1] == "verb"


def test_the_parts_of_a_corpus_are_all_of_it_and_follow_from_the_seed():
    corpus = read_corpus(Settings(sentences=50))
    again, other = read_corpus(Settings(sentences=50)), read_corpus(Settings(sentences=50, seed=1))
    assert again == corpus
    assert other.sha256 != corpus.sha256
    assert [len(part) for part in corpus[2:]] == [30, 10, 10]


def test_the_usual_label_of_each_word_is_counted():
    train = [[("a", "X"), ("a", "Y"), ("a", "Y"), ("b", "X")], [("c", "X")]]
    test = [[("a", "Y"), ("a", "X")], [("b", "X"), ("new", "X")]]
    assert most_frequent(train, test) == pytest.approx(3 / 4)


def test_a_file_is_read_whatever_its_line_ends_and_marks_and_no_label_is_empty(tmp_path):
    path = tmp_path / "words.conll"
    path.write_bytes("\ufeffthe D\r\nfish\u2028 N\r\n\r\ncaf\u00e9\t N \r\n".encode())
    assert read_sentences(path) == [[("the", "D"), ("fish", "N")], [("caf\u00e9", "N")]]
    for line in ("word\t", "\tN", "word\t "):
        path.write_text(f"the D\n{line}\n")
        with pytest.raises(DataError, match="line 2: must be a word and its label"):
            read_sentences(path)


def test_the_picture_of_many_labels_is_of_the_most_frequent_and_dollars_make_no_formula(tmp_path):
    labels = [f"$x{number}^$" for number in range(400)]
    draw_confusion(confusion(range(400), range(400), 400), labels, tmp_path / "tags.png")
    with Image.open(tmp_path / "tags.png") as picture:
        assert max(picture.size) < 3000


@pytest.mark.parametrize("content", ["{}", "[1]", "[", "\u00ff"])
def test_labels_that_are_damaged_are_named(content, tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"labels\.json must be what a run left there, got "):
        load_notes(command.PROGRAM, path, list[str])


def test_confusions_are_counted():
    assert confusion([0, 0, 1, 2], [0, 1, 1, 0], 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]

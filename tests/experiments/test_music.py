"""The program that is taught pieces of music and composes."""

import gzip
import json
import math

import numpy as np
import pytest
from stopping import stopped_after

from experiments.music import command
from experiments.music.counting import independent_keys, keys_by_themselves
from experiments.music.midi import midi_bytes
from experiments.music.model import transposed
from experiments.music.pieces import make_progressions, read_pieces
from rnnjax.data import DataError

QUICK = ["--pieces", "20", "--hidden-size", "8", "--epochs", "2", "--buckets", "1"]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def without_data(monkeypatch):
    monkeypatch.delenv("RNNJAX_DATA", raising=False)


def read_midi(data):
    """Frames of keys out of a file, by a reader that knows just enough of the format."""
    assert data[:8] == b"MThd\x00\x00\x00\x06"
    kind, tracks, ticks = (int.from_bytes(data[i : i + 2]) for i in (8, 10, 12))
    assert (kind, tracks) == (0, 1)
    assert data[14:18] == b"MTrk"
    assert int.from_bytes(data[18:22]) == len(data) - 22
    place, now, tempo, notes, sounding = 22, 0, None, [], {}
    while place < len(data):
        delta = 0
        while True:
            byte, place = data[place], place + 1
            delta = delta << 7 | byte & 0x7F
            if byte < 0x80:
                break
        now += delta
        if data[place] == 0xFF:
            length = data[place + 2]
            if data[place + 1] == 0x51:
                tempo = int.from_bytes(data[place + 3 : place + 3 + length])
            place += 3 + length
            continue
        status, key = data[place], data[place + 1]
        place += 3
        if status == 0x90:
            sounding[key] = now
        else:
            notes.append((key, sounding.pop(key), now))
    assert not sounding
    roll = np.zeros((now // ticks, 88))
    for key, begin, end in notes:
        roll[begin // ticks : end // ticks, key - 21] = 1
    return roll, tempo


def test_a_midi_file_holds_the_piece_that_was_written_into_it():
    piece = (np.random.default_rng(0).random((60, 88)) < 0.3).astype(np.float32)
    piece[:, 0] = 1  # held all the time: 60 frames of 480 ticks are a number of three bytes
    found, tempo = read_midi(midi_bytes(piece, tempo=120))
    np.testing.assert_array_equal(found, piece)
    assert tempo == 500_000


@pytest.mark.parametrize("tempo", [4.0, 60_000_000.0])
def test_the_slowest_and_the_fastest_tempo_are_written_as_they_are(tempo):
    _, microseconds = read_midi(midi_bytes(np.zeros((2, 88)), tempo))
    assert microseconds == 60_000_000 / tempo


@pytest.mark.parametrize("tempo", [0.0, 1e-310, 3.9, 6.1e7, math.inf, math.nan])
def test_a_tempo_that_midi_has_no_number_for_is_refused(tempo, tmp_path, capsys):
    with pytest.raises(DataError, match="tempo must be from 4 to 60,000,000 frames a minute, got"):
        midi_bytes(np.zeros((2, 88)), tempo)
    assert run("compose", tmp_path, "--tempo", tempo) == 2
    assert "--tempo must be from 4 to 60,000,000 frames a minute, got" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "metrics.jsonl"])
def test_the_files_of_the_run_are_not_written_over(name, tmp_path, capsys):
    (tmp_path / name).write_text("of the run")
    assert run("compose", tmp_path, "--out", tmp_path / name) == 2
    assert "--out must not lead to a file that is read" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "of the run"


@pytest.mark.full
def test_a_run_composes_and_one_that_was_stopped_comes_to_the_same_bytes(tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("--out", whole, *QUICK) == 0
    said = capsys.readouterr().out
    assert "progressions: 12 pieces to train, 4 to validate, 4 to test" in said
    assert "each key by how often it sounds: " in said
    for name in ("weights.safetensors", "curves.png", "piece.png", "metrics.jsonl"):
        assert (whole / name).stat().st_size
    roll, _ = read_midi((whole / "piece.mid").read_bytes())
    assert len(roll) <= 64
    for name in ("one", "two"):
        assert run("compose", whole, "--steps", "5", "--out", tmp_path / f"{name}.mid") == 0
    assert (tmp_path / "one.mid").read_bytes() == (tmp_path / "two.mid").read_bytes()
    assert (tmp_path / "one.png").stat().st_size

    with stopped_after(1):
        assert run("--out", stopped, *QUICK) == 143
    assert run("--out", stopped, "--resume") == 0
    for name in ("metrics.jsonl", "weights.safetensors", "piece.mid"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_pieces_are_read_from_files_and_put_where_their_notes_are(tmp_path):
    pieces = [[[60, 64], [60]], [[21], [108]], [[50], [], [52]]]
    path = tmp_path / "own.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps(dict.fromkeys(("train", "valid", "test"), pieces)).encode())
    )
    music = read_pieces(path)
    assert [len(part) for part in music[3:]] == [3, 3, 3]
    assert np.argwhere(music.train[0]).tolist() == [[0, 39], [0, 43], [1, 39]]
    assert np.argwhere(music.train[1]).tolist() == [[0, 0], [1, 87]]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(pieces * 5))
    assert [len(part) for part in read_pieces(path)[3:]] == [9, 3, 3]


BAD = {
    "a note below the piano": ([[[20], [60]]] * 5, "frame 0: must be whole MIDI numbers"),
    "a note between two keys": ([[[60], [60.5]]] * 5, "frame 1: must be whole MIDI numbers"),
    "a piece of one frame": ([[[60]]] * 5, "must be a list of at least 2 frames"),
    "too few pieces": ([[[60], [60]]], "must hold at least 5 pieces, a fifth to validate"),
    "no pieces": ({"train": []}, "must hold a list of pieces"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_none_of_pieces_is_named(case, tmp_path, capsys):
    content, words = BAD[case]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    assert run("--dataset", path, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "own.json" in error
    assert words in error
    assert not (tmp_path / "run").exists()


def test_a_midi_file_is_said_to_be_none_to_read(tmp_path, capsys):
    path = tmp_path / "song.MID"
    path.write_bytes(midi_bytes(np.zeros((2, 88))))
    assert run("--dataset", path, "--out", tmp_path / "run") == 2
    assert "must be a file of pieces in JSON, got one of MIDI" in capsys.readouterr().err


def test_without_a_folder_the_chorales_say_which_file_to_put_where(tmp_path, capsys):
    assert run("--dataset", "jsb_chorales", "--out", tmp_path / "run") == 2
    assert "put jsb-chorales-quarter.json" in capsys.readouterr().err
    (tmp_path / "jsb_chorales").mkdir()
    assert run("--data-dir", tmp_path, "--out", tmp_path / "run") == 2
    assert "got neither" in capsys.readouterr().err


def test_who_names_a_folder_gets_no_other_pieces_and_a_file_that_is_missing_is_said_to_be(
    tmp_path, capsys
):
    for arguments, words in (
        (["--data-dir", tmp_path], "--dataset jsb_chorales needs a folder"),
        (["--dataset", tmp_path / "nowhere.json"], "nowhere.json must be a file, got none"),
        (["--dataset", tmp_path], "must be a file, got a folder"),
    ):
        assert run(*arguments, "--out", tmp_path / "run") == 2
        assert words in capsys.readouterr().err


def test_counting_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    train, test = ([(rng.random((9, 88)) < 0.2).astype(float) for _ in range(3)] for _ in "ab")
    alone = chained = 0.0
    for key in range(88):
        now = [x for p in train for x in p[1:, key]]
        pairs = [(a, b) for p in train for a, b in zip(p[:-1, key], p[1:, key], strict=True)]
        for piece in test:
            for before, after in zip(piece[:-1, key], piece[1:, key], strict=True):
                p = (sum(now) + 0.5) / (len(now) + 1)
                alone -= math.log(p if after else 1 - p)
                same = [b for a, b in pairs if a == before]
                p = (sum(same) + 0.5) / (len(same) + 1)
                chained -= math.log(p if after else 1 - p)
    frames = sum(len(piece) - 1 for piece in test)
    assert independent_keys(train, test) == pytest.approx(alone / frames)
    assert keys_by_themselves(train, test) == pytest.approx(chained / frames)


def test_progressions_are_chords_that_end_on_their_tonic():
    music = make_progressions(20, seed=3)
    assert make_progressions(20, seed=3).sha256 == music.sha256
    assert make_progressions(20, seed=4).sha256 != music.sha256
    for piece in [*music.train, *music.validation, *music.test]:
        assert np.all((piece.sum(1) >= 2) & (piece.sum(1) <= 4))
        notes = np.concatenate([np.flatnonzero(piece[place]) for place in (0, -1)])
        assert any(set((notes - tonic) % 12) <= {0, 4, 7} for tonic in range(12))


def test_a_piece_is_moved_only_where_it_fits():
    piece = np.zeros((3, 88), np.float32)
    piece[0, 1] = piece[1, 80] = 1
    moved = transposed(piece, 3)
    assert [np.argwhere(p).tolist() for p in moved] == [
        [[0, 1 + m], [1, 80 + m]] for m in (-1, 0, 1, 2, 3)
    ]


def test_a_file_that_its_picture_would_overwrite_is_refused(capsys):
    assert run("compose", "runs/none", "--out", "piece.PNG") == 2
    assert "--out must not end in .png, where its picture goes" in capsys.readouterr().err

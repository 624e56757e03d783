"""The program that says what is in a picture."""

import json

import numpy as np
import pytest
from PIL import Image
from stopping import stopped_after

from experiments.caption import command
from experiments.caption.corpus import CaptionBatches, read_corpus, read_picture
from experiments.caption.decoding import figures
from experiments.caption.model import Network
from experiments.caption.scenes import COLOURS, LEFT_OUT, SHAPES, SIZES, make_scenes
from experiments.caption.settings import Settings
from experiments.running.exported import write_programs
from experiments.running.words import STOP
from rnnjax.data import DataError

SMALL = ["--hidden-size", "8", "--picture-size", "4", "--batch-size", "8", "--epochs", "2"]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _few_scenes_to_judge_by(monkeypatch):
    monkeypatch.setattr("experiments.caption.corpus._HELD_OUT", 12)


def test_scenes_have_the_things_that_their_words_say_where_they_say():
    scenes = make_scenes(np.random.default_rng(0), 60)
    for scene in scenes:
        ground = np.median(scene.picture.reshape(-1, 3), axis=0)
        told = {cell for cell in scene.cells if cell >= 0}
        blocks = scene.picture.reshape(3, 12, 3, 12, 3).swapaxes(1, 2).reshape(9, 12, 12, 3)
        for cell, block in enumerate(blocks):
            middle = block[5:7, 5:7].mean((0, 1))
            assert (np.abs(middle - ground).max() > 60) == (cell in told)
        for k in range(0, len(scene.words), 4):
            size, colour, shape = scene.words[k : k + 3]
            assert size in SIZES
            assert colour in COLOURS
            assert shape in SHAPES
            assert (colour, shape) not in LEFT_OUT
            covered = np.abs(blocks[scene.cells[k]] - ground).max(-1) > 60
            assert (covered.any(axis=0).sum() > 7) == (size == "big")
            red, green, blue = blocks[scene.cells[k]][5:7, 5:7].mean((0, 1))
            seen = {"red": red > 2 * green, "green": green > 1.5 * red, "blue": blue > 1.5 * red}
            assert seen.get(colour, min(red, green) > 1.5 * blue)
        for k in range(3, len(scene.words), 4):
            rows = [scene.cells[at] // 3 for at in (k - 1, k + 1)]
            assert scene.cells[k] == -1
            assert scene.words[k] == ("beside" if rows[0] == rows[1] else "above")
        assert sorted(told) == list(dict.fromkeys(c for c in scene.cells if c >= 0))


def test_every_composed_scene_holds_a_pair_that_is_left_out():
    for scene in make_scenes(np.random.default_rng(0), 30, composed=True):
        pairs = {tuple(scene.words[k + 1 : k + 3]) for k in range(0, len(scene.words), 4)}
        assert pairs & set(LEFT_OUT)


def test_an_epoch_has_every_picture_once_with_its_caption():
    settings = Settings(scenes=21, batch_size=8)
    corpus = read_corpus(settings)
    batches = CaptionBatches(corpus.train, corpus.vocabulary, settings, shuffle=True)
    seen = []
    for batch in batches.epoch(3):
        assert len(batch.lengths) == 8
        for picture, ids, length in zip(*batch, strict=True):
            if length:
                (at,) = np.flatnonzero((corpus.train.pictures == picture).all((1, 2, 3)))
                words = [corpus.vocabulary.tokens[i] for i in ids[: length - 1]]
                assert words == corpus.train.words[at]
                assert ids[length - 1] == STOP
                seen.append(at)
    assert sorted(seen) == list(range(21))
    assert len(batches) == 3
    first, again, other = (next(batches.epoch(n)).captions for n in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_where_it_looked_is_held_against_the_cell_of_the_thing(monkeypatch):
    corpus = read_corpus(Settings(scenes=1))
    part = corpus.test._replace(
        pictures=corpus.test.pictures[:1],
        words=[["small", "red", "circle", "beside", "big", "red", "square"]],
        cells=[[3, 3, 3, -1, 8, 8, 8]],
    )
    # Places of 6 x 6: cell 3 is rows 2 and 3, columns 0 and 1; cell 8 the last corner.
    places = [12, 19, 14, 0, 35, 28, 27]
    weights = np.eye(36)[places]
    monkeypatch.setattr("experiments.caption.decoding.looked", lambda *_: [weights])
    right = corpus.vocabulary.encode(part.words[0])
    named = figures(Network(4, None, True), None, part, corpus.vocabulary, [[right]])
    assert named == {"exact": 1.0, "on_thing": pytest.approx(4 / 6), "once": pytest.approx(29.0)}


@pytest.mark.full
@pytest.mark.parametrize("attention", ["hard", "none"])
def test_with_attention_and_without_it_trains_and_captions_a_file(attention, tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--attention", attention, *(["--once", "0.1"] if attention == "hard" else [])]
    assert run("--scenes", 16, *SMALL, *more, "--out", folder) == 0
    out = capsys.readouterr().out
    assert "captions exactly right" in out
    assert ("looked at the thing" in out) == (attention != "none")
    assert (folder / "where-it-looked.png").exists() == (attention != "none")
    for name in ("weights.safetensors", "curves.png", "samples.txt"):
        assert (folder / name).stat().st_size
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["kind"] == "captions"
    assert run("caption", folder, folder / "pictures" / "0.png", "--beam", 2) == 0
    capsys.readouterr()
    paths = [folder / "pictures" / f"{n}.png" for n in range(3)]
    assert run("caption", folder, *paths, "--beam", 2) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [path for path, _ in lines] == [str(path) for path in paths]
    assert run("caption", folder, paths[1], "--beam", 2) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[1][1]
    assert run("caption", folder, *paths, "--figure", tmp_path / "a.png") == 2
    assert "--figure must be of one picture, got it with 3" in capsys.readouterr().err
    assert run("caption", folder, folder / "config.json") == 2
    assert "must be a picture" in capsys.readouterr().err
    if attention == "hard":
        assert run("export", folder) == 0
        assert (folder / "exported" / "step.jax").stat().st_size
        # What a run leaves of its pictures is what it takes as a user's own.
        own = ["--captions", folder / "pictures" / "captions.tsv", "--max-length", 40]
        assert run(*own, *SMALL, "--out", tmp_path / "own") == 0


@pytest.mark.full
def test_a_run_that_was_stopped_comes_to_the_same_bytes(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["--scenes", 16, *SMALL, "--attention", "outside", "--dropout", "0.2"]
    assert run(*arguments, "--out", whole) == 0
    with stopped_after(1):
        assert run(*arguments, "--out", stopped) == 143
    assert run("--out", stopped, "--resume") == 0
    for name in ("metrics.jsonl", "weights.safetensors", "samples.txt"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_captions_of_one_picture_stay_together_and_long_ones_are_counted(tmp_path):
    lines = []
    for n in range(20):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.png")
        lines += [f"{n}.png\ta thing", f"{n}.png\tanother", f"{n}.png\t{'long ' * 40}"]
    (tmp_path / "own.tsv").write_text("\n".join(lines))
    corpus = read_corpus(Settings(captions=tmp_path / "own.tsv"))
    parts = (corpus.train, corpus.validation, corpus.test)
    reds = [part.pictures[:, 0, 0, 0].tolist() for part in parts]
    assert [len(part) for part in reds] == [32, 4, 4]
    assert sorted(set(reds[0]) | set(reds[1]) | set(reds[2])) == list(range(20))
    assert [len(set(part)) for part in reds] == [16, 2, 2]
    assert "20 captions of 30 words or more left out" in corpus.note


def test_a_picture_of_several_captions_is_left_once_with_all_of_them(tmp_path, capsys):
    for n in range(130):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.png")
    lines = [f"{n}.png\t{n} has {word}" for word in ("one", "two", "three") for n in range(130)]
    (tmp_path / "own.tsv").write_text("\n".join(lines))
    corpus = read_corpus(Settings(captions=tmp_path / "own.tsv"))
    command._announce(corpus)
    said = capsys.readouterr().out
    assert "own: 312 captions to train, 39 to validate, 39 to test" in said
    command._leave_pictures(corpus.test, tmp_path / "left")
    listed = (tmp_path / "left" / "captions.tsv").read_text()
    rows = [line.split("\t") for line in listed.splitlines()]
    assert {path.name for path in (tmp_path / "left").glob("*.png")} == {n for n, _ in rows}
    assert {name for name, _ in rows} == {f"{n}.png" for n in range(10)}
    for name in {name for name, _ in rows}:
        red = int(read_picture(tmp_path / "left" / name)[0, 0, 0])
        captions = sorted(text for other, text in rows if other == name)
        assert captions == [f"{red} has {word}" for word in ("one", "three", "two")]


def test_photographs_are_turned_as_the_camera_says_and_nothing_is_seen_as_white(tmp_path):
    halves = np.zeros((36, 36, 3), np.uint8)
    halves[:18] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: to be turned by a quarter
    Image.fromarray(halves).save(tmp_path / "photograph.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "photograph.png"), np.rot90(halves, -1))
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").min() == 255


BAD = {
    "no such file": (["--captions", "nowhere.tsv"], "nowhere.tsv"),
    "a negative penalty": (["--once", "-1"], "--once must be"),
    "no scenes": (["--scenes", "0"], "--scenes must be"),
    "a selector of nothing": (["--selector"], "--selector must be with --attention inside or hard"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_settings_are_one_line_and_leave_nothing(case, tmp_path, capsys):
    wrong, expected = BAD[case]
    assert run("--out", tmp_path / "run", *wrong) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_quotes_in_captions_are_text_whatever_the_line_ends_and_marks(tmp_path):
    path = tmp_path / "mine.tsv"
    rows = [f'{number}.png\t"a cat' for number in range(10)]
    for number in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    path.write_bytes(("\ufeff" + "\r\n".join([*rows, "", ""])).encode())
    corpus = read_corpus(Settings(captions=path, min_count=1))
    parts = (corpus.train, corpus.validation, corpus.test)
    assert [caption for part in parts for caption in part.words] == [['"', "a", "cat"]] * 10


def test_a_line_without_a_caption_is_named(tmp_path, capsys):
    (tmp_path / "mine.tsv").write_text("a.png\t\n")
    assert run("--captions", tmp_path / "mine.tsv", "--out", tmp_path / "run") == 2
    assert "line 1, must be a path, a tab and a caption" in capsys.readouterr().err


def test_the_picture_is_not_drawn_over(tmp_path, capsys):
    path = tmp_path / "a.png"
    path.write_bytes(b"a picture")
    assert run("caption", tmp_path, path, "--figure", path) == 2
    assert "--figure must not lead to a file that is read" in capsys.readouterr().err
    assert path.read_bytes() == b"a picture"


def test_the_folder_of_a_run_takes_no_programs(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="--out must be a folder of its own, got that of a run"):
        write_programs(tmp_path, (None, None, None), {})
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(("name", "order"), [("a.png", "<u2"), ("a.tiff", ">u2")])
def test_sixteen_bits_a_pixel_are_as_bright_as_eight(name, order, tmp_path):
    values = np.linspace(0, 65535, 36).astype(np.uint16)
    grey = np.broadcast_to(values, (36, 36))
    Image.fromarray(grey.astype(order)).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode.startswith("I;16")
    seen = read_picture(tmp_path / name)
    np.testing.assert_allclose(seen, np.repeat(grey[..., None], 3, 2) / 257, atol=1)


BROKEN = {
    "a.png": b"",
    "b.png": b"no picture",
    "size.ppm": b"P6\n4 x\n255\n" + bytes(48),
    "short.ppm": b"P6\n4 4\n255\n" + bytes(20),
    "number.ppm": b"P3\n2 1\n255\n1 2 3 4 x 6\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(DataError, match=f"{name} must be a picture, got none that can be read"):
        read_picture(tmp_path / name)


def test_a_broken_checksum_of_a_picture_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40), (1, 2, 3)).save(path)
    content = bytearray(path.read_bytes())
    content[45] ^= 255  # within the pixels
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png must be a picture, got none that can be read"):
        read_picture(path)


@pytest.mark.parametrize(
    ("kind", "words"), [("int32", "32-bit integers"), ("float32", "floating-point numbers")]
)
def test_a_picture_that_does_not_say_what_is_white_is_refused(kind, words, tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 100, kind)).save(path)
    with pytest.raises(DataError, match=f"a.tiff must have 1, 8 or 16 bits a channel, got {words}"):
        read_picture(path)

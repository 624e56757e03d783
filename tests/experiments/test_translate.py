"""The program that makes one sequence of another."""

import io
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from stopping import stopped_after

import rnnjax
from experiments.running.figures import new_figure
from experiments.running.words import STOP, words
from experiments.translate import command
from experiments.translate.corpus import joined, read_corpus, tokenizer
from experiments.translate.model import build_model
from experiments.translate.pictures import Alignment, draw_alignments
from experiments.translate.scoring import bleu, exact, on_diagonal, sacrebleu
from experiments.translate.settings import Settings
from experiments.translate.training import make_loss
from experiments.translate.translator import PROGRAM, Translator
from rnnjax.data import PairBatch, Pairs, Vocabulary

QUICK = ["--hidden-size", "8", "--embedding-size", "4", "--batch-size", "16", "--buckets", "1"]
QUICK = [*QUICK, "--epochs", "2", "--max-length", "8", "--min-count", "1"]


README = Path(__file__).parents[2] / "experiments" / "translate" / "README.md"
EXAMPLE = re.compile(r"^```py (?:exported )?translator\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "my pairs.tsv"
    numbers = ["ein", "zwei", "drei"], ["one", "two", "three"]
    things = ["Hund", "Mann", "Baum", "Kind"], ["dog", "man", "tree", "child"]
    lines = [
        f"{numbers[0][i]} {things[0][k]}.\t{numbers[1][i]} {things[1][k]}."
        for i in range(3)
        for k in range(4)
    ]
    path.write_text("\n".join(lines * 4) + "\n")
    return path


@pytest.mark.parametrize("task", ["reverse", "copy", "add"])
def test_generated_pairs_are_what_they_are_called(task):
    corpus = read_corpus(Settings(task=task, examples=300))
    seen = set()
    for part, count in zip(
        (corpus.train, corpus.validation, corpus.test), (300, 1000, 1000), strict=True
    ):
        assert len(part.sources) == count
        for source, target in zip(*part, strict=True):
            assert target[-1] == STOP
            read = corpus.source.decode(source)
            written = corpus.target.decode(target[:-1])
            if task == "add":
                a, b = "".join(read).split("+")
                assert int(a) + int(b) == int("".join(written))
            else:
                assert written == (read if task == "copy" else read[::-1])
                assert 5 <= len(read) <= 20
        rows = {tuple(source) for source in part.sources}
        assert len(rows) == count
        assert not rows & seen
        seen |= rows


def test_signs_stand_by_the_words_before_them():
    settings = Settings(pair="de-en")
    text = "a man (in a hat), who can't wait: run!"
    assert joined(words(text), settings) == text
    assert joined(list("12"), Settings(task="add")) == "12"
    assert joined(["a", "b"], Settings(task="copy")) == "a b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cafe\u0301, a\u0308u\u00dferst", ["caf\u00e9", ",", "\u00e4u\u00dferst"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940!", ["\u0939\u093f\u0928\u094d\u0926\u0940", "!"]),
        (
            "\u0645\u06cc\u200c\u0634\u0648\u062f a-b",
            ["\u0645\u06cc\u200c\u0634\u0648\u062f", "a", "-", "b"],
        ),
        ("\u6211\u7231NLP\u3002", ["\u6211", "\u7231", "nlp", "\u3002"]),
        ("\u79c1\u306f\u30ab", ["\u79c1", "\u306f", "\u30ab"]),
        ("\u0e19\u0e49\u0e14\u0e35", ["\u0e19\u0e49", "\u0e14\u0e35"]),
        ("Do\u00adnau \u200f\u05d0", ["donau", "\u05d0"]),
        ("\u2764\ufe0f \U0001f468\u200d\U0001f469", ["\u2764\ufe0f", "\U0001f468", "\U0001f469"]),
    ],
)
def test_texts_in_every_script_are_cut_into_words_or_letters(text, expected):
    assert words(text) == expected


def test_scripts_without_blanks_are_written_without_them_and_case_may_be_kept():
    text = "Ich k\u00b4nn\u2019s: \u6211\u7231\u3002\u662f, \u00bfSi?"
    settings = Settings(pair="de-en", keep_case=True)
    assert joined(tokenizer(settings)(text), settings) == text.replace("k\u00b4", "k \u00b4 ")
    assert joined(tokenizer(Settings(pair="de-en"))("Ein Mann"), settings) == "ein mann"


@pytest.mark.parametrize(("flag", "wrong"), [("--beam", "0"), ("--length-penalty", "nan")])
def test_wishes_that_no_search_can_grant_are_named_before_a_run_is_read(flag, wrong, capsys):
    assert run("translate", "no run", "a b", flag, wrong) == 2
    assert f"{flag} must be a" in capsys.readouterr().err


def test_the_picture_of_a_long_text_is_of_its_beginning_and_dollars_make_no_formula(tmp_path):
    tokens, path = ["$x^$"] * 5000, tmp_path / "alignment.png"
    draw_alignments([Alignment(tokens, tokens, np.zeros((5000, 5000)))], path)
    with Image.open(path) as picture:
        assert max(picture.size) < 5000


def keeping(make, kept):
    """The same function, all of whose results are kept."""

    def made(*arguments, **named):
        kept.append(make(*arguments, **named))
        return kept[-1]

    return made


def test_panels_of_short_and_long_texts_begin_at_one_height(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("experiments.translate.pictures.new_figure", keeping(new_figure, figures))
    texts = [Alignment("ab" * n, "ab" * n, np.zeros((2 * n, 2 * n))) for n in (1, 4)]
    draw_alignments(texts, tmp_path / "alignment.png")
    short, long, _ = (axes.get_position() for axes in figures[0].axes)
    assert short.y1 == pytest.approx(long.y1)
    assert short.y0 > long.y0


def test_long_words_are_written_within_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("experiments.translate.pictures.new_figure", keeping(new_figure, figures))
    tokens = ["Donaudampfschifffahrts", "a" * 300, "."]
    draw_alignments([Alignment(tokens, tokens, np.zeros((3, 3)))] * 3, tmp_path / "alignment.png")
    (figure,) = figures
    width, height = figure.get_size_inches() * figure.dpi
    for axes in figure.axes[:3]:
        for axis in (axes.xaxis, axes.yaxis):
            for text in (axis.label, *axis.get_ticklabels()):
                box = text.get_window_extent()
                assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0


def test_a_letter_without_a_font_brings_no_warning(tmp_path):
    sign = ["\U00010900"]
    draw_alignments([Alignment(sign, sign, np.zeros((1, 1)))], tmp_path / "alignment.png")


def test_bleu_is_that_of_sacrebleu():
    written = ["a b c d e", "a man in a red hat is sitting"]
    references = ["a b c d f", "a man with a red hat is sitting down"]
    split = [[text.split() for text in side] for side in (written, references)]
    # What sacrebleu 2.6.0 gives with tokenize="none" and smooth_method="none".
    np.testing.assert_allclose(bleu(split[0][:1], split[1][:1]), 66.87403049764218, rtol=1e-12)
    np.testing.assert_allclose(bleu(*split), 57.28844948871733, rtol=1e-12)
    assert bleu([["a"]], [["b"]]) == 0.0
    assert exact(split[0], [split[0][0], split[1][1]]) == 0.5


def test_sacrebleu_tells_how_it_counted():
    pytest.importorskip("sacrebleu")
    score, signature = sacrebleu(["A man sleeps."], ["a man sleeps."])
    assert score == pytest.approx(100)
    assert "case:lc" in signature
    score, signature = sacrebleu(["A man sleeps."], ["a man sleeps."], keep_case=True)
    assert score < 100
    assert "case:mixed" in signature


def test_attention_is_held_against_the_symbol_that_is_written():
    forwards = np.eye(3)[[0, 1, 2, 2]]
    assert on_diagonal([forwards], "copy") == 1.0
    assert on_diagonal([forwards], "reverse") == pytest.approx(1 / 3)
    assert on_diagonal([np.eye(3)[[2, 1, 0, 0]]], "reverse") == 1.0


BAD = {
    "two wishes at once": (["--task", "copy", "--pair", "de-en"], "--pair"),
    "no epochs": (["--epochs", "0"], "--epochs"),
    "an odd size": (["--hidden-size", "7"], "--hidden-size must be even"),
    "two layers inside": (["--layers", "2"], "--layers must be 1"),
    "a tied head of another width": (
        ["--tie"],
        "--head-size must be --embedding-size, 32, with --tie, got None",
    ),
    "no such file": (["--pair", "nowhere.tsv"], "nowhere.tsv"),
    "no pair": (["--pair", "german"], "--pair must be two languages, as de-en, or the path"),
    "digits of no sum": (
        ["--digits", "2"],
        "--digits must be given with --task add, as nothing reads it otherwise, got",
    ),
    "a score without attention": (
        ["--attention", "none", "--score", "general"],
        "--score must be given with attention",
    ),
    "examples of a file": (["--pair", "a.tsv", "--examples", "9"], "given with a generated task"),
    "case of symbols": (["--keep-case"], "--keep-case must be given with --pair"),
    "targets of nothing": (["--targets", "a.en"], "--targets must be given with a file as --pair"),
    "targets of a named set": (["--pair", "de-en", "--targets", "a.en"], "got de-en as --pair"),
    "no such language": (["--pair", "de-xx"], "'xx'"),
    "shortest longer than longest": (["--shortest", "30"], "--shortest"),
    "more sums than there are": (
        ["--task", "add", "--digits", "1", "--examples", "50"],
        "must be different sequences, got 50 where only 100 were found",
    ),
    "more than all of its own tokens": (["--own-tokens", "1.5"], "--own-tokens must be"),
    "nothing short enough": (["--max-length", "3"], "--max-length"),
    "resumed and replaced": (["--resume", "--replace"], "--replace"),
}


def test_with_all_of_its_own_tokens_the_loss_is_that_of_scheduled_sampling_alone():
    model = build_model(Settings(hidden_size=8, embedding_size=4), 7, 8)
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    sources, targets = np.array([[4, 5, 6], [4, 6, 0]]), np.array([[4, 5, 3], [6, 3, 0]])
    lengths = np.array([3, 2])
    batch = PairBatch(sources, lengths, targets, lengths, np.ones(2, np.float32))
    _, metrics = make_loss(model, 1.0)(params, batch, key)
    logits, _ = rnnjax.scheduled_sampling(
        model, params, sources, batch.source_lengths, targets, batch.target_lengths,
        rate=1.0, key=key,
    )  # fmt: skip
    logits = np.asarray(logits, np.float64)
    taken = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nats = np.log(np.exp(logits).sum(-1)) - taken
    real = np.arange(3) < batch.target_lengths[:, None]
    np.testing.assert_allclose(float(metrics["loss"].value), nats[real].mean(), rtol=1e-5)
    taught, _ = make_loss(model, 1.0)(params, batch, None)
    assert float(taught) == pytest.approx(float(make_loss(model)(params, batch, None)[0]))


def test_a_run_of_another_program_is_said_to_be_one_in_a_line(tmp_path, capsys):
    settings = {"direction": "both", "dataset": None, "sentences": 5, "cell": "gru"}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    for arguments in (("translate", tmp_path, "a b"), ("--out", tmp_path, "--resume")):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert "must hold a run of this program and version" in error
        assert "with the settings direction, dataset, sentences and without task, pair" in error
        assert error.count("\n") == 1


def test_a_file_whose_words_are_all_rare_is_refused(pairs, tmp_path, capsys):
    assert run("--pair", pairs, "--min-count", "100", "--out", tmp_path / "run") == 2
    assert "--min-count must leave words to learn, got 100" in capsys.readouterr().err


@pytest.mark.parametrize("case", BAD)
def test_wrong_settings_are_one_line_and_leave_nothing(case, tmp_path, capsys):
    wrong, expected = BAD[case]
    folder = tmp_path / "run"
    assert run("--out", folder, *wrong) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not folder.exists()


def check_many(folder, monkeypatch, capsys):
    """Many sentences come as arguments, as lines, and as a list, and go out in their order."""
    sentences = ["zwei Hunde.", " ", "ein Mann.", "drei Kinder!"]
    translator = Translator(folder)
    found = translator(sentences, beam=2)
    assert [len(texts) for texts in found] == [2, 0, 2, 2]
    assert found[2] == translator(sentences[2:3], beam=2)[0]
    best = [texts[0] if texts else "" for texts in found]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(sentences)))
    for arguments in (sentences, []):
        assert run("translate", folder, *arguments, "--beam", "2") == 0
        said = capsys.readouterr()
        assert said.out.split("\n")[:-1] == best
        assert "not in the training sentences: hunde, kinder, !" in said.err
    assert run("translate", folder, *sentences, "--picture", folder / "a.png") == 2
    assert "--picture must be of one sentence, got it with 4" in capsys.readouterr().err
    assert run("translate", folder) == 2
    assert "sentences must come as arguments or on standard input" in capsys.readouterr().err
    folder.rename("runs/pairs")
    lines = []
    for block in EXAMPLE.findall(README.read_text("utf-8")):
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
        lines.append(capsys.readouterr().out.splitlines())
    assert list(map(len, lines)) == [2, 1]
    Path("runs/pairs").rename(folder)


def test_what_is_proposed_to_translate_fits_into_a_line():
    sources = ["-short", "word " * 40, "word " * 30]
    corpus = SimpleNamespace(test_pairs=Pairs(sources, sources))
    assert command._example(corpus) == " ".join(["word"] * 12)


@pytest.mark.full
def test_pairs_of_ones_own_are_learned_from_and_translated(pairs, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "my run"
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert run("--pair", pairs, "--out", folder, *QUICK, "--beam", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("BLEU on tokens" in line for line in lines)
    samples = [line for line in lines if " -> " in line]
    assert samples
    assert max(map(len, samples)) <= 80
    printed = shlex.split(lines[lines.index("try:") + 1])
    assert printed[:5] == [*PROGRAM.split(), "translate", str(folder)]
    assert run(*printed[3:]) == 0
    capsys.readouterr()
    for name in ("weights.safetensors", "curves.png", "samples.txt", "alignment.png"):
        assert (folder / name).stat().st_size
    test = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert test["kind"] == "translations"
    assert 0 <= test["exact"] <= 1

    assert run("translate", folder, "zwei Hunde .", "--beam", "3") == 0
    said = capsys.readouterr()
    assert "not in the training sentences: hunde" in said.err
    assert len(said.out.splitlines()) == 3
    assert all(said.out.splitlines())  # "(empty)" is what is said of a text without words
    assert (folder / "alignment-of-a-sentence.png").stat().st_size
    assert run("export", folder) == 0
    assert (folder / "exported" / "step.jax").stat().st_size
    assert run("translate", folder, " ") == 2
    assert "at least one token" in capsys.readouterr().err
    check_many(folder, monkeypatch, capsys)
    vocabulary = Vocabulary.fit([["a", "b"]], min_count=1)
    vocabulary.save(folder / "source_vocabulary.json")
    assert run("translate", folder, "zwei") == 2
    error = capsys.readouterr().err
    assert "must be of one run with the other files in its folder, got:\n  source.vectors" in error


def test_pairs_too_long_to_learn_from_are_not_tested_on_either(tmp_path):
    path = tmp_path / "pairs.tsv"
    rows = [f"s{n}\tt{n}\n" for n in range(30)] + [f"{n} {'x ' * 2000}\ty\n" for n in range(30)]
    path.write_text("".join(rows) + "a\t\u200b!\n")
    corpus = read_corpus(Settings(pair=str(path), max_length=9, min_count=1))
    parts = (corpus.train, corpus.validation, corpus.test)
    assert max(len(ids) for part in parts for side in part for ids in side) <= 9
    assert sum(len(part.sources) for part in parts) == 31
    assert len(corpus.test_pairs.targets) == len(corpus.test.targets)
    counts = re.search(r"(\d+) pairs to train, (\d+) to validate, (\d+) to test", corpus.note)
    assert sum(map(int, counts.groups())) == 30


def test_bytes_that_are_no_text_are_refused_before_a_run_is_read(capsys):
    with pytest.raises(SystemExit) as end:
        run("translate", "no run", "a", "caf\udce9")
    assert end.value.code == 2
    assert capsys.readouterr().err == r"error: sentences must be UTF-8 text, got 'caf\udce9'" + "\n"


@pytest.mark.full
@pytest.mark.parametrize("attention", ["none", "outside", "feeding"])
def test_every_kind_of_attention_runs(attention, pairs, tmp_path):
    folder = tmp_path / "run"
    more = ["--attention", attention, "--own-tokens", "0.5" if attention == "outside" else "0"]
    assert run("--pair", pairs, "--out", folder, *QUICK, *more) == 0
    assert (folder / "alignment.png").exists() == (attention != "none")
    assert run("translate", folder, "ein Mann.") == 0


@pytest.mark.full
def test_a_run_that_was_stopped_comes_to_the_same_bytes(pairs, tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["--pair", pairs, *QUICK, "--dropout", "0.2"]
    assert run(*arguments, "--out", whole) == 0
    with stopped_after(2):
        assert run(*arguments, "--out", stopped, "--resume") == 143
    printed = capsys.readouterr().out
    assert f"{stopped}: nothing to resume yet, beginning at the first step" in printed
    assert "stopped by SIGTERM; go on with:\n" in printed
    assert run("--out", stopped, "--resume") == 0
    for name in ("metrics.jsonl", "weights.safetensors", "samples.txt"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()

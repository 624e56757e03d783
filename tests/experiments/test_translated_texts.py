"""The program that translates: how it searches, what it never writes, and its figures."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running.words import START, STOP
from experiments.translate import command
from experiments.translate.corpus import read_corpus
from experiments.translate.decoding import translate
from experiments.translate.model import build_model
from experiments.translate.settings import Request, Settings
from experiments.translate.translator import Translator
from rnnjax.data import PADDING, UNKNOWN

pytestmark = pytest.mark.usefixtures("quick_compile")

SIZES = {"hidden_size": 4, "embedding_size": 3, "attention": "none", "max_length": 6}
MODEL = build_model(Settings(**SIZES), 7, 6)
SOURCES = [[4, 5], [5, 6, 4]]


def params_of(**biases):
    """Weights of which the biases of the logits alone count: the same law at every step."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    ids = {"padding": PADDING, "unknown": UNKNOWN, "start": START, "stop": STOP, "a": 4, "b": 5}
    bias = jnp.array([biases.get(name, 0.0) for name in ids])
    output = params.head.output._replace(bias=bias)
    return params._replace(head=params.head._replace(output=output))


def test_padding_the_unknown_word_and_the_start_are_never_written():
    params = params_of(padding=30.0, unknown=31.0, start=32.0, a=1.0)
    found = translate(MODEL, params, SOURCES, beam=4, max_length=6, length_penalty=3.0)
    assert [len(texts) for texts in found] == [4, 4]
    assert all(set(ids) <= {4, 5} for texts in found for ids in texts)


def test_a_penalty_of_length_lets_longer_texts_win():
    """Of "a" at probability p and the stop at q, n times "a" and the stop have n log p + log q,
    which falls with n; divided by ((5 + n + 1) / 6) ** penalty it rises."""
    params = params_of(padding=-99, unknown=-99, start=-99, a=2.0, stop=1.0, b=-99)

    def best(penalty):
        found = translate(MODEL, params, SOURCES, beam=4, max_length=6, length_penalty=penalty)
        return [texts[0] for texts in found]

    p, q = np.log([np.e**2, np.e]) - np.log(np.e**2 + np.e)
    for penalty in (0.0, 3.0):
        # A text of the greatest length needs no stop.
        texts = {**{n: n * p + q for n in range(6)}, 6: 6 * p}
        tokens = {n: n + 1 for n in range(6)} | {6: 6}
        scores = {n: texts[n] / ((5 + tokens[n]) / 6) ** penalty for n in texts}
        expected = max(scores, key=scores.get)
        assert best(penalty) == [[4] * expected] * 2, penalty
    assert best(0.0) != best(3.0)


def test_a_text_without_an_end_was_cut():
    endless = params_of(padding=-99, unknown=-99, start=-99, stop=-99, a=1.0)
    (found, _) = translate(MODEL, endless, SOURCES, beam=1, max_length=6)
    translator = SimpleNamespace(settings=Settings(**SIZES))
    assert len(found[0]) == 6
    assert Translator.was_cut(translator, found[0])
    assert not Translator.was_cut(translator, found[0][1:])


@pytest.mark.parametrize("sentences", [("a b",), ("a b", "b")])
def test_a_request_is_searched_as_it_says(sentences, monkeypatch, capsys, tmp_path):
    asked = []

    class Asked:
        settings = Settings(**SIZES)

        def __init__(self, folder):
            assert folder == tmp_path

        def ids(self, texts, **options):
            asked.append(options)
            return [[[4]] for _ in texts]

        def tokens(self, text):
            return text.split()

        def unknown(self, text):
            return []

        def text(self, ids):
            return "".join(map(str, ids))

        def was_cut(self, ids):
            return True

    monkeypatch.setattr(command, "Translator", Asked)
    command.translate_texts(Request(tmp_path, sentences, beam=3, length_penalty=0.2))
    said = capsys.readouterr()
    assert asked == [{"beam": 3, "length_penalty": 0.2}]
    assert said.out == "4\n" * len(sentences)
    assert f"{len(sentences)} of {len(sentences)} translation" in " ".join(said.err.split())


def judged(settings, wrong, monkeypatch, tmp_path):
    """The figures of a test of which all but the first texts are translated as they should be,
    and how wide the search was."""
    corpus, searches = read_corpus(settings), []

    def search(model, params, sources, *, beam, max_length):
        searches.append((beam, max_length))
        texts = [ids[:-1] for ids in corpus.test.targets]
        return [[[4]] * 2] * wrong + [[text, [4]] for text in texts[wrong:]]

    monkeypatch.setattr(command, "translate", search)
    figures = command._test(None, None, corpus, settings, tmp_path)
    return corpus, figures, searches


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "own.tsv"
    names = [f"{one} {other}" for one in ("Eva", "Ida", "Udo") for other in ("Ott", "Abt", "Ast")]
    path.write_text("".join(f"{n} geht weg\t{n} goes away now.\n" for n in names * 4))
    return path


@pytest.mark.parametrize("keep_case", [False, True])
def test_the_figures_are_of_the_best_translations_of_the_test(
    keep_case, pairs, monkeypatch, tmp_path
):
    cases = []

    def sacrebleu(written, references, *, keep_case):
        cases.append((len(written), keep_case))
        return 12.5, "counted"

    monkeypatch.setattr(command, "sacrebleu", sacrebleu)
    monkeypatch.setattr(command, "takes_part", lambda *_: True)
    settings = Settings(
        pair=str(pairs), min_count=1, beam=3, attention="none", max_length=9, keep_case=keep_case
    )
    corpus, figures, searches = judged(settings, 1, monkeypatch, tmp_path)
    count = len(corpus.test.sources)
    assert searches == [(3, 9)]
    assert cases == [(count, keep_case)]
    assert figures["exact"] == (count - 1) / count
    assert count > 1
    assert 0 < figures["bleu"] < 100
    assert (figures["sacrebleu"], figures["signature"]) == (12.5, "counted")


def test_the_share_of_exact_ones_is_that_of_the_texts_that_are_right(monkeypatch, tmp_path):
    settings = Settings(task="copy", examples=200, beam=2, attention="none")
    _, figures, searches = judged(settings, 250, monkeypatch, tmp_path)
    assert figures == {"exact": 0.75}  # 750 of 1,000
    assert searches == [(2, 50)]

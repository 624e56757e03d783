"""Pairs of sentences: read line for line, divided, batched with both sides ragged."""

import gzip
import os
import pickle
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnjax.data import DataError, PairBatches, choose_pair_boundaries, load_pairs, read_pairs
from rnnjax.data.pairs import divided

DATA = Path(os.environ.get("RNNJAX_DATA", "none"))

LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=20)


# Reading


def test_two_files_and_a_table_are_the_same_pairs(tmp_path):
    sources, targets = ["ein Mann .", 'zwei "Hunde"', "drei"], ["a man .", 'two "dogs"', "three"]
    (tmp_path / "a.de").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(sources).encode() + b"\r\n")
    (tmp_path / "a.en.gz").write_bytes(gzip.compress("\n".join(targets).encode()))
    rows = [f"{s}\t{t}\tby somebody" for s, t in zip(sources, targets, strict=True)]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n\n")
    both = read_pairs(tmp_path / "a.de", tmp_path / "a.en.gz")
    assert both == read_pairs(tmp_path / "a.tsv") == (sources, targets)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\n", "c\n", r"b\.en must have as many lines as in .*a\.de \(2\), got 1"),
        ("a\n\nb\n", "c\nd\ne\n", r"a\.de must have a sentence on every line, got line 2: nothing"),
        ("a\nb\n", "c\n  \n", r"b\.en must have a sentence on every line, got line 2: nothing"),
        ("", "", r"a\.de must have sentences, got an empty file"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, source, target, message):
    (tmp_path / "a.de").write_text(source)
    (tmp_path / "b.en").write_text(target)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "a.de", tmp_path / "b.en")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"a\tb\nc\n", "two sentences a line with a tab between, got line 2: no tab"),
        ("a.tsv", b"a\t\n", "two sentences a line with a tab between, got line 1: nothing behind"),
        ("a.tsv", b" \tb\n", "between, got line 1: nothing before the tab"),
        ("a.tsv", b"", "must have pairs, got an empty file"),
        ("a.tsv", b"a\tcaf\xe9\n", "must have UTF-8 text, got line 1: byte 0xe9 at column 6"),
        (
            "a.txt",
            "a\tb\n".encode("utf-16"),
            r"UTF-8 text \(this has a mark of UTF-16\), got line 1",
        ),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} .*{message}"):
        read_pairs(tmp_path / name)


def test_pairs_of_ones_own_are_divided_by_the_seed(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("".join(f"s{n}\tt{n}\n" for n in range(40)))
    parts = load_pairs(str(path), seed=1)
    divided = [parts.train, parts.validation, parts.test]
    assert [len(part.sources) for part in divided] == [32, 4, 4]
    pairs = [pair for part in divided for pair in zip(*part, strict=True)]
    assert sorted(pairs) == sorted((f"s{n}", f"t{n}") for n in range(40))
    assert load_pairs(str(path), seed=2).test != parts.test == load_pairs(str(path), seed=1).test
    with pytest.raises(DataError, match="must be a file or multi30k, got 'multi30'"):
        load_pairs("multi30")


def test_no_sentence_that_is_tested_was_learned_with_another_target(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("".join(f"s{n % 20}\tt{n}\n" for n in range(60)))
    parts = load_pairs(str(path), seed=1)
    sides = [set(part.sources) for part in (parts.train, parts.validation, parts.test)]
    assert [len(side) for side in sides] == [16, 2, 2]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert len(parts.test.sources) == 6
    path.write_text("yes\tja\n" * 30)
    with pytest.raises(DataError, match="at least 3 different sources to divide, got 1"):
        load_pairs(str(path))


def test_multi30k_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match=r"multi30k needs local files\. Put train, val"):
        load_pairs("multi30k", data_dir=tmp_path)
    with pytest.raises(DataError, match="target must be one of de, en, fr, got 'it'"):
        load_pairs("multi30k", target="it")
    with pytest.raises(DataError, match="target must be another language than source"):
        load_pairs("multi30k", target="de")


def test_arguments_that_would_change_nothing_are_refused(tmp_path):
    (tmp_path / "own.tsv").write_text("a\tb\n" * 3)
    for name, useless in (
        (tmp_path / "own.tsv", {"source": "fr"}),
        (tmp_path / "own.tsv", {"target": "en"}),
        ("multi30k", {"target_path": "own.en"}),
    ):
        with pytest.raises(DataError, match=f"{next(iter(useless))} must be left out for .*, got "):
            load_pairs(name, **useless)


def test_the_seed_of_a_division_is_a_whole_number(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("".join(f"s{n}\tt{n}\n" for n in range(9)))
    for seed in (None, -1, 0.5):
        with pytest.raises(DataError, match=f"seed must be .*, got {seed}"):
            load_pairs(path, seed=seed)


@pytest.mark.skipif(not (DATA / "multi30k").is_dir(), reason="needs multi30k in RNNJAX_DATA")
def test_multi30k_has_the_published_counts():
    parts = load_pairs("multi30k", source="en", target="fr")
    counts = [len(part.sources) for part in (parts.train, parts.validation, parts.test)]
    assert counts == [29_000, 1_014, 1_000]


# Boundaries


def padded_steps(lengths, boundaries):
    return sum(sum(next(b for b in boundaries if b[0] >= s and b[1] >= t)) for s, t in lengths)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4))
def test_pair_boundaries_rise_hold_all_and_are_the_best_cuts_of_their_order(
    lengths, count, multiple
):
    sources, targets = np.array(lengths).T
    found = choose_pair_boundaries(sources, targets, count, multiple)
    assert 1 <= len(found) <= count
    assert list(found) == sorted(found)
    assert [b[1] for b in found] == sorted(b[1] for b in found)
    assert all(side % multiple == 0 for pair in found for side in pair)
    assert found[-1] == tuple(-(-side.max() // multiple) * multiple for side in (sources, targets))
    # All ways to cut the order by the longer side in terms of its mean.
    key = np.maximum(sources / sources.mean(), targets / targets.mean())
    order = np.argsort(key, kind="stable")
    reached = [
        tuple(
            int(-(-side[order[: n + 1]].max() // multiple) * multiple)
            for side in (sources, targets)
        )
        for n in range(len(order))
    ]

    def cost(cuts):
        ends = [0, *cuts, len(order)]
        return sum((b - a) * sum(reached[b - 1]) for a, b in pairwise(ends))

    best = min(
        cost(cuts)
        for size in range(min(count, len(order)))
        for cuts in combinations(range(1, len(order)), size)
    )
    assert padded_steps(lengths, found) <= best


@pytest.mark.parametrize(
    ("sources", "targets", "count", "message"),
    [
        ([1, 2], [1], 2, "target_lengths must be one for each of 2 sources, got 1"),
        ([], [], 2, "one pair or more"),
        ([0], [1], 2, "each at least 1"),
        ([1], [1], 0, "count must be at least 1, got 0"),
    ],
)
def test_lengths_that_are_none_are_refused(sources, targets, count, message):
    with pytest.raises(DataError, match=message):
        choose_pair_boundaries(sources, targets, count)


# Batches


@given(LENGTHS, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_every_pair_appears_once_with_both_sides_whole(lengths, batch_size, count, shuffle):
    sources = [[n + 1] * s for n, (s, _) in enumerate(lengths)]
    targets = [list(range(n + 1, n + 1 + t)) for n, (_, t) in enumerate(lengths)]
    boundaries = choose_pair_boundaries(*np.array(lengths).T, count, multiple=2)
    batches = PairBatches(
        sources, targets, batch_size=batch_size, boundaries=boundaries, seed=0, shuffle=shuffle
    )
    found, shapes, steps = [], set(), 0
    epoch = list(batches.epoch(1))
    for batch, rows in zip(epoch, batches.epoch_indices(1), strict=True):
        assert batch.weights.tolist() == [1] * len(rows) + [0] * (batch_size - len(rows))
        shapes.add((batch_size, batch.sources.shape[1], batch.targets.shape[1]))
        steps += batch.sources.size + batch.targets.size
        for j, row in enumerate(rows):
            s, t = batch.source_lengths[j], batch.target_lengths[j]
            assert batch.sources[j, :s].tolist() == sources[row]
            assert batch.targets[j, :t].tolist() == targets[row]
            assert not batch.sources[j, s:].any()
            assert not batch.targets[j, t:].any()
            found.append(int(row))
        for field in batch:
            assert not field[len(rows) :].any()
    assert sorted(found) == list(range(len(lengths)))
    assert set(batches.shapes) == shapes
    assert len(batches) == len(epoch)
    real = sum(s + t for s, t in lengths)
    assert batches.padding_fraction == pytest.approx(1 - real / steps)
    assert repr(pickle.loads(pickle.dumps(batches))) == repr(batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": [[1]]}, "targets must be one for each of 2 sources, got 1"),
        ({"sources": [[1], []]}, "source 1 must have at least 1 step, got 0"),
        ({"targets": [[1] * 5, [1]]}, "target 0 must have at most 4 steps, got 5"),
        ({"targets": [[1], [9]]}, r"target 1 must have ids in \[0, 9\), got 9"),
        ({"boundaries": ((2, 4), (1, 5))}, "boundaries must be rising pairs"),
        ({"boundaries": (2, 4)}, "boundaries must be rising pairs"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_the_first_pair_that_does_not_fit_is_named(changes, message):
    arguments = {
        "sources": [[1, 2], [3]],
        "targets": [[1], [2, 3, 4]],
        "batch_size": 2,
        "boundaries": ((3, 4),),
        "seed": 0,
        "source_vocab_size": 9,
        "target_vocab_size": 9,
    }
    with pytest.raises(DataError, match=message):
        PairBatches(**(arguments | changes))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_few_sentences_still_have_three_parts(count):
    parts = divided([str(i) for i in range(count)], 0)
    assert all(parts)
    assert sorted(i for part in parts for i in part) == list(range(count))

"""The tables of features: the evidence of every word holds."""

import os
import sys

import jax
import pytest

from experiments.features import command, recurrent, surroundings
from experiments.features.claims import OURS, PEERS, Feature, claim_of, no, verdict, yes

TABLE = command.table()


@pytest.mark.parametrize("feature", TABLE, ids=lambda feature: feature.name)
def test_what_is_said_of_rnnjax_holds(feature):
    assert verdict(feature, OURS) in ("yes", "part", "no")


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_said_of_a_peer_holds(peer):
    pytest.importorskip(peer)
    with jax.numpy_rank_promotion("allow"):
        words = {verdict(feature, peer) for feature in TABLE}
    assert {"yes", "no"} <= words <= {"yes", "part", "no"}


def test_a_page_is_an_address_and_all_else_is_run():
    for feature in TABLE:
        assert len(feature.peers) == len(PEERS)
        for library in (OURS, *PEERS):
            evidence = claim_of(feature, library).evidence
            assert callable(evidence) or evidence.startswith("https://"), feature.name


def test_a_reader_that_is_gone_ends_the_tables_without_a_traceback(monkeypatch):
    monkeypatch.setattr(command, "takes_part", lambda *_: False)
    monkeypatch.setattr(command, "lines", lambda *_: ["x" * 100_000])
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert command.main([]) == 128 + 13


def test_what_a_library_has_learned_or_dropped_fails_the_run():
    learned = Feature("lengths", yes(lambda: True), (no(lambda: False),) * 6)
    with pytest.raises(AssertionError, match=r"flax\.nnx has it now: lengths"):
        verdict(learned, "flax.nnx")
    dropped = Feature("lengths", yes(lambda: False), (no(lambda: True),) * 6)
    with pytest.raises(AssertionError, match="rnnjax has it no longer: lengths"):
        verdict(dropped, OURS)


def test_the_tables_ask_for_what_rnnjax_lacks_too(capsys):
    words = {verdict(feature, OURS) for feature in recurrent.table()}
    assert words == {"yes"}
    missing = [f.name for f in surroundings.table() if verdict(f, OURS) != "yes"]
    assert len(missing) > 10
    rows = command.lines(surroundings.table(), [OURS])
    assert len(rows) == len(surroundings.table()) + 2
    found = list(command.sources(TABLE, [OURS, *PEERS]))
    assert all(line.split(", ")[-1].startswith("https://") for line in found)

"""The table of features: every "yes" of rnnjax runs, every "no" of a peer is shown."""

import jax
import pytest

from experiments import features


@pytest.mark.parametrize("feature", features.table(), ids=lambda feature: feature.name)
def test_rnnjax_has_it(feature):
    assert feature.ours()


@pytest.mark.parametrize("peer", features.PEERS)
def test_a_peer_lacks_what_it_is_said_to_lack(peer):
    pytest.importorskip(peer)
    with jax.numpy_rank_promotion("allow"):
        words = {features.verdict(feature, peer) for feature in features.table()}
    assert words <= {"yes", "part", "no"}


def test_a_peer_that_has_learned_a_feature_fails_the_run():
    feature = features.Feature("lengths", lambda: True, (features.at_call("seq_lengths")[0],) * 6)
    pytest.importorskip("flax")
    with pytest.raises(AssertionError, match=r"flax\.nnx has it now: lengths"):
        features.verdict(feature, "flax.nnx")

"""Agents that must remember, beside those of another library: the same tasks, the same settings."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measurements import ppo_peer
from experiments.recurrent_ppo.environments import find_task

QUICK = ["--updates", "10", "--environments", "4", "--steps", "8", "--hidden-size", "4"]


@pytest.fixture
def no_jax(monkeypatch):
    """Our own agents are taught in test_recurrent_ppo; here they have learnt already."""
    told = []

    def learnt(settings, cell):
        told.append(settings.agent(cell))
        return ppo_peer.Measured([1.0, 0.5], 2.0)

    monkeypatch.setattr(ppo_peer, "_ours", learnt)
    return told


def test_the_chain_rewards_naming_its_first_symbol():
    rng, game = np.random.default_rng(0), ppo_peer.Chain()
    lengths = set()
    for number in range(60):
        first, done, length = game.begin(rng), False, 0
        right = number % 2 == 0
        while not done:
            action = int(first[0] > 0) if right else int(first[0] < 0)
            seen, reward, done = game.step(rng, action)
            length += 1
            assert seen.dtype == np.float32
            assert abs(seen[0]) == 1
            assert reward == ((1.0 if right else -1.0) if done else 0.0)
        lengths.add(length)
    assert lengths == {2, 3, 4, 5, 6}  # as experiments.recurrent_ppo.chain has them


@pytest.mark.full
def test_the_memory_chain_is_that_of_gymnax():
    pytest.importorskip("gymnax")
    game, rng = ppo_peer.MemoryChain(), np.random.default_rng(0)
    with jax.numpy_rank_promotion("allow"):
        task = find_task("MemoryChain-bsuite")
        step = jax.jit(task.step)
        for seed in range(4):
            observation, state = task.reset(jax.random.key(seed))
            while not np.array_equal(begun := game.begin(rng), observation):
                assert begun[2] == -observation[2]
            done, count = False, 0
            while not done:
                action = seed % 2
                found = step(jax.random.key(count), state, jnp.array(action))
                seen, reward, done = game.step(rng, action)
                np.testing.assert_allclose(seen, found.final, atol=1e-6)
                assert (reward, done) == (float(found.reward), bool(found.terminated))
                state, count = found.state, count + 1
            assert count == 6


def test_what_is_not_installed_is_left_out_and_named(no_jax, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    assert ppo_peer.main(QUICK) == 0
    out = capsys.readouterr().out
    assert "sb3-contrib is left out: the package sb3_contrib is not installed" in out
    assert out.count("0.750 (0.500 to 1.000)") == 2
    assert [agent.cell for agent in no_jax] == ["gru", "lstm"]
    assert {agent.report_every for agent in no_jax} == {1}  # a tenth of the updates


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--updates", "15"], "--updates must be a whole number of times 10, got 15"),
        (["--environments", "3"], "--environments must be a whole number from 4 up, got 3"),
        (["--seeds", "0"], "--seeds must be a whole number from 1 to 1,000, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message, no_jax, capsys):
    assert ppo_peer.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not no_jax


def test_both_are_told_the_same():
    told = ppo_peer.same_settings(ppo_peer.Settings())
    rate = told.pop("learning_rate")
    assert [rate(left) for left in (1.0, 0.5, 0.0)] == [2e-3, 1e-3, 0.0]
    assert told == {
        "n_steps": 32, "batch_size": 8 * 32, "n_epochs": 4, "gamma": 0.99, "gae_lambda": 0.95,
        "clip_range": 0.2, "ent_coef": 0.01, "vf_coef": 0.25, "max_grad_norm": 0.5,
    }  # fmt: skip


@pytest.mark.full
def test_the_other_library_plays_as_many_steps(no_jax, monkeypatch, capsys):
    pytest.importorskip("sb3_contrib")
    taken, step = [], ppo_peer.Chain.step
    monkeypatch.setattr(ppo_peer.Chain, "step", lambda *a: taken.append(1) or step(*a))
    assert ppo_peer.main(["--environment", "chain", "--seeds", "1", *QUICK]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.partition(", LSTM 4, ")[2][:8] for row in rows[2:]] == ["the same", "its own "]
    # Ten rollouts of 4 * 8 steps; of its own, whose rollouts are 4 * 128, one.
    assert len(taken) == 320 + 512
    for row in rows[2:]:
        assert -1 <= float(row.split()[-2]) <= 1

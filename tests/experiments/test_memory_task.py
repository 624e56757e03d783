"""The memory task: an environment without a hint, and resets that decide whether it is solved."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnjax
from experiments.memory_task import Settings, act, begin, first_actor, main, make_rollout, train
from rnnjax.segments import resets_from_dones

SMALL = Settings(
    symbols=3, longest=4, environments=32, steps=8, hidden_size=8, learning_rate=1e-2, updates=150
)


@pytest.mark.full
def test_right_resets_solve_the_task_and_wrong_ones_do_not(tmp_path):
    recall = {
        name: train(dataclasses.replace(SMALL, resets=name), tmp_path / name)
        for name in ("right", "late", "none")
    }
    assert recall["right"] > 0.98
    assert abs(recall["late"] - 1 / 3) < 0.05  # guessing: the symbol is wiped with the rest
    assert recall["none"] < 0.7
    records = [
        json.loads(line) for line in (tmp_path / "right" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["update"] for record in records] == list(range(15, 151, 15))
    assert records[-1]["recall"] == pytest.approx(recall["right"])


def test_the_reward_is_for_naming_the_first_symbol_at_the_last_step():
    """Against books kept here, one environment at a time."""
    chosen = dataclasses.replace(SMALL, environments=6)
    world = begin(chosen, jax.random.key(0))
    first, length, lengths = np.array(world.symbol), np.zeros(6, int), []
    advance = jax.jit(lambda world, action, key: act(chosen, world, action, key))
    for t in range(60):
        action = np.where(np.arange(6) < 3, first, (first + 1) % 3)
        length += 1
        world, reward, done = advance(world, action, jax.random.key(t + 1))
        np.testing.assert_array_equal(reward, np.asarray(done) & (np.arange(6) < 3))
        for b in np.flatnonzero(done):
            lengths.append(length[b])
            first[b], length[b] = world.symbol[b], 0
    assert set(lengths) == {2, 3, 4}


def test_what_is_trained_on_is_what_the_agent_went_through():
    """The carry after each of two rollouts is that of the training pass over it."""
    agent = rnnjax.output_head(rnnjax.gru(8), 3)
    params = agent.init(jax.random.key(0), 3)
    actor = first_actor(SMALL, agent, params, jax.random.key(1))
    rollout = make_rollout(SMALL, agent)
    for t in range(2):
        previous = actor
        actor, steps = rollout(params, actor, jax.random.key(2 + t))
        resets = resets_from_dones(steps.dones, previous.recent)
        carry, _ = agent.apply(
            params, steps.observations, resets=resets, initial_carry=previous.carry
        )
        np.testing.assert_allclose(carry, actor.carry, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(actor.recent, steps.dones[:, -2:])
        assert jnp.any(resets[:, 0]) == (t == 1)


@pytest.mark.full
def test_from_the_command_line(tmp_path, capsys):
    arguments = ["--updates", "10", "--environments", "4", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert "resets right: recall 0." in capsys.readouterr().out
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["--steps", "7"]) == 2
    assert "--steps must be at least --longest, 8" in capsys.readouterr().err
    assert main(["--symbols", "1"]) == 2
    assert "--symbols must be a whole number from 2 to 10,000, got 1" in capsys.readouterr().err

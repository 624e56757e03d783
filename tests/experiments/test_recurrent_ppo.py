"""The program that teaches an agent with a memory: what is learnt from is what was acted."""

import dataclasses
import functools
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import stopped_after

import rnnjax
from experiments.recurrent_ppo import command
from experiments.recurrent_ppo.acting import act, first_actor
from experiments.recurrent_ppo.agent import build_agent, make_agent
from experiments.recurrent_ppo.chain import Chain
from experiments.recurrent_ppo.environments import adapt, find_task
from experiments.recurrent_ppo.learning import (
    advantages_of,
    clipped_objective,
    first_learner,
    loss_of,
    make_batch,
    make_updates,
    split_rows,
)
from experiments.recurrent_ppo.settings import Settings
from rnnjax.data import DataError

SMALL = Settings(
    environments=5, steps=9, minibatches=3, epochs=1, hidden_size=4, updates=2, report_every=1
)
MEMORIES = {
    "gru": rnnjax.recurrent(rnnjax.gru(4)),
    "lstm": rnnjax.recurrent(rnnjax.lstm(4)),
    "stack": rnnjax.stack(rnnjax.gru(4), rnnjax.lstm(4)),
}


class Counting(Chain):
    """Counts its steps; ends by itself after 4, and is cut short after 3 with half the chance."""

    num_actions = 3

    def reset(self, key, params=None):
        return jnp.zeros(2), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params=None):
        count = state + 1
        last = jnp.stack([count, action]).astype(jnp.float32)
        terminated = count == 4
        truncated = (count == 3) & jax.random.bernoulli(key)
        observation, state = jax.tree.map(
            lambda a, b: jnp.where(terminated | truncated, a, b), self.reset(key), (last, count)
        )
        reward = action / 2 + count
        return observation, state, reward, terminated, truncated, {"final_observation": last}


@functools.cache
def two_rollouts(memory, mode="right"):
    """The agent, its weights, and the second of two rollouts: its episodes began in the first."""
    task = adapt("counting", Counting())
    agent = make_agent(MEMORIES[memory], 4, task.observation_size, task.num_actions)
    params = jax.jit(agent.init)(jax.random.key(0))
    params = params._replace(actor=params.actor._replace(w=params.actor.w * 100))

    actor = jax.jit(lambda key: first_actor(task, agent, params, key, 5))(jax.random.key(1))
    rollout = jax.jit(lambda actor, key: act(task, agent, mode, 9, params, actor, key))
    actor, _ = rollout(actor, jax.random.key(2))
    return agent, params, actor, rollout(actor, jax.random.key(3))[1]


def recomputed(agent, params, rollout, mode):
    resets = rollout.resets(mode)
    log_probs, values = jax.jit(agent.apply)(params, rollout.start, rollout.observations, resets)
    return np.take_along_axis(np.array(log_probs), rollout.actions[..., None], -1)[..., 0], values


SAMPLED = ["gru", *(pytest.param(name, marks=pytest.mark.full) for name in ("lstm", "stack"))]


@pytest.mark.parametrize("memory", SAMPLED)
def test_what_is_recomputed_of_a_rollout_is_what_was_acted(memory):
    agent, params, _, rollout = two_rollouts(memory)
    assert np.any(rollout.recent[:, -1])
    assert np.all(np.any(rollout.dones[:, 1:-1], axis=1))  # resets in the middle of every row
    log_probs, values = recomputed(agent, params, rollout, "right")
    np.testing.assert_allclose(log_probs, rollout.log_probs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values, rollout.values, rtol=1e-5, atol=1e-6)
    for wrong in ("late", "none"):
        log_probs, values = recomputed(agent, params, rollout, wrong)
        assert np.abs(log_probs - rollout.log_probs).max() > 1e-2
        assert np.abs(values - rollout.values).max() > 1e-2


@pytest.mark.full
@pytest.mark.parametrize("mode", ["right", "late"])
def test_the_value_of_what_came_next_is_that_of_the_next_step(mode):
    *_, rollout = two_rollouts("gru", mode)
    going_on = ~np.array(rollout.dones)[:, :-1]
    np.testing.assert_allclose(
        rollout.next_values[:, :-1][going_on], rollout.values[:, 1:][going_on], rtol=1e-5, atol=1e-6
    )


@pytest.mark.full
def test_acting_is_a_loop_that_begins_anew_after_every_done():
    """One row by hand, the value of the last observation of an episode cut short among it."""
    agent, params, actor, rollout = two_rollouts("lstm")
    dones, terminated = np.array(rollout.dones), np.array(rollout.terminated)
    both = np.any(dones & ~terminated, axis=1) & np.any(terminated, axis=1)
    assert np.any(both)
    row = int(np.argmax(both))
    fresh = agent.initial_carry(params, 1)
    carry, anew = jax.tree.map(lambda a: a[row][None], actor.carry), bool(actor.recent[row, -1])
    no, count = jnp.zeros(1, bool), int(actor.world[row])
    step = jax.jit(agent.step)
    for t in range(9):
        carry = fresh if anew else carry
        carry, (log_probs, value) = step(params, carry, rollout.observations[row, t][None], no)
        action = int(rollout.actions[row, t])
        np.testing.assert_allclose(log_probs[0, action], rollout.log_probs[row, t], rtol=1e-5)
        np.testing.assert_allclose(value[0], rollout.values[row, t], rtol=1e-5)
        count += 1
        last = jnp.array([[count, action]], jnp.float32)
        _, (_, following) = step(params, carry, last, no)
        np.testing.assert_allclose(following[0], rollout.next_values[row, t], rtol=1e-5)
        anew = bool(dones[row, t])
        count = 0 if anew else count


def test_advantages_are_those_of_a_loop_over_episodes():
    *_, rollout = two_rollouts("gru")
    arrays = {name: np.array(getattr(rollout, name), float) for name in rollout._fields[1:8]}
    assert np.any(arrays["dones"] > arrays["terminated"])
    expected = np.zeros((5, 9))
    for row in range(5):
        for t in range(9):
            weight = 1.0  # the sum of discounted errors up to the end of the episode
            for k in range(t, 9):
                worth = 0.0 if arrays["terminated"][row, k] else arrays["next_values"][row, k]
                error = arrays["rewards"][row, k] + 0.9 * worth - arrays["values"][row, k]
                expected[row, t] += weight * error
                weight *= 0.9 * 0.8
                if arrays["dones"][row, k]:
                    break
    np.testing.assert_allclose(
        jax.jit(advantages_of, static_argnums=(1, 2))(rollout, 0.9, 0.8),
        expected,
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_clipped_objective_counts_what_moved_too_far_only_where_that_was_worse():
    ratios, advantages = np.meshgrid([0.5, 0.79, 0.9, 1.1, 1.21, 2.0], [-2.0, -0.5, 0.5, 3.0])
    expected = np.where(
        advantages > 0, np.minimum(ratios, 1.2) * advantages, np.maximum(ratios, 0.8) * advantages
    )
    np.testing.assert_allclose(clipped_objective(ratios, advantages, 0.2), expected, rtol=1e-6)
    slope = jax.grad(lambda r: clipped_objective(r, jnp.array(advantages), 0.2).sum())(
        jnp.array(ratios)
    )
    held = np.where(advantages > 0, ratios > 1.2, ratios < 0.8)
    np.testing.assert_allclose(slope, np.where(held, 0.0, advantages), rtol=1e-6)


@pytest.mark.full
def test_minibatches_of_uneven_size_have_together_the_gradient_of_the_whole():
    agent, params, _, rollout = two_rollouts("stack")
    batch = make_batch(rollout, SMALL)
    rows, weights = split_rows(jax.random.key(4), 5, 3)
    assert sorted(np.array(rows)[np.array(weights) > 0].tolist()) == [0, 1, 2, 3, 4]
    assert np.array(weights).sum(axis=1).tolist() == [2, 2, 1]
    moved = jax.tree.map(lambda a: a * 1.6, params)  # so that some ratios are clipped

    @jax.jit
    def gradient(rows, weights):
        part = jax.tree.map(lambda a: a[rows], batch)._replace(weights=weights)
        return jax.grad(loss_of, has_aux=True)(moved, part, agent, SMALL)

    whole, parts = gradient(jnp.arange(5), jnp.ones(5))
    assert 0 < parts["clipped"] < 1
    pieces = [gradient(*part)[0] for part in zip(rows, weights, strict=True)]
    counts = (2, 2, 1)
    together = jax.tree.map(
        lambda *leaves: sum(n * leaf for n, leaf in zip(counts, leaves, strict=True)) / 5, *pieces
    )
    for found, expected in zip(jax.tree.leaves(together), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_seeds_together_are_the_seeds_alone():
    task = find_task("chain")
    agent = build_agent(SMALL, 1, 2)
    begin = jax.vmap(lambda seed: first_learner(SMALL, task, agent, seed))
    updates = make_updates(SMALL, task, agent, 2)
    together, figures = updates(begin(jnp.arange(2, dtype=jnp.uint32)))
    for seed in range(2):
        alone, own = updates(begin(jnp.array([seed], jnp.uint32)))
        np.testing.assert_array_equal(own["episodes"][0], figures["episodes"][seed])
        for a, b in zip(
            jax.tree.leaves(alone.params), jax.tree.leaves(together.params), strict=True
        ):
            np.testing.assert_allclose(a[0], b[seed], rtol=1e-4, atol=1e-5)


def test_the_chain_rewards_naming_its_first_symbol():
    task = find_task("chain", length=4)
    observation, state = task.reset(jax.random.key(0))
    first, length, lengths = int(observation[0] > 0), 0, set()
    step = jax.jit(task.step)
    for t in range(40):
        found = step(jax.random.key(t), state, jnp.array(first if t % 2 else 1 - first))
        length += 1
        expected = (1.0 if t % 2 else -1.0) if found.terminated else 0.0
        assert float(found.reward) == expected
        if found.terminated:
            lengths.add(length)
            first, length = int(found.observation[0] > 0), 0
        else:
            assert float(found.observation[0]) == float(found.final[0])
        state = found.state
    assert lengths == {2, 3, 4}


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


QUICK = [
    "--environments", "2", "--steps", "8", "--updates", "3", "--report-every", "1",
    "--hidden-size", "4", "--minibatches", "1", "--epochs", "1", "--seeds", "2",
    "--test-steps", "8",
]  # fmt: skip


@pytest.mark.full
def test_a_run_that_was_stopped_comes_to_the_same_bytes(tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("--out", whole, *QUICK) == 0
    said = capsys.readouterr().out
    assert "chain: 1 number seen, 2 actions; 48 steps of each of 2 seeds" in said
    with stopped_after(1):
        assert run("--out", stopped, *QUICK) == 143
    capsys.readouterr()
    assert run("--out", stopped, "--resume") == 0
    assert "going on after update 1" in capsys.readouterr().out
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["updates"] * 3 + ["test"]
    assert run("play", whole, "--steps", "8", "--environments", "3", "--seed", "5") == 0
    said = capsys.readouterr().out
    assert "seed 1: mean return " in said
    assert "note:" not in said  # an episode is 6 steps at most
    assert run("play", whole, "--steps", "1", "--environments", "3") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "note: 6 of 6 episodes were not at the end after --steps 1: they count" in said
    assert run("compare", whole, stopped, "--out", tmp_path / "both.png") == 0
    for picture in (whole / "curves.png", tmp_path / "both.png"):
        assert picture.stat().st_size


def test_runs_that_are_called_alike_are_compared_by_their_folders(tmp_path, monkeypatch):
    record = {"kind": "updates", "update": 2, "steps": 90, "episodes": [9], "return": [0.5]}
    cells = {"a/run": "gru", "b/run": "gru", "c/run": "gru", "d": "lstm"}
    for name, cell in cells.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        settings = dataclasses.replace(SMALL, cell=cell).written()
        (folder / "config.json").write_text(json.dumps({"settings": settings}))
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    drawn = []
    draw = command.draw_returns
    monkeypatch.setattr(command, "draw_returns", lambda runs, path: drawn.append((runs, path)))
    monkeypatch.chdir(tmp_path)
    assert run("compare", *cells, "--out", "both.png") == 0
    ((runs, path),) = drawn
    alike = [f"gru, right resets, {name}" for name in ("a/run", "b/run", "c/run")]
    assert list(runs["chain"]) == [*alike, "lstm, right resets"]
    draw({"$x^$": {"$y^$": [record]}}, path)  # which is no formula
    assert path.stat().st_size


@pytest.mark.parametrize(("every", "updates", "last"), [(1, 100, 10), (10, 100, 10), (25, 50, 25)])
def test_the_updates_that_the_last_return_is_of_are_counted(every, updates, last, capsys):
    kept = [
        {"kind": "updates", "update": n, "episodes": [1], "return": [float(n)]}
        for n in range(every, updates + 1, every)
    ]
    command._report([*kept, {"kind": "test", "return": [1.0]}], np.ones((1, 4)))
    mean = np.mean([record["update"] for record in kept if record["update"] > updates - last])
    assert capsys.readouterr().out.splitlines() == [
        f"return over the last {last} updates:       {mean:.3f}",
        "return in the test, likeliest actions: 1.000",
    ]


def test_a_picture_says_which_numbers_of_an_observation_the_agent_sees():
    for see, title in (
        (None, "chain"),
        ("2", "chain, sees number 2"),
        ("0, 2", "chain, sees numbers 0 and 2"),
    ):
        assert command._title(Settings(see=see)) == title


@pytest.mark.full
def test_right_resets_solve_the_chain_and_a_memory_wiped_late_does_not(tmp_path):
    chosen = Settings(environments=32, steps=16, updates=40, hidden_size=16, seeds=2, length=4)
    found = {
        mode: command.train(dataclasses.replace(chosen, resets=mode, out=tmp_path / mode))
        for mode in ("right", "late")
    }
    assert found["right"].min() > 0.95
    assert np.abs(found["late"]).max() < 0.3  # guessing: 0


@pytest.mark.full
def test_rewards_that_are_not_finite_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_nan.py").write_text(
        "from experiments.recurrent_ppo.chain import Chain\n"
        "class Broken(Chain):\n"
        "    def step(self, *given):\n"
        "        observation, state, reward, *rest = super().step(*given)\n"
        "        return observation, state, reward * float('nan'), *rest\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run("--environment", "my_nan:Broken", "--out", tmp_path / "run", *QUICK) == 2
    monkeypatch.delitem(sys.modules, "my_nan")
    said = " ".join(capsys.readouterr().err.split())
    assert "rewards of environment my_nan:Broken must be finite, got others before update 1" in said


def changed(**methods):
    """The counting environment with other methods, given its own step."""
    made = Counting()
    for name, method in methods.items():
        setattr(made, name, method(getattr(made, name, None)))
    return made


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (SimpleNamespace(reset=lambda key, params: None), "must have reset and step, got no step"),
        (changed(num_actions=lambda _: None), "number of actions from 2 up"),
        (changed(step=lambda step: lambda *a: step(*a)[:5]), "terminated, truncated, info), got 5"),
        (changed(step=lambda step: lambda *a: (*step(*a)[:5], {})), 'info["final_observation"]'),
        (
            changed(step=lambda step: lambda *a: (step(*a)[0][:1], *step(*a)[1:])),
            "observation of environment own must have as many numbers as that of reset, 2, got 1",
        ),
        (
            changed(step=lambda step: lambda *a: (step(*a)[0], 1.0, *step(*a)[2:])),
            "must give a state like that of reset",
        ),
        (
            changed(step=lambda step: lambda *a: (*step(*a)[:2], jnp.ones(2), *step(*a)[3:])),
            "reward of environment own must be one number, got shape (2,)",
        ),
        (changed(reset=lambda _: lambda key, params: float(key)), "must run under jax.jit"),
    ],
)
def test_an_environment_with_another_interface_is_refused(environment, message):
    with pytest.raises(DataError) as refused:
        adapt("own", environment)
    assert message in str(refused.value)


def test_an_environment_of_a_users_own_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_place.py").write_text(
        "from experiments.recurrent_ppo.chain import Chain\nmake = lambda: (Chain(3), None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_task("my_place:make")[:2] == (1, 2)
    monkeypatch.delitem(sys.modules, "my_place")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--environment", "no_such_module:make"], "--environment must be MODULE:FUNCTION"),
        (["--environment", "json:loads"], "must be a function without arguments, got json:loads"),
        (["--environment", "json:__name__"], "must be a function without arguments"),
        (["--see", "1"], "--see must be different numbers from 0 to 0"),
        (["--updates", "15"], "a whole number of times --report-every, 10, got 15"),
        (["--minibatches", "33"], "--minibatches must be a whole number from 1 to 32, got 33"),
        (["--seed", "4294967295", "--seeds", "2"], "--seed plus --seeds must be at most 4,294,967"),
        (["--length", "1"], "--length must be a whole number from 2 to 1,000,000, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message, tmp_path, capsys):
    assert run("--out", tmp_path / "run", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_several_processes_are_not_offered_and_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert "--processes" not in capsys.readouterr().out
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # as where another program joined them
    with pytest.raises(DataError, match="must run in one process, got 2"):
        command.check(Settings(out=tmp_path / "run"))


def test_a_missing_gymnax_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(DataError, match=r'gymnax, got none: pip install "\.\[control\]"'):
        find_task("CartPole-v1")


@pytest.fixture
def gymnax():
    with jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("gymnax")


def test_environments_of_gymnax_are_seen_in_part(gymnax):
    with pytest.raises(DataError, match="--length must be left out with CartPole-v1, got 7"):
        find_task("CartPole-v1", length=7)
    with pytest.raises(DataError, match="number of actions"):
        find_task("Pendulum-v1")
    with pytest.raises(DataError, match="MODULE:FUNCTION or one of"):
        find_task("CartPole-v9")
    whole, part = find_task("CartPole-v1"), find_task("CartPole-v1", see="0,2")
    assert (whole.observation_size, part.observation_size, part.num_actions) == (4, 2, 2)
    key, action = jax.random.key(0), jnp.ones((), jnp.int32)
    observation, state = whole.reset(key)
    np.testing.assert_array_equal(part.reset(key)[0], observation[jnp.array([0, 2])])
    found = whole.step(key, state, action)
    np.testing.assert_array_equal(part.step(key, state, action).final, found.final[::2])


def test_the_memory_chain_of_gymnax_shows_its_first_observation_twice(gymnax):
    """Why resets that are a step late cost nothing there: the README says so."""
    task = find_task("MemoryChain-bsuite", length=3)
    observation, state = task.reset(jax.random.key(0))
    shown, rewards = [observation], []
    for t in range(4):
        found = task.step(jax.random.key(t), state, jnp.ones((), jnp.int32))
        state, rewards = found.state, [*rewards, float(found.reward)]
        shown.append(found.final)
    np.testing.assert_array_equal(shown[0], shown[1])
    assert abs(float(shown[0][2])) == 1
    assert [float(o[2]) for o in shown[2:]] == [0, 0, 0]
    assert [abs(reward) for reward in rewards] == [0, 0, 0, 1]
    assert bool(found.terminated)

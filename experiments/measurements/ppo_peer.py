"""Agents that must remember, beside recurrent PPO of sb3-contrib, in PyTorch.

Run:     python -m experiments.measurements.ppo_peer
Prints:  of each, the mean return over the last tenth of the steps, actions drawn: mean and range
         over the seeds; and the processor time of all seeds together, compiling included. rnnjax is
         ``experiments.recurrent_ppo``, whose seeds learn at once. The other knows LSTMs alone: one
         for the actions and one for the values, each with two layers above it. It learns twice,
         seed by seed: with the settings of ``experiments.recurrent_ppo``, and with its own for all
         but the size of the LSTM. It is left out where it is not installed
         (``pip install sb3-contrib``).
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from experiments.measurements.series_peers import spread_of, version_of
from experiments.recurrent_ppo import command
from experiments.recurrent_ppo.settings import Settings as Agent
from experiments.running.console import exit_code, print_table
from experiments.running.curves import read_records
from experiments.running.packages import takes_part
from experiments.running.parsing import parse
from experiments.running.run_folder import METRICS
from experiments.running.setting_checks import Rule, check_settings, whole


@dataclass(frozen=True)
class Settings:
    """What is measured. What is not said here is as in experiments.recurrent_ppo."""

    environment: Literal["MemoryChain-bsuite", "chain"] = "MemoryChain-bsuite"
    """What is to be remembered; the first of the package gymnax, for rnnjax."""
    hidden_size: int = 64
    """Units of a recurrent layer."""
    environments: int = 32
    """How many environments of a seed run side by side."""
    steps: int = 32
    """Steps of a rollout."""
    updates: int = 100
    """Rollouts; the other library, with settings of its own, takes as many steps in others."""
    seed: int = 0
    """The first seed."""
    seeds: int = 3
    """So many seeds are trained."""

    def agent(self, cell: Literal["gru", "lstm"], out: Path | None = None) -> Agent:
        """What experiments.recurrent_ppo is told."""
        return Agent(
            environment=self.environment,
            cell=cell,
            hidden_size=self.hidden_size,
            environments=self.environments,
            steps=self.steps,
            updates=self.updates,
            report_every=self.updates // 10,
            seed=self.seed,
            seeds=self.seeds,
            out=out,
        )


class Game(Protocol):
    """An environment of two actions, one episode after another."""

    size: int  # numbers of an observation

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        """The first observation of an episode."""
        ...

    def step(self, rng: np.random.Generator, action: int) -> tuple[np.ndarray, float, bool]:
        """Observation, reward, and whether the episode is over."""
        ...


class Chain:
    """``experiments.recurrent_ppo.chain`` for one environment, in NumPy."""

    size = 1

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        self._cue, self._left = int(rng.integers(2)), int(rng.integers(2, 7))
        return _shown(self._cue)

    def step(self, rng: np.random.Generator, action: int) -> tuple[np.ndarray, float, bool]:
        done = self._left == 1
        self._left -= 1
        return _shown(int(rng.integers(2))), _worth(done, action == self._cue), done


def _shown(symbol: int) -> np.ndarray:
    return np.array([2 * symbol - 1], np.float32)


def _worth(done: bool, right: bool) -> float:
    return (1.0 if right else -1.0) if done else 0.0


class MemoryChain:
    """gymnax's MemoryChain-bsuite of one bit and length 5, in NumPy.

    As there, the first observation is shown twice, and an episode has a step more than its length.
    """

    size, length = 3, 5

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        self._bit, self._time = int(rng.integers(2)), 0
        return self._seen()

    def step(self, rng: np.random.Generator, action: int) -> tuple[np.ndarray, float, bool]:
        seen, done = self._seen(), self._time == self.length
        self._time += 1
        return seen, _worth(done, action == self._bit), done

    def _seen(self) -> np.ndarray:
        sign = 2 * self._bit - 1 if self._time == 0 else 0
        return np.array([1 - self._time / self.length, 0, sign], np.float32)


GAMES: dict[str, type[Game]] = {"chain": Chain, "MemoryChain-bsuite": MemoryChain}


class Measured(NamedTuple):
    """The return of each seed, and the processor time of all."""

    returns: list[float]
    seconds: float


def _ours(settings: Settings, cell: Literal["gru", "lstm"]) -> Measured:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = Path(folder) / "run"
        command.train(settings.agent(cell, run))
        returns = command.last_returns(read_records(run / METRICS))
    return Measured(returns.tolist(), time.process_time() - began)


def as_gymnasium(game: Game) -> Any:
    """The game with the interface that other libraries know."""
    import gymnasium  # pyright: ignore[reportMissingImports]

    class Environment(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (game.size,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            return game.begin(self.np_random), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            observation, reward, done = game.step(self.np_random, int(action))
            return observation, reward, done, False, {}

    return Environment()


def same_settings(settings: Settings) -> dict[str, Any]:
    """Those of experiments.recurrent_ppo as RecurrentPPO takes them."""
    agent = settings.agent("lstm")
    return {
        "learning_rate": lambda left: left * agent.learning_rate,
        "n_steps": agent.steps,
        "batch_size": -(-agent.environments // agent.minibatches) * agent.steps,
        "n_epochs": agent.epochs,
        "gamma": agent.discount,
        "gae_lambda": agent.gae_lambda,
        "clip_range": agent.clip,
        "ent_coef": agent.entropy,
        "vf_coef": agent.value / 2,  # of the squared error, which ours halves
        "max_grad_norm": agent.clip_norm,
    }


def _theirs(settings: Settings, chosen: dict[str, Any]) -> Measured:
    began = time.process_time()
    seeds = range(settings.seed, settings.seed + settings.seeds)
    returns = [_their_return(settings, chosen, seed) for seed in seeds]
    return Measured(returns, time.process_time() - began)


def _their_return(settings: Settings, chosen: dict[str, Any], seed: int) -> float:
    import torch
    from sb3_contrib import RecurrentPPO  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import (  # pyright: ignore[reportMissingImports]
        make_vec_env,
    )

    torch.set_num_threads(1)  # layers so small are slower on two
    game = GAMES[settings.environment]
    worlds = make_vec_env(lambda: as_gymnasium(game()), settings.environments, seed=seed)
    size = {"lstm_hidden_size": settings.hidden_size}
    agent = RecurrentPPO(
        "MlpLstmPolicy", worlds, policy_kwargs=size, seed=seed, device="cpu", **chosen
    )
    total = settings.updates * settings.environments * settings.steps
    found: list[float] = []

    def listen(now: dict[str, Any], _: Any) -> bool:
        if agent.num_timesteps > 0.9 * total:
            found.extend(info["episode"]["r"] for info in now["infos"] if "episode" in info)
        return True

    agent.learn(total, callback=listen)
    return float(np.mean(found))


def measure(settings: Settings) -> list[dict[str, str]]:
    """A row for each agent."""
    check_settings(
        settings,
        environments=whole(4),
        steps=whole(2),
        updates=Rule("a whole number of times 10", lambda count: count > 0 and count % 10 == 0),
        seeds=whole(1, 1_000),
    )
    size, ours = settings.hidden_size, version_of("rnnjax")
    found = {
        f"{ours}, GRU {size}": _ours(settings, "gru"),
        f"{ours}, LSTM {size}": _ours(settings, "lstm"),
    }
    if takes_part("sb3-contrib", "sb3_contrib"):
        theirs = f"{version_of('sb3-contrib')}, LSTM {size}"
        found[f"{theirs}, the same settings"] = _theirs(settings, same_settings(settings))
        found[f"{theirs}, its own settings"] = _theirs(settings, {})
    return [
        {"agent": name, "return": spread_of(returns, ".3f"), "seconds": f"{seconds:.1f}"}
        for name, (returns, seconds) in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.measurements.ppo_peer", arguments)
    return exit_code(lambda: print_table(measure(settings)))


if __name__ == "__main__":
    sys.exit(main())

"""What a run is told, and what playing and comparing are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from experiments.running.parsing import Positional
from experiments.running.run_settings import RunSettings


@dataclass(frozen=True)
class Settings(RunSettings):
    """Train an agent that must remember, by PPO on whole rollouts, seeds at once."""

    environment: str = "chain"
    """chain, which needs no package; an environment of gymnax, as MemoryChain-bsuite or
    CartPole-v1; or MODULE:FUNCTION, which gives one of your own with gymnax's interface, or a pair
    of it and its parameters."""
    see: str | None = None
    """Which numbers of an observation the agent sees, as 0,2 for the positions of CartPole-v1
    without its velocities; all of them by default."""
    length: int | None = None
    """How long to remember: the longest episode of chain (6 by default), memory_length of
    MemoryChain-bsuite, chain_length of UmbrellaChain-bsuite."""

    cell: Literal["gru", "lstm", "vanilla", "minimal_gated", "min_gru", "lru", "mlp"] = "gru"
    """The recurrent cell; mlp has no memory."""
    hidden_size: int = 64
    """Units of a layer, and of the layer that reads the observation."""
    layers: int = 1
    """Recurrent layers on top of one another."""
    resets: Literal["right", "late", "none"] = "right"
    """When the memory is wiped: at the first step of an episode, a step late, or never. The last
    two are faults often made, to see what they cost."""

    environments: int = 32
    """How many environments of a seed run side by side."""
    steps: int = 32
    """Steps of a rollout; an episode that it cuts in two goes on in the next."""
    updates: int = 100
    """Rollouts, each followed by the passes over it."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Parts of a rollout, with a step of Adam each: whole sequences of some of the environments."""
    learning_rate: float = 2e-3
    """Of Adam at the start; it falls in a line to zero at the last step."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before they are learnt from. Where returns are far above 1 the
    values' gradient drowns that of the actions: 0.02 for CartPole-v1."""
    discount: float = 0.99
    """What a reward one step later is worth."""
    gae_lambda: float = 0.95
    """How far advantages look ahead before they trust the value: 0 one step, 1 to the end."""
    clip: float = 0.2
    """How far the probability of an action may move, as a ratio, before it no longer counts."""
    entropy: float = 0.01
    """Weight of the entropy, which keeps the agent trying."""
    value: float = 0.5
    """Weight of the squared error of the values."""
    clip_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """The first seed: it decides weights, episodes, actions and the order of environments."""
    seeds: int = 3
    """So many seeds are trained at once, this one and those after it."""
    test_steps: int = 512
    """Steps of the test, in which the likeliest action is taken; the first episode of each
    environment counts."""

    report_every: int = 10
    """Updates in one call of the compiled loop, with a line and a record after it; between two
    calls the run can be stopped. It must divide --updates."""
    checkpoint_every: str = "60s"
    """Save after so many updates (50) or seconds (60s), besides at the end."""

    MAY_CHANGE: ClassVar = ("test_steps",)
    SEVERAL_PROCESSES: ClassVar = False

    @property
    def steps_of_update(self) -> int:
        """Steps that the environments of one seed take for an update."""
        return self.environments * self.steps


@dataclass(frozen=True)
class Play:
    """Play with trained agents, taking the likeliest action."""

    run: Positional[Path]
    """Folder of the run."""
    steps: int = 512
    """Steps in each environment; its first episode counts."""
    environments: int = 256
    """Environments of each seed."""
    seed: int = 1_000
    """Another seed, other episodes."""


@dataclass(frozen=True)
class Compare:
    """Draw the returns of several runs into one picture."""

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs."""
    out: Path = Path("returns.png")
    """The picture."""

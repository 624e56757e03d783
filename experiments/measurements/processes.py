"""What it costs to train in several processes: one batch divided among 1, 2 and 4 of them.

Run:     python -m experiments.measurements.processes
Prints:  time steps of an LSTM that are trained in a second, the median and range of the rounds.

The processes together have the same cores and the same batch as the one, so what they train less is
what talking to one another, and smaller matrix products, cost. In every round each number of
processes has its turn, in fresh processes: on a machine that does other work as well, look at
the ranges.
"""

from __future__ import annotations

import functools
import os
import socket
import statistics
import subprocess  # it runs this very file, and no shell  # nosec B404
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.setting_checks import above, check_settings, each, whole
from rnnjax.data import DataError

_PROGRAM = "python -m experiments.measurements.processes"


@dataclass(frozen=True)
class Settings:
    """Train the same batches in more and more processes."""

    counts: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes."""
    rounds: int = 3
    """Turns of each."""
    seconds: float = 4.0
    """How long a turn trains, after what is compiled."""
    rows: int = 64
    """Of the batch of all processes; a multiple of each of their numbers."""
    steps: int = 64
    """Of a sequence."""
    size: int = 128
    """Inputs, and units."""


def work(address: str, number: int, count: int, settings: Settings) -> float:
    """Time steps a second of all processes, measured in one of them."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import rnnjax
    from rnnjax.training import replicate, shard_batch

    if count > 1:
        jax.distributed.initialize(address, count, number)
    layer, optimizer = rnnjax.recurrent(rnnjax.lstm(settings.size)), optax.adam(1e-3)

    def loss_fn(params, batch, key):
        loss = jnp.mean(jnp.square(layer.apply(params, batch)[1]))
        return loss, {"loss": (loss, jnp.ones(()))}

    step = rnnjax.make_train_step(loss_fn, optimizer)
    mesh = jax.make_mesh((count,), ("batch",), (jax.sharding.AxisType.Auto,))
    params = layer.init(jax.random.key(0), settings.size)
    state = replicate(mesh, rnnjax.init_train_state(jax.random.key(1), params, optimizer))
    shape = (settings.rows, settings.steps, settings.size)
    batch = shard_batch(mesh, np.random.default_rng(0).normal(size=shape).astype(np.float32))

    def train_for(state: Any, number: int) -> Any:
        state = functools.reduce(lambda state, _: step(state, batch)[0], range(number), state)
        return jax.block_until_ready(state)

    state = train_for(state, 5)
    # All take the same number of steps, or they would wait for one another for ever: the first
    # process counts how many go into its time.
    began = time.perf_counter()
    state = train_for(state, 5)
    wanted = np.int32(max(5, settings.seconds / (time.perf_counter() - began) * 5))
    if count > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        wanted = broadcast_one_to_all(wanted)
    began = time.perf_counter()
    train_for(state, int(wanted))
    return settings.rows * settings.steps * int(wanted) / (time.perf_counter() - began)


def turn(count: int, settings: Settings) -> float:
    """Time steps a second that so many processes train together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cores = sorted(os.sched_getaffinity(0))
    given = [f"--{name}={getattr(settings, name)}" for name in ("seconds", "rows", "steps", "size")]
    started = []
    for number in range(count):
        begin = number * len(cores) // count
        own = cores[begin : max(begin + 1, (number + 1) * len(cores) // count)]
        place = [address, str(number), str(count), ",".join(map(str, own))]
        command = [sys.executable, "-m", "experiments.measurements.processes", "work", *place]
        started.append(
            subprocess.Popen(  # nosec B603
                [*command, *given],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        )
    said = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(errors for _, errors in said))
    return float(said[0][0].split()[-1])


def measure(settings: Settings) -> list[dict[str, str]]:
    """A row for each number of processes."""
    once = dict.fromkeys(("rounds", "rows", "steps", "size"), whole(1))
    check_settings(settings, **once, counts=each(whole(1)), seconds=above(0))
    if any(settings.rows % count for count in settings.counts):
        raise DataError(f"--rows must be a multiple of each of --counts, got {settings.rows}")
    found: dict[int, list[float]] = {count: [] for count in settings.counts}
    for _ in range(settings.rounds):
        for count in settings.counts:
            found[count].append(turn(count, settings))
    first = statistics.median(found[settings.counts[0]])
    return [
        {
            "processes": str(count),
            "steps/s": f"{statistics.median(rates):,.0f}",
            "least": f"{min(rates):,.0f}",
            "most": f"{max(rates):,.0f}",
            "of the first": f"{statistics.median(rates) / first:.2f}",
        }
        for count, rates in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["work"]:
        address, number, count, cores = given[1:5]
        os.sched_setaffinity(0, map(int, cores.split(",")))  # before JAX counts them
        settings = parse(Settings, _PROGRAM, given[5:])
        print(work(address, int(number), int(count), settings))
        return 0
    settings = parse(Settings, _PROGRAM, given)
    return exit_code(lambda: print_table(measure(settings)))


if __name__ == "__main__":
    sys.exit(main())

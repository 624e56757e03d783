"""What a training step on many GPUs sends, and where dividing a batch stops paying.

Run:     python -m experiments.measurements.scale
Prints:  for every shape and number of devices, from the program that XLA makes for so many: bytes a
         device sends in a step, memory that the arguments and the step need on one, and for links
         of three speeds the share of a step that sending takes at least, beside the time that one
         H100 computes; and for sequences of how many steps sending takes as long as computing.

Nothing is run: the devices are made up, as many as are asked for, and the program is read. Times of
computing are those of experiments/gpu_check/measured; times of sending are bytes over the speed of
the link, so they are the least it can take.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess  # it runs this very file, and no shell  # nosec B404
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.running.console import exit_code, print_table
from experiments.running.parsing import parse
from experiments.running.setting_checks import check_settings, each, whole

# Bytes a second that leave a GPU, or the machine of eight around it, through which a ring passes
# once. An H100 SXM has 18 links of NVLink 4 with 25 GB/s each way; a DGX H100 has eight ConnectX-7
# cards of 400 Gb/s for its GPUs (NVIDIA, "H100 Tensor Core GPU" datasheet, "DGX H100/H200 User
# Guide"); the last is a machine with one such card.
LINKS = {"NVLink": 18 * 25e9, "8 cards": 8 * 400e9 / 8, "1 card": 400e9 / 8}
_OF_A_MACHINE = 8  # GPUs that NVLink joins
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


class Shape(NamedTuple):
    """An LSTM layer on one device, and what it takes one H100 to train it."""

    rows: int
    steps: int
    inputs: int
    hidden: int
    step_us: float  # microseconds a time step of training, the kernel in bfloat16

    @property
    def compute_ms(self) -> float:
        """Milliseconds of a training step, the loop alone."""
        return self.steps * self.step_us / 1e3


# Medians of `python -m experiments.gpu_check` on one H100, 27 November 2026.
SHAPES = (
    Shape(32, 80, 128, 128, 4.66),
    Shape(64, 128, 256, 256, 6.32),
    Shape(32, 512, 512, 512, 7.09),
    Shape(16, 1024, 768, 768, 7.94),
    Shape(32, 256, 1024, 1024, 13.09),
)


@dataclass(frozen=True)
class Settings:
    """Read the programs of a training step for many devices."""

    devices: tuple[int, ...] = (8, 64, 512)
    """Numbers of devices; each divides a batch that has so many times the rows."""
    shapes: tuple[int, ...] = field(default=tuple(range(len(SHAPES))))
    """Which of the shapes, by their place in the table."""


class Program(NamedTuple):
    """What a compiled step sends and needs, on one device."""

    reduced: int  # bytes of the arrays that are added up over all devices
    others: int  # bytes of all other arrays that are sent
    reductions: int  # operations that add up arrays, not single numbers
    arguments: int  # bytes of the state and its share of the batch
    temporaries: int  # bytes that the step sets aside beside them


def read_program(shape: Shape, devices: int) -> Program:
    """Compiles a training step for the devices there are, and reads what it sends."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import rnnjax
    from rnnjax.training import state_shardings

    layer, optimizer = rnnjax.recurrent(rnnjax.lstm(shape.hidden)), optax.adam(1e-3)

    def loss_fn(params: Any, batch: Any, key: Any) -> Any:
        ys = layer.apply(params, batch)[1]
        loss = jnp.mean(jnp.square(ys))
        return loss, {"loss": (loss, jnp.ones(()))}

    def make() -> Any:
        params = layer.init(jax.random.key(0), shape.inputs)
        return rnnjax.init_train_state(jax.random.key(1), params, optimizer)

    mesh = jax.make_mesh((devices,), ("batch",), (AxisType.Auto,))
    state = jax.eval_shape(make)
    placed = jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
        state,
        state_shardings(mesh, state),
    )
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    size = (shape.rows * devices, shape.steps, shape.inputs)
    batch = jax.ShapeDtypeStruct(size, jnp.float32, sharding=rows)
    step = rnnjax.make_train_step(loss_fn, optimizer).function
    compiled = jax.jit(step, donate_argnums=0).lower(placed, batch).compile()
    memory: Any = compiled.memory_analysis()
    reduced, others, reductions = sent(compiled.as_text() or "")
    return Program(
        reduced, others, reductions, memory.argument_size_in_bytes, memory.temp_size_in_bytes
    )


def sent(text: str) -> tuple[int, int, int]:
    """Bytes that are added up over devices, bytes sent otherwise, and how many additions there are
    of more than single numbers.

    Example:
        >>> sent("%a = (f32[8,4]{1,0}, f32[]) all-reduce(%b, %c), to_apply=%add")
        (132, 0, 1)
    """
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = {True: 0, False: 0}
    reductions = 0
    for result, kind in re.findall(rf" = (.*?) ({kinds})(?:-start)?\(", text):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        sizes = [math.prod(map(int, filter(None, axes.split(",")))) for _, axes in shapes]
        bytes_of_all = sum(
            _BYTES[dtype] * size for (dtype, _), size in zip(shapes, sizes, strict=True)
        )
        found[kind == "all-reduce"] += bytes_of_all
        reductions += kind == "all-reduce" and max(sizes) > 1
    return found[True], found[False], reductions


def ring_bytes(program: Program, devices: int) -> float:
    """Bytes that each device sends when arrays are added up around a ring: every part of them once
    to be added up, and once as the sum."""
    return 2 * (devices - 1) / devices * program.reduced


def row(shape: Shape, devices: int, program: Program) -> dict[str, str]:
    """What the table says of one program."""
    found = {
        "rows x steps x inputs x units": "x".join(map(str, shape[:4])),
        "devices": str(devices),
        "reductions": str(program.reductions),
        "MB sent": f"{ring_bytes(program, devices) / 1e6:.2f}",
        "MB state, batch": f"{program.arguments / 1e6:.1f}",
        "MB step": f"{program.temporaries / 1e6:.1f}",
        "ms computing": f"{shape.compute_ms:.2f}",
    }
    for name, speed in LINKS.items():
        sending = 1e3 * ring_bytes(program, devices) / speed
        share = sending / (sending + shape.compute_ms)
        even = math.ceil(1e3 * sending / shape.step_us)
        within = (name == "NVLink") == (devices <= _OF_A_MACHINE)
        found[name] = f"{share:.1%}, {even}" if within else ""
    return found


def read_all(settings: Settings) -> list[dict[str, str]]:
    """The rows of the table; each number of devices has a process of its own."""
    check_settings(settings, devices=each(whole(1)), shapes=each(whole(0, len(SHAPES) - 1)))
    rows = []
    for devices in settings.devices:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-m", "experiments.measurements.scale", "read", str(devices)]
        command += map(str, settings.shapes)
        root = Path(__file__).parents[2]
        done = subprocess.run(  # nosec B603
            command, env=environment, capture_output=True, text=True, cwd=root
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        programs = json.loads(done.stdout)
        for number, found in zip(settings.shapes, programs, strict=True):
            rows.append(row(SHAPES[number], devices, Program(*found)))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["read"]:
        devices, *numbers = map(int, given[1:])
        print(json.dumps([read_program(SHAPES[number], devices) for number in numbers]))
        return 0
    settings = parse(Settings, "python -m experiments.measurements.scale", given)
    return exit_code(lambda: print_table(read_all(settings)))


if __name__ == "__main__":
    sys.exit(main())

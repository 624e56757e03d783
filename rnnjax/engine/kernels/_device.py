"""What is known of the GPU that a computation is for."""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rnnjax._devices import batch_shares, mesh_of

HOPPER = "9.0"
# Shared memory that a CTA may have, by compute capability, where the device does not say.
SHARED_MEMORY = {HOPPER: 232_448}


class Device(NamedTuple):
    """A GPU as the kernels see it.

    Attributes:
        name: as the driver calls it.
        capability: its compute capability, such as "9.0".
        processors: streaming multiprocessors: CTAs of the kernels' size that run at once.
        shared_memory: bytes that a CTA may have.
        loops: how many, this one among them, may be on it at the same time.
        collectives: whether kernels that wait for other devices may be, too.
        batch_shares: among how many such devices a batch is divided; None where XLA decides it.
    """

    name: str
    capability: str
    processors: int
    shared_memory: int
    loops: int = 1
    collectives: bool = False
    batch_shares: int | None = 1

    @property
    def shares(self) -> int:
        """Into how many it is divided: one for each loop, and one for collectives."""
        return self.loops + self.collectives

    @property
    def room(self) -> int:
        """Processors for one loop: its equal share of them."""
        return self.processors // self.shares

    def describe_shares(self) -> str:
        """Where the rows of a batch run, in words; nothing where one device has all of them."""
        shares = self.batch_shares or 1
        return f" on each of {shares} devices" if shares > 1 else ""

    def for_two(self) -> "Device":
        """The device for a loop that was not asked for by name: another may run beside it."""
        return self._replace(loops=max(2, self.loops))


_loops = contextvars.ContextVar("loops", default=1)


@contextlib.contextmanager
def side_by_side(loops: int) -> Iterator[None]:
    """What is traced inside is one of ``loops`` loops that do not depend on each other.

    All parts of a loop wait for each other, so all must be on the device at once. Two loops that
    each hold a part of it, and wait for the part that the other holds, would wait for ever. XLA
    starts the kernels of a program one after the other, but nothing in the program says that it
    must; with a share of the processors for each, any order is right.
    """
    before = _loops.set(_loops.get() * loops)
    try:
        yield
    finally:
        _loops.reset(before)


def with_share(device: Device | str, tree: Any, xs: Any = ()) -> Device | str:
    """``device`` with what may run on it beside a loop on arrays of ``tree`` that is traced here.

    ``xs`` are its inputs, [..., T, D] a leaf.
    """
    if isinstance(device, str):
        return device
    # Between the devices of a mesh there may be collectives, whose kernels wait for each other.
    mesh = mesh_of(tree)
    collectives = mesh is not None and mesh.size > 1
    return device._replace(
        loops=_loops.get(), collectives=collectives, batch_shares=batch_shares(mesh, xs)
    )


def describe_gpu(device: Any) -> Device | str:
    """The GPU ``device``, or why the kernels do not run on it."""
    if device.platform != "gpu":
        return f"it runs on an NVIDIA GPU, and this computation is for {device.platform}"
    capability = str(getattr(device, "compute_capability", ""))
    if capability != HOPPER:
        return (
            f"it is written for GPUs of compute capability {HOPPER} (Hopper), and "
            f"{device.device_kind} has {capability or 'none'}"
        )
    processors = getattr(device, "core_count", None)
    if not processors:
        return f"the driver does not say how many processors {device.device_kind} has"
    if _may_share_processors():
        return (
            f"processes may share the processors of {device.device_kind} (CUDA's MPS is running), "
            "and all of its parts wait for each other, so all must be on them at once"
        )
    memory = getattr(device, "shared_memory_per_block_optin", None) or SHARED_MEMORY[capability]
    return Device(device.device_kind, capability, int(processors), int(memory))


def _may_share_processors() -> bool:
    """Whether kernels of other processes may run beside ours, as they do under MPS alone.

    Without it, processes take turns and each has the whole GPU in its turn. The pipe is how CUDA
    finds out that MPS is there, too.
    """
    usual = "/tmp/nvidia-mps"  # nosec B108: where NVIDIA puts it; it is looked for and not opened
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", usual)
    return Path(folder, "control").exists()


def default_device() -> Any:
    """The device that arrays which lie nowhere yet are computed on."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(chosen, str):
        return jax.devices(chosen)[0]
    return jax.local_devices()[0] if chosen is None else chosen

"""The libraries that are compared, one file each, loaded only where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from experiments.running.packages import is_installed
from experiments.throughput.libraries.entries import Entry, Refusal
from experiments.throughput.problems import Problem

Enter = Callable[[Problem], Iterator[Entry | Refusal]]


class Library(NamedTuple):
    """Where the layer of a library is made, and what has to be installed for it.

    Attributes:
        file: in this folder; its ``enter`` gives the ways in which a problem can be run.
        module: what it imports.
        package: whose version is told.
        gpu_only: whether it needs a GPU.
    """

    file: str
    module: str
    package: str
    gpu_only: bool = False

    @property
    def missing(self) -> str | None:
        """Why it cannot take part here at all, if so."""
        if not is_installed(self.module):
            return "not installed"
        if self.gpu_only and jax.default_backend() != "gpu":
            return "runs on a GPU only"
        return None

    @property
    def enter(self) -> Enter:
        return importlib.import_module(f"{__name__}.{self.file}").enter


LIBRARIES = {
    "rnnjax": Library("ours", "rnnjax", "rnnjax"),
    "flax.nnx": Library("flax_nnx", "flax", "flax"),
    "flax.linen": Library("flax_linen", "flax", "flax"),
    "haiku": Library("dm_haiku", "haiku", "dm-haiku"),
    "equinox": Library("eqx_cells", "equinox", "equinox"),
    "keras": Library("keras_on_jax", "keras", "keras"),
    "torch": Library("pytorch", "torch", "torch"),
    "jax.experimental.rnn": Library("cudnn", "jax", "jax", gpu_only=True),
}

"""GPUs that are not there."""

import pytest
from emulated_kernels import H100, KERNELS

from rnnjax.engine.kernels import _device, persistent


@pytest.fixture
def emulated_gpu(monkeypatch, seen_gpu):
    """``implementation="persistent"`` runs tile by tile in plain JAX."""
    monkeypatch.setattr(persistent, "_mosaic", lambda: KERNELS)


@pytest.fixture
def seen_gpu(monkeypatch):
    """A GPU that programs may be compiled for, and that cannot run them."""
    monkeypatch.setattr(_device, "describe_gpu", lambda device: H100)

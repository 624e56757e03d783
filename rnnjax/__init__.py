"""Recurrent networks for JAX as pure functions, exact on ragged data."""

from .base import Cell as Cell
from .base import Layer as Layer
from .cells import *  # noqa: F403
from .masking import lengths_to_mask as lengths_to_mask
from .unroll import trace_gates as trace_gates
from .unroll import unroll as unroll

"""Recurrent networks for JAX as pure functions, exact on ragged data."""

from .base import Cell as Cell
from .base import Layer as Layer
from .cells import *  # noqa: F403
from .embeddings import embedding as embedding
from .embeddings import one_hot as one_hot
from .embeddings import trainable as trainable
from .layers import Directions as Directions
from .layers import bidirectional as bidirectional
from .layers import output_head as output_head
from .layers import recurrent as recurrent
from .layers import stack as stack
from .masking import lengths_to_mask as lengths_to_mask
from .models import Model as Model
from .models import classifier as classifier
from .unroll import trace_gates as trace_gates
from .unroll import unroll as unroll

"""Recurrent networks for JAX as pure functions, exact on ragged data.

From the ground up: a ``Cell`` is the mathematics of one step, ``unroll`` runs it over time, a
``Layer`` is a cell over whole sequences and closes under composition, a ``Model`` puts an
embedding below and a head above. Texts become batches in ``rnnjax.data``; losses and metrics as
sums and counts are in ``rnnjax.metrics``, safetensors files in ``rnnjax.weights``.
"""

from .averaging import average_parameters as average_parameters
from .averaging import averaged as averaged
from .base import Cell as Cell
from .base import Layer as Layer
from .cells import GRUGates as GRUGates
from .cells import GRUParams as GRUParams
from .cells import LSTMCarry as LSTMCarry
from .cells import LSTMGates as LSTMGates
from .cells import LSTMParams as LSTMParams
from .cells import VanillaParams as VanillaParams
from .cells import gru as gru
from .cells import lstm as lstm
from .cells import vanilla as vanilla
from .early_stopping import EarlyStopping as EarlyStopping
from .embeddings import Embedding as Embedding
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
from .training import CompiledStep as CompiledStep
from .training import TrainState as TrainState
from .training import init_train_state as init_train_state
from .training import make_eval_step as make_eval_step
from .training import make_train_step as make_train_step
from .unroll import trace_gates as trace_gates
from .unroll import unroll as unroll

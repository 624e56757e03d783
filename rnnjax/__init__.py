"""Recurrent networks for JAX as pure functions, exact on ragged data.

From the ground up: a ``Cell`` is the mathematics of one step, ``unroll`` runs it over time, a
``Layer`` is a cell over whole sequences and closes under composition, a ``Model`` puts an
embedding below and a head above. By subject:

Cells
    ``lstm`` ``gru`` ``vanilla`` ``minimal_gated`` ``peephole_lstm`` ``projected_lstm``
    ``coupled_lstm`` ``mogrifier_lstm`` ``slstm`` ``mlstm`` ``gated_delta`` ``conv_lstm``
    ``indrnn`` ``cornn`` ``lmu`` ``cfc``; linear in their state: ``lru`` ``rg_lru`` ``s4d`` ``s5``
    ``s6`` ``min_lstm`` ``min_gru``; of your own: ``Cell`` with ``Noise`` ``NoiseShape``. Their
    parameters, carries and gates: ``LSTMParams`` ``LSTMCarry`` ``LSTMGates`` ``GRUParams``
    ``GRUGates`` ``VanillaParams`` ``MinimalGatedParams`` ``MinimalGatedGates``
    ``PeepholeLSTMParams`` ``ProjectedLSTMParams`` ``CoupledLSTMParams`` ``ConvLSTMParams``
    ``IndRNNParams`` ``LRUParams`` ``S4DParams`` ``S5Params`` ``S6Params`` ``MinLSTMParams``
    ``MinLSTMGates`` ``MinGRUParams`` ``MinGRUGates`` ``MogrifierLSTMParams`` ``SLSTMParams``
    ``SLSTMCarry`` ``MLSTMParams`` ``MLSTMCarry`` ``GatedDeltaParams`` ``CoRNNParams``
    ``CoRNNCarry`` ``CfCParams`` ``LMUParams`` ``LMUCarry`` ``RGLRUParams``. Frames of
    ``conv_lstm``: ``flatten_frames`` ``unflatten_frames``.
From cell to cell
    ``variational_dropout`` ``recurrent_dropout`` ``weight_drop`` ``zoneout`` ``layer_norm``
    ``learn_initial_carry`` ``with_policy`` ``trace_gates``; ``Policy`` ``LayerNormParams``
    ``LearnedCarryParams``.
Running a cell over time
    ``unroll`` ``explain``; ``lengths_to_mask``; several sequences in one row:
    ``resets_from_segment_ids`` ``segment_ids_from_resets`` ``pool_segments``
    ``segment_carries``; episodes: ``resets_from_dones`` ``valid_from_dones``.
Layers
    ``recurrent`` ``bidirectional`` ``stack`` ``residual`` ``skip_stack`` ``output_head``
    ``dense`` ``DenseParams`` ``grid_lstm``, over images ``image_grid_lstm``; for blocks:
    ``rms_norm`` ``gated`` ``causal_convolution`` with ``RMSNormParams`` ``GatedParams``
    ``CausalConvolutionParams``; of your own: ``Layer``; ``Directions`` ``GridLSTMParams``
    ``GridSide`` ``ImageGrid`` ``ImageGridParams``; over a memory: ``attention`` ``Attention``,
    and inside the loop ``attention_cell`` ``Memory`` ``Attended`` ``prepare_memory``, in its
    loss ``doubly_stochastic_penalty`` ``score_function``; over a text, moving on:
    ``window_cell`` ``window_weights`` ``Window`` ``WindowCarry`` ``WindowCellParams``;
    sequences in pieces: ``make_stream``, and ``Layer.step``.
Models
    ``classifier`` ``tagger`` ``language_model`` ``sequence_to_sequence`` ``captioner``
    ``series_model`` ``embedding`` ``one_hot`` ``adaptive_softmax`` ``trainable``; ``Model``
    ``Embedding`` ``LanguageModel`` ``SequenceToSequence`` ``SeriesModel`` ``TaggerParams``. Heads
    with densities: ``bernoulli_head`` ``categorical_head`` ``gaussian_mixture_head``
    ``quantile_head`` ``joint_head``; ``Head``.
Writing and choosing
    ``generate`` ``generate_series`` ``beam_search`` ``stream_text``; ``sample`` ``greedy`` from
    scores changed by ``temperature`` ``top_k`` ``top_p`` ``min_p`` ``repetition_penalty``
    ``forbid`` ``min_length``; ``Sampling`` ``Generated`` ``GeneratedSeries`` ``Beams``; taught
    behind its own tokens: ``scheduled_sampling``.
Training
    ``make_train_step`` ``make_accumulating_step`` ``make_eval_step`` ``make_truncated_step``
    ``init_train_state`` ``TrainState`` ``CompiledStep`` ``Sequences`` ``apply_gradients``
    ``average_parameters`` ``averaged`` ``averaged_from`` ``no_longer_improves``
    ``EarlyStopping`` ``check_finite`` ``NonFiniteError``;
    values looked at while a function runs: ``checked``.
Modules, loaded when they are first used
    ``rnnjax.heads`` distributions of the next value;
    ``rnnjax.data`` texts and series as batches; ``rnnjax.metrics`` losses and metrics as sums
    and counts; ``rnnjax.training`` steps; ``rnnjax.weights`` safetensors files;
    ``rnnjax.checkpoint`` runs that go on; ``rnnjax.interop`` weights of other libraries, ONNX;
    ``rnnjax.modules`` Flax modules; ``rnnjax.exporting`` compiled programs as files;
    ``rnnjax.benchmark`` timing; ``rnnjax.initializers`` first weights; ``rnnjax.segments`` and
    ``rnnjax.masking``.
"""

import importlib as _importlib
import warnings as _warnings

from . import _requirements as _requirements
from ._values import checked as checked
from .base import Cell as Cell
from .base import Layer as Layer
from .base import Noise as Noise
from .base import NoiseShape as NoiseShape
from .cells import CfCParams as CfCParams
from .cells import ConvLSTMParams as ConvLSTMParams
from .cells import CoRNNCarry as CoRNNCarry
from .cells import CoRNNParams as CoRNNParams
from .cells import CoupledLSTMParams as CoupledLSTMParams
from .cells import GatedDeltaParams as GatedDeltaParams
from .cells import GRUGates as GRUGates
from .cells import GRUParams as GRUParams
from .cells import IndRNNParams as IndRNNParams
from .cells import LMUCarry as LMUCarry
from .cells import LMUParams as LMUParams
from .cells import LRUParams as LRUParams
from .cells import LSTMCarry as LSTMCarry
from .cells import LSTMGates as LSTMGates
from .cells import LSTMParams as LSTMParams
from .cells import MinGRUGates as MinGRUGates
from .cells import MinGRUParams as MinGRUParams
from .cells import MinimalGatedGates as MinimalGatedGates
from .cells import MinimalGatedParams as MinimalGatedParams
from .cells import MinLSTMGates as MinLSTMGates
from .cells import MinLSTMParams as MinLSTMParams
from .cells import MLSTMCarry as MLSTMCarry
from .cells import MLSTMParams as MLSTMParams
from .cells import MogrifierLSTMParams as MogrifierLSTMParams
from .cells import PeepholeLSTMParams as PeepholeLSTMParams
from .cells import ProjectedLSTMParams as ProjectedLSTMParams
from .cells import RGLRUParams as RGLRUParams
from .cells import S4DParams as S4DParams
from .cells import S5Params as S5Params
from .cells import S6Params as S6Params
from .cells import SLSTMCarry as SLSTMCarry
from .cells import SLSTMParams as SLSTMParams
from .cells import VanillaParams as VanillaParams
from .cells import cfc as cfc
from .cells import conv_lstm as conv_lstm
from .cells import cornn as cornn
from .cells import coupled_lstm as coupled_lstm
from .cells import flatten_frames as flatten_frames
from .cells import gated_delta as gated_delta
from .cells import gru as gru
from .cells import indrnn as indrnn
from .cells import lmu as lmu
from .cells import lru as lru
from .cells import lstm as lstm
from .cells import min_gru as min_gru
from .cells import min_lstm as min_lstm
from .cells import minimal_gated as minimal_gated
from .cells import mlstm as mlstm
from .cells import mogrifier_lstm as mogrifier_lstm
from .cells import peephole_lstm as peephole_lstm
from .cells import projected_lstm as projected_lstm
from .cells import rg_lru as rg_lru
from .cells import s4d as s4d
from .cells import s5 as s5
from .cells import s6 as s6
from .cells import slstm as slstm
from .cells import unflatten_frames as unflatten_frames
from .cells import vanilla as vanilla
from .decoding import Beams as Beams
from .decoding import Generated as Generated
from .decoding import GeneratedSeries as GeneratedSeries
from .decoding import Sampling as Sampling
from .decoding import beam_search as beam_search
from .decoding import forbid as forbid
from .decoding import generate as generate
from .decoding import generate_series as generate_series
from .decoding import greedy as greedy
from .decoding import min_length as min_length
from .decoding import min_p as min_p
from .decoding import repetition_penalty as repetition_penalty
from .decoding import sample as sample
from .decoding import scheduled_sampling as scheduled_sampling
from .decoding import stream_text as stream_text
from .decoding import temperature as temperature
from .decoding import top_k as top_k
from .decoding import top_p as top_p
from .engine import explain as explain
from .engine import unroll as unroll
from .heads import Head as Head
from .heads import bernoulli_head as bernoulli_head
from .heads import categorical_head as categorical_head
from .heads import gaussian_mixture_head as gaussian_mixture_head
from .heads import joint_head as joint_head
from .heads import quantile_head as quantile_head
from .layers import Attended as Attended
from .layers import Attention as Attention
from .layers import CausalConvolutionParams as CausalConvolutionParams
from .layers import DenseParams as DenseParams
from .layers import Directions as Directions
from .layers import GatedParams as GatedParams
from .layers import GridLSTMParams as GridLSTMParams
from .layers import GridSide as GridSide
from .layers import ImageGrid as ImageGrid
from .layers import ImageGridParams as ImageGridParams
from .layers import Memory as Memory
from .layers import RMSNormParams as RMSNormParams
from .layers import Window as Window
from .layers import WindowCarry as WindowCarry
from .layers import WindowCellParams as WindowCellParams
from .layers import attention as attention
from .layers import attention_cell as attention_cell
from .layers import bidirectional as bidirectional
from .layers import causal_convolution as causal_convolution
from .layers import dense as dense
from .layers import doubly_stochastic_penalty as doubly_stochastic_penalty
from .layers import gated as gated
from .layers import grid_lstm as grid_lstm
from .layers import image_grid_lstm as image_grid_lstm
from .layers import make_stream as make_stream
from .layers import output_head as output_head
from .layers import prepare_memory as prepare_memory
from .layers import recurrent as recurrent
from .layers import residual as residual
from .layers import rms_norm as rms_norm
from .layers import score_function as score_function
from .layers import skip_stack as skip_stack
from .layers import stack as stack
from .layers import window_cell as window_cell
from .layers import window_weights as window_weights
from .masking import lengths_to_mask as lengths_to_mask
from .models import Embedding as Embedding
from .models import LanguageModel as LanguageModel
from .models import Model as Model
from .models import SequenceToSequence as SequenceToSequence
from .models import SeriesModel as SeriesModel
from .models import TaggerParams as TaggerParams
from .models import adaptive_softmax as adaptive_softmax
from .models import captioner as captioner
from .models import classifier as classifier
from .models import embedding as embedding
from .models import language_model as language_model
from .models import one_hot as one_hot
from .models import sequence_to_sequence as sequence_to_sequence
from .models import series_model as series_model
from .models import tagger as tagger
from .models import trainable as trainable
from .segments import pool_segments as pool_segments
from .segments import resets_from_dones as resets_from_dones
from .segments import resets_from_segment_ids as resets_from_segment_ids
from .segments import segment_carries as segment_carries
from .segments import segment_ids_from_resets as segment_ids_from_resets
from .segments import valid_from_dones as valid_from_dones
from .training import CompiledStep as CompiledStep
from .training import EarlyStopping as EarlyStopping
from .training import NonFiniteError as NonFiniteError
from .training import Sequences as Sequences
from .training import TrainState as TrainState
from .training import apply_gradients as apply_gradients
from .training import average_parameters as average_parameters
from .training import averaged as averaged
from .training import averaged_from as averaged_from
from .training import check_finite as check_finite
from .training import init_train_state as init_train_state
from .training import make_accumulating_step as make_accumulating_step
from .training import make_eval_step as make_eval_step
from .training import make_train_step as make_train_step
from .training import make_truncated_step as make_truncated_step
from .training import no_longer_improves as no_longer_improves
from .transforms import LayerNormParams as LayerNormParams
from .transforms import LearnedCarryParams as LearnedCarryParams
from .transforms import Policy as Policy
from .transforms import layer_norm as layer_norm
from .transforms import learn_initial_carry as learn_initial_carry
from .transforms import recurrent_dropout as recurrent_dropout
from .transforms import trace_gates as trace_gates
from .transforms import variational_dropout as variational_dropout
from .transforms import weight_drop as weight_drop
from .transforms import with_policy as with_policy
from .transforms import zoneout as zoneout

__version__ = "0.1.0"

_MODULES = (
    "benchmark",
    "checkpoint",
    "data",
    "exporting",
    "heads",
    "initializers",
    "interop",
    "masking",
    "metrics",
    "modules",
    "segments",
    "training",
    "weights",
)


# Names of the release before: they still work, with a warning.
_FORMER = {"MGUGates": "MinimalGatedGates", "MGUParams": "MinimalGatedParams"}


def __getattr__(name: str) -> object:
    """A module of the package, loaded when it is first asked for: importing rnnjax stays cheap."""
    if name in _MODULES:
        return _importlib.import_module(f"rnnjax.{name}")
    if name in _FORMER:
        message = f"rnnjax.{name} is called {_FORMER[name]} now, as its cell is minimal_gated"
        _warnings.warn(message, DeprecationWarning, stacklevel=2)
        return globals()[_FORMER[name]]
    raise AttributeError(f"module 'rnnjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if not name.startswith("_")), *_MODULES})

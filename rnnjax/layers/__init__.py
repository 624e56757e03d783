"""Layers over whole sequences; each combinator takes layers and returns one."""

from .attention import Attention as Attention
from .attention import attention as attention
from .attention_cell import Attended as Attended
from .attention_cell import AttentionCellParams as AttentionCellParams
from .attention_cell import FeedingCarry as FeedingCarry
from .attention_cell import InputFeedingParams as InputFeedingParams
from .attention_cell import Memory as Memory
from .attention_cell import SelectorParams as SelectorParams
from .attention_cell import attention_cell as attention_cell
from .attention_cell import prepare_memory as prepare_memory
from .attention_losses import doubly_stochastic_penalty as doubly_stochastic_penalty
from .attention_losses import score_function as score_function
from .bidirectional import Directions as Directions
from .bidirectional import bidirectional as bidirectional
from .grid_lstm import GridLSTMParams as GridLSTMParams
from .grid_lstm import GridSide as GridSide
from .grid_lstm import grid_lstm as grid_lstm
from .output_head import HeadParams as HeadParams
from .output_head import output_head as output_head
from .recurrent import recurrent as recurrent
from .residual import residual as residual
from .residual import skip_stack as skip_stack
from .stack import stack as stack
from .streaming import Stream as Stream
from .streaming import make_stream as make_stream

"""Layers over whole sequences; each combinator takes layers and returns one."""

from .attention import Attention as Attention
from .attention import attention as attention
from .bidirectional import Directions as Directions
from .bidirectional import bidirectional as bidirectional
from .output_head import HeadParams as HeadParams
from .output_head import output_head as output_head
from .recurrent import recurrent as recurrent
from .residual import residual as residual
from .residual import skip_stack as skip_stack
from .stack import stack as stack
from .streaming import Block as Block
from .streaming import Stream as Stream
from .streaming import make_stream as make_stream

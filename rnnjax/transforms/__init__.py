"""Cell to cell: what changes a cell, or shows more of it, and leaves it a cell."""

from .gate_traces import trace_gates as trace_gates
from .learned_carry import LearnedCarryParams as LearnedCarryParams
from .learned_carry import learn_initial_carry as learn_initial_carry
from .normalization import LayerNormParams as LayerNormParams
from .normalization import layer_norm as layer_norm
from .precision import DTYPES as DTYPES
from .precision import Policy as Policy
from .precision import with_policy as with_policy
from .regularizers import recurrent_dropout as recurrent_dropout
from .regularizers import variational_dropout as variational_dropout
from .regularizers import weight_drop as weight_drop
from .regularizers import zoneout as zoneout

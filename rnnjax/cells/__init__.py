"""One cell a file."""

from .gru import GRUGates as GRUGates
from .gru import GRUParams as GRUParams
from .gru import gru as gru
from .lstm import LSTMCarry as LSTMCarry
from .lstm import LSTMGates as LSTMGates
from .lstm import LSTMParams as LSTMParams
from .lstm import lstm as lstm
from .vanilla import VanillaParams as VanillaParams
from .vanilla import vanilla as vanilla

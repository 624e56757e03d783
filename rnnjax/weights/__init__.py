"""Parameters as safetensors files, by the names of their paths in the tree."""

from .files import Params as Params
from .files import load_metadata as load_metadata
from .files import load_weights as load_weights
from .files import named_parameters as named_parameters
from .files import save_weights as save_weights

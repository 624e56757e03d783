"""Weights of other libraries, both ways: one module a library, NumPy in and NumPy out.

Each module has ``import_weights``, which makes parameters that the layers here take as they are,
and its inverse ``export_weights``; its first lines say what differs. None of them imports the
library it is named after.

The parameters of one layer are those of its cell or of ``bidirectional``; several layers are a
tuple, as ``stack`` has it. Where the other library numbers its layers (PyTorch), one layer
never makes a tuple; where it has a list of layers, a list of one makes a tuple of one.

Nothing is cast, guessed or left out: what has no exact counterpart is refused, and why.
"""

from rnnjax.interop import equinox as equinox
from rnnjax.interop import haiku as haiku
from rnnjax.interop import keras as keras
from rnnjax.interop import linen as linen
from rnnjax.interop import nnx as nnx
from rnnjax.interop import onnx as onnx
from rnnjax.interop import torch as torch

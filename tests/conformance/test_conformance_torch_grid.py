"""PyTorch's grid of recurrent modules, with rnnjax in the place of cuDNN.

PyTorch compares its CPU modules with cuDNN over {RNN, LSTM, GRU} x {bias, bidirectional, batch
first, packed lengths}, LSTMs with a projection among them, in outputs, final states and the
gradients of input, initial states and every weight. The sizes, lengths and configurations are
those; all is float64. What that grid varies beside them does not reach a layer here:

- contiguous or not: arrays of JAX have no strides;
- lengths as a list or as a tensor: that is how PyTorch packs, before any module is called;
- dropout of 1: a rate lies in [0, 1), 1 is refused.
"""

import itertools

import jax
import pytest

import rnnjax

pytestmark = pytest.mark.usefixtures("quick_compile")

torch = pytest.importorskip("torch", reason="torch is not installed: its grid is not run")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402
from torch_stand_ins import assert_same_outcome, make_pair, outcome  # noqa: E402

LENGTHS = [7, 5, 5, 2, 1, 1]
B, T, D, H, P, LAYERS = 6, 7, 10, 6, 3, 2
ROWS = {"RNN": {}, "LSTM": {}, "GRU": {}, "LSTM projected": {"proj_size": P}}
FLAGS = ["bias", "bidirectional", "batch_first", "packed"]
GRID = list(itertools.product(ROWS, itertools.product([True, False], repeat=len(FLAGS))))


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def draw_arguments(proj_size=0, states=1, bidirectional=False, batch_first=False, packed=False):
    """An input, padded or packed, and initial states, all of them leaves."""
    xs = normal(*((B, T) if batch_first else (T, B)), D)
    if packed:
        with torch.no_grad():
            xs = pack_padded_sequence(xs, LENGTHS, batch_first=batch_first)
        xs.data.requires_grad_()
    rows = LAYERS * (2 if bidirectional else 1)
    hx = tuple(normal(rows, B, size) for size in (proj_size or H, H)[:states])
    return xs, hx if states == 2 else hx[0]


def check(name, arguments, **options):
    theirs, ours = make_pair(name, D, H, LAYERS, **options)
    expected = outcome(theirs, theirs.named_parameters(), arguments)
    assert_same_outcome(outcome(ours, ours.named_parameters(), arguments), expected)


def test_the_grid_has_all_its_configurations():
    assert len(GRID) == 48 + 16


def id_of(value):
    if isinstance(value, str):
        return value
    return ",".join(flag for flag, on in zip(FLAGS, value, strict=True) if on) or "plain"


@pytest.mark.parametrize(("row", "flags"), GRID, ids=id_of)
def test_outputs_states_and_all_gradients_are_those_of_torch(row, flags):
    name, options = row.split()[0], ROWS[row]
    bias, bidirectional, batch_first, packed = flags
    both = {"bidirectional": bidirectional, "batch_first": batch_first}
    states = 2 if name == "LSTM" else 1
    arguments = draw_arguments(**options, **both, states=states, packed=packed)
    check(name, arguments, bias=bias, **options, **both)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_both_nonlinearities_are_those_of_torch(nonlinearity, bias):
    check("RNN", draw_arguments(), bias=bias, nonlinearity=nonlinearity)


def test_dropout_of_one_is_refused():
    with pytest.raises(ValueError, match=r"dropout must be a rate in \[0, 1\), got 1"):
        rnnjax.stack(rnnjax.lstm(H), rnnjax.lstm(H), dropout=1)

"""The cases of PyTorch's module database for its recurrent modules, run against rnnjax.

Forward cases are compared in values and gradients with the module of PyTorch. Of the error cases,
``REFUSED`` says what rnnjax answers, and ``LISTED`` why there is no such mistake to make here.
"""

import inspect

import jax
import pytest
from hypothesis import settings

import rnnjax
from rnnjax.cells.projected_lstm import projected_lstm

pytestmark = pytest.mark.usefixtures("quick_compile")

torch = pytest.importorskip("torch", reason="torch is not installed: its test cases are not run")
pytest.importorskip("expecttest", reason="torch's own tests need expecttest")
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db  # noqa: E402
from torch_stand_ins import (  # noqa: E402
    STAND_INS,
    assert_close,
    assert_same_outcome,
    make_pair,
    outcome,
    tensors_in,
)

settings.load_profile("rnnjax")  # the import above loads a profile of its own

INFOS = {info.module_cls.__name__: info for info in module_db}
OPTIONS = {"device": "cpu", "dtype": torch.float64, "training": False}


def forward_cases(name):
    torch.manual_seed(0)
    return list(INFOS[name].module_inputs_func(INFOS[name], requires_grad=True, **OPTIONS))


def error_cases(name):
    torch.manual_seed(0)
    return list(INFOS[name].module_error_inputs_func(INFOS[name], requires_grad=False, **OPTIONS))


# By the message of PyTorch (a regular expression, as its database has it): ours.
REFUSED = {
    "hidden_size must be greater than zero": "hidden_size must be a positive integer, got 0",
    "hidden_size should be of type int, got: float": "hidden_size must be a positive .* got 5.0",
    "input_size must be greater than zero": r"input_size must be a positive integer, got (0|-1)",
    "input_size should be of type int, got: float": "input_size must be a positive .* got 3.0",
    "input_size should be of type int, got: str": "input_size must be a positive .* got '10'",
    "num_layers must be greater than zero": "stack needs at least one layer, got none",
    "input has inconsistent input_size: got 11 expected 10": (
        r"xs must have size 10 in the last axis \(weights of shape \(10, \d+\)\), got size 11"
    ),
    "hidden0 has inconsistent hidden_size: got 21, expected 20": (
        r"initial_carry(\.h)? must have shape \(3, 20\), got shape \(3, 21\)"
    ),
    "Input batch size 3 doesn't match hidden0 batch size 5": (
        r"initial_carry(\.h)? must have shape \(3, 20\), got shape \(5, 20\)"
    ),
    "Expected hidden to be 1D or 2D, got 4D instead": (
        r"state must have shape \[layers \* directions, B, H\], got \[\(1, 3, 1, 1, 20\)"
    ),
    r"Expected hx\[0\] to be 1D or 2D, got 4D instead": (
        r"state must have shape \[layers \* directions, B, H\], got \[\(1, 3, 1, 1, 20\)"
    ),
}
NO_BIAS = "no cell has an argument bias: a cell without one is a cell whose bias is zero"
NO_BATCH_FIRST = "no layer has an argument batch_first: public axes are [..., T, D]"
CAST = "products are taken in the dtype of the weights, as the docstring of unroll promises"
LISTED = {
    "bias should be of type bool, got: int": NO_BIAS,
    "bias should be of type bool, got: str": NO_BIAS,
    "batch_first should be of type bool, got: int": NO_BATCH_FIRST,
    "batch_first should be of type bool, got: str": NO_BATCH_FIRST,
    r"RNN input dtype .* does not match weight dtype .* Convert input: input\.to\(.*\), "
    r"or convert model: model\.to\(.*\)": CAST,
}

FORWARD = [(name, case) for name in STAND_INS for case in forward_cases(name)]
ERRORS = [(name, case) for name in STAND_INS for case in error_cases(name)]
APPLIED = [(name, case) for name, case in ERRORS if case.error_regex in REFUSED]
OF_DTYPE = [(name, case) for name, case in ERRORS if LISTED.get(case.error_regex) == CAST]


def ids_of(cases):
    return [f"{name}-{number}" for number, (name, _) in enumerate(cases)]


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


def test_no_case_is_lost():
    assert len(FORWARD) >= 87
    assert len(ERRORS) >= 58
    for cases in (FORWARD, ERRORS):
        assert {name for name, _ in cases} == set(STAND_INS)
    assert not REFUSED.keys() & LISTED.keys()
    assert {case.error_regex for _, case in ERRORS} == REFUSED.keys() | LISTED.keys()
    listed = [case for _, case in ERRORS if case.error_regex in LISTED]
    assert len(APPLIED) + len(listed) == len(ERRORS)


@pytest.mark.parametrize(("name", "case"), FORWARD, ids=ids_of(FORWARD))
def test_a_forward_case_has_the_values_and_gradients_of_torch(name, case):
    sizes, arguments = case.constructor_input, case.forward_input.args
    assert not case.forward_input.kwargs
    theirs, ours = make_pair(name, *sizes.args, **sizes.kwargs)
    expected = outcome(theirs, theirs.named_parameters(), arguments)
    assert_same_outcome(outcome(ours, ours.named_parameters(), arguments), expected)


@pytest.mark.parametrize(("name", "case"), FORWARD, ids=ids_of(FORWARD))
def test_a_sequence_without_a_batch_axis_is_a_batch_of_one(name, case):
    _, ours = make_pair(name, *case.constructor_input.args, **case.constructor_input.kwargs)
    arguments = case.forward_input.args
    batched = case.reference_fn(ours, *arguments)
    assert_close(tensors_in(ours(*arguments)), tensors_in(batched))


@pytest.mark.parametrize(("name", "case"), APPLIED, ids=ids_of(APPLIED))
def test_what_torch_refuses_is_refused_by_name(name, case):
    sizes = case.module_error_input.constructor_input

    def use(module_class):
        module = module_class(*sizes.args, **sizes.kwargs)
        if case.error_on == ModuleErrorEnum.FORWARD_ERROR:
            module(*case.module_error_input.forward_input.args)

    with pytest.raises(case.error_type, match=case.error_regex):
        use(getattr(torch.nn, name))
    with pytest.raises(ValueError, match=REFUSED[case.error_regex]):
        use(STAND_INS[name])


@pytest.mark.parametrize(("name", "case"), OF_DTYPE, ids=ids_of(OF_DTYPE))
def test_an_input_of_another_dtype_is_cast_to_that_of_the_weights(name, case):
    sizes = case.module_error_input.constructor_input
    (xs,) = case.module_error_input.forward_input.args
    theirs, ours = make_pair(name, *sizes.args, **sizes.kwargs)
    assert_close(tensors_in(ours(xs)), tensors_in(theirs(xs.double())))


@pytest.mark.parametrize("argument", ["bias", "batch_first"])
def test_an_argument_listed_as_absent_is_absent(argument):
    cells = rnnjax.vanilla, rnnjax.lstm, rnnjax.gru, projected_lstm
    layers = rnnjax.recurrent, rnnjax.bidirectional, rnnjax.stack, rnnjax.unroll
    for made_by in (*cells, *layers):
        assert argument not in inspect.signature(made_by).parameters

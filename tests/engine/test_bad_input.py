"""Wrong arguments: each a ValueError that names the argument, what was expected and what came."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax._checks import check_takes, telling_given_away

CONVOLUTION = rnnjax.causal_convolution(3, 2)
DENSE = rnnjax.dense(2).init(jax.random.key(0), 3)
CONVOLVED = CONVOLUTION.init(jax.random.key(0), 3)
CELL = rnnjax.lstm(4)
PARAMS = CELL.init(jax.random.key(0), 3)
XS = jnp.ones((2, 5, 3))
KEY = jax.random.key(0)
UNEVEN = rnnjax.cfc(4)
EMBEDDED = rnnjax.embedding(3, 2).init(KEY)


class Unreadable:
    """As a tensor of PyTorch that requires a gradient, or has bfloat16."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no numbers here")


class Foreign:
    """As a tensor of PyTorch that NumPy can read."""

    shape, dtype = (4, 16), np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        return np.ones(self.shape, self.dtype)


def unroll(xs=XS, *args, **options):
    return rnnjax.unroll(CELL, PARAMS, xs, *args, **options)


def table(*args, **options):
    return rnnjax.embedding(*args, **options).init(KEY)


def classify(tokens, **options):
    model = rnnjax.classifier(rnnjax.embedding(10, 2), CELL, 3, **options)
    return model.apply(model.init(KEY), tokens)


HALF = jnp.float16
CARRY_LIKE_W = CELL._replace(
    initial_carry=lambda params: rnnjax.LSTMCarry(*[jnp.zeros(4, params.w_hh.dtype)] * 2)
)
SQUARE = CELL.init(KEY, 16)._replace(w_hh=jnp.zeros((4, 16), HALF))
WITH_CONTEXT = CELL._replace(context=lambda params, context: context)
CASES = {
    "lengths too long": (lambda: unroll(lengths=[5, 6]), "lengths", "[0, 5]", "6 at index (1,)"),
    "a length alone, too long": (
        lambda: rnnjax.unroll(CELL, PARAMS, XS[0], lengths=6),
        "lengths",
        "[0, 5]",
        "got 6",
    ),
    "a length alone, of 64 bits": (
        lambda: rnnjax.unroll(CELL, PARAMS, XS[0], lengths=np.int64(2**40)),
        "lengths",
        "[0, 5]",
        str(2**40),
    ),
    "a token alone": (
        lambda: rnnjax.embedding(3, 2).apply(EMBEDDED, 3),
        "tokens",
        "[0, 3)",
        "got 3",
    ),
    "lengths negative": (lambda: unroll(lengths=[-1, 2]), "lengths", "[0, 5]", "-1 at index (0,)"),
    "lengths shape": (lambda: unroll(lengths=[5]), "lengths", "(2,)", "(1,)"),
    "lengths float": (lambda: unroll(lengths=[5.0, 2.0]), "lengths", "integers", "float64"),
    "lengths bool": (lambda: unroll(lengths=[True, False]), "lengths", "integers", "bool"),
    "masked numbers in a list": (
        lambda: unroll([[np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0])]]),
        "xs must be a plain array, got one with masked numbers: give a mask",
    ),
    "lengths ragged": (lambda: unroll(lengths=[[1], [1, 2]]), "lengths", "one array", "unequal"),
    "mask shape": (lambda: unroll(mask=np.ones((2, 4), bool)), "mask", "(2, 5)", "(2, 4)"),
    "mask dtype": (lambda: unroll(mask=np.ones((2, 5))), "mask", "bool", "float64"),
    "resets dtype": (lambda: unroll(resets=np.ones((2, 5), int)), "resets", "bool", "int64"),
    "resets shape": (lambda: unroll(resets=np.ones(5, bool)), "resets", "(2, 5)", "(5,)"),
    "xs rank": (lambda: unroll(jnp.ones(3)), "xs", "[..., T, D]", "(3,)"),
    "xs rank in a tree": (lambda: unroll({"x": XS[0, 0]}), "xs['x']", "[..., T, D]", "(3,)"),
    "xs rows in a tree": (
        lambda: unroll({"x": XS, "y": jnp.ones((3, 5, 2))}),
        "xs['y']",
        "axes (2, 5) of xs['x']",
        "(3, 5, 2)",
    ),
    "xs of no array": (lambda: unroll({}), "xs", "at least one array", "got none"),
    "xs dtype": (lambda: unroll(jnp.ones((5, 3), int)), "xs", "floating", "int32"),
    "xs size": (lambda: unroll(jnp.ones((5, 7))), "xs", "size 3", "size 7"),
    "carry structure": (
        lambda: unroll(initial_carry=jnp.zeros((2, 4))),
        "initial_carry",
        "LSTMCarry(h, c)",
        "got an array of shape (2, 4)",
    ),
    "carry tuple": (
        lambda: unroll(initial_carry=(jnp.zeros((2, 4)),) * 2),
        "initial_carry",
        "must be LSTMCarry(h, c)",
        "got a tuple of 2",
    ),
    "xs integers": (lambda: unroll(jnp.ones((5, 3), int)), "xs", "one-hot", "xs.astype(float)"),
    "carry shape": (
        lambda: unroll(initial_carry=rnnjax.LSTMCarry(jnp.zeros((2, 4)), jnp.zeros((4,)))),
        "initial_carry.c",
        "(2, 4)",
        "(4,)",
    ),
    "complex carry": (
        lambda: unroll(initial_carry=rnnjax.LSTMCarry(*jnp.ones((2, 2, 4), complex))),
        "initial_carry.h",
        "must be real",
        "complex64",
    ),
    "scan_unroll": (lambda: unroll(scan_unroll=0), "scan_unroll", "positive", "0"),
    "rounds below 0": (lambda: rnnjax.mogrifier_lstm(4, rounds=-1), "rounds", "from 0 on", "-1"),
    "a range in words": (
        lambda: rnnjax.indrnn(3, recurrent_range="01"),
        "recurrent_range",
        "two finite numbers",
        "'01'",
    ),
    "no features": (lambda: rnnjax.unflatten_frames(1.0, (2, 2)), "features", "[..., C", "()"),
    "a decay that float32 rounds to 1": (
        lambda: rnnjax.rg_lru(3, max_decay=0.999999999),
        "max_decay",
        "(0, 1) of float32",
        "0.999999999",
    ),
    "a decay that float32 rounds to 0": (
        lambda: rnnjax.rg_lru(3, min_decay=1e-50),
        "min_decay",
        "(0, 1) of float32",
        "1e-50",
    ),
    "a bias of one channel": (
        lambda: CONVOLUTION.apply(CONVOLVED._replace(bias=jnp.ones(1)), jnp.ones((5, 3))),
        "params.bias",
        "(3,)",
        "(1,)",
    ),
    "dense weights of another size": (
        lambda: rnnjax.dense(2).apply(rnnjax.DenseParams(jnp.ones((3, 4)), jnp.ones(2)), XS),
        "params.w",
        "(3, 2)",
        "(3, 4)",
    ),
    "a carry for what has none": (
        lambda: rnnjax.dense(2).apply(DENSE, jnp.ones((5, 3)), initial_carry=jnp.ones(2)),
        "initial_carry",
        "None",
        "(2,)",
    ),
    "a carry by parameters of another layer": (
        lambda: rnnjax.grid_lstm(2, 2).initial_carry(CONVOLVED),
        "params",
        "GridLSTMParams",
        "CausalConvolutionParams",
    ),
    "not a cell": (lambda: rnnjax.unroll(3, PARAMS, XS), "cell", "rnnjax.Cell", "int"),
    "half a cell": (
        lambda: rnnjax.unroll(CELL._replace(update=None), PARAMS, XS),
        "cell",
        "update",
        "step",
    ),
    "a cell of two kinds": (
        lambda: rnnjax.unroll(CELL._replace(plain_step=CELL.update), PARAMS, XS),
        "a cell must give either update",
        "or plain_step",
        "got update, hidden, recurrent, plain_step",
    ),
    "pieces": (
        lambda: rnnjax.unroll(CELL._replace(project=lambda params, x: (x,) * 5), PARAMS, XS),
        "recurrent",
        "(4, 16)",
        "5 pieces",
    ),
    "no pieces": (
        lambda: rnnjax.unroll(CELL._replace(project=lambda params, x: x), PARAMS, XS),
        "project",
        "tuple",
        "got",
    ),
    "integer carry": (
        lambda: rnnjax.unroll(CELL._replace(initial_carry=lambda p: jnp.arange(4)), PARAMS, XS),
        "carry",
        "floating",
        "int32",
    ),
    "no carry": (
        lambda: rnnjax.unroll(CELL._replace(initial_carry=lambda p: None), PARAMS, XS),
        "carry",
        "an array for recurrent",
        "None",
    ),
    "mask as lengths": (
        lambda: unroll(XS, jnp.ones((2, 5), bool)),
        "lengths",
        "integers",
        "bool: a mask is given by name, mask=mask",
    ),
    "key as lengths": (
        lambda: unroll(XS, jax.random.key(0)),
        "lengths",
        "integers",
        "key<fry>: a key is given by name, key=key",
    ),
    "hidden of another size": (
        lambda: rnnjax.unroll(CELL._replace(hidden=lambda carry: carry.h[:3]), PARAMS, XS),
        "a cell's hidden(carry)",
        "size 4",
        "size 3",
    ),
    "spans of time": (
        lambda: rnnjax.unroll(CELL, PARAMS, np.zeros((5, 3), "timedelta64[s]")),
        "xs",
        "an array of numbers",
        "timedelta64[s]",
    ),
    "floats of more than 64 bits": (
        lambda: rnnjax.unroll(CELL, PARAMS, np.zeros((5, 3), np.longdouble)),
        "xs",
        "an array of numbers",
        f"ndarray (dtype {np.dtype(np.longdouble)})",
    ),
    "parameters of another library": (
        lambda: rnnjax.unroll(CELL, PARAMS._replace(w_hh=Foreign()), XS),
        "params.w_hh",
        "an array of JAX or NumPy",
        "got Foreign",
    ),
    "input and time in the wrong order": (
        lambda: rnnjax.unroll(UNEVEN, UNEVEN.init(KEY, 3), (XS[..., :1], XS)),
        "xs",
        "elapsed times [..., 1]",
        "arrays of shapes (1,), (3,)",
    ),
    "times of a step without an axis of features": (
        lambda: UNEVEN.step(UNEVEN.init(KEY, 3), None, (XS[:, 0], np.ones(2))),
        "x[1]",
        "batch axes (2,) of the first input and an axis of features",
        "(2,)",
    ),
    "hidden_size": (lambda: rnnjax.lstm(0), "hidden_size", "positive integer", "0"),
    "hidden_size float": (lambda: rnnjax.gru(4.0), "hidden_size", "positive integer", "4.0"),
    "hidden_size bool": (lambda: rnnjax.vanilla(True), "hidden_size", "positive integer", "True"),
    "input_size": (lambda: CELL.init(KEY, -1), "input_size", "positive integer", "-1"),
    "initializer": (lambda: rnnjax.lstm(4, initializer="x"), "initializer", "pytorch", "'x'"),
    "initializer list": (lambda: rnnjax.lstm(4, initializer=[]), "initializer", "pytorch", "[]"),
    "activation by name": (
        lambda: rnnjax.vanilla(4, "relu"),
        "activation",
        "a function, such as jax.nn.relu",
        "'relu'",
    ),
    "no activation": (lambda: rnnjax.indrnn(4, None), "activation", "a function", "None"),
    "gate by name": (
        lambda: rnnjax.gated(CELL, 4, activation="silu"),
        "activation",
        "a function",
        "'silu'",
    ),
    "head activation by name": (
        lambda: rnnjax.output_head(CELL, 4, "sigmoid"),
        "activation",
        "a function",
        "'sigmoid'",
    ),
    "convolution activation by name": (
        lambda: rnnjax.causal_convolution(4, 2, "silu"),
        "activation",
        "a function",
        "'silu'",
    ),
    "several keys": (
        lambda: CELL.init(jax.random.split(KEY), 3),
        "key",
        "jax.random.key",
        "an array of shape (2,)",
    ),
    "no gates": (lambda: rnnjax.trace_gates(rnnjax.vanilla(3)), "cell", "gates", "None"),
    "layer of nothing": (lambda: rnnjax.recurrent("lstm"), "cell", "rnnjax.Cell", "str"),
    "stack of nothing": (lambda: rnnjax.stack(), "stack", "at least one", "none"),
    "stack of a string": (lambda: rnnjax.stack("lstm"), "a layer must be", "rnnjax.Layer", "str"),
    "dropout": (lambda: rnnjax.stack(CELL, dropout=1.0), "dropout", "[0, 1)", "1.0"),
    "one direction": (
        lambda: rnnjax.bidirectional(rnnjax.recurrent(CELL)),
        "backward",
        "recurrent(cell, reverse=True)",
        "forward is a layer, got None",
    ),
    "stack carry": (
        lambda: rnnjax.stack(CELL, CELL).apply((PARAMS, PARAMS), XS, initial_carry=(None,)),
        "initial_carry",
        "2 parts",
        "(None,)",
    ),
    "tokens float": (lambda: classify(jnp.ones((2, 3))), "tokens", "integers", "float32"),
    "tokens outside": (lambda: classify([[1, 2], [3, 10]]), "tokens", "[0, 10)", "10 at index"),
    "tokens negative": (lambda: classify([[1, -2]]), "tokens", "[0, 10)", "-2 at index (0, 1)"),
    "pooling": (lambda: classify([[1]], pooling="sum"), "pooling", "'mean'", "'sum'"),
    "vectors": (
        lambda: table(3, vectors=np.ones((2, 4))),
        "vectors",
        "(3, E)",
        "(2, 4)",
    ),
    "vectors size": (
        lambda: table(3, 5, vectors=np.ones((3, 4))),
        "embedding_size",
        "5",
        "size 4",
    ),
    "an example in the place of a size": (
        lambda: CELL.init(KEY, XS),
        "input_size",
        "a positive integer",
        "an array of shape (2, 5, 3)",
    ),
    "parameters of another cell": (
        lambda: rnnjax.unroll(rnnjax.gru(4), PARAMS, XS),
        "params",
        "GRUParams(w_ih, w_hh, bias, hidden_bias)",
        "got LSTMParams(w_ih, w_hh, bias)",
    ),
    "flags in the place of weights": (
        lambda: rnnjax.unroll(CELL, PARAMS._replace(w_hh=PARAMS.w_hh > 0), XS),
        "params.w_hh",
        "dtype float32",
        "got bool",
    ),
    "parameters of two dtypes": (
        lambda: rnnjax.unroll(CARRY_LIKE_W, PARAMS._replace(w_hh=PARAMS.w_hh.astype(HALF)), XS),
        "params.w_hh",
        "dtype float32, as params.w_ih is",
        "got float16",
    ),
    "a number in the place of a vector as long as the inputs": (
        lambda: rnnjax.unroll(CARRY_LIKE_W, SQUARE._replace(bias=jnp.zeros(())), jnp.ones((5, 16))),
        "params.bias",
        "shape (16,)",
        "got shape ()",
    ),
    "a number in the place of parameters, and these in that of inputs": (
        lambda: rnnjax.unroll(CELL, jnp.zeros(()), PARAMS),
        "xs.w_hh",
        "(3,) of xs.w_ih",
        "got shape (4, 16)",
    ),
    "inputs of a size that init refuses, too": (
        lambda: rnnjax.unroll(rnnjax.s4d(3, 2), rnnjax.s4d(3, 2).init(KEY, 3), jnp.ones((5, 7))),
        "xs",
        "size 3 in the last axis",
        "got 7",
    ),
    "context of other rows": (
        lambda: rnnjax.unroll(WITH_CONTEXT, PARAMS, XS[:, None], context=jnp.ones((2, 3, 4))),
        "context",
        "begin with the batch (2, 1)",
        "(2, 3, 4)",
    ),
    **{
        f"context and {field}": (
            lambda field=field: rnnjax.unroll(
                WITH_CONTEXT._replace(**{field: lambda *_: None}), PARAMS, XS, context=XS
            ),
            "a cell must give",
            f"either {field} or context",
            "got both",
        )
        for field in ("linear", "chunk")
    },
    "variables in the place of parameters": (
        lambda: rnnjax.unroll(CELL, {"params": PARAMS}, XS),
        "params",
        "LSTMParams(w_ih, w_hh, bias)",
        "got a dict of params",
    ),
    "parameters as lists": (
        lambda: rnnjax.unroll(CELL, jax.tree.map(lambda a: a.tolist(), PARAMS), XS),
        "params",
        "LSTMParams(w_ih, w_hh, bias)",
        "w_ih=a list of 3",
    ),
    "an array that NumPy cannot read": (
        lambda: unroll(Unreadable()),
        "xs",
        "readable by NumPy",
        "Unreadable: no numbers here",
    ),
    "frozen noise": (lambda: table(3, 5, frozen=True), "frozen", "vectors", "random"),
    "a scale beside vectors": (
        lambda: table(3, vectors=np.ones((3, 2)), scale=0.5),
        "scale must be None",
        "a table that is given",
        "got 0.5",
    ),
}


@pytest.mark.parametrize("name", ["params", "xs", "initial_carry"])
def test_an_array_that_was_given_away_is_named(name):
    carry = rnnjax.recurrent(CELL).initial_carry(PARAMS, (2,))
    given = {"params": PARAMS, "xs": XS, "initial_carry": carry}
    given[name] = _gone(given[name])
    with pytest.raises(ValueError, match=rf"^{name}.* must still be there, got .* \(donated\)"):
        rnnjax.unroll(CELL, **given)
    if name != "xs":
        with pytest.raises(ValueError, match=rf"^{name.split('_')[-1]}.* must still be there"):
            CELL.step(given["params"], given["initial_carry"], XS[:, 0])


@pytest.mark.parametrize("name", ["params", "xs", "initial_carry"])
def test_a_stream_names_an_array_that_was_given_away(name):
    layer = rnnjax.recurrent(CELL)
    given = {"params": PARAMS, "xs": XS, "initial_carry": layer.initial_carry(PARAMS, (2,))}
    given[name] = _gone(given[name])
    for steps in (slice(None), slice(0, 1)):
        here = given if name == "xs" else {**given, "xs": XS[:, steps]}
        with pytest.raises(ValueError, match=rf"^{name}.* must still be there"):
            rnnjax.make_stream(layer)(**here)


def test_models_name_an_array_that_was_given_away():
    model = rnnjax.language_model(rnnjax.embedding(5, 3), CELL)
    params, ids = model.init(KEY), jnp.array([[1, 2]])
    carry = model.initial_carry(params, (1,))
    writing = {"max_new_tokens": 2, "sampling": rnnjax.greedy()}
    search = {"stop": 0, "beam_size": 2, "max_length": 3}
    series = rnnjax.series_model(CELL, rnnjax.bernoulli_head(3))
    calls = {
        "params.vectors": lambda: model.apply(_gone(params), ids),
        "tokens": lambda: rnnjax.one_hot(5).apply((), _gone(ids)),
        "params.embedding.vectors": lambda: rnnjax.generate(model, _gone(params), ids, **writing),
        "prompt": lambda: rnnjax.generate(model, params, _gone(ids), **writing),
        "carry.h": lambda: rnnjax.beam_search(
            model.step, params, _gone(carry), jnp.array([1]), **search
        ),
        "params.layer.w_ih": lambda: rnnjax.generate_series(
            series, _gone(series.init(KEY)), XS, max_new_steps=2, key=KEY
        ),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} must still be there"):
            call()


def _gone(tree):
    copy = jax.tree.map(jnp.copy, tree)
    jax.jit(lambda given: jax.tree.map(lambda a: a + 1, given), donate_argnums=0)(copy)
    return copy


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_argument_expectation_and_what_came(case):
    call, *parts = CASES[case]
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        call()
    for part in parts[1:]:
        assert part in str(caught.value)


LAYERS = [
    rnnjax.recurrent(CELL),
    rnnjax.stack(CELL, CELL),
    rnnjax.bidirectional(CELL),
    rnnjax.output_head(CELL, 2),
    rnnjax.tagger(None, CELL, 2),
]


def of_state(layer):
    """A call with the whole state of a run in place of its parameters."""

    def call():
        params = layer.init(jax.random.key(0), 3)
        state = rnnjax.init_train_state(jax.random.key(0), params, optax.adam(0.1))
        layer.apply(state, jnp.ones((4, 3)))

    return call


@pytest.mark.parametrize(
    ("call", "came"),
    [
        (lambda: rnnjax.stack(PARAMS), "LSTMParams"),
        (
            lambda: rnnjax.recurrent([CELL]),
            "list: rnnjax.stack(*layers) makes one layer of several",
        ),
        (lambda: unroll(context=[1.0, 2]), "a list of 2: (float 1.0, int 2)"),
        (lambda: unroll(context=[1.0] * 10), "a list of 10"),
        (lambda: rnnjax.lstm(np.float32(1.5)), "np.float32(1.5)"),
        *((of_state(layer), "a TrainState: give state.params") for layer in LAYERS),
    ],
)
def test_what_came_is_told_in_few_words(call, came):
    with pytest.raises(ValueError, match=f"got {re.escape(came)}$"):
        call()


def test_an_error_of_jax_that_is_about_no_array_given_away_is_passed_on():
    with pytest.raises(RuntimeError, match="out of memory"), telling_given_away(params=PARAMS):
        raise RuntimeError("out of memory")


def test_a_function_of_which_python_knows_no_arguments_is_taken():
    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(max)
    check_takes("loss_fn", max, "params", "batch", "key")


def test_a_key_that_is_no_key_is_refused_by_every_combinator():
    for layer in (rnnjax.bidirectional(CELL), rnnjax.stack(CELL), rnnjax.output_head(CELL, 2)):
        with pytest.raises(ValueError, match="key must be one key"):
            layer.init(0, 3)
        with pytest.raises(ValueError, match="key must be one key"):
            layer.init(jax.random.split(jax.random.PRNGKey(0), 2), 3)

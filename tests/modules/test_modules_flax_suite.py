"""The checks of Flax's own recurrent tests, written for ``modules.nnx`` and ``modules.linen``.

Flax's files are ``tests/nnx/nn/recurrent_test.py`` and ``tests/linen/linen_recurrent_test.py``.
What they assert is asserted here of our ``RNN``, with Flax's cells and with ours, against a loop
of single steps, against live Flax, or both; where they look at shapes alone, values are compared.

Flax compares with ``assert_allclose(..., rtol=R)`` and atol 0: R is 1e-5, for single rows 1e-6
and for ``jax.lax.scan`` 1e-4. The same R are used here, and an atol of 2e-7 beside them, two units
in the last place of 1: the engine adds in another order, and inputs here are normal numbers, so
that outputs come nearer to zero than those of Flax's tests.

Not here, and why:

- what padded outputs are, which ``test_numerical_equivalence_with_mask`` compares too: Flax's are
  those of a cell that has run on, ours are zero, and both are asserted below;
- cells of one's own (``test_rnn_with_custom_cell``, ``test_rnn_with_spatial_dimensions``,
  ``test_recurrent_dropout``): in ``test_modules_any_cell.py``;
- ``TestRecurrentDeprecation``: how cells were constructed in earlier versions of Flax;
- ``test_lstm_with_custom_activations``, ``test_lstm_with_different_dtypes``,
  ``test_rnn_with_different_dtypes`` and ``carry_init``: in the files of the drop-in tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.linen.recurrent import flip_sequences
from flax_cases import LENGTHS, VALID, B, D, H, T, close, draw

import rnnjax
from rnnjax import modules
from rnnjax.transforms import variational_dropout

pytestmark = pytest.mark.usefixtures("quick_compile")


def as_flax_allows(got, expected, rtol=1e-5):
    """Two trees agree within Flax's ``rtol``, or to rounding where numbers are near zero."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-7), got, expected)


TOLERANCE = 2e-6  # where Flax's tests look at shapes alone


class Case(NamedTuple):
    """A cell as single steps and as our ``RNN``, on the same parameters."""

    step: Callable  # (carry, x) -> (carry, y)
    start: Callable  # (shape of x) -> carry
    run: Callable  # (xs, **options of the call) -> what RNN gives
    options: Callable  # (**options of the constructor) -> run


def nnx_case(cell: Any) -> Case:
    def options(**given):
        return modules.nnx.RNN(cell, **given)

    step = nnx.jit(lambda cell, carry, x: cell(carry, x))
    return Case(
        lambda carry, x: step(cell, carry, x),
        lambda shape: cell.initialize_carry(shape, nnx.Rngs(0)),
        options(),
        options,
    )


def linen_case(cell: Any) -> Case:
    xs = jnp.ones((B, T, D))
    variables = nn.RNN(cell).init(jax.random.key(0), xs)
    inner = {"params": variables["params"]["cell"]}

    def options(**given):
        layer = modules.linen.RNN(cell, **given)
        return lambda xs, **call: layer.apply(variables, xs, **call)

    return Case(
        jax.jit(lambda carry, x: cell.apply(inner, carry, x)),
        lambda shape: cell.initialize_carry(jax.random.key(0), shape),
        options(),
        options,
    )


CASES = {
    "nnx_flax_lstm": lambda: nnx_case(nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))),
    "linen_flax_gru": lambda: linen_case(nn.GRUCell(H)),
    "nnx_our_gru": lambda: nnx_case(modules.nnx.GRUCell(D, H, rngs=nnx.Rngs(0))),
    "linen_our_lstm": lambda: linen_case(modules.linen.LSTMCell(H)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


def walk(case, xs, order):
    """Outputs and carries of single steps over ``xs`` [B, T, D] in the order given."""
    carry, ys, carries = case.start((xs.shape[0], D)), [], []
    for t in order:
        carry, y = case.step(carry, xs[:, t])
        ys.append(y)
        carries.append(carry)
    return jnp.stack(ys, axis=1), carries


XS = draw(3, B, T, D).astype(jnp.float32)


def test_numerical_equivalence(case):
    ys, carries = walk(case, XS, range(T))
    as_flax_allows(case.run(XS, return_carry=True), (carries[-1], ys))
    as_flax_allows(case.options(unroll=2)(XS), ys)


def test_numerical_equivalence_with_mask(case):
    ys, carries = walk(case, XS, range(T))
    carry, got = case.run(XS, seq_lengths=LENGTHS, return_carry=True)
    as_flax_allows(got[VALID], ys[VALID])
    assert np.all(got[~VALID] == 0)
    assert np.any(ys[~VALID] != 0)
    for row, length in enumerate(LENGTHS):
        expected = jax.tree.map(lambda a, row=row: a[row], carries[length - 1])
        as_flax_allows(jax.tree.map(lambda a, row=row: a[row], carry), expected)


def test_numerical_equivalence_single_batch(case):
    carry, ys = case.run(XS, return_carry=True)
    for row in range(B):
        one, carries = walk(case, XS[row : row + 1], range(T))
        as_flax_allows(ys[row : row + 1], one, 1e-6)
        last = jax.tree.map(lambda a, row=row: a[row : row + 1], carry)
        as_flax_allows(last, carries[-1], 1e-6)
        as_flax_allows(case.run(XS[row : row + 1]), one, 1e-6)


def test_reverse(case):
    ys, carries = walk(case, XS, reversed(range(T)))
    as_flax_allows(case.options(reverse=True, return_carry=True)(XS), (carries[-1], ys))


def test_reverse_but_keep_order(case):
    ys, carries = walk(case, XS, reversed(range(T)))
    layer = case.options(reverse=True, keep_order=True, return_carry=True)
    as_flax_allows(layer(XS), (carries[-1], jnp.flip(ys, 1)))


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
@pytest.mark.parametrize(
    ("shape", "time_major"), [((B, T, D), False), ((2, B, T, D), False), ((T, B, D), True)]
)
def test_parameters_have_the_shapes_that_flax_gives_them(cell, shape, time_major):
    layer = modules.linen.RNN(getattr(nn, cell)(H), time_major=time_major)
    ys, variables = layer.init_with_output(jax.random.key(0), jnp.ones(shape))
    assert ys.shape == (*shape[:-1], H)
    layers = variables["params"]["cell"]
    assert set(layers) == {f"{half}{gate}" for half in "ih" for gate in "ifgo"}
    for name, params in layers.items():
        assert params["kernel"].shape == ((D if name[0] == "i" else H), H)
        assert ("bias" in params) == (name[0] == "h")
        assert params.get("bias", jnp.zeros(H)).shape == (H,)


@pytest.mark.parametrize("gates", [("LSTMCell", 4), ("GRUCell", 3), ("SimpleCell", 1)])
def test_parameters_of_our_cells_have_all_gates_in_one(gates):
    name, count = gates
    layer = modules.linen.RNN(getattr(modules.linen, name)(H))
    found = layer.init(jax.random.key(0), XS)["params"]["cell"]
    shapes = {key: value.shape for key, value in found.items()}
    expected = {"w_ih": (D, count * H), "w_hh": (H, count * H), "bias": (count * H,)}
    assert shapes == expected | ({"hidden_bias": (H,)} if name == "GRUCell" else {})


@pytest.mark.parametrize("time_major", [False, True])
def test_flip_sequence(case, time_major):
    lengths = jnp.asarray(LENGTHS)
    given = {"seq_lengths": lengths, "reverse": True, "time_major": time_major}
    xs = jnp.swapaxes(XS, 0, 1) if time_major else XS
    kept = case.run(xs, keep_order=True, **given)
    with jax.numpy_rank_promotion("allow"):
        flipped = flip_sequences(kept, lengths, num_batch_dims=1, time_major=time_major)
    close(case.run(xs, **given), flipped, 0)


def test_multiple_batch_dims(case):
    many = draw(4, 2, B, T, D).astype(jnp.float32)
    carry, ys = case.run(many, return_carry=True)
    flat = case.run(many.reshape(2 * B, T, D), return_carry=True)
    close((jax.tree.map(lambda a: a.reshape(2 * B, H), carry), ys.reshape(2 * B, T, H)), flat, 1e-6)


def test_time_major(case):
    carry, ys = case.options(time_major=True, return_carry=True)(jnp.swapaxes(XS, 0, 1))
    close((carry, jnp.swapaxes(ys, 0, 1)), case.run(XS, return_carry=True), 0)


def test_state_is_kept_across_calls(case):
    carry, first = case.run(XS[:, :2], return_carry=True)
    final, second = case.run(XS[:, 2:], initial_carry=carry, return_carry=True)
    whole = case.run(XS, return_carry=True)
    close((final, jnp.concatenate([first, second], axis=1)), whole, 1e-6)


def test_our_cells_run_in_nn_scan_and_in_jax_scan():
    cell = modules.linen.LSTMCell(H)
    scanned = nn.scan(
        modules.linen.LSTMCell,
        in_axes=1,
        out_axes=1,
        variable_broadcast="params",
        split_rngs={"params": False},
    )(H)
    carry = cell.initialize_carry(jax.random.key(0), (B, D))
    lifted, variables = scanned.init_with_output(jax.random.key(0), carry, XS)
    step = lambda carry, x: cell.apply(variables, carry, x)  # noqa: E731
    plain, ys = jax.lax.scan(step, carry, jnp.swapaxes(XS, 0, 1))
    params = rnnjax.LSTMParams(**variables["params"])
    final, outputs = rnnjax.unroll(rnnjax.lstm(H), params, XS)
    expected = (final.c, final.h), outputs  # the order of Flax
    as_flax_allows(lifted, expected)
    as_flax_allows((plain, jnp.swapaxes(ys, 0, 1)), expected, 1e-4)


def test_nnx_and_linen_agree_on_the_same_weights():
    cell = nnx.LSTMCell(D, H, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    params = {name.rstrip("_"): layer for name, layer in state.items()}
    variables = {"params": {"cell": params}}
    linen = modules.linen.RNN(nn.LSTMCell(H), return_carry=True).apply(variables, XS)
    close(modules.nnx.RNN(cell, return_carry=True)(XS), linen, 0)


# Bidirectional is Flax's own, with our RNN inside and with Flax's.


def bidirectional(api, rnn, shared=False, **options):
    if api == "nnx":
        cells = [nnx.GRUCell(D, H, rngs=nnx.Rngs(k)) for k in range(2)]
        one, two = cells[0], cells[0 if shared else 1]
        return nnx.Bidirectional(rnn.nnx(one), rnn.nnx(two), **options)
    cell = nn.LSTMCell(H)
    layers = rnn.linen(cell), rnn.linen(cell if shared else nn.LSTMCell(H))
    layer = nn.Bidirectional(*layers, **options)
    return lambda xs, **call: layer.apply(layer.init(jax.random.key(0), xs), xs, **call)


class Kind(NamedTuple):
    nnx: Any
    linen: Any


OURS, FLAX = Kind(modules.nnx.RNN, modules.linen.RNN), Kind(nnx.RNN, nn.RNN)


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize(
    "options",
    [{}, {"shared": True}, {"merge_fn": jnp.subtract}],
    ids=["plain", "shared_cell", "custom_merge_fn"],
)
def test_bidirectional(api, options):
    ours, theirs = (bidirectional(api, kind, return_carry=True, **options) for kind in (OURS, FLAX))
    close(ours(XS), theirs(XS), TOLERANCE)
    carry, ys = ours(XS, seq_lengths=LENGTHS)
    flax_carry, flax_ys = theirs(XS, seq_lengths=LENGTHS)
    close((carry, ys[VALID]), (flax_carry, flax_ys[VALID]), TOLERANCE)
    assert np.all(ys[~VALID] == 0)


def test_recurrent_dropout_takes_one_key_a_call():
    dropping = variational_dropout(rnnjax.lstm(H), hidden=0.5)
    cell = modules.nnx.RNNCell(dropping, D, rngs=nnx.Rngs(0, dropout=1))
    layer = modules.nnx.RNN(cell, broadcast_rngs="dropout")
    assert cell.rngs.count[...] == 0
    ys = layer(XS)
    assert cell.rngs.count[...] == 1
    cell.rngs.count[...] = 0
    close(layer(XS), ys, 0)

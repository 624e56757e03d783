"""One rule for settings: a scalar of Python, NumPy or JAX, of any width, is the number it is."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import rnnjax
from rnnjax._checks import check_flag, check_number, check_rate, check_size

INTEGERS = [4, np.int8(4), np.uint64(4), np.array(4), jnp.int16(4), jnp.asarray(4)]
FLOATS = [
    0.5,
    np.float16(0.5),
    np.float64(0.5),
    ml_dtypes.bfloat16(0.5),
    np.array(0.5),
    jnp.float32(0.5),
    jnp.bfloat16(0.5),
]
FLAGS = [True, np.True_, np.array(True), jnp.asarray(True)]


@pytest.mark.parametrize("four", INTEGERS)
def test_sizes(four):
    assert (check_size("n", four), type(check_size("n", four))) == (4, int)
    assert rnnjax.lstm(four) == rnnjax.lstm(4)
    assert hash(rnnjax.lstm(four)) == hash(rnnjax.lstm(4))
    assert rnnjax.lstm(four).init(jax.random.key(0), four).w_ih.shape == (4, 16)
    assert rnnjax.conv_lstm((four, 2), four, four) == rnnjax.conv_lstm((4, 2), 4, 4)
    assert rnnjax.embedding(four, four).vocab_size == 4
    assert rnnjax.recurrent(rnnjax.gru(2), scan_unroll=four, remat=four)


@pytest.mark.parametrize("half", FLOATS)
def test_rates_and_numbers(half):
    assert (check_rate("p", half), type(check_rate("p", half))) == (0.5, float)
    assert check_number("x", half, "small", lambda x: x < 1) == 0.5
    assert rnnjax.stack(rnnjax.gru(2), dropout=half) == rnnjax.stack(rnnjax.gru(2), dropout=0.5)
    assert rnnjax.zoneout(rnnjax.lstm(2), {"h": half}) == rnnjax.zoneout(rnnjax.lstm(2), {"h": 0.5})
    assert rnnjax.layer_norm(rnnjax.gru(2), half) == rnnjax.layer_norm(rnnjax.gru(2), 0.5)
    assert rnnjax.lru(2, min_radius=half, max_phase=half)


@pytest.mark.parametrize("true", FLAGS)
def test_flags(true):
    assert check_flag("f", true) is True
    layer = rnnjax.recurrent(rnnjax.gru(2, reset_after=true), reverse=true)
    assert layer.direction == "backward"
    assert layer == rnnjax.recurrent(rnnjax.gru(2, reset_after=True), reverse=True)
    _, (_, carries) = rnnjax.unroll(
        rnnjax.gru(2),
        rnnjax.gru(2).init(jax.random.key(0), 3),
        jnp.ones((4, 3)),
        reverse=true,
        all_carries=true,
        include_initial=true,
    )
    assert carries.shape == (5, 2)


@pytest.mark.parametrize(
    "wrong", [0, -1, 4.0, True, np.True_, None, "4", np.array([4]), 1j, jax.random.key(0)]
)
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(ValueError, match="hidden_size must be a positive integer, got"):
        rnnjax.lstm(wrong)


def test_bytes_are_no_token_ids():
    """Python would give their numbers one by one."""
    with pytest.raises(ValueError, match=r"ids must be a token id, .*, got b'ab'"):
        rnnjax.forbid(b"ab")


@pytest.mark.parametrize("wrong", [1.0, -0.1, float("nan"), float("inf"), True, None, "a", [0.5]])
def test_what_is_no_rate_is_refused(wrong):
    with pytest.raises(ValueError, match=r"dropout must be a rate in \[0, 1\), got"):
        rnnjax.stack(rnnjax.gru(2), dropout=wrong)


@pytest.mark.parametrize("wrong", [1, 0, None, "yes", np.array([True])])
def test_what_is_no_flag_is_refused(wrong):
    with pytest.raises(ValueError, match="reverse must be True or False, got"):
        rnnjax.recurrent(rnnjax.gru(2), reverse=wrong)
    with pytest.raises(ValueError, match="reset_after must be True or False, got"):
        rnnjax.gru(2, reset_after=wrong)


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("dimensions", True),
        ("dimensions", 2.0),
        ("remat", "all"),
        ("remat", 0),
        ("policy", "bfloat16"),
        ("policy", rnnjax.Policy("int8")),
    ],
)
def test_settings_of_a_layer_are_checked_when_it_is_made(setting, wrong):
    with pytest.raises(ValueError, match="must be"):
        rnnjax.grid_lstm(4, 2, **{setting: wrong})
    if setting != "dimensions":
        with pytest.raises(ValueError, match=r"must be|with_policy takes"):
            rnnjax.recurrent(rnnjax.gru(2), **{setting: wrong})


def test_a_traced_setting_is_refused_by_name():
    with pytest.raises(ValueError, match="dropout must be known when compiled"):
        jax.jit(lambda p: rnnjax.stack(rnnjax.gru(2), dropout=p).output_size)(0.5)

"""Initial weights: the default rule, and each preset against the library it is named after.

Distributions are compared with draws of the live library by a two-sample Kolmogorov-Smirnov test;
all keys and seeds are fixed, so the p-values never change.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp
from trees import assert_trees_equal

import rnnjax
from rnnjax.initializers import PRESETS

D, H = 96, 48
EXACT = {"rtol": 0, "atol": 1e-5}  # of products, taken in float64, of float32 weights
LOWEST_P_VALUE = 1e-3
CELLS = {
    "vanilla": (rnnjax.vanilla, 1),
    "lstm": (rnnjax.lstm, 4),
    "gru": (rnnjax.gru, 3),
    "gru reset before": (lambda h, **options: rnnjax.gru(h, reset_after=False, **options), 3),
}


@functools.cache
def draw(make, preset):
    return make(H, initializer=preset).init(jax.random.key(0), D)


def gates(w, count):
    return np.split(np.asarray(w, np.float64), count, axis=-1)


def gram(w):
    w = np.asarray(w, np.float64)
    return w @ w.T


def same_distribution(ours, theirs):
    return ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > LOWEST_P_VALUE


def biases(params):
    return [b for b in (params.bias, getattr(params, "hidden_bias", None)) if b is not None]


@pytest.mark.parametrize("preset", ["rnnjax", "flax"])
@pytest.mark.parametrize("name", CELLS)
def test_recurrent_weights_are_orthogonal_gate_by_gate(name, preset):
    make, count = CELLS[name]
    for gate in gates(draw(make, preset).w_hh, count):
        np.testing.assert_allclose(gate.T @ gate, np.eye(H), **EXACT)


@pytest.mark.parametrize("name", CELLS)
def test_default_input_weights_are_glorot_uniform_gate_by_gate(name):
    make, count = CELLS[name]
    bound = np.sqrt(6 / (D + H))
    uniform = np.linspace(-bound, bound, 100_001)
    for gate in gates(draw(make, "rnnjax").w_ih, count):
        assert np.abs(gate).max() <= bound
        assert same_distribution(gate, uniform)


@pytest.mark.parametrize(
    ("preset", "forget"), [("rnnjax", 1.0), ("keras", 1.0), ("flax", 0.0)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("name", CELLS)
def test_biases_are_zero_but_for_the_forget_gate(name, preset, forget):
    expected = np.zeros(CELLS[name][1] * H)
    if name == "lstm":
        expected[H : 2 * H] = forget
    bias, *hidden_bias = biases(draw(CELLS[name][0], preset))
    np.testing.assert_array_equal(bias, expected)
    for b in hidden_bias:
        np.testing.assert_array_equal(b, np.zeros(H))


def test_default_rule_is_the_one_named_rnnjax():
    for make, _ in CELLS.values():
        named, default = draw(make, "rnnjax"), make(H).init(jax.random.key(0), D)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), named, default))


@pytest.mark.parametrize("name", ["vanilla", "lstm", "gru"])
def test_pytorch_rule_draws_as_live_torch_does(name):
    torch = pytest.importorskip("torch", reason="torch is not installed: its rule is untested")
    make = CELLS[name][0]
    torch.manual_seed(0)
    layer = {"vanilla": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name]
    theirs = [[np.asarray(p.detach()) for p in layer(D, H).parameters()] for _ in range(20)]
    w_ih, w_hh, b_ih, b_hh = map(np.stack, zip(*theirs, strict=True))
    bias, bound = b_ih + b_hh, H**-0.5
    if name == "gru":
        bias[:, 2 * H :] = b_ih[:, 2 * H :]
    init = jax.vmap(make(H, initializer="pytorch").init, in_axes=(0, None))
    ours = jax.jit(init, static_argnums=1)(jax.random.split(jax.random.key(0), 20), D)
    for got, expected in ((ours.w_ih, w_ih), (ours.w_hh, w_hh)):
        assert same_distribution(got, expected)
        assert 0.99 * bound < jnp.abs(got).max() <= bound
        np.testing.assert_allclose(jnp.var(got), bound**2 / 3, rtol=0.01)
    for k, gate in enumerate(gates(ours.bias, bias.shape[1] // H)):
        assert same_distribution(gate, bias[:, k * H : (k + 1) * H])
    if name == "gru":
        assert same_distribution(ours.hidden_bias, b_hh[:, 2 * H :])


@pytest.mark.parametrize("name", CELLS)
def test_keras_rule_draws_as_live_keras_does(name):
    keras = pytest.importorskip("keras", reason="keras is not installed: its rule is untested")
    layers = keras.layers
    layer = {
        "vanilla": layers.SimpleRNN(H),
        "lstm": layers.LSTM(H),
        "gru": layers.GRU(H, reset_after=True),
        "gru reset before": layers.GRU(H, reset_after=False),
    }[name]
    keras.utils.set_random_seed(0)
    with jax.numpy_rank_promotion("allow"):
        layer.build((1, 1, D))
    w_ih, w_hh, bias = (w.value for w in layer.weights)
    params = draw(CELLS[name][0], "keras")
    assert same_distribution(params.w_ih, w_ih)
    for rows in (params.w_hh, w_hh):  # orthonormal rows of the fused matrix
        np.testing.assert_allclose(gram(rows), np.eye(H), **EXACT)
    assert same_distribution(params.w_hh, w_hh)
    np.testing.assert_array_equal(params.bias, bias if bias.ndim == 1 else bias.sum(0))


@pytest.mark.parametrize("name", ["vanilla", "lstm", "gru"])
def test_flax_rule_draws_as_live_flax_does(name):
    nn = pytest.importorskip("flax.linen", reason="flax is not installed: its rule is untested")
    cell = {"vanilla": nn.SimpleCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[name](features=H)
    packed = {"vanilla": [""], "lstm": "ifgo", "gru": "rzn"}[name]
    x = jnp.zeros((D,))
    weights = cell.init(jax.random.key(1), cell.initialize_carry(jax.random.key(0), x.shape), x)
    params = draw(CELLS[name][0], "flax")
    for k, gate in enumerate(gates(params.w_ih, len(packed))):
        theirs = weights["params"]["i" + packed[k]]["kernel"]
        assert same_distribution(gate, theirs)
        np.testing.assert_allclose(gate.var(), 1 / D, rtol=0.05)  # LeCun
    for gate, ours in zip(packed, gates(params.w_hh, len(packed)), strict=True):
        theirs = weights["params"]["h" + gate]["kernel"]
        np.testing.assert_allclose(gram(theirs), np.eye(H), **EXACT)
        assert same_distribution(ours, theirs)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CELLS)
def test_the_key_alone_decides_the_weights(name, preset):
    init = CELLS[name][0](H, initializer=preset).init
    one, again, other = (init(jax.random.key(seed), D) for seed in (7, 7, 8))
    for a, b, c in zip(*map(jax.tree.leaves, (one, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        drawn = np.unique(a).size > 2  # a bias may be a constant
        assert drawn == bool((a != c).any())
    assert not np.array_equal(one.w_ih[:H, :H], one.w_hh[:, :H])


def test_a_rule_of_ones_own_is_used_as_given():
    own = PRESETS["keras"]._replace(
        w_ih=lambda key, d, h, g: jnp.full((d, g * h), 2.0),
        hidden_bias=lambda key, h: jnp.full((h,), 3.0),
        forget_bias=5.0,
    )
    assert (draw(rnnjax.gru, own).w_ih == 2).all()
    assert (draw(rnnjax.gru, own).hidden_bias == 3).all()
    assert (draw(rnnjax.lstm, own).bias[H : 2 * H] == 5).all()


N, HEADS = 64, 4  # states, or what else a cell has beside its units
SPREADS = {  # the standard deviation of every entry, where no preset is asked
    "lmu": (rnnjax.lmu(H, N, 20.0), {"e_x": D**-0.5, "e_h": H**-0.5, "e_m": 0}),
    "mogrifier": (
        rnnjax.mogrifier_lstm(H, rounds=2),
        {"rounds[0]": (2 / (D + H)) ** 0.5, "rounds[1]": (2 / (D + H)) ** 0.5},
    ),
    "mogrifier_of_rank": (
        rnnjax.mogrifier_lstm(H, rounds=1, rank=16),
        {"rounds[0][0]": (2 / (H + 16)) ** 0.5, "rounds[0][1]": (2 / (16 + D)) ** 0.5},
    ),
    # Of numbers that are complex half the variance is in either part.
    "lru": (
        rnnjax.lru(H, N),
        {
            **dict.fromkeys(("b_real", "b_imag"), (2 * D) ** -0.5),
            **dict.fromkeys(("c_real", "c_imag"), N**-0.5),
            "d": D**-0.5,
        },
    ),
    "s5": (
        rnnjax.s5(H, N),
        {
            **dict.fromkeys(("b_real", "b_imag"), (2 * D) ** -0.5),
            **dict.fromkeys(("c_real", "c_imag"), (4 * N) ** -0.5),
            "d": D**-0.5,
        },
    ),
    "s4d": (rnnjax.s4d(D, N), {"c_real": 0.5**0.5, "c_imag": 0.5**0.5, "d": 1}),
    "s6": (rnnjax.s6(D, N, step_rank=16), {"w_step": (3 * 16) ** -0.5}),
    "mlstm": (rnnjax.mlstm(H, num_heads=HEADS), {"w_gates": 0}),
    "gated_delta": (
        rnnjax.gated_delta(H, num_heads=HEADS),
        {"w_gates": (2 / (D + 2 * HEADS)) ** 0.5},
    ),
    "convolution": (rnnjax.causal_convolution(D, 8), {"w": (3 * 8) ** -0.5, "bias": 0}),
}


@pytest.mark.parametrize("name", SPREADS)
def test_what_follows_no_preset_is_as_far_spread_as_it_should_be(name):
    part, expected = SPREADS[name]
    params = part.init(jax.random.key(0), D)
    leaves = {
        jax.tree_util.keystr(path).lstrip("."): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    for field, spread in expected.items():
        found = np.asarray(leaves[field], np.float64)
        np.testing.assert_allclose(np.sqrt(np.mean(found**2)), spread, rtol=3 / found.size**0.5)


def test_the_gates_of_an_xlstm_start_as_in_the_code_of_its_authors():
    params = rnnjax.slstm(H, num_heads=HEADS).init(jax.random.key(0), D)
    inside = np.arange(H // HEADS) / (H // HEADS - 1)
    i, f, z, o = gates(params.bias, 4)
    np.testing.assert_allclose(f, np.tile(5 - 12 * inside**0.3, HEADS), rtol=1e-6, atol=1e-6)
    assert not np.any([i, z, o])
    bias = rnnjax.mlstm(600, num_heads=300).init(jax.random.key(0), D).gate_bias
    np.testing.assert_allclose(bias[300:], 3 + 3 * np.arange(300) / 299, rtol=1e-6)
    np.testing.assert_allclose(np.std(bias[:300]), 0.1, rtol=0.15)


@pytest.mark.parametrize("name", CELLS)
def test_an_unknown_rule_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"initializer must be one of .*'pytorch'.* got 'he'"):
        CELLS[name][0](H, initializer="he")


@pytest.mark.parametrize("preset", ["rnnjax", "keras"])
def test_an_ensemble_compiled_whole_is_drawn_matrix_by_matrix(preset):
    def init(key):
        return rnnjax.gru(4, initializer=preset).init(key, 3)

    keys = jax.random.split(jax.random.key(0), (2, 2))
    many = jax.vmap(jax.vmap(init))
    # Batched, the decomposition may never end on a CPU.
    shapes = re.findall(r"f32\[([\d,]+)\] = qr\[", str(jax.make_jaxpr(many)(keys)))
    assert shapes
    assert all(shape.count(",") == 1 for shape in shapes)
    found = jax.jit(many)(keys)
    for place in np.ndindex(2, 2):
        one = jax.tree.map(lambda leaf, at=place: leaf[at], found)
        assert_trees_equal(one, init(keys[place]), rtol=0, atol=1e-6)

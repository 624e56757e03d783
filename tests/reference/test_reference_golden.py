"""Numbers of the authors' own code, with its weights: ``golden/*.json``, by ``make_golden.py``.

Each file names the repository, its commit and its licence; the code of the LRU is not by those who
wrote the paper. Outputs, gradients to the inputs and, where that code gives them, final states are
equal in float64.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import EXACT

import rnnjax
from rnnjax.cells.lru import LRUParams
from rnnjax.cells.rg_lru import RGLRUParams

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

GOLDEN = Path(__file__).parent / "golden"


class Ours(NamedTuple):
    """Our cell, their weights as its parameters, and our carry as their final states."""

    cell: rnnjax.Cell
    params: Any
    states: Callable[[Any], dict] = lambda carry: {}
    elapsed: Any = None


def slstm(p: dict) -> Ours:
    # There [heads, 4d, d], the rows of one gate after those of the other; m, c and n as here.
    params = rnnjax.SLSTMParams(p["W"], np.swapaxes(p["R"], 1, 2), p["b"])
    return Ours(rnnjax.slstm(4, num_heads=2), params, lambda carry: carry._asdict())


def mlstm(p: dict) -> Ours:
    inputs, size = len(p["W"]), p["b"].size // 3
    w_ih = np.concatenate([p["W"], np.zeros((inputs, size))], axis=1)
    # An output gate that is open: sigmoid(40) is 1.
    bias = np.concatenate([p["b"], np.full(size, 40.0)])
    params = rnnjax.MLSTMParams(w_ih, bias, p["W_gates"], p["b_gates"])
    return Ours(rnnjax.mlstm(size, num_heads=2), params)


def gated_delta(p: dict) -> Ours:
    params = rnnjax.GatedDeltaParams(p["W"], p["b"], p["W_gates"], p["b_gates"], p["A_log"])
    cell = rnnjax.gated_delta(p["b"].size // 3, num_heads=2, negative_eigenvalues=True)
    return Ours(cell, params, lambda carry: {"memory": carry})


def rg_lru(p: dict) -> Ours:
    def dense(blocks: np.ndarray) -> np.ndarray:
        size = blocks.shape[0] * blocks.shape[1]
        whole = np.zeros((size, size))
        for k, block in enumerate(blocks):
            part = slice(k * len(block), (k + 1) * len(block))
            whole[part, part] = block
        return whole

    gates = ("a_gate", "input_gate")
    params = RGLRUParams(
        w_ih=np.eye(p["a_param"].size),
        w_gates=np.concatenate([dense(p[f"{gate}/w"]) for gate in gates], axis=1),
        bias=np.concatenate([p[f"{gate}/b"].ravel() for gate in gates]),
        decay=p["a_param"],
    )
    return Ours(rnnjax.rg_lru(p["a_param"].size), params, lambda carry: {"h": carry})


def s5(p: dict) -> Ours:
    (states, size), d = p["B"].shape[:2], np.diag(p["D"])
    b, c = np.moveaxis(p["B"], 0, 1), np.moveaxis(p["C"], 0, 1)
    params = rnnjax.S5Params(
        decay_log=p["log(-Lambda_re)"],
        frequency=p["Lambda_im"],
        step_log=p["log_step"][:, 0],
        b_real=b[..., 0],
        b_imag=b[..., 1],
        c_real=c[..., 0],
        c_imag=c[..., 1],
        d=d,
    )
    return Ours(rnnjax.s5(size, states), params)


def s4d(p: dict, **options: Any) -> Ours:
    c, (size, states) = p["C"], p["A_imag"].shape
    params = rnnjax.S4DParams(
        p["log_A_real"], p["A_imag"], p["log_dt"], c[..., 0], c[..., 1], p["D"]
    )
    return Ours(rnnjax.s4d(size, states, **options), params)


def s6(p: dict) -> Ours:
    size, rank = p["dt_proj.weight"].shape
    states = p["A_log"].shape[1]
    w_down, w_in, w_out = np.split(p["x_proj"].T, [rank, rank + states], axis=1)
    params = rnnjax.S6Params(
        w_down, p["dt_proj.weight"].T, p["dt_proj.bias"], w_in, w_out, p["A_log"], p["D"]
    )
    return Ours(rnnjax.s6(size, states, step_rank=rank), params, lambda carry: {"state": carry})


def cornn(p: dict) -> Ours:
    weight = p["i2h.weight"].T
    size = weight.shape[1]
    w_ih, of_z, of_y = np.split(weight, [len(weight) - 2 * size, len(weight) - size])
    params = rnnjax.CoRNNParams(w_ih, np.concatenate([of_y, of_z]), p["i2h.bias"])
    cell = rnnjax.cornn(size, time_step=0.3, frequency=1.5, damping=0.7)
    return Ours(cell, params, lambda carry: {"hy": carry.y, "hz": carry.z})


def cfc(p: dict) -> Ours:
    names = ("ff1", "ff2", "time_a", "time_b")
    weight = np.concatenate([p[f"{name}.weight"].T for name in names], axis=1)
    size = p["ff1.bias"].size
    w_ih, w_hh = np.split(weight, [len(weight) - size])
    params = rnnjax.CfCParams(w_ih, w_hh, np.concatenate([p[f"{name}.bias"] for name in names]))
    return Ours(rnnjax.cfc(size), params, lambda carry: {"h": carry}, p["timespans"])


def lru(p: dict) -> Ours:
    params = LRUParams(
        nu_log=p["nu_log"],
        theta_log=p["theta_log"],
        gamma_log=p["gamma_log"],
        b_real=p["B_re"].T,
        b_imag=p["B_im"].T,
        c_real=p["C_re"].T,
        c_imag=p["C_im"].T,
        d=np.diag(p["D"]),
    )
    return Ours(rnnjax.lru(p["D"].size, p["nu_log"].size), params)


MAKERS = (slstm, mlstm, gated_delta, rg_lru, s5, s4d, s6, cornn, cfc, lru)
CELLS = {make.__name__: make for make in MAKERS}


def read(name: str) -> dict:
    entry = json.loads((GOLDEN / f"{name}.json").read_text())
    del entry["source"]
    return jax.tree.map(np.asarray, entry, is_leaf=lambda a: isinstance(a, list))


def ways(cell: rnnjax.Cell) -> list[str]:
    more = {"associative": cell.linear, "chunked": cell.chunk}
    return ["scan", *(name for name, there in more.items() if there is not None)]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.kept
def test_the_authors_code_gives_the_same(name):
    golden = read(name)
    ours = CELLS[name](golden["given"])
    params = jax.tree.map(jnp.asarray, ours.params)
    for implementation in ways(ours.cell):

        def run(xs, implementation=implementation):
            inputs = xs if ours.elapsed is None else (xs, ours.elapsed)
            carry, ys = rnnjax.unroll(ours.cell, params, inputs, implementation=implementation)
            weights = jnp.cos(jnp.arange(ys.size)).reshape(ys.shape)
            return jnp.sum(ys * weights), (carry, ys)

        d_xs, (carry, ys) = jax.grad(run, has_aux=True)(golden["given"]["xs"])
        np.testing.assert_allclose(ys, golden["ys"], **EXACT)
        np.testing.assert_allclose(d_xs, golden["d_xs"], **EXACT)
        for state, value in ours.states(carry).items():
            np.testing.assert_allclose(value, golden["final"][state], **EXACT)


def test_the_memory_of_the_mlstm_is_the_authors_in_another_scale():
    golden = read("mlstm")
    np.testing.assert_allclose(golden["parallel_ys"], golden["ys"], **EXACT)
    ours, final = mlstm(golden["given"]), golden["final"]
    carry, _ = rnnjax.unroll(ours.cell, ours.params, golden["given"]["xs"])
    np.testing.assert_allclose(carry.m, np.maximum(final["m"][..., 0, 0], 0), **EXACT)
    scale = np.exp(final["m"] - carry.m[..., None, None])
    np.testing.assert_allclose(carry.c, scale * final["C"], **EXACT)
    np.testing.assert_allclose(carry.n[..., None], scale * final["n"], **EXACT)


def test_the_s4d_sampled_the_other_way_has_the_authors_kernel():
    """The kernel is what an impulse brings about."""
    golden = read("s4d")
    ours = s4d(golden["given"], sampling="bilinear")
    size, steps = golden["bilinear_kernel"].shape
    impulse = np.zeros((steps, size))
    impulse[0] = 1
    params = ours.params._replace(d=np.zeros(size))
    _, ys = rnnjax.unroll(ours.cell, params, impulse)
    np.testing.assert_allclose(ys.T, golden["bilinear_kernel"], **EXACT)


@pytest.mark.parametrize(("kind", "theirs"), [("linear", "lin"), ("inverse", "inv")])
def test_the_frequencies_of_the_s4d_start_where_the_authors_do(kind, theirs):
    cell = rnnjax.s4d(2, 3, frequencies=kind)
    expected = read("s4d")["frequencies"][theirs]
    frequency = cell.init(jax.random.key(0), 2).frequency[0]
    np.testing.assert_allclose(frequency, expected, rtol=1e-6)  # drawn in float32, both

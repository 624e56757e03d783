"""Writes ``golden/*.json``: what the code of the authors of each cell gives for weights drawn here.

    python tests/reference/make_golden.py FOLDER

FOLDER holds checkouts of the repositories in ``SOURCES``, each under its own name; ncps comes from
PyPI. Also needed: torch, flax, einops and jaxtyping. Nothing of that code is here: it is imported,
from its own files, without the packages around them that need a GPU. It runs in float64, also where
it asks PyTorch for float32. The tests read the files alone.
"""

import functools
import importlib
import importlib.util
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

HERE = Path(__file__).parent / "golden"
B, T, D, H, N = 2, 6, 3, 4, 3
SOURCES = {
    "xlstm": ("NX-AI/xlstm", "032a6fb8ee19a8c0db80ae6111ff4744a09414a9", "Apache-2.0"),
    "recurrentgemma": (
        "google-deepmind/recurrentgemma",
        "2efa84dac0e68e63547a27a18fa943c98f1c312e",
        "Apache-2.0",
    ),
    "S5": ("lindermanlab/S5", "3c18fdb6b06414da35e77b94b9cd855f6a95ef17", "MIT"),
    "s4": ("state-spaces/s4", "e757cef57d89e448c413de7325ed5601aceaac13", "Apache-2.0"),
    "mamba": ("state-spaces/mamba", "e9594ce1c732d97440f0332fdc43170a2294dbfa", "Apache-2.0"),
    "coRNN": ("tk-rusch/coRNN", "afd81744d108a2d623761b635b4ba56770d9e05d", "MIT"),
    "minimal-LRU": (
        "NicolasZucchet/minimal-LRU",
        "bbd71b1104c399ec0d13819527d791949e66f599",
        "MIT",
    ),
    "fla": (
        "fla-org/flash-linear-attention",
        "bc3b101dcb713ddc5bd8924b66754eb68b5ccf89",
        "MIT",
    ),
    "ncps": ("mlech26l/ncps", "1.0.1 on PyPI", "Apache-2.0"),
}


class Drawn:
    """Random numbers by name, all kept."""

    def __init__(self, seed: int):
        self._rng, self.arrays = np.random.default_rng(seed), {}

    def __call__(self, name: str, *shape: int, scale: float = 0.5, shift: float = 0.0) -> Any:
        # Few digits, so that the files are short.
        self.arrays[name] = np.round(shift + scale * self._rng.normal(size=shape), 3)
        return self.arrays[name]


def tensor(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def weights_of(ys: Any) -> np.ndarray:
    """What outputs are multiplied by in the sum whose gradient is taken."""
    return np.cos(np.arange(np.size(ys))).reshape(np.shape(ys))


def of_torch(run: Any, xs: np.ndarray) -> dict[str, Any]:
    """Outputs, final states, and the gradient to the inputs."""
    inputs = tensor(xs).requires_grad_()
    ys, final = run(inputs)
    (ys * tensor(weights_of(ys.detach().numpy()))).sum().backward()
    arrays = {name: a.detach().numpy() for name, a in final.items()}
    return {"ys": ys.detach().numpy(), "d_xs": inputs.grad.numpy(), "final": arrays}


def of_jax(run: Any, xs: np.ndarray) -> dict[str, Any]:
    ys, final = run(jnp.asarray(xs))
    loss = lambda xs: jnp.sum(run(xs)[0] * weights_of(ys))  # noqa: E731
    return {"ys": ys, "d_xs": jax.grad(loss)(jnp.asarray(xs)), "final": final}


def write(name: str, source: str, file: str, how: str, drawn: Drawn, results: dict) -> None:
    repository, version, licence = SOURCES[source]
    made_by = {
        "repository": f"https://github.com/{repository}",
        "version": version,
        "licence": licence,
        "file": file,
        "how": how,
        "torch": torch.__version__,
        "jax": jax.__version__,
    }
    as_lists = jax.tree.map(lambda a: np.asarray(a).tolist(), [drawn.arrays, results])
    entry = {"source": made_by, "given": as_lists[0], **as_lists[1]}
    HERE.mkdir(exist_ok=True)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entry.items())
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def package(name: str, folder: Path | None = None, **contents: Any) -> None:
    """A package of that name whose ``__init__`` is not run, or that holds ``contents`` alone."""
    module = types.ModuleType(name)
    module.__path__ = [] if folder is None else [str(folder)]
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def slstm(folder: Path) -> None:
    package("slstm_vanilla", folder / "xlstm/blocks/slstm/src/vanilla")
    theirs = load("slstm_vanilla.all", folder / "xlstm/blocks/slstm/src/vanilla/__init__.py")
    drawn = Drawn(0)
    xs, w, bias = drawn("xs", B, T, D, scale=1), drawn("W", D, 4 * H), drawn("b", 4 * H)
    recurrent = drawn("R", 2, 4 * H // 2, H // 2)

    def run(xs: torch.Tensor) -> Any:
        of_input = (xs @ tensor(w)).transpose(0, 1)
        states, last, _ = theirs.slstm_forward(
            of_input,
            torch.zeros(4, B, H, dtype=torch.float64),
            tensor(recurrent),
            tensor(bias),
            theirs.slstm_pointwise_function_registry["slstm"],
        )
        return states[0, 1:].transpose(0, 1), dict(zip("hcnm", last, strict=True))

    file = "xlstm/blocks/slstm/src/vanilla/__init__.py"
    write("slstm", "xlstm", file, "slstm_forward, two heads", drawn, of_torch(run, xs))


def mlstm(folder: Path) -> None:
    file = "xlstm/blocks/mlstm/backends.py"
    theirs = load("mlstm_backends", folder / file)
    drawn, heads, d = Drawn(1), 2, 2
    xs, w, bias = drawn("xs", B, T, D, scale=1), drawn("W", D, 3 * H, scale=1), drawn("b", 3 * H)
    w_gates = drawn("W_gates", D, 2 * heads, scale=2)
    gate_bias = drawn("b_gates", 2 * heads, scale=1, shift=1.0)

    def pieces(xs: torch.Tensor) -> Any:
        q, k, v = (xs @ tensor(w) + tensor(bias)).view(B, -1, 3, heads, d).permute(2, 0, 3, 1, 4)
        i, f = (xs @ tensor(w_gates) + tensor(gate_bias)).view(B, -1, 2, heads).permute(2, 0, 3, 1)
        return q, k, v, i[..., None], f[..., None]

    def step_by_step(xs: torch.Tensor) -> Any:
        states = [torch.zeros(B, heads, *s, dtype=torch.float64) for s in ((d, d), (d, 1), (1, 1))]
        ys = []
        for t in range(T):
            # The function squeezes what it is given in place.
            now = [a[:, :, t : t + 1].clone() for a in pieces(xs)]
            y, states = theirs.recurrent_step_stabilized_simple(*states, *now, eps=0.0)
            ys.append(y.reshape(B, H))
        return torch.stack(ys, 1), dict(zip(("C", "n", "m"), states, strict=True))

    results = of_torch(step_by_step, xs)
    at_once = theirs.parallel_stabilized_simple(*pieces(tensor(xs)), eps=0.0)
    results["parallel_ys"] = at_once.transpose(1, 2).reshape(B, T, H).numpy()
    how = (
        "recurrent_step_stabilized_simple and parallel_stabilized_simple, two heads, eps = 0, "
        "before the output gate"
    )
    write("mlstm", "xlstm", file, how, drawn, results)


def rg_lru(folder: Path) -> None:
    package("recurrentgemma", folder / "recurrentgemma")
    package("recurrentgemma.jax", folder / "recurrentgemma/jax")
    theirs = importlib.import_module("recurrentgemma.jax.layers")
    sums = functools.partial(theirs.scan.linear_scan, acc_float_dtype=jnp.float64)
    theirs.scan = types.SimpleNamespace(linear_scan=sums)
    drawn, width = Drawn(2), H // 2
    xs, a = drawn("xs", B, T, H, scale=1), drawn("a_param", H, shift=-3.0)
    gates = {
        name: {"w": drawn(f"{name}/w", 2, width, width, scale=1), "b": drawn(f"{name}/b", 2, width)}
        for name in ("input_gate", "a_gate")
    }
    unit = theirs.RGLRU(width=H, num_heads=2, scan_type=theirs.common.ScanType.LINEAR_NATIVE)
    params = jax.tree.map(jnp.asarray, {"params": {"a_param": a, **gates}})
    # Positions from 1 on: the step at position 0 would not be scaled.
    places = jnp.broadcast_to(jnp.arange(1, T + 1), (B, T))

    def run(xs: jax.Array) -> Any:
        ys, last = unit.apply(params, xs, places, jnp.zeros((B, H)))
        return ys, {"h": last}

    how = "RGLRU of two blocks, positions from 1 on"
    write("rg_lru", "recurrentgemma", "recurrentgemma/jax/layers.py", how, drawn, of_jax(run, xs))


def s5(folder: Path) -> None:
    jnp.DeviceArray = jax.Array  # a name of JAX at that time, in an annotation
    package("s5", folder / "s5")
    theirs = importlib.import_module("s5.ssm")
    drawn = Drawn(3)
    xs, b, c = drawn("xs", T, H, scale=1), drawn("B", N, H, 2), drawn("C", H, N, 2)
    re, im = -np.exp(drawn("log(-Lambda_re)", N)), drawn("Lambda_im", N, scale=3)
    d, steps = drawn("D", H), drawn("log_step", N, 1, shift=-1.0)
    vectors = np.zeros((2 * N, N)), np.zeros((N, 2 * N))  # of the first weights, not used here
    unit = theirs.init_S5SSM(
        H, N, re, im, *vectors, "complex_normal", "zoh", 0.001, 0.1, True, False, False
    )()
    given = {"Lambda_re": re, "Lambda_im": im, "B": b, "C": c, "D": d, "log_step": steps}
    params = {"params": jax.tree.map(jnp.asarray, given)}
    results = of_jax(lambda xs: (unit.apply(params, xs), {}), xs)
    write("s5", "S5", "s5/ssm.py", "S5SSM, zoh, conj_sym", drawn, results)


def s4d(folder: Path) -> None:
    package("src", folder / "src")
    package("src.models", folder / "src/models")
    package("src.models.nn", folder / "src/models/nn")
    dropout = load("src.models.nn.dropout", folder / "src/models/nn/dropout.py")
    sys.modules["src.models.nn"].DropoutNd = dropout.DropoutNd
    theirs = load("s4d_of_one_file", folder / "models/s4/s4d.py")
    drawn = Drawn(4)
    xs, c, d = drawn("xs", B, T, H, scale=1), drawn("C", H, N, 2), drawn("D", H)
    real, imag = drawn("log_A_real", H, N), drawn("A_imag", H, N, scale=3)
    steps = drawn("log_dt", H, shift=-1.0)
    layer = theirs.S4D(H, 2 * N, transposed=False).double()
    # Only the linear system: not the activation and the map between channels behind it.
    layer.activation = layer.output_linear = torch.nn.Identity()
    kernel = layer.kernel
    for place, value in (
        (layer.D, d),
        (kernel.C, c),
        (kernel.log_A_real, real),
        (kernel.A_imag, imag),
        (kernel.log_dt, steps),
    ):
        place.data = tensor(value)
    results = of_torch(lambda xs: (layer(xs)[0], {}), xs)
    results |= _s4d_of_the_library(folder, drawn.arrays)
    how = "S4D without what follows the system; SSMKernelDiag, disc='bilinear'; dplr, lin and inv"
    files = "models/s4/s4d.py, src/models/sequence/kernels/ssm.py and dplr.py"
    write("s4d", "s4", files, how, drawn, results)


def _s4d_of_the_library(folder: Path, given: dict) -> dict[str, Any]:
    """The kernel sampled the other way, and where the two kinds of frequencies start."""
    package("src.utils")
    package("src.utils.train", get_logger=logging.getLogger)
    package("src.models.sequence", folder / "src/models/sequence")
    package("src.models.sequence.kernels", folder / "src/models/sequence/kernels")
    library = importlib.import_module("src.models.sequence.kernels.ssm")
    kernel = library.SSMKernelDiag(
        d_model=H, d_state=2 * N, disc="bilinear", init="diag-lin", backend="naive"
    ).double()
    ones = np.stack([np.ones((1, H, N)), np.zeros((1, H, N))], axis=-1)
    for place, value in (
        (kernel.C, given["C"][None]),
        (kernel.B, ones),
        (kernel.A_real, given["log_A_real"]),
        # There the imaginary parts are negative.
        (kernel.A_imag, -given["A_imag"]),
        (kernel.inv_dt, given["log_dt"][:, None]),
    ):
        place.data = tensor(value)
    dplr = library.dplr.dplr
    starts = {kind: -dplr(kind, 2 * N)[0].imag[0].numpy() for kind in ("lin", "inv")}
    return {"bilinear_kernel": kernel(T)[0][0].detach().numpy(), "frequencies": starts}


def s6(folder: Path) -> None:
    package("mamba_ssm", folder / "mamba_ssm")
    package("mamba_ssm.ops", folder / "mamba_ssm/ops")
    package("mamba_ssm.utils", folder / "mamba_ssm/utils")
    package("mamba_ssm.ops.triton")
    package("mamba_ssm.ops.triton.layer_norm", _layer_norm_fwd=None)
    theirs = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    drawn, rank = Drawn(5), 2
    xs, into = drawn("xs", B, T, H, scale=1), drawn("x_proj", rank + 2 * N, H)
    w_step, step_bias = drawn("dt_proj.weight", H, rank, scale=1), drawn("dt_proj.bias", H)
    a_log, d = drawn("A_log", H, N), drawn("D", H)

    def run(xs: torch.Tensor) -> Any:
        low, b, c = (xs @ tensor(into).T).split([rank, N, N], dim=-1)
        steps = low @ tensor(w_step).T
        ys, last = theirs.selective_scan_ref(
            *(a.transpose(1, 2) for a in (xs, steps)),
            -torch.exp(tensor(a_log)),
            *(a.transpose(1, 2) for a in (b, c)),
            tensor(d),
            delta_bias=tensor(step_bias),
            delta_softplus=True,
            return_last_state=True,
        )
        return ys.transpose(1, 2), {"state": last}

    file = "mamba_ssm/ops/selective_scan_interface.py"
    write("s6", "mamba", file, "selective_scan_ref, delta_softplus", drawn, of_torch(run, xs))


def cornn(folder: Path) -> None:
    theirs = load("cornn_network", folder / "sMNIST/network.py")
    drawn = Drawn(6)
    cell = theirs.coRNNCell(D, H, 0.3, 1.5, 0.7).double()
    cell.i2h.weight.data = tensor(drawn("i2h.weight", H, D + 2 * H))
    cell.i2h.bias.data = tensor(drawn("i2h.bias", H))

    def run(xs: torch.Tensor) -> Any:
        y, z, ys = torch.zeros_like(xs[:, 0, :1]).expand(B, H), torch.zeros(B, H).double(), []
        for t in range(T):
            y, z = cell(xs[:, t], y, z)
            ys.append(y)
        return torch.stack(ys, 1), {"hy": y, "hz": z}

    results = of_torch(run, drawn("xs", B, T, D, scale=1))
    how = "coRNNCell, dt = 0.3, gamma = 1.5, epsilon = 0.7"
    write("cornn", "coRNN", "sMNIST/network.py", how, drawn, results)


def cfc(folder: Path) -> None:
    theirs = importlib.import_module("ncps.torch.cfc_cell")
    drawn = Drawn(7)
    cell = theirs.CfCCell(D, H, backbone_layers=0).double()
    for name in ("ff1", "ff2", "time_a", "time_b"):
        getattr(cell, name).weight.data = tensor(drawn(f"{name}.weight", H, D + H))
        getattr(cell, name).bias.data = tensor(drawn(f"{name}.bias", H))
    elapsed = np.abs(drawn("timespans", B, T, 1, scale=1))
    drawn.arrays["timespans"] = elapsed

    def run(xs: torch.Tensor) -> Any:
        h, ys = torch.zeros(B, H).double(), []
        for t in range(T):
            y, h = cell(xs[:, t], h, tensor(elapsed[:, t]))
            ys.append(y)
        return torch.stack(ys, 1), {"h": h}

    results = of_torch(run, drawn("xs", B, T, D, scale=1))
    write("cfc", "ncps", "ncps/torch/cfc_cell.py", "CfCCell, backbone_layers=0", drawn, results)


def lru(folder: Path) -> None:
    theirs = load("lru_model", folder / "lru/model.py")
    drawn = Drawn(8)
    given = {
        "theta_log": drawn("theta_log", N),
        "nu_log": drawn("nu_log", N, shift=-1.0),
        "gamma_log": drawn("gamma_log", N),
        **{name: drawn(name, N, H) for name in ("B_re", "B_im")},
        **{name: drawn(name, H, N) for name in ("C_re", "C_im")},
        "D": drawn("D", H),
    }
    params = {"params": jax.tree.map(jnp.asarray, given)}
    unit = theirs.LRU(d_hidden=N, d_model=H)
    results = of_jax(lambda xs: (unit.apply(params, xs), {}), drawn("xs", T, H, scale=1))
    how = "LRU; not by those who wrote the paper"
    write("lru", "minimal-LRU", "lru/model.py", how, drawn, results)


def gated_delta(folder: Path) -> None:
    file = "fla/ops/gated_delta_rule/naive.py"
    theirs = load("gated_delta_naive", folder / file)
    # It asks for float32 by name.
    theirs.torch = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    drawn, heads, d = Drawn(9), 2, 2
    xs, w, bias = drawn("xs", B, T, D, scale=1), drawn("W", D, 3 * H, scale=1), drawn("b", 3 * H)
    w_gates, gate_bias = drawn("W_gates", D, 2 * heads, scale=1), drawn("b_gates", 2 * heads)
    decay_log = drawn("A_log", heads)

    def pieces(xs: torch.Tensor) -> Any:
        silu, softplus = torch.nn.functional.silu, torch.nn.functional.softplus
        q, k, v = silu(xs @ tensor(w) + tensor(bias)).view(B, T, 3, heads, d).unbind(2)
        q, k = (a * torch.rsqrt(a.square().sum(-1, keepdim=True) + 1e-6) for a in (q, k))
        beta, a = (xs @ tensor(w_gates) + tensor(gate_bias)).view(B, T, 2, heads).unbind(2)
        decay = -tensor(decay_log).exp() * softplus(a)
        return {"q": q, "k": k, "v": v, "beta": 2 * beta.sigmoid(), "g": decay}

    def run(xs: torch.Tensor) -> Any:
        ys, last = theirs.naive_recurrent_gated_delta_rule(**pieces(xs), output_final_state=True)
        return ys.reshape(B, T, H), {"memory": last}

    results = of_torch(run, xs)
    in_chunks, _ = theirs.naive_chunk_gated_delta_rule(**pieces(tensor(xs)), chunk_size=4)
    results["chunked_ys"] = in_chunks.reshape(B, T, H).numpy()
    how = (
        "naive_recurrent_gated_delta_rule and naive_chunk_gated_delta_rule, two heads, negative "
        "eigenvalues; silu, length 1 and gates as its layer has them"
    )
    write("gated_delta", "fla", file, how, drawn, results)


MAKERS = {
    "fla": (gated_delta,),
    "xlstm": (slstm, mlstm),
    "recurrentgemma": (rg_lru,),
    "S5": (s5,),
    "s4": (s4d,),
    "mamba": (s6,),
    "coRNN": (cornn,),
    "minimal-LRU": (lru,),
    "ncps": (cfc,),
}

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    torch.Tensor.float = torch.Tensor.double  # what asks for float32 stays in float64
    for source, makers in MAKERS.items():
        for make in makers:
            make(Path(sys.argv[1]) / source)

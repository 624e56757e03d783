"""The goals: layers of several sizes beside PyTorch's cuDNN, flax.nnx and our own scan."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rnnjax

ROUNDS = 7
SECONDS_A_ROUND = 0.012


class Size(NamedTuple):
    """B, T, D and H of a layer."""

    batch: int
    time: int
    inputs: int
    hidden: int


SIZES = [
    Size(16, 50, 64, 32),
    Size(32, 80, 128, 128),
    Size(64, 128, 256, 256),
    Size(32, 512, 512, 512),
    Size(16, 1024, 768, 768),
    Size(32, 256, 1024, 1024),
]
DTYPES = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "f32": jnp.float32}


class Contender(NamedTuple):
    """One library's way through a layer: ``call`` starts it, ``wait`` until it is done."""

    name: str
    call: Callable[[], Any]
    wait: Callable[[Any], Any]


class Ours(NamedTuple):
    """A layer of ours that is being compiled."""

    name: str
    args: tuple
    program: Any


def lengths_of(size: Size) -> np.ndarray:
    """Ragged: uniform between 1 and T."""
    return np.random.default_rng(0).integers(1, size.time + 1, size.batch)


def ours(
    pool: Any, cell: str, size: Size, dtype: str, training: bool, how: str, ragged: bool = False
) -> Ours:
    """Trace a layer here, and compile it in ``pool``."""
    made = {"lstm": rnnjax.lstm, "gru": rnnjax.gru}[cell](size.hidden)
    params = made.init(jax.random.key(0), size.inputs)
    params = jax.tree.map(lambda a: a.astype(DTYPES[dtype]), params)
    shape = (size.batch, size.time)
    xs = jax.random.normal(jax.random.key(1), (*shape, size.inputs))
    towards = jax.random.normal(jax.random.key(2), (*shape, size.hidden))
    lengths = jnp.asarray(lengths_of(size)) if ragged else None

    def forward(params: Any, xs: Any) -> Any:
        return rnnjax.unroll(made, params, xs, lengths, implementation=how)[1]

    def loss(params: Any, xs: Any) -> Any:
        return jnp.sum(forward(params, xs) * towards)

    function = jax.grad(loss, argnums=(0, 1)) if training else forward
    lowered = jax.jit(function).lower(params, xs)
    name = f"rnnjax {'scan' if how == 'scan' else 'kernel'} {dtype}"
    return Ours(name, (params, xs), pool.submit(lowered.compile))


def ready(layer: Ours) -> Contender:
    """``layer``, compiled."""
    program = layer.program.result()
    return Contender(layer.name, lambda: program(*layer.args), jax.block_until_ready)


def flax_nnx(pool: Any, size: Size, training: bool) -> Ours:
    """``flax.nnx.RNN`` in float32."""
    from flax import nnx

    cell = nnx.OptimizedLSTMCell(size.inputs, size.hidden, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(nnx.RNN(cell), nnx.Param, ...)
    xs = jax.random.normal(jax.random.key(1), (size.batch, size.time, size.inputs))
    zeros = (jnp.zeros((size.batch, size.hidden)),) * 2

    def forward(params: Any, xs: Any, rest: Any) -> Any:
        return nnx.merge(graph, params, rest)(xs, initial_carry=zeros)

    def loss(params: Any, xs: Any, rest: Any) -> Any:
        return jnp.sum(jnp.sin(forward(params, xs, rest)))

    function = jax.grad(loss, argnums=(0, 1)) if training else forward
    args = (params, xs, rest)
    return Ours("flax.nnx f32", args, pool.submit(jax.jit(function).lower(*args).compile))


def torch_layer(cell: str, size: Size, dtype: str, training: bool, ragged: bool) -> Contender:
    """PyTorch's cuDNN layer; float32 products are TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "f32": torch.float32}[dtype]
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    layer = make(size.inputs, size.hidden, batch_first=True).cuda().to(kind)
    layer.flatten_parameters()
    xs = torch.randn(size.batch, size.time, size.inputs, device="cuda", dtype=kind)
    xs.requires_grad_(training)
    lengths = torch.as_tensor(lengths_of(size))

    def call() -> Any:
        given = xs
        if ragged:
            given = torch.nn.utils.rnn.pack_padded_sequence(
                xs, lengths, batch_first=True, enforce_sorted=False
            )
        if not training:
            with torch.no_grad():
                return layer(given)[0]
        layer.zero_grad(set_to_none=True)
        xs.grad = None
        ys = layer(given)[0]
        (ys.data if ragged else ys).sum().backward()
        return ys

    label = {"f32": "TF32"}.get(dtype, dtype)
    return Contender(
        f"PyTorch {'packed ' if ragged else ''}{label}", call, lambda _: torch.cuda.synchronize()
    )


def race(contenders: list[Contender], steps: int) -> dict[str, dict[str, float]]:
    """Microseconds a step, in rounds in which each has its turn: median and spread (10 to 90 %)."""
    counts = {}
    for one in contenders:
        one.wait(one.call())
        one.wait(one.call())
        began = time.perf_counter()
        one.wait(one.call())
        once = time.perf_counter() - began
        counts[one.name] = max(1, int(SECONDS_A_ROUND / once))
    found: dict[str, list[float]] = {one.name: [] for one in contenders}
    for _ in range(ROUNDS):
        for one in contenders:
            began, result = time.perf_counter(), None
            for _ in range(counts[one.name]):
                result = one.call()
            one.wait(result)
            took = (time.perf_counter() - began) / counts[one.name]
            found[one.name].append(took / steps * 1e6)
    return {
        name: {
            "median": statistics.median(times),
            "low": float(np.quantile(times, 0.1)),
            "high": float(np.quantile(times, 0.9)),
        }
        for name, times in found.items()
    }


# What a step cannot be faster than, by size: an exchange between processors each way, and what a
# processor needs to read its weights. 800 TFLOP/s and 3.0 TB/s for what is outside of the loop.
STEP_LATENCY = {32: 0.5, 128: 0.7, 256: 0.9, 512: 1.3, 768: 1.5, 1024: 2.0}
FLOPS, BYTES = 8e14, 3.0e12


def floor(size: Size) -> float:
    """Microseconds a step of LSTM training in 16 bits that no program here can go below."""
    batch, steps, inputs, hidden = size
    outside = 8 * batch * steps * (2 * inputs * hidden + (inputs + hidden) * hidden)
    moved = 2 * batch * steps * (3 * inputs + 33 * hidden)
    seconds = steps * 2.5e-6 * STEP_LATENCY[hidden] + max(outside / FLOPS, moved / BYTES)
    return seconds / steps * 1e6

"""Whether the loop over time is launched step by step on a GPU of NVIDIA, or as one CUDA graph."""

# What XLA puts into CUDA graphs by itself, and the loops it leaves out.
_KINDS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"


def cuda_graph_options(*, unrolled: bool = False) -> dict[str, str | bool | int]:
    """Compiler options that have a GPU run the loop over time as a CUDA graph.

    Without them the host launches the kernels of every step, some microseconds each, which is most
    of the time of a small layer. Give them to the outermost ``jax.jit``, where alone XLA reads
    them, or to ``make_train_step``. They change no result, and nothing at all on a CPU or TPU.
    CUDA 12.3 or later is needed. They have not been timed on a GPU yet: compare with and without
    (``python -m experiments.throughput`` does) before you keep them.

    Args:
        unrolled: the graph holds every step of a loop whose number of steps is known when it is
            compiled, rather than the loop itself. Nothing decides about the next step then, but
            compiling takes longer, and the graph grows, with T.

    Returns:
        Names and values of options of XLA.

    Raises:
        ValueError: ``unrolled`` is neither True nor False.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> layer = rnnjax.recurrent(rnnjax.lstm(4))
        >>> params = layer.init(jax.random.key(0), 3)
        >>> run = jax.jit(layer.apply, compiler_options=rnnjax.cuda_graph_options())
        >>> carry, ys = run(params, jnp.ones((2, 5, 3)))

    References:
        XLA, "Command buffers", https://openxla.org/xla/command_buffer_tutorial.
    """
    if not isinstance(unrolled, bool):
        raise ValueError(f"unrolled must be True or False, got {unrolled!r}")
    return {
        "xla_gpu_enable_command_buffer": _KINDS,
        "xla_gpu_command_buffer_unroll_loops": unrolled,
        "xla_gpu_graph_min_graph_size": 1,  # a step may be fewer kernels than XLA waits for
    }

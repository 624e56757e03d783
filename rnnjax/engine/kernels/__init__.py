"""Loops over time as one GPU kernel: ``unroll(..., implementation="persistent")``.

What is promised, on an NVIDIA GPU of the Hopper generation (H100, H200) and JAX 0.11 or later:

- **Which cells.** All whose ``project`` gives pieces of one size H, whose carry and outputs have
  that size, and whose ``update`` and ``hidden`` act unit by unit, as found in their jaxpr, by the
  operations that are listed in ``_pointwise``: LSTM, GRU, simple, minimal gated, coupled, peephole
  and sLSTM cells, a user's own, and these under variational dropout, recurrent dropout, zoneout,
  weight drop, a learned carry and gate traces. Lengths, masks, resets, both directions, given
  carries, all carries, noise and ``remat`` are as in the scan.
- **Which results differ from the scan, and why.** With bfloat16 or float16 weights the products are
  of that dtype and the sums float32, as in the scan; sigmoid, tanh, exp, log, sin, cos and square
  roots are the processor's own (error of sigmoid and tanh 5e-4), and the cotangents of ``h W`` are
  rounded to the dtype of the weights once, before the input's gradient is taken of them, too. With
  float32 weights a product is three of bfloat16 (hi hi + hi lo + lo hi), whose errors on an H100
  were a sixtieth of those of TF32, which the scan's products have on a GPU unless JAX is told
  otherwise; those functions are exact to float32. What ``update`` computes in 16 bits is rounded to
  them after each operation, where XLA keeps some results in float32.
- **When it is chosen by itself.** From 16 steps on, where all tiles of the batch fit on half of the
  device at once: two loops that do not depend on each other may then run side by side. Asked for by
  name it takes the whole device; the two directions of a layer each take half of it. On several
  devices collectives have a share as a loop has: by itself it takes up to a third. More
  loops than these that a program of your own runs side by side rely on XLA starting kernels in
  turn, as it does unless its flags ask for concurrent command buffers. ``rnnjax.explain`` says what
  is chosen, and why.
- **Several devices.** Each runs the kernel on its own rows of the batch, in ``jax.shard_map`` as
  where XLA divides the program (``jax.jit`` of arrays on a mesh). By itself it is chosen there
  where it is known how the batch is divided when the call is traced: by axes of the kind Explicit,
  by one axis of the kind Auto, or when the arrays of a call are not traced. Such programs were
  compiled for two H100s and run tile by tile on CPUs, and not yet on more than one GPU.
- **How fast.** Tables by device are in ``experiments/gpu_check/measured``; they and all that is
  said here are made and checked by ``python -m experiments.gpu_check``.
- **The same bits.** Two runs on one device give equal bits: no sum depends on an order in time.
- **What is refused**, by name with the reason, and left to the scan where it was not asked for by
  name: other cells, dtypes and devices; functions with side effects, such as ``jax.debug.print``;
  float32 where ``jax_default_matmul_precision`` asks for more; more than four gates; sizes that
  need more processors or shared memory than the device has (the kernel's parts wait for each other,
  so all must run at once); a GPU whose processors several processes share (CUDA's MPS); a
  ``jax.shard_map`` over some axes of a mesh alone.
- **Derivatives.** Reverse mode runs in a kernel of its own. The derivative of that, once more by
  either mode, is the scan's. Forward mode through the loop itself (``jax.jvp``) runs the scan; by
  name, and from outside of a ``jax.jit`` or ``jax.vmap``, where it cannot be seen, JAX refuses it
  (``jax.custom_vjp``): ask for ``implementation="scan"``. So must a program of known shapes that a
  machine with such a GPU exports for several platforms at once, or for several devices: JAX
  exports no kernel in it.
"""

"""The two kernels, written for Pallas Mosaic GPU: all that depends on its unstable parts.

Read the picture in :mod:`rnnjax.engine.kernels.persistent` first. What is particular here:

- A product needs 64 rows: the 16 units of a CTA for up to four gates, the rest is padding. Its
  result is stored in shared memory and read back gate by gate as [16, width] in ``TILE``, the one
  layout of registers in which all that is pointwise is done.
- Both operands of a product have the same swizzle, so it follows from the narrower one.
- A copy to global memory must be complete (``wait_smem_to_gmem(0)``), not only read, before the
  counter is raised: that is what makes it visible to the other CTAs.
- The counter starts at 0 at each launch and only grows, so one barrier a step is enough.
- Barriers between the warps of a CTA are our own (``unsafe_no_auto_barriers``). ``commit_smem``,
  ``semaphore_wait`` and ``wait_smem_to_gmem`` each are one. Every array in shared memory that is
  written by threads has one of them between the write and the reads, and between the reads and the
  next write; what a copy fills is waited for by all, and is filled again after such a barrier.
- Two CTAs of a cluster read what they multiply together (``collective_axes``). Any two neighbours
  can be on the device at the same time, so that takes nothing from the count of processors.

What was tried on one H200 (LSTM, bfloat16; training, microseconds a step; the same bits
in all but the last):

| (B, T, D, H) | barriers of Pallas | our own | and in pairs | and 16 bits kept |
|---|---:|---:|---:|---:|
| 64, 128, 256, 256 | 6.07 | 5.78 | 5.72 | 5.63 |
| 32, 512, 512, 512 | 7.00 | 6.72 | 6.69 | 6.64 |
| 16, 1024, 768, 768 | 7.62 | 7.41 | 7.25 | 7.19 |
| 32, 256, 1024, 1024 | 12.25 | 12.08 | 11.51 | 11.52 |
| 128, 256, 1024, 1024 | 47.0 | 46.0 | 43.1 | 43.1 |

The last was left out: it gains next to nothing, and gradients differ by 3e-3 of their norm.
"""

from .backward_kernel import backward as backward
from .forward_kernel import forward as forward

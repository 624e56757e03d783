"""The loop over time and its derivative, for every cell.

:func:`rnnjax.unroll` checks its arguments and brings them into one form, ``_plan`` decides how to
run, ``_loop`` holds the scan over time with the derivative of every cell, and ``_associative`` the
parallel form of linear cells. Read them in that order.
"""

from .unroll import explain as explain
from .unroll import unroll as unroll

"""What every part of a checkpoint raises."""

from __future__ import annotations

import re

from rnnjax._processes import ProcessError


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found, trusted or fitted; the message says why."""


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line: of TensorStore's long ones, the words of the system."""
    of_the_system = re.search(r"([^:]+) \[os_error_code=", str(error))
    if of_the_system:
        return of_the_system[1].strip()
    name = "" if isinstance(error, CheckpointError | ProcessError) else f"{type(error).__name__}: "
    return f"{name}{error}".splitlines()[0]

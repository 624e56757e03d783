"""Steps, and what is kept beside the arrays, in the types of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rnnjax._checks import shown


def checked_step(step: Any) -> int:
    """``step`` as an ``int``.

    Raises:
        ValueError: it is no whole number of at least 0.
    """
    scalar = step.item() if _is_scalar_array(step) else step
    if isinstance(scalar, bool) or not isinstance(scalar, int) or scalar < 0:
        raise ValueError(f"step must be a whole number of at least 0, got {shown(step)}")
    return scalar


def plain_dict(name: str, value: Any) -> dict[str, Any]:
    """A copy of a dict in the types of JSON.

    Raises:
        ValueError: it is none, or JSON cannot say what is in it.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict, got {type(value).__name__}")
    return plain(name, value)


def plain(name: str, value: Any) -> Any:
    """A copy in the types of JSON.

    Raises:
        ValueError: JSON cannot say it; names the part.
    """
    if _is_scalar_array(value):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(f"{name}[{number}]", part) for number, part in enumerate(value)]
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{name} must have strings for names, got {wrong[0]!r}")
        return {key: plain(f"{name}[{key!r}]", part) for key, part in value.items()}
    raise ValueError(
        f"{name} must be a number, a string, a flag, None, or a list or dict of them, "
        f"got {type(value).__name__}"
    )


def _is_scalar_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | jax.Array) and value.shape == ()

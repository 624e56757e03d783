"""The numbers of a sampling apart from its rules: a loop is compiled for the rules alone.

A temperature is what users move, and a program that held it would be compiled again for each.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnjax import masking
from rnnjax._recipe import compared
from rnnjax.decoding.sampling import (
    MinP,
    RepetitionPenalty,
    Sampling,
    Temperature,
    TopP,
    Transform,
)

# The field of a rule that is an argument of the program.
_FIELDS = {Temperature: "value", TopP: "p", MinP: "p", RepetitionPenalty: "penalty"}


def split_numbers(sampling: Sampling, batch: tuple[int, ...]) -> tuple[Sampling, list[Array]]:
    """The rules without their numbers, as a compiled loop compares them, and these numbers, each []
    or one a row [...].

    Raises:
        ValueError: numbers of rows in another shape than the batch.
    """
    rules, numbers = [], []
    for rule in sampling.transforms:
        field = _field_of(rule)
        if field is not None:
            number = _as_array(getattr(rule, field))
            if number.shape not in ((), batch):
                raise ValueError(
                    f"{field} of {type(rule).__name__} must be one number or of the batch's shape, "
                    f"{batch}, got shape {number.shape}"
                )
            numbers.append(number)
            rule = _with(rule, field, None)
        rules.append(compared(rule))
    return dataclasses.replace(sampling, transforms=tuple(rules)), numbers


def with_numbers(sampling: Sampling, numbers: list[Array]) -> Sampling:
    """What :func:`split_numbers` took apart put together again, for one row."""
    left, rules = iter(numbers), []
    for rule in sampling.transforms:
        field = _field_of(rule)
        rules.append(rule if field is None else _with(rule, field, next(left)))
    return dataclasses.replace(sampling, transforms=tuple(rules))


def check_one_number(transforms: tuple[Transform, ...]) -> None:
    """Refuse numbers that are arrays.

    Raises:
        ValueError: naming the rule.
    """
    for rule in transforms:
        field = _field_of(rule)
        if field is not None and isinstance(getattr(rule, field), Array):
            raise ValueError(
                f"{field} of {type(rule).__name__} must be one number of Python here, got an array"
            )


def _field_of(rule: Any) -> str | None:
    """The field of a number; ``top_p(1.0)`` keeps its own, by which it does nothing."""
    if isinstance(rule, TopP) and rule.keeps_all:
        return None
    return _FIELDS.get(type(rule))


def _with(rule: Any, field: str, number: Array | None) -> Transform:
    return dataclasses.replace(rule, **{field: number})


def _as_array(number: Any) -> Array:
    dtype = jnp.result_type(float)
    if isinstance(number, Array):
        return number.astype(dtype)
    # Asked for, as what JAX copies to a device by itself may be forbidden.
    return masking.computed_now(jax.device_put, np.asarray(number, dtype))

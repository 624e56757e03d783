"""From logits to a token: transformers of logits, and the two ways to choose.

A transformer is any pure function ``(logits [V], history) -> logits [V]`` of one row; a token
whose logit it makes -inf cannot be chosen. Those made here are compared by value, so that a sampler
built twice from equal numbers is one program for ``jax.jit``. In ``generate`` and ``stream_text``
other numbers are no other program either (``_numbers.py``).
"""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from rnnjax import masking
from rnnjax._checks import check_ids, check_number, check_size, describe
from rnnjax._numerics import accumulation_dtype
from rnnjax.base import Key


class History(NamedTuple):
    """What one row has read and written so far.

    Attributes:
        tokens: [L], prompt and new tokens from the left; behind them, anything.
        length: how many tokens of it there are.
        new: how many of these are new.
    """

    tokens: Array
    length: Array
    new: Array


Transform = Callable[[Array, History], Array]

# One for all rows, or one for each; of those of rows a rule is given its own.
Numbers = float | Array

# Up to so many tokens each is compared with each other one: on a CPU that is faster than to sort
# them, six times for 256 rows of 65 tokens and twice for 64 rows of 256.
_FEW_TOKENS = 256

# The likeliest token of any vocabulary has more.
_LEAST_SHARE = 1e-30


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: the transformers in their order, then a draw, or the largest logit.

    ``sampling(key, logits [V], history) -> token`` for one row; -1 where no token is left, or a
    logit is NaN. A logit of +inf is certain, and of several ones each is as likely.

    Attributes:
        transforms: what changes the logits, one after the other.
        draws: True to draw from the softmax, False to take the largest logit.
    """

    transforms: tuple[Transform, ...] = ()
    draws: bool = True

    def __call__(self, key: Key, logits: Array, history: History) -> Array:
        logits = _raised(logits)
        for transform in self.transforms:
            logits = apply_transform(transform, logits, history)
        token = _draw(key, logits) if self.draws else jnp.argmax(logits)
        # The largest is NaN where any logit is: a draw among such ones would be the first token.
        return jnp.where(jnp.max(logits) > -jnp.inf, token, -1).astype(jnp.int32)


def apply_transform(transform: Transform, logits: Array, history: History) -> Array:
    """The logits [V] that a transformer makes of others.

    Raises:
        ValueError: it gives no logits of the same shape: of fewer, the others could never be taken.
    """
    changed = transform(logits, history)
    if not hasattr(changed, "shape") or changed.shape != logits.shape:
        raise ValueError(
            f"a transform must give logits of shape {logits.shape}, got {describe(changed)} "
            f"from {transform!r}"
        )
    return changed


def _raised(logits: Array) -> Array:
    """Of 16 bits as float32: probabilities of many tokens do not add up to 1 otherwise."""
    return logits.astype(accumulation_dtype(logits.dtype))


def _draw(key: Key, logits: Array) -> Array:
    """A draw from the softmax of ``logits``: of exponential waiting times, which comes first.

    A time is small where the uniform number is: there the grid of 2^-32 is fine enough for tokens
    as rare as one in 10^9. ``jax.random.categorical`` needs two words and two logarithms for that;
    for 256 rows of 65 tokens it made a step of an LSTM of 256 units a fifth longer.
    """
    words = jax.random.bits(key, logits.shape, jnp.uint32).astype(jnp.float32)
    uniform = jnp.minimum((words + 0.5) * 2.0**-32, 1 - 2.0**-24)
    times = -jnp.log1p(-uniform) * jnp.exp(-_below_largest(logits))
    # Inside a reduction XLA would compile the logarithm to scalar code.
    return jnp.argmin(lax.optimization_barrier(times))


def _below_largest(logits: Array) -> Array:
    """Each logit [..., V] less the largest one: 0 there, even where that is +inf.

    NaN where all are -inf, as ``jax.nn.log_softmax`` has it: as likely as each other, tokens that
    are all impossible would be chosen.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where((logits == largest) & (largest > -jnp.inf), 0.0, logits - largest)


def log_probabilities(logits: Array) -> Array:
    """The log of the softmax of logits [..., V]: of one that is +inf 0, and of the others -inf.

    NaN where all are -inf.
    """
    below = _below_largest(logits)
    return below - jnp.log(jnp.sum(jnp.exp(below), axis=-1, keepdims=True))


def sample(*transforms: Transform) -> Sampling:
    """Draw from the softmax of the logits, after ``transforms`` in the order given.

    The usual order is ``repetition_penalty``, ``temperature``, ``top_k``, ``top_p``.

    Raises:
        ValueError: one of them is no function of logits and history.

    Example:
        >>> import rnnjax
        >>> rnnjax.sample(rnnjax.temperature(0.8), rnnjax.top_k(40))
        Sampling(transforms=(Temperature(value=0.8), TopK(k=40)), draws=True)
    """
    return Sampling(check_transforms(transforms), draws=True)


def greedy(*transforms: Transform) -> Sampling:
    """Take the largest logit after ``transforms``; of equal ones, the one with the smallest id.

    Raises:
        ValueError: one of them is no function of logits and history.

    Example:
        >>> import rnnjax
        >>> rnnjax.greedy()
        Sampling(transforms=(), draws=False)
    """
    return Sampling(check_transforms(transforms), draws=False)


@dataclass(frozen=True)
class Temperature:
    """See :func:`temperature`."""

    value: Numbers

    def __call__(self, logits: Array, history: History) -> Array:
        return logits / _like(logits, self.value)


def temperature(value: Numbers) -> Transform:
    """Logits divided by ``value``: below 1 likely tokens become likelier, above 1 less likely.

    Args:
        value: one number, or an array of the batch's shape, one for each row. Traced numbers are
            not checked.

    Raises:
        ValueError: not a finite number, or below 1e-30, by which logits would become infinite; 0 is
            called :func:`greedy`.

    Example:
        >>> import rnnjax
        >>> rnnjax.temperature(0.5)(jnp.array([1.0, 2.0]), history=None).tolist()
        [2.0, 4.0]
    """
    expected = "a finite number of at least 1e-30 (greedy() takes the likeliest token)"
    return Temperature(
        _check_numbers("temperature", value, expected, lambda a: 1e-30 <= a < math.inf)
    )


def _is_before(logits: Array, *, ties: bool = True) -> Array:
    """[V, V], at (i, j) whether logit j is larger than logit i; of equal ones, where j < i."""
    larger = logits[None, :] > logits[:, None]
    if not ties:
        return larger
    earlier = jnp.tri(len(logits), k=-1, dtype=bool)
    return larger | ((logits[None, :] == logits[:, None]) & earlier)


@dataclass(frozen=True)
class TopK:
    """See :func:`top_k`."""

    k: int

    def __call__(self, logits: Array, history: History) -> Array:
        if self.k >= len(logits):
            return logits
        if len(logits) <= _FEW_TOKENS:
            larger = jnp.sum(_is_before(logits, ties=False), axis=-1)
            return jnp.where(larger >= self.k, -jnp.inf, logits)
        return jnp.where(logits < lax.top_k(logits, self.k)[0][-1], -jnp.inf, logits)


def top_k(k: int) -> Transform:
    """Only the ``k`` largest logits; those equal to the smallest of them stay, too.

    Raises:
        ValueError: ``k`` is not a positive integer.

    Example:
        >>> import rnnjax
        >>> rnnjax.top_k(2)(jnp.array([1.0, 3.0, 2.0]), history=None).tolist()
        [-inf, 3.0, 2.0]

    References:
        Fan, Lewis and Dauphin, "Hierarchical neural story generation", ACL 2018.
    """
    return TopK(check_size("k", k))


@dataclass(frozen=True)
class TopP:
    """See :func:`top_p`."""

    p: Numbers

    @property
    def keeps_all(self) -> bool:
        """Whether it does nothing, as is known when it is compiled."""
        return isinstance(self.p, float) and self.p == 1.0

    def __call__(self, logits: Array, history: History) -> Array:
        if self.keeps_all:
            return logits
        weights = jnp.exp(_below_largest(_raised(logits)))
        probabilities = weights / jnp.sum(weights)
        # A token stays while those likelier than it do not reach p: so the first always stays, if
        # p is more than 0 in float32, too. At 1 all stay, though a sum may round to more.
        share = jnp.maximum(_like(probabilities, self.p), _LEAST_SHARE)
        share = jnp.where(share < 1, share, jnp.inf)
        if len(logits) <= _FEW_TOKENS:
            before = jnp.sum(jnp.where(_is_before(logits), probabilities[None], 0), axis=-1)
            return jnp.where(before < share, logits, -jnp.inf)
        order = jnp.argsort(-logits, stable=True)
        ordered = probabilities[order]
        before = jnp.cumsum(ordered) - ordered
        kept = jnp.zeros(len(logits), bool).at[order].set(before < share)
        return jnp.where(kept, logits, -jnp.inf)


def top_p(p: Numbers) -> Transform:
    """Only the smallest set of most likely tokens whose probabilities together reach ``p``.

    Args:
        p: one number, or an array of the batch's shape, one for each row. Traced numbers are not
            checked.

    Raises:
        ValueError: ``p`` is not in (0, 1].

    Example:
        >>> import rnnjax
        >>> logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
        >>> (rnnjax.top_p(0.6)(logits, history=None) > -jnp.inf).tolist()
        [True, True, False]

    References:
        Holtzman et al., "The curious case of neural text degeneration", ICLR 2020.
    """
    return TopP(_share("p", p))


@dataclass(frozen=True)
class MinP:
    """See :func:`min_p`."""

    p: Numbers

    def __call__(self, logits: Array, history: History) -> Array:
        least = jnp.max(logits) + jnp.log(_like(logits, self.p))
        return jnp.where(logits < least, -jnp.inf, logits)


def min_p(p: Numbers) -> Transform:
    """Only tokens at least ``p`` times as likely as the most likely one.

    Args:
        p: one number, or an array of the batch's shape, one for each row. Traced numbers are not
            checked.

    Raises:
        ValueError: ``p`` is not in (0, 1].

    Example:
        >>> import rnnjax
        >>> logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
        >>> (rnnjax.min_p(0.25)(logits, history=None) > -jnp.inf).tolist()
        [True, True, False]

    References:
        Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs",
        ICLR 2025.
    """
    return MinP(_share("p", p))


@dataclass(frozen=True)
class RepetitionPenalty:
    """See :func:`repetition_penalty`."""

    penalty: Numbers
    window: int | None = None

    def __call__(self, logits: Array, history: History) -> Array:
        places = jnp.arange(len(history.tokens), dtype=jnp.int32)
        counted = places < history.length
        if self.window is not None:
            counted &= places >= history.length - self.window
        # Places that do not count are sent behind the vocabulary, where nothing is written.
        ids = jnp.where(counted, history.tokens, len(logits))
        seen = jnp.zeros(len(logits), bool).at[ids].set(True, mode="drop")
        penalty = _like(logits, self.penalty)
        lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
        return jnp.where(seen, lowered, logits)


def repetition_penalty(penalty: Numbers, window: int | None = None) -> Transform:
    """Tokens that the row already holds made less likely; a ``penalty`` of 1 changes nothing.

    Positive logits are divided by ``penalty``, negative ones multiplied.

    Args:
        penalty: at least 1: one number, or an array of the batch's shape, one for each row. Traced
            numbers are not checked.
        window: how many of the last tokens count, prompt included; None for all.

    Raises:
        ValueError: the penalty is below 1 or infinite, or the window not a positive integer.

    Example:
        >>> import rnnjax
        >>> from rnnjax.decoding import History
        >>> held = History(tokens=jnp.array([0, 1, 0]), length=jnp.array(2), new=jnp.array(1))
        >>> rnnjax.repetition_penalty(2.0)(jnp.array([4.0, -1.0, 4.0]), held).tolist()
        [2.0, -2.0, 4.0]

    References:
        Keskar et al., "CTRL: a conditional transformer language model", 2019.
    """
    expected = "a finite number of at least 1"
    numbers = _check_numbers("penalty", penalty, expected, lambda a: 1 <= a < math.inf)
    return RepetitionPenalty(numbers, None if window is None else check_size("window", window))


@dataclass(frozen=True)
class Forbid:
    """See :func:`forbid`."""

    ids: tuple[int, ...]

    def __call__(self, logits: Array, history: History) -> Array:
        vocabulary = len(logits)
        if max(self.ids) >= vocabulary:
            raise ValueError(f"forbidden ids must lie in [0, {vocabulary}), got {max(self.ids)}")
        if len(set(self.ids)) == vocabulary:
            raise ValueError(f"forbid must leave a token, got all {vocabulary} ids")
        return logits.at[jnp.array(self.ids)].set(-jnp.inf)


def forbid(ids: Iterable[int]) -> Transform:
    """Tokens that are never chosen, such as padding and the unknown word.

    Args:
        ids: those of the tokens, in [0, V).

    Raises:
        ValueError: an id that is no integer or negative; when it is used, an id outside the
            vocabulary, or all of them.

    Example:
        >>> import rnnjax
        >>> rnnjax.forbid([0, 1])(jnp.array([1.0, 3.0, 2.0]), history=None).tolist()
        [-inf, -inf, 2.0]
    """
    return Forbid(check_ids("ids", ids))


@dataclass(frozen=True)
class MinLength:
    """See :func:`min_length`."""

    tokens: int
    stop: tuple[int, ...]

    def __call__(self, logits: Array, history: History) -> Array:
        return jnp.where(history.new < self.tokens, Forbid(self.stop)(logits, history), logits)


def min_length(tokens: int, stop: Iterable[int]) -> Transform:
    """No id of ``stop`` before ``tokens`` new tokens are there.

    Args:
        tokens: how many.
        stop: the ids of the tokens that end a text.

    Raises:
        ValueError: ``tokens`` is not a positive integer, or ``stop`` none or no ids.

    Example:
        >>> import rnnjax
        >>> from rnnjax.decoding import History
        >>> held = History(tokens=jnp.array([1, 1]), length=jnp.array(2), new=jnp.array(1))
        >>> rnnjax.min_length(2, stop=[0])(jnp.array([3.0, 1.0]), held).tolist()
        [-inf, 1.0]
    """
    return MinLength(check_size("tokens", tokens), check_ids("stop", stop))


def _share(name: str, value: Any) -> Numbers:
    return _check_numbers(name, value, "a number in (0, 1]", lambda share: 0 < share <= 1)


def _check_numbers(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> Numbers:
    """One number as a ``float``, those of rows as an array; of traced ones no value is known."""
    if not isinstance(value, list | tuple | Tracer) and np.ndim(value) == 0:
        return check_number(name, value, expected, holds)
    numbers = masking.as_array(name, value)
    if numbers.dtype == bool or not jnp.isrealobj(numbers):
        raise ValueError(f"{name} must be {expected}, got dtype {numbers.dtype}")
    if not isinstance(numbers, Tracer):
        for place, number in np.ndenumerate(jax.device_get(numbers)):
            if not holds(float(number)):
                raise ValueError(f"{name} must be {expected}, got {number} at index {place}")
    return jnp.asarray(numbers)


def _like(logits: Array, number: Numbers) -> Array:
    return jnp.asarray(number, logits.dtype)


def check_transforms(transforms: Any) -> tuple[Transform, ...]:
    """Refuse what is no transformer of logits."""
    if not isinstance(transforms, tuple | list):
        raise ValueError(f"transforms must be a tuple of functions, got {transforms!r}")
    for transform in transforms:
        if not callable(transform) or isinstance(transform, Sampling):
            raise ValueError(
                f"transforms must be functions of logits and history, got {transform!r}"
            )
        if inspect.isfunction(transform) and transform.__module__ == __name__:
            raise ValueError(
                f"transforms must be what rnnjax.{transform.__name__}(...) gives, got the function "
                "itself"
            )
    return tuple(transforms)

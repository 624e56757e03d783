"""Settings of a script, all checked before anything is read or made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.running.checkpoints import INTERVAL, match_interval
from rnnjax.data import TOKENIZERS, DataError

# A seed becomes 32 bits of a JAX key.
MOST_SEEDS = 1 << 32


class Rule(NamedTuple):
    """What a setting must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number from ``least`` on, up to ``most`` if that is given.

    Example:
        >>> whole(1).expected, whole(1, 100).expected
        ('a whole number from 1 up', 'a whole number from 1 to 100')
    """
    end = "up" if most is None else f"to {most:,}"
    return Rule(
        f"a whole number from {least} {end}",
        lambda value: type(value) is int and least <= value and (most is None or value <= most),
    )


def above(bound: float) -> Rule:
    """A finite number above a bound."""
    return Rule(
        f"a finite number above {bound:g}",
        lambda value: math.isfinite(value) and value > bound,
    )


def at_least(bound: float) -> Rule:
    """A finite number from a bound on.

    Example:
        >>> at_least(0).expected, at_least(0).holds(float("inf"))
        ('a finite number from 0 up', False)
    """
    return Rule(
        f"a finite number from {bound:g} up",
        lambda value: bound <= value < math.inf,
    )


def share(*, zero: bool = True) -> Rule:
    """A share of something: below 1, and 0 only where that makes sense."""
    expected = "from 0 up and below 1" if zero else "between 0 and 1"
    return Rule(f"a share {expected}", lambda value: 0 <= value < 1 and (zero or value > 0))


def each(rule: Rule, least: int = 1) -> Rule:
    """Several values of which each keeps a rule, so many different ones at least.

    Example:
        >>> each(whole(1)).expected, each(whole(1), least=3).expected
        ('1 or more, each a whole number from 1 up', '3 or more, each a whole number from 1 up')
    """
    return Rule(
        f"{least} or more, each {rule.expected}",
        lambda values: len(set(values)) >= least and all(map(rule.holds, values)),
    )


def each_once(rule: Rule) -> Rule:
    """Different values of which each keeps a rule.

    Example:
        >>> each_once(whole(1)).expected, each_once(whole(1)).holds((2, 2))
        ('1 or more without repeats, each a whole number from 1 up', False)
    """
    return Rule(
        f"1 or more without repeats, each {rule.expected}",
        lambda values: 0 < len(values) == len(set(values)) and all(map(rule.holds, values)),
    )


def probability() -> Rule:
    """A number from 0 to 1, both among them."""
    return Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)


def one_of(names: tuple[str, ...]) -> Rule:
    """One of several names."""
    return Rule(f"one of {', '.join(names)}", lambda value: value in names)


# What a setting must be in every script that has it. Upper ends are where a number can only be a
# slip of the keyboard: the size of all weights is held against the memory of the machine anyway.
RULES: dict[str, Rule] = {
    "take": whole(1),
    "tokenizer": one_of(tuple(TOKENIZERS)),
    "vocabulary_size": whole(2),
    "min_count": whole(1),
    "max_length": whole(1),
    "hidden_size": whole(1, 1_000_000),
    "layers": whole(1, 100),
    "embedding_size": whole(1, 1_000_000),
    "embedding_scale": at_least(0),
    "dropout": share(),
    "word_dropout": share(),
    "batch_size": whole(1),
    "buckets": whole(1, 1_000),
    "epochs": whole(1),
    "patience": whole(1),
    "validation": share(zero=False),
    "learning_rate": above(0),
    "clip_norm": above(0),
    "max_skipped": whole(1),
    "average_decay": share(),
    "seed": whole(0, MOST_SEEDS - 1),
    "repeat": whole(1),
    "prefetch": whole(0, 1_000),
    "devices": whole(1),
    "keep": whole(1),
    "checkpoint_every": Rule(INTERVAL, lambda value: match_interval(value) is not None),
}


def check_seeds(settings: Any, count: str) -> None:
    """Refuse seeds, as many as the setting ``count`` from ``seed`` on, of which the last would
    begin anew from 0.

    Raises:
        DataError: naming both settings.
    """
    if settings.seed + getattr(settings, count) > MOST_SEEDS:
        raise DataError(f"--seed plus --{count} must be at most {MOST_SEEDS:,}, got more")


def check_settings(settings: Any, **others: Rule) -> None:
    """Refuse settings of which any breaks its rule; None, for "not given", breaks none.

    Args:
        settings: an object with the settings as attributes; those that `RULES` names have its
            rules.
        others: rules of further ones, by their names.

    Raises:
        DataError: naming all that are wrong, as the command line spells them.

    Example:
        >>> from types import SimpleNamespace
        >>> check_settings(SimpleNamespace(learning_rate=-1.0, members=4), members=whole(1))
        Traceback (most recent call last):
            ...
        rnnjax.data.errors.DataError: --learning-rate must be a finite number above 0, got -1.0
    """
    check_rules(settings, {**RULES, **others})


def check_rules(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Refuse settings of which any breaks the rule for its name; see `check_settings`."""
    wrong = [
        f"{flag(name)} must be {rule.expected}, got {value!r}"
        for name, rule in rules.items()
        if (value := getattr(settings, name, None)) is not None and not rule.holds(value)
    ]
    if wrong:
        raise DataError("\n  ".join(wrong))


def refuse_unread(settings: Any, where: str, is_read: bool, *names: str) -> None:
    """Refuse settings that were given where nothing reads them, as they have no effect there.

    Args:
        settings: a dataclass; with the values by default nothing was given.
        where: they are read, in words.
        is_read: whether this is there.
        names: of the settings.

    Raises:
        DataError: naming the first of them.
    """
    for name in names:
        value = getattr(settings, name)
        if not is_read and value != getattr(type(settings), name):
            shown = value if isinstance(value, Path) else repr(value)
            raise DataError(
                f"{flag(name)} must be given {where}, as nothing reads it otherwise, got {shown}"
            )


def flag(name: str) -> str:
    """A setting as the command line spells it.

    Example:
        >>> flag("learning_rate")
        '--learning-rate'
    """
    return f"--{name.replace('_', '-')}"

"""A feature, what every library is said to have of it, and the evidence for that."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

# Before Keras is imported by any check.
os.environ.setdefault("KERAS_BACKEND", "jax")

OURS = "rnnjax"
PEERS = ("flax.nnx", "flax.linen", "haiku", "equinox", "keras", "torch")
Check = Callable[[], bool]


class Claim(NamedTuple):
    """That a library has a feature, has a part of it, or has it not.

    Attributes:
        word: "yes", "part" or "no".
        evidence: what shows it when called, or the address of a page that says it.
    """

    word: str
    evidence: Check | str


class Feature(NamedTuple):
    """One row: the claim of rnnjax, and those of the peers in the order of PEERS."""

    name: str
    ours: Claim
    peers: tuple[Claim, ...]


def yes(evidence: Check | str) -> Claim:
    return Claim("yes", evidence)


def part(evidence: Check | str) -> Claim:
    return Claim("part", evidence)


def no(evidence: Check | str) -> Claim:
    return Claim("no", evidence)


def claim_of(feature: Feature, library: str) -> Claim:
    """What is claimed of a library."""
    return feature.ours if library == OURS else feature.peers[PEERS.index(library)]


def verdict(feature: Feature, library: str) -> str:
    """The word for the table.

    Raises:
        AssertionError: the evidence does not show what is claimed.
    """
    word, evidence = claim_of(feature, library)
    if isinstance(evidence, str) or evidence():
        return word
    now = "has it now" if word == "no" else "has it no longer"
    raise AssertionError(f"{library} {now}: {feature.name}")


# Evidence


def find(path: str) -> Any:
    """The object of a dotted path that begins with a module: ``flax.nnx:RNN.__call__``."""
    module, _, rest = path.partition(":")
    found = importlib.import_module(module)
    for name in filter(None, rest.split(".")):
        found = getattr(found, name)
    return found


def has_arguments(path: str, *names: str) -> Check:
    """That a callable has arguments of all of these names."""
    return lambda: set(names) <= set(inspect.signature(find(path)).parameters)


def lacks_arguments(path: str, *names: str) -> Check:
    """That no argument of a callable has one of these names."""
    return lambda: not set(names) & set(inspect.signature(find(path)).parameters)


def has(*paths: str) -> Check:
    """That the objects of all of these paths are there."""
    return lambda: all(find(path) is not None for path in paths)


def lacks_names(path: str, *parts: str) -> Check:
    """That nothing public in a module or class has one of these in its name, in any case."""
    return lambda: (
        not [
            name
            for name in dir(find(path))
            if not name.startswith("_") and any(part in name.lower() for part in parts)
        ]
    )


def mentions(path: str, words: str) -> Check:
    """That the docstring of an object has these words."""
    return lambda: words in (inspect.getdoc(find(path)) or "")


def fails(run: Callable[[], Any]) -> Check:
    """That a call raises."""

    def check() -> bool:
        try:
            run()
        except Exception:  # whatever it is, the feature cannot be had
            return True
        return False

    return check


def is_from_index(distribution: str) -> bool:
    """Whether a package was installed by its name alone, and so is published.

    What was installed from a folder, a repository or an address says so, by PEP 610.
    """
    try:
        return metadata.distribution(distribution).read_text("direct_url.json") is None
    except metadata.PackageNotFoundError:
        return False


def everywhere(*names: str) -> tuple[Claim, ...]:
    """No peer has anything of these names."""
    modules = ("flax.nnx", "flax.linen", "haiku", "equinox.nn", "keras.layers", "torch.nn")
    return tuple(no(lacks_names(module, *names)) for module in modules)


def at_call(*names: str) -> tuple[Claim, ...]:
    """No peer's layer takes an argument of these names."""
    calls = (
        "flax.nnx:RNN.__call__",
        "flax.linen:RNN.__call__",
        "haiku:dynamic_unroll",
        "equinox.nn:LSTMCell.__call__",
        "keras.layers:LSTM.call",
        "torch.nn:LSTM.forward",
    )
    return tuple(no(lacks_arguments(call, *names)) for call in calls)


def when_made(*names: str) -> tuple[Claim, ...]:
    """No peer's layer, or cell where that is what it has, can be made with such an argument."""
    makers = (
        "flax.nnx:OptimizedLSTMCell.__init__",
        "flax.linen:OptimizedLSTMCell.__init__",
        "haiku:LSTM.__init__",
        "equinox.nn:LSTMCell.__init__",
        "keras.layers:LSTM.__init__",
        "torch.nn:RNNBase.__init__",
    )
    return tuple(no(lacks_arguments(maker, *names)) for maker in makers)


def but(claims: tuple[Claim, ...], **others: Claim) -> tuple[Claim, ...]:
    """The claims, with those of some peers replaced."""
    short = [peer.split(".")[-1] for peer in PEERS]
    return tuple(others.get(name, c) for name, c in zip(short, claims, strict=True))

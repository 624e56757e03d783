"""The command line: the tables, every word of them shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax

from experiments.features import recurrent, surroundings
from experiments.features.claims import OURS, PEERS, Feature, claim_of, verdict
from experiments.running.console import exit_code
from experiments.running.packages import takes_part
from experiments.running.parsing import parse


@dataclass(frozen=True)
class Settings:
    """Print what each library of recurrent layers can do, and show every word of it."""

    sources: bool = False
    """List the pages that show what no line of code can, so that they can be looked up."""


def table() -> list[Feature]:
    """All features."""
    return [*recurrent.table(), *surroundings.table()]


def lines(features: Sequence[Feature], libraries: Sequence[str]) -> list[str]:
    """A table in Markdown.

    Raises:
        AssertionError: a claim does not hold.
    """
    rows = [["", *libraries], ["---"] * (len(libraries) + 1)]
    for feature in features:
        rows.append([feature.name, *(verdict(feature, library) for library in libraries)])
    return [f"| {' | '.join(row)} |" for row in rows]


def sources(features: Sequence[Feature], libraries: Sequence[str]) -> Iterator[str]:
    """What is shown by a page, a line each."""
    for feature in features:
        for library in libraries:
            word, evidence = claim_of(feature, library)
            if isinstance(evidence, str):
                yield f"{feature.name}, {library}: {word}, {evidence}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    settings = parse(Settings, "python -m experiments.features", arguments)
    return exit_code(lambda: show(settings))


def show(settings: Settings) -> None:
    """Print the tables."""
    libraries = [OURS, *(peer for peer in PEERS if takes_part(peer, peer))]
    with jax.numpy_rank_promotion("allow"):  # Keras promotes
        print("\n".join(lines(recurrent.table(), libraries)))
        print()
        print("\n".join(lines(surroundings.table(), libraries)))
    if settings.sources:
        print()
        print("\n".join(sources(table(), libraries)))

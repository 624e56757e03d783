"""rnnjax: what it chooses by itself, and every implementation that differs from that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

import rnnjax
from experiments.throughput.libraries.entries import Entry, Program, Step, compiled_entry
from experiments.throughput.problems import Problem, rnnjax_cell, rnnjax_layer
from rnnjax.engine._plan import IMPLEMENTATIONS


def enter(problem: Problem) -> Iterator[Entry]:
    case, cell = problem.case, rnnjax_cell(problem.case)
    first = problem.params if case.layers == "one" else problem.params[0].forward
    chosen = rnnjax.explain(cell, first, problem.xs)
    yield entry("rnnjax", problem)
    for name in IMPLEMENTATIONS:
        try:
            same = rnnjax.explain(cell, first, problem.xs, implementation=name) == chosen
        except ValueError:  # not for this cell
            continue
        if not same:
            yield entry(f"rnnjax {name}", problem, implementation=name)


def entry(name: str, problem: Problem, **options: Any) -> Entry:
    """rnnjax on a problem, with options of ``rnnjax.recurrent``."""
    layer = rnnjax_layer(problem.case, **options)

    def sequence(params: Any, xs: Any, lengths: Any) -> Any:
        # The loop has time first, too, so that neither exchange of axes leaves a trace.
        return jnp.swapaxes(layer.apply(params, jnp.swapaxes(xs, 0, 1), lengths)[1], 0, 1)

    def step(params: Any, carry: Any, x: Any) -> Any:
        return layer.apply(params, x, initial_carry=carry)

    def make() -> Program | Step:
        if not problem.case.streaming:
            return Program(sequence, problem.params, time_first=True)
        carry, _ = layer.apply(problem.params, jnp.zeros((1, 0, problem.xs.shape[-1])))
        return Step(step, problem.params, carry, axes=(1, 1))

    return compiled_entry(name, problem, make)

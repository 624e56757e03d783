"""Trees of cells: one cell, the two directions of a layer, a stack of layers."""

from collections.abc import Callable
from typing import Any

from rnnjax.layers.bidirectional import Directions


def convert_parts(convert: Callable[[Any, str], Any], tree: Any, place: str) -> Any:
    """``convert(part, its place)`` for every part of a tree, in a tree of the same form.

    ``Directions`` and tuples (or lists) are the tree, as in the parameters of ``bidirectional``
    and ``stack``; anything else is a part.

    Raises:
        ValueError: all that ``convert`` refused, in one message.
    """
    problems: list[str] = []

    def walk(node: Any, place: str) -> Any:
        inner = _inner(node)
        if inner:
            walked = [walk(part, place + step) for step, part in inner.items()]
            return Directions(*walked) if isinstance(node, Directions) else tuple(walked)
        try:
            return convert(node, place)
        except ValueError as error:
            problems.append(str(error))

    converted = walk(tree, place)
    if problems:
        raise ValueError("\n".join(problems))
    return converted


def named_parts(tree: Any, place: str) -> dict[str, Any]:
    """The parts of a tree by their places, as in "[1].forward"."""
    inner = _inner(tree)
    if not inner:
        return {place: tree}
    rows = [named_parts(part, place + step) for step, part in inner.items()]
    return {name: part for row in rows for name, part in row.items()}


def _inner(node: Any) -> dict[str, Any]:
    """What a node of the tree holds, by the step to it; nothing for a part."""
    if isinstance(node, Directions):
        return {f".{name}": part for name, part in node._asdict().items()}
    if type(node) in (tuple, list):
        return {f"[{i}]": part for i, part in enumerate(node)}
    return {}

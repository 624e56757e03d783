"""A command line read into a dataclass, with help and refusals in words that its user knows."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, Union, cast, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from tyro.conf import OmitArgPrefixes as OmitArgPrefixes
from tyro.conf import Positional as Positional
from tyro.conf import arg as arg
from tyro.conf import subcommand as subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from experiments.running.console import complain, nobody_reads, wrapped

# More can only be a slip of the keyboard, and NumPy would fail in words of its own where 64 bits do
# not hold it.
MOST = 10**12
_QUIET = tyro.conf.arg(help_behavior_hint="")
# In a usage, an argument in brackets or an option with its value, and what holds one together.
_ARGUMENT = re.compile(r"\[.*?\]+(?=\s|$)|--\S+ [^\s\[-]\S*")
_HELD = "\0"
# Taken for an option of one letter, which no program here has but -h.
_SHORT = re.compile(r"-[^-\d.h]")


def parse(
    kind: Any,
    program: str,
    arguments: Sequence[str] | None,
    *,
    description: str | None = None,
    config: Sequence[Any] = (),
) -> Any:
    """What the command line says; ends the process where it asks for help or cannot be read.

    Args:
        kind: a dataclass, or a union of some; the docstrings of their fields are the help.
        program: how it is called, ``"python -m experiments.write"``.
        arguments: those of the command line if None.
        description: the first lines of the help; the docstring of ``kind`` if None.
        config: markers of tyro.
    """
    arrange_help(kind)
    if description is None and isinstance(kind, type):
        description = first_lines(kind)
    read: Any = tyro.cli
    output = cast(TextIO, _WrappedUsage(sys.stdout))
    try:
        with _words_for_types(), contextlib.redirect_stdout(output):
            found = read(
                kind, prog=program, description=description, args=arguments, config=tuple(config)
            )
    except BrokenPipeError:
        raise SystemExit(nobody_reads()) from None
    except SystemExit as end:
        words = sys.argv[1:] if arguments is None else arguments
        if end.code == 2 and any(map(_SHORT.match, words)):
            complain("note: a text that begins with - must come last, behind --")
        raise
    if bad := next(_no_text(found), None):
        complain(f"error: {bad[0]} must be UTF-8 text, got {bad[1]!r}")
        raise SystemExit(2)
    return found


class _WrappedUsage:
    """Standard output on which the usage is broken into lines: tyro writes it as a single one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        lines = [
            _wrapped_usage(line) if "usage:" in line[:20] else line for line in text.split("\n")
        ]
        return self._stream.write("\n".join(lines))


def _wrapped_usage(line: str) -> str:
    """A usage in lines of at most 80 columns, broken only between arguments.

    Example:
        >>> print(_wrapped_usage("usage: python -m experiments.write" + " [--number INT]" * 4))
        usage: python -m experiments.write [--number INT] [--number INT] [--number INT]
          [--number INT]
    """
    held = _ARGUMENT.sub(lambda found: found[0].replace(" ", _HELD), line)
    return wrapped(held).replace(_HELD, " ")


def _no_text(found: Any) -> Iterator[tuple[str, str]]:
    """Names and values of bytes that are no text, which Python gives as half surrogates: no
    vocabulary, record or picture takes them. The name of a file may have such."""
    for field in dataclasses.fields(found) if dataclasses.is_dataclass(found) else ():
        value = getattr(found, field.name)
        if dataclasses.is_dataclass(value):
            yield from _no_text(value)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                yield field.name, text


def one_paragraph(text: str) -> str:
    """A text without the line ends and indents of the source that it stands in.

    Example:
        >>> one_paragraph("Train a network\\n    that writes.")
        'Train a network that writes.'
    """
    return " ".join(text.split())


def first_lines(kind: type) -> str:
    """What the docstring of a dataclass says, as help begins: tyro breaks lines everywhere else."""
    return wrapped(one_paragraph(kind.__doc__ or ""))


def arrange_help(kind: Any) -> None:
    """Has help end its lines where the terminal does, as tyro takes an indented line of a docstring
    for the beginning of a paragraph, and leave out defaults that say nothing."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        for part in get_args(kind):
            arrange_help(part)
        return
    texts = {
        found.arg_name: found.description
        for one in reversed(kind.__mro__[:-1])
        for found in docstring_parser.parse_from_object(one).params
    }
    hints, plain = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if text := texts.get(field.name):
            field.metadata = types.MappingProxyType({"help": one_paragraph(text)})
        if field.default in (None, ()) and _QUIET not in get_args(hints[field.name]):
            kind.__annotations__[field.name] = Annotated[hints[field.name], _QUIET]
        arrange_help(plain[field.name])


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"it must be a whole number, got {text!r}") from None
    if abs(value) > MOST:
        raise ValueError(f"it must be a whole number of at most {MOST:,}, got {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"it must be a number, got {text!r}") from None


# How a value of each type is called in the help, and read.
_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _whole),
    float: ("FLOAT", _number),
    str: ("STR", str),
    Path: ("PATH", Path),
}


def _words_for_types() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _of_type(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        options: list[Any] = [info.type]
        if get_origin(info.type) in (Union, types.UnionType):
            options = [kind for kind in get_args(info.type) if kind is not type(None)]
        may_lack = type(None) in get_args(info.type)
        if len(options) != 1 or options[0] not in _READERS:
            return None
        kind = options[0]
        name, read = _READERS[kind]
        kinds = ((int, float) if kind is float else (kind,)) + (type(None),) * may_lack
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=name,
            instance_from_str=lambda words: (
                None if may_lack and words[0] == "None" else read(words[0])
            ),
            is_instance=lambda value: isinstance(value, kinds),
            str_from_instance=lambda value: [str(value)],
        )

    return registry

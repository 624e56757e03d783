"""The index of public names in rnnjax/NAMES.md, made from the package itself.

Run:     python tests/index.py     writes the section anew

``tests/test_readme.py`` compares the section with what this makes of the package.
"""

import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Mapping
from pathlib import Path

import rnnjax

PAGE = Path(__file__).parents[1] / "rnnjax" / "NAMES.md"
BEGIN, END = "<!-- index of names: python tests/index.py -->\n", "<!-- end of the index -->"

# The rooms whose names ``rnnjax`` gives, in the order in which a reader meets them.
ROOMS = {
    "cells": "cells",
    "layers": "layers",
    "models": "models",
    "heads": "heads with densities",
    "decoding": "writing text",
    "transforms": "from cell to cell",
    "engine": "over time",
    "segments": "segments",
    "masking": "masks",
    "training": "training",
    "values": "finding a wrong value",
    "base": "what a cell and a layer are",
}


def public_modules(package):
    """The public modules below a package, found by walking it.

    A name with an underscore is private, and so is all below it. The face of a folder
    (``__init__``) says what of the folder is public: these names, or, where it gives modules alone
    as ``interop`` does, every file without an underscore.
    """
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        if found.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        if found.ispkg and any(public_names(module)):
            yield module
        elif found.ispkg:
            yield from public_modules(module)
        else:
            yield module


def public_names(module):
    """The names that a module gives: ``__all__``, those of a folder's face, or those defined in it.

    Modules are not among them.
    """
    is_face = hasattr(module, "__path__")
    listed = getattr(module, "__all__", None)
    for name, value in vars(module).items():
        if name.startswith("_") or name == "TYPE_CHECKING" or isinstance(value, types.ModuleType):
            continue
        home = getattr(value, "__module__", None)
        own = is_face or home == module.__name__ or (home is None and name.isupper())
        if name in listed if listed is not None else own:
            yield name, value


def first_line(name, value):
    """The first paragraph of a docstring; of a constant, what it holds."""
    if isinstance(value, Mapping | list | tuple):
        return "Constant: " + ", ".join(f"`{entry}`" for entry in value)
    if isinstance(value, bool | int | str):
        return f"Constant: `{value}`"
    if not inspect.isclass(value) and not inspect.isfunction(inspect.unwrap(value)):
        return "A type, for annotations."
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    if paragraph.startswith(f"{name}("):  # what NamedTuple and dataclass write by themselves
        paragraph = ""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", paragraph)
    return re.sub(r"``", "`", text).replace("|", "\\|")


def tables():
    """``(title, {name: first line})`` for every module; a name is listed where it is found first.

    The names of ``rnnjax`` itself are divided by the room they live in.
    """
    listed = set()
    for module in (rnnjax, *public_modules(rnnjax)):
        path = module.__name__
        rooms = {room: {} for room in ROOMS} if path == "rnnjax" else {"": {}}
        for name, value in public_names(module):
            if (name, id(value)) not in listed:
                listed.add((name, id(value)))
                room = value.__module__.split(".")[1].lstrip("_") if path == "rnnjax" else ""
                rooms.setdefault(room, {})[name] = first_line(name, value)
        for room, rows in rooms.items():
            yield f"`{path}`" + (f": {ROOMS.get(room, room)}" if room else ""), rows


def section():
    lines = []
    for title, rows in tables():
        if not rows:
            continue
        lines += ["", f"### {title}", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {rows[name]} |" for name in sorted(rows, key=str.casefold)]
    return "\n".join([*lines, "", ""])


def written():
    """The section as it stands on the page."""
    return PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]


def main():
    text = PAGE.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(before + BEGIN + section() + END + after, "utf-8")


if __name__ == "__main__":
    main()

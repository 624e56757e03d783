"""Which room may import which: floors from below only, and importing stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rnnjax"

# From the ground up. A room imports from its own floor only what ALLOWED_BESIDE says.
FLOORS = [
    {"_recipe", "_requirements"},
    {"base"},
    {
        "_checks",
        "_values",
        "_devices",
        "_native",
        "_numerics",
        "_reading",
        "masking",
        "segments",
        "initializers",
    },
    {"_processes", "_divided_arrays", "_whole_files"},
    {"engine"},
    {"cells"},
    {"transforms"},
    {"layers", "heads"},
    {"models"},
    {"decoding"},
    {"interop", "modules"},
]
# Take a loss, a tree of arrays or a table, and know no cell.
SIDE = {"training", "weights", "data", "metrics", "checkpoint", "exporting", "benchmark"}
ALLOWED_BESIDE = {
    "segments": {"masking"},
    "interop": {"weights"},
    "training": {"metrics"},  # what a step measures is read as what a loss function measures
}
ANYWHERE = {
    "base",
    "_checks",
    "_values",
    "_devices",
    "_native",
    "_numerics",
    "_reading",
    "_processes",
    "_divided_arrays",
    "_whole_files",
}


def rooms_imported_by(room):
    """The rooms of the package that a file, or a folder of them, imports, inside functions too."""
    path = PACKAGE / room
    files = list(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                if node.level:
                    assert node.level == 1, f"{file}: only a folder's face imports relatively"
                    assert path.is_dir(), file
                elif node.module == "rnnjax":
                    found |= {alias.name for alias in node.names}
                elif (node.module or "").startswith("rnnjax."):
                    found.add((node.module or "").split(".")[1])
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("rnnjax") for alias in node.names), file
    return found - {room}


def test_every_room_has_its_floor():
    names = {
        p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir() if p.suffix != ".md"
    }
    assert names - {"__init__", "__pycache__", "py.typed", "py"} == SIDE.union(*FLOORS)


@pytest.mark.parametrize("level", range(len(FLOORS)))
def test_a_floor_imports_only_those_below(level):
    below = ANYWHERE.union(*FLOORS[:level])
    for room in FLOORS[level]:
        assert rooms_imported_by(room) <= below | ALLOWED_BESIDE.get(room, set()), room


@pytest.mark.parametrize("room", sorted(SIDE))
def test_side_rooms_know_no_cell(room):
    assert rooms_imported_by(room) <= ANYWHERE | ALLOWED_BESIDE.get(room, set())


def test_importing_the_library_loads_nothing_heavy():
    heavy = ("datasets", "matplotlib", "orbax", "flax", "optax", "pyarrow", "pandas", "tqdm")
    code = f"import sys, rnnjax; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

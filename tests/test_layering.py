"""Which file may import which: floors from below only, and importing stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rnnjax"
FLOORS = [
    {"base", "masking", "initializers", "segments"},
    {"cells", "normalization", "precision", "regularizers"},
    {"plan", "engine", "accumulation", "associative", "unroll", "newton"},
    {"layers", "residual", "streaming"},
    {"embeddings", "models", "interop", "flax_mapping", "flax_linen", "flax_nnx", "modules"},
]
ANYWHERE = {"checking", "tensor_files"}  # imported by all, import nothing
SIDE = {
    "averaging",
    "benchmark",
    "checkpoint",
    "data",
    "early_stopping",
    "exporting",
    "graphs",
    "metrics",
    "training",
    "weights",
}
ABOVE_SIDE = {"truncated": {"training"}}


def imports_of(name):
    """The files of the package that a file (or a folder of them) imports."""
    path = PACKAGE / name
    files = list(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    found = set()
    for file in files:
        inside = len(file.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                if node.level == inside:
                    found |= {(node.module or alias.name).split(".")[0] for alias in node.names}
                elif not node.level and (node.module or "").startswith("rnnjax"):
                    found |= {(node.module or "").removeprefix("rnnjax").strip(".").split(".")[0]}
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("rnnjax") for alias in node.names), file
    return found - {name, ""}


def test_every_file_has_its_place():
    names = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir()}
    assert names - {"__init__", "__pycache__", "py.typed", "py"} == set().union(
        ANYWHERE, SIDE, ABOVE_SIDE, *FLOORS
    )


@pytest.mark.parametrize("level", range(len(FLOORS)))
def test_a_floor_imports_only_itself_and_those_below(level):
    allowed = set().union(ANYWHERE, *FLOORS[: level + 1])
    for name in FLOORS[level]:
        assert imports_of(name) <= allowed, name


@pytest.mark.parametrize("name", sorted(ANYWHERE))
def test_what_all_may_import_imports_nothing_of_the_package(name):
    assert imports_of(name) == set()


@pytest.mark.parametrize("name", sorted(SIDE))
def test_side_files_import_nothing_else_of_the_package(name):
    assert imports_of(name) <= ANYWHERE


@pytest.mark.parametrize("name", sorted(ABOVE_SIDE))
def test_what_stands_on_a_side_file_imports_nothing_else(name):
    assert imports_of(name) <= ABOVE_SIDE[name]


def test_importing_the_library_loads_nothing_heavy():
    heavy = ("datasets", "matplotlib", "orbax", "flax", "optax", "pyarrow", "pandas", "tqdm")
    code = f"import sys, rnnjax; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

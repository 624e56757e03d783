"""The examples in the docstrings of the programs; pytest itself runs those of the library."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Others are not imported: some need a library that is only compared with.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_an_example_gives_what_it_says(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed

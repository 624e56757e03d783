"""What ``import rnnjax`` gives: every name is listed by subject, and modules load when used."""

import importlib.metadata
import re
import subprocess
import sys
import types

import pytest

import rnnjax


def public_names():
    return {
        name
        for name in dir(rnnjax)
        if not name.startswith("_") and not isinstance(getattr(rnnjax, name), types.ModuleType)
    }


def test_help_lists_every_public_name_by_subject():
    listed = set(re.findall(r"``(?:rnnjax\.)?(\w+)``", rnnjax.__doc__))
    assert public_names() <= listed
    assert all(hasattr(rnnjax, name) for name in listed)


@pytest.mark.parametrize(
    ("former", "name"), [("MGUParams", "MinimalGatedParams"), ("MGUGates", "MinimalGatedGates")]
)
def test_a_former_name_still_works_and_warns(former, name):
    with pytest.warns(DeprecationWarning, match=f"rnnjax.{former} is called {name} now"):
        assert getattr(rnnjax, former) is getattr(rnnjax, name)
    assert former not in dir(rnnjax)


def test_every_public_name_has_a_docstring_of_its_own():
    missing = [n for n in sorted(public_names()) if not (getattr(rnnjax, n).__doc__ or "").strip()]
    assert missing == []
    generated = [n for n in public_names() if getattr(rnnjax, n).__doc__.startswith(f"{n}(")]
    assert generated == []


def test_every_module_is_there_after_importing_the_package_alone():
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [known for known in sys.modules if known.split(".")[0] == "rnnjax"]:
        del sys.modules[loaded]
    print(getattr(importlib.import_module("rnnjax"), name).__name__)
"""
    modules = rnnjax._MODULES
    command = [sys.executable, "-W", "error", "-c", code, *modules]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [f"rnnjax.{name}" for name in modules]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rnnjax' has no attribute 'lstmm'"):
        _ = rnnjax.lstmm  # pyright: ignore


def test_the_version_is_that_of_the_package():
    assert rnnjax.__version__ == importlib.metadata.version("rnnjax")

"""What ``import rnnjax`` gives: every name is listed by subject, and modules load when used."""

import importlib.metadata
import re
import subprocess
import sys
import types

import pytest

import rnnjax

MODULES = ("benchmark", "checkpoint", "data", "exporting", "interop", "metrics", "training")


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


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_there_after_importing_the_package(name):
    code = f"import rnnjax; print(rnnjax.{name}.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"rnnjax.{name}"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rnnjax' has no attribute 'lstmm'"):
        _ = rnnjax.lstmm  # pyright: ignore


def test_the_version_is_that_of_the_package():
    assert rnnjax.__version__ == importlib.metadata.version("rnnjax")

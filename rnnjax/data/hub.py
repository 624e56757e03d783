"""Data sets of the Hugging Face hub, with a quick answer where it cannot be reached."""

import threading
from pathlib import Path
from typing import Any

from rnnjax.data.errors import DataError

_PROBE_SECONDS = 5.0


def fetch(repository: str, instead: str) -> Any:
    """Load a data set from the hub, or from the cache of an earlier download.

    Without a network the cache is used after the library's own retries, which take some twenty
    seconds; the environment variable ``HF_HUB_OFFLINE=1`` spares them.

    Args:
        repository: the data set, as ``owner/name``.
        instead: what the user can do where there is neither, for the message.

    Returns:
        The ``datasets.DatasetDict``.

    Raises:
        DataError: within ten seconds if the hub does not answer and nothing is cached.
    """
    try:
        import datasets
        from datasets import config
    except ImportError:
        raise DataError(
            f"{repository} on the Hugging Face hub needs the package datasets: "
            f"pip install datasets. {instead}"
        ) from None
    problem = _probe(repository)
    if problem is not None and not _is_cached(repository, Path(config.HF_DATASETS_CACHE)):
        raise _unreachable(repository, problem, instead)
    try:
        # Rows, not code: since 4.0 datasets runs no script of a repository. The caller checks the
        # rows and keeps their hash with the results.
        return datasets.load_dataset(repository)  # nosec B615
    except Exception as error:
        raise _unreachable(repository, _described(error), instead) from None


def _probe(repository: str) -> str | None:
    """Why the hub does not give the data set, or None if it does."""
    problems: list[str | None] = ["no answer in time"]

    def ask() -> None:
        problems[0] = _ask_hub(repository)

    # The request's own timeout does not bound the look-up of the host name; a daemon thread does,
    # and does not keep the interpreter from leaving.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return problems[0]


def _ask_hub(repository: str) -> str | None:
    try:
        from huggingface_hub import HfApi

        HfApi().dataset_info(repository, timeout=_PROBE_SECONDS)
    except Exception as error:
        return _described(error)
    return None


def _is_cached(repository: str, cache: Path) -> bool:
    # The cache names a data set's folder so; it offers no public way to ask.
    return any(cache.glob(f"{repository.replace('/', '___')}/*/*/*"))


def _described(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _unreachable(repository: str, problem: str, instead: str) -> DataError:
    return DataError(
        f"{repository} must be on the Hugging Face hub or in its cache, got {problem}. {instead}"
    )

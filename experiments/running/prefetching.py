"""Batches made ahead of the step that reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(items: Iterable[Item], ahead: int) -> Iterator[Item]:
    """The same items in the same order, up to ``ahead`` of them made early in a thread.

    One thread makes them all, one after the other, so what they are does not depend on
    ``ahead``. An error comes up where its item would have.

    Args:
        items: read by the thread alone.
        ahead: 0 makes each when it is asked for, without a thread.

    Raises:
        ValueError: ``ahead`` is below 0.

    Example:
        >>> list(prefetched(range(5), ahead=2))
        [0, 1, 2, 3, 4]
    """
    if ahead < 0:
        raise ValueError(f"ahead must be at least 0, got {ahead}")
    return _from_thread(iter(items), ahead) if ahead else iter(items)


def _from_thread(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    end = object()
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(thread.submit(next, items, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # pyright: ignore[reportReturnType]
    finally:  # who stops early waits for the item that is being made, not for all those ordered
        thread.shutdown(cancel_futures=True)

"""Short messages between the processes of one program, beside the arrays they divide."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax

# A process that has died ends all others within the heartbeat, also those that wait for its
# messages: so nobody need give up by the clock, and a slow disk is no error.
_PATIENCE_MS = 7 * 24 * 3600 * 1000

_topics = itertools.count()


class Messages:
    """What processes tell one another about one subject, each message once under its name.

    They go through the store of JAX's own coordination service: no device takes part, so a thread
    may send and wait while a step runs. All processes make their Messages in the same order. In a
    program of one process nothing is sent.

    Example:
        >>> messages = Messages()
        >>> messages.from_first("sum", lambda: 1 + 1), messages.gather("part", lambda: 3)
        (2, [3])
    """

    def __init__(self) -> None:
        self.process, self.count = jax.process_index(), jax.process_count()
        self._topic = next(_topics)

    def tell(self, name: str, value: Any) -> None:
        """Tells all who ask for this name; the value is of JSON's kinds."""
        if self.count > 1:
            store().key_value_set(self._key(name), json.dumps(value))

    def hear(self, name: str) -> Any:
        """What was told under this name; waits for it.

        Raises:
            ProcessError: it was that something failed.
        """
        value = json.loads(store().blocking_key_value_get(self._key(name), _PATIENCE_MS))
        if isinstance(value, dict) and "failed" in value:
            raise ProcessError(value["failed"])
        return value

    def from_first(self, name: str, action: Callable[[], Any]) -> Any:
        """What the first process comes to by this action, in all of them.

        Raises:
            ProcessError: it failed there; in the first process the error itself.
        """
        return self._act(name, action) if self.process == 0 else self.hear(name)

    def gather(self, name: str, action: Callable[[], Any]) -> list[Any]:
        """In the first process, which waits for all, what each comes to; in others their own.

        Raises:
            ProcessError: in the first process: it failed in another. Where it failed, the error.
        """
        if self.process:
            return [self._act(f"{name} of {self.process}", action)]
        return [action(), *(self.hear(f"{name} of {p}") for p in range(1, self.count))]

    def _act(self, name: str, action: Callable[[], Any]) -> Any:
        try:
            value = action()
        except Exception as error:
            self.tell(name, {"failed": str(error)})
            raise
        self.tell(name, value)
        return value

    def _key(self, name: str) -> str:
        return f"rnnjax/{self._topic}/{name}"


class ProcessError(RuntimeError):
    """What was to be done failed in another process; the message is that of its error."""


def store() -> Any:
    """What JAX's own coordination service keeps for all processes, by name."""
    # JAX has no public way to it; Orbax takes this one too.
    from jax._src import distributed

    return distributed.global_state.client

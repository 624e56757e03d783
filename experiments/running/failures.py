"""A run in several processes, one of which has failed: all say why, and end."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import jax

from experiments.running.interrupts import Interrupted
from rnnjax._processes import store

_KEY = "experiments/failed"
_SECONDS_A_LOOK = 1.0
# An error that all processes make at once, as for a loss that is not finite, each tells by itself;
# and the first process, which keeps the messages, ends when the others have read them.
_SECONDS_TO_END = 5.0


class Failures:
    """What processes tell one another when one of them fails.

    Without it the others would wait in their next sum until the heartbeat is missed, and JAX would
    then abort them; it would also abort one that fails, as it waits for the others at its end.
    """

    def __init__(self) -> None:
        self._failed = False
        self._ended = threading.Event()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Looks for failures of others, and tells them one of its own."""
        if jax.process_count() == 1:
            yield
            return
        threading.Thread(target=self._look, daemon=True).start()
        try:
            yield
        except (Interrupted, KeyboardInterrupt):  # a signal stops all of them
            raise
        except Exception as error:
            self._failed = True
            earlier = self._tell(error)
            if earlier is not None and isinstance(error, jax.errors.JaxRuntimeError):
                _end(earlier)  # a sum failed, as one of those who take part is gone
            raise
        finally:
            self._ended.set()

    def exit_code(self, action: Callable[[], int]) -> int:
        """That of the action; after a failure among several processes it ends this one."""
        try:
            code = action()
        except Exception:
            if not self._failed:
                raise
            traceback.print_exc()
            code = 1
        if self._failed:
            _leave(code)
        return code

    def _tell(self, error: Exception) -> str | None:
        """Tells the others; what another process told before, if one did."""
        reason = str(error) or type(error).__name__
        try:
            store().key_value_set(_KEY, f"process {jax.process_index()} failed: {reason}")
        except jax.errors.JaxRuntimeError:
            return _told()
        return None

    def _look(self) -> None:
        while not self._ended.wait(_SECONDS_A_LOOK):
            reason = _told()
            if reason is not None and not self._ended.wait(_SECONDS_TO_END):
                _end(reason)


def _told() -> str | None:
    """Which process failed, and why, if one has told."""
    try:
        return store().key_value_try_get(_KEY)
    except jax.errors.JaxRuntimeError:
        return None


def _end(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr)
    _leave(2)


def _leave(code: int) -> None:
    """Ends this process without JAX's farewell, at which it would wait for those that are gone."""
    if jax.process_index() == 0:
        time.sleep(_SECONDS_A_LOOK + _SECONDS_TO_END)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

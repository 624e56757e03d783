"""A signal that comes at a known moment of a run."""

import contextlib

import pytest

from experiments.running.interrupts import Interrupted, Interrupts


@contextlib.contextmanager
def stopped_after(count):
    """SIGTERM comes when a loop that watches for signals has had so many items."""
    watch = Interrupts.watch

    def stop(self, items):
        for done, item in enumerate(watch(self, items)):
            if done == count:
                raise Interrupted(15)
            yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupts, "watch", stop)
        yield

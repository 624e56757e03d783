"""Timing in turns, by a clock that the test turns: no real second is asserted."""

import types

import jax
import jax.numpy as jnp
import pytest

from rnnjax import benchmark
from rnnjax.benchmark import CallError, Memory, Spread, Timing, interleaved, ratio


class Clock:
    """Seconds that pass when a call says so."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, *durations):
        """A call that takes these durations, the last one again and again."""
        left = list(durations)

        def run():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_calls_take_turns_and_change_their_order_every_round():
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    interleaved(calls, rounds=3, seconds=0.5, clock=clock)
    assert clock.log[6:] == list("abccbaabc")  # two warm-up calls of each before


def test_every_duration_is_kept_and_the_two_first_calls_are_not():
    clock = Clock()
    calls = {"a": clock.call("a", 100.0, 1.0, 2.0, 5.0, 3.0)}
    timing = interleaved(calls, rounds=3, seconds=1.0, clock=clock)["a"]
    assert timing == Timing((2.0, 5.0, 3.0), calls=1)
    assert timing.spread == Spread(3.0, 2.0, 5.0)


def test_calls_that_have_run_before_are_not_warmed_up_again():
    clock = Clock()
    calls = {"a": clock.call("a", 1.0, 2.0, 5.0)}
    timing = interleaved(calls, rounds=2, seconds=1.0, warm=True, clock=clock)["a"]
    assert timing == Timing((2.0, 5.0), calls=1)


def test_short_calls_are_repeated_until_a_turn_is_long_enough():
    clock = Clock()
    timing = interleaved({"a": clock.call("a", 0.25)}, rounds=2, seconds=0.9, clock=clock)["a"]
    assert timing == Timing((0.25, 0.25), calls=4)
    assert len(clock.log) == 2 + 2 * 4


def test_a_pause_follows_every_turn_of_those_named_and_is_not_timed():
    clock, pauses = Clock(), []

    def sleep(seconds):
        pauses.append((clock.log[-1], seconds))
        clock.now += seconds

    calls = {name: clock.call(name, 1.0) for name in "ab"}
    timings = interleaved(calls, rounds=2, seconds=1.0, pauses={"b": 7.0}, clock=clock, sleep=sleep)
    assert pauses == [("b", 7.0)] * 4
    assert timings["a"].seconds == timings["b"].seconds == (1.0, 1.0)


def test_results_are_waited_for():
    class Pending:
        waited = 0

        def block_until_ready(self):
            Pending.waited += 1
            return self

    interleaved({"a": lambda: [Pending()]}, rounds=2, seconds=1.0, clock=Clock())
    assert Pending.waited == 4


def test_a_call_that_fails_is_named():
    def broken():
        raise MemoryError("no more")

    with pytest.raises(CallError, match="'b' failed") as caught:
        interleaved({"a": int, "b": broken})
    assert caught.value.name == "b"
    assert isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize(
    "options", [{"rounds": 0}, {"seconds": 0.0}, {"pauses": {"b": 1.0}}, {"calls": {}}]
)
def test_what_cannot_be_timed_is_refused(options):
    with pytest.raises(
        ValueError, match=r"calls must not be empty|pauses must have names of calls"
    ):
        interleaved(**{"calls": {"a": int}} | options)


def test_ratios_are_taken_round_by_round():
    # The machine was three times as slow in the second round: no ratio of these shows it.
    slow, fast = Timing((2.0, 6.6, 1.8), 1), Timing((1.0, 3.0, 1.0), 1)
    assert ratio(slow, fast) == Spread(2.0, 1.8, pytest.approx(2.2))
    with pytest.raises(ValueError, match="zip"):
        ratio(slow, Timing((1.0,), 1))


def test_compiling_is_timed_apart_and_memory_is_counted():
    ticks = iter([10.0, 12.5])

    def outer(x):
        return jnp.outer(x, x).sum(axis=0), x + 1

    found = benchmark.compile_apart(outer, jnp.ones(256), clock=lambda: next(ticks))
    assert found.compile_seconds == 2.5
    assert found.memory.arguments == 256 * 4
    assert 2 * 256 * 4 <= found.memory.outputs < 2 * 256 * 4 + 64  # and pointers to them
    assert found.memory.total == sum(found.memory)
    assert jax.tree.map(jnp.shape, found.run(jnp.ones(256))) == ((256,), (256,))


def test_memory_written_in_place_is_counted_once():
    class Compiled:
        def memory_analysis(self):
            return types.SimpleNamespace(
                argument_size_in_bytes=100,
                output_size_in_bytes=50,
                alias_size_in_bytes=40,
                temp_size_in_bytes=7,
            )

    assert benchmark.compiled_memory(Compiled()) == Memory(100, 10, 7)


def test_the_name_of_the_release_before_is_taken_with_a_warning():
    clock = Clock()
    with pytest.warns(DeprecationWarning, match="called interleaved now"):
        timings = benchmark.time_in_turns({"a": clock.call("a", 0.5)}, rounds=2, clock=clock)
    assert timings["a"].seconds == (0.5, 0.5)

"""How long calls take beside one another, as records that keep every duration.

Times on a busy machine drift by tens of percent within minutes, so one number says little. Here
the calls that are compared take turns, all in every round; two of them are compared by the ratio
of their times *in the same round*, and what is reported is the median over the rounds with the
least and the most. Compiling is timed apart.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Clock = Callable[[], float]  # seconds that only grow


class Spread(NamedTuple):
    """The median of some values, with the least and the most of them."""

    median: float
    least: float
    most: float


class Timing(NamedTuple):
    """What one call took.

    Attributes:
        seconds: of one call, one entry a round.
        calls: how many calls a round averaged over.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def spread(self) -> Spread:
        """Seconds of one call over the rounds."""
        return spread(self.seconds)


class Memory(NamedTuple):
    """Bytes that a compiled program needs, as the compiler says.

    Attributes:
        arguments: what it is given.
        outputs: what it returns, less what it writes over its arguments.
        temporary: what it sets aside while it runs, residuals of a gradient included.
    """

    arguments: int
    outputs: int
    temporary: int

    @property
    def total(self) -> int:
        """The peak: arguments, outputs and temporaries, as they are all held at once."""
        return sum(self)


class CompiledCall(NamedTuple):
    """A compiled program: how to run it, how long it took to make, and what memory it needs.

    Attributes:
        run: takes the arrays it was compiled for.
        compile_seconds: tracing, lowering and compiling together.
        memory: None where the backend does not say.
    """

    run: Callable[..., Any]
    compile_seconds: float
    memory: Memory | None


class CallError(RuntimeError):
    """One of several calls failed; ``name`` says which, ``__cause__`` how."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the call {name!r} failed while it was timed")
        self.name = name


def spread(values: Sequence[float]) -> Spread:
    """The median, the least and the most.

    Example:
        >>> spread((3.0, 1.0, 2.0))
        Spread(median=2.0, least=1.0, most=3.0)
    """
    return Spread(statistics.median(values), min(values), max(values))


def compile_apart(
    function: Callable[..., Any],
    *args: Any,
    compiler_options: dict[str, Any] | None = None,
    clock: Clock = time.perf_counter,
) -> CompiledCall:
    """Compile a function for these arguments without running it.

    Args:
        function: what ``jax.jit`` takes.
        args: arrays, or ``jax.ShapeDtypeStruct``s, to compile for.
        compiler_options: options of XLA by name.
        clock: seconds that only grow.

    Example:
        >>> import jax.numpy as jnp
        >>> compiled = compile_apart(lambda x: 2 * x, jnp.ones(3))
        >>> compiled.run(jnp.ones(3)).tolist(), compiled.memory.outputs
        ([2.0, 2.0, 2.0], 12)
    """
    began = clock()
    compiled = jax.jit(function, compiler_options=compiler_options).lower(*args).compile()
    return CompiledCall(compiled, clock() - began, compiled_memory(compiled))


def compiled_memory(compiled: Any) -> Memory | None:
    """What ``compiled.memory_analysis()`` says, or None where a backend has no such analysis."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 7,
    seconds: float = 0.1,
    pauses: Mapping[str, float] | None = None,
    warm: bool = False,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Time several calls in rounds, in each of which every one has its turn.

    Each is first called twice: once to warm up, once to find how many calls last ``seconds``.
    The results are waited for by ``jax.block_until_ready``; a call that computes by other means
    must wait for itself. Every other round runs in the opposite order, so that none always
    follows the same other one.

    Args:
        calls: what to call, by name.
        rounds: how many durations are kept of each.
        seconds: how long a turn lasts at least: what is shorter is called several times, and the
            duration is that of one.
        pauses: seconds to sleep after the turns of those named, for libraries whose threads go
            on spinning after their work is done.
        warm: that every call has run before, so that only the second of the two calls is made.
        clock: seconds that only grow.
        sleep: what pauses.

    Raises:
        ValueError: no call, a number that is not positive, or a pause for an unknown name.
        CallError: a call raised; says which.

    Example:
        >>> ticks = iter(range(100))
        >>> timings = interleaved({"one": int}, rounds=2, clock=lambda: next(ticks))
        >>> timings["one"]
        Timing(seconds=(1.0, 1.0), calls=1)
    """
    pauses = pauses or {}
    if not calls or rounds < 1 or not seconds > 0:
        raise ValueError(
            f"calls must not be empty, rounds at least 1 and seconds positive, got {len(calls)} "
            f"calls, rounds={rounds} and seconds={seconds}"
        )
    if not set(pauses) <= set(calls):
        raise ValueError(f"pauses must have names of calls, got {sorted(set(pauses) - set(calls))}")

    def turn(name: str, count: int) -> float:
        began = clock()
        try:
            for _ in range(count):
                jax.block_until_ready(calls[name]())
        except Exception as error:
            raise CallError(name) from error
        took = clock() - began
        if name in pauses:
            sleep(pauses[name])
        return took / count

    counts = {}
    for name in calls:
        if not warm:
            turn(name, 1)
        once = turn(name, 1)
        counts[name] = max(1, math.ceil(seconds / once)) if once > 0 else 1
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in calls if number % 2 == 0 else reversed(list(calls)):
            durations[name].append(turn(name, counts[name]))
    return {name: Timing(tuple(found), counts[name]) for name, found in durations.items()}


def time_in_turns(*args: Any, **options: Any) -> dict[str, Timing]:
    """The name of `interleaved` in the release before."""
    message = "rnnjax.benchmark.time_in_turns is called interleaved now"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return interleaved(*args, **options)


def ratio(timing: Timing, baseline: Timing) -> Spread:
    """How many times as long as ``baseline`` a call took, round by round.

    Raises:
        ValueError: the two were not timed in the same number of rounds.

    Example:
        >>> ratio(Timing((2.0, 6.0, 3.0), 1), Timing((1.0, 2.0, 3.0), 1))
        Spread(median=2.0, least=1.0, most=3.0)
    """
    pairs = zip(timing.seconds, baseline.seconds, strict=True)
    return spread(tuple(one / other for one, other in pairs))


def tokens_per_second(timing: Timing, valid_tokens: int) -> float:
    """The rate of a call that reads so many tokens, padding not counted, at its median time.

    Example:
        >>> tokens_per_second(Timing((0.5, 0.25, 0.75), 1), valid_tokens=100)
        200.0
    """
    return valid_tokens / timing.spread.median

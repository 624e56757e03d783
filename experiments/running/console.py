"""What a user sees of a training run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from rnnjax.training import Compilation
from rnnjax.weights import named_parameters

if TYPE_CHECKING:
    from tqdm import tqdm

# Seconds between two readings of the device. Each waits for it, so that a bar that is drawn
# after every step would slow the run; and a log file is read by people.
TERMINAL_INTERVAL = 0.5
LOG_INTERVAL = 10.0


def parameter_table(params: Any, file: IO[str] | None = None) -> None:
    """Prints name, shape, dtype and size of every parameter, and the total.

    Args:
        params: a tree of arrays or of `jax.ShapeDtypeStruct`s.
        file: standard output when None; no terminal gets plain aligned text.

    Example:
        >>> import jax.numpy as jnp
        >>> parameter_table({"w": jnp.ones((20, 100)), "b": jnp.ones(100)})
        parameter  shape      dtype    count
        b          (100,)     float32    100
        w          (20, 100)  float32  2,000
        total                          2,100
    """
    output = sys.stdout if file is None else file
    head = ("parameter", "shape", "dtype", "count")
    leaves = named_parameters(params)
    rows = [
        (name, str(leaf.shape), str(leaf.dtype), f"{leaf.size:,}") for name, leaf in leaves.items()
    ]
    total = ("total", "", "", f"{sum(leaf.size for leaf in leaves.values()):,}")
    if output.isatty():
        _print_rich(head, rows, total, output)
    else:
        _print_plain([head, *rows, total], output)


def print_table(rows: Sequence[Mapping[str, str]], file: IO[str] | None = None) -> None:
    """Prints rows in aligned columns, the first to the left and figures to the right.

    Args:
        rows: one or more, each with the same names, which head the columns.
        file: standard output when None; no terminal gets plain aligned text.

    Example:
        >>> print_table([{"cell": "gru", "ms": "1.5"}, {"cell": "lstm", "ms": "12.0"}])
        cell    ms
        gru    1.5
        lstm  12.0
    """
    output = sys.stdout if file is None else file
    if output.isatty():
        _print_rich_rows(rows, output)
        return
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *figures in lines:
        cells = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
        print(name.ljust(widths[0]), *cells, sep="  ", file=output)


def compiled_line(compilation: Compilation) -> str:
    """The line that says what was compiled.

    Example:
        >>> compiled_line(Compilation("train step", {"tokens": "int32[64,32]"}, 1.93))
        'compiled train step for tokens int32[64,32] in 1.9 s'
    """
    shapes = ", ".join(f"{name} {shape}" for name, shape in compilation.shapes.items())
    return f"compiled {compilation.name} for {shapes} in {compilation.seconds:.1f} s"


def epoch_line(record: Mapping[str, Any]) -> str:
    """The line that sums up an epoch, from its figures and its seconds.

    Example:
        >>> record = {"epoch": 2, "seconds": 12.34, "train_loss": 0.5, "validation_loss": 0.625}
        >>> epoch_line(record)
        'epoch 2: train loss 0.5000 | validation loss 0.6250 | 12.3 s'
    """
    splits = []
    for split in ("train", "validation"):
        names = [name for name in record if name.startswith(f"{split}_")]
        figures = {name.removeprefix(f"{split}_"): record[name] for name in names}
        splits.append(f"{split} {_figures(figures)}")
    skipped = record.get("skipped", 0)
    note = f" | {skipped} steps skipped as not finite" if skipped else ""
    return f"epoch {record['epoch']}: {' | '.join(splits)} | {record['seconds']:.1f} s{note}"


def exit_code(action: Callable[[], object], *also: type[Exception]) -> int:
    """Does what a command line is for; 0, 2 after an error its user can mend, 130 after Ctrl-C.

    Args:
        action: what it does.
        also: errors that its user can mend, beside ValueError and OSError.

    Example:
        >>> exit_code(lambda: print("done"))
        done
        0
    """
    try:
        action()
    except (ValueError, OSError, *also) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


class Progress:
    """Where a run is: a bar in a terminal, now and then a plain line anywhere else.

    Example:
        >>> with Progress(total_steps=2) as progress:
        ...     progress.say("epoch 1")
        ...     progress.advance(lambda: {"loss": 0.5}, tokens=64)
        epoch 1

    Args:
        total_steps: steps of the whole run.
        file: standard output when None.
        clock: seconds that only grow.
        done: steps that were taken before, in a run that goes on.
    """

    def __init__(
        self,
        total_steps: int,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        done: int = 0,
    ) -> None:
        self.tokens_per_second: float | None = None
        self._total = total_steps
        self._file = sys.stdout if file is None else file
        self._clock = clock
        self._step = self._begun_at = done
        self._tokens = 0
        self._started = self._read_at = clock()
        self._bar = _bar(total_steps, done, self._file) if self._file.isatty() else None
        self._interval = LOG_INTERVAL if self._bar is None else TERMINAL_INTERVAL

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, figures: Callable[[], Mapping[str, float]], tokens: int) -> None:
        """Counts a step, and shows it if the last showing is long enough ago.

        Args:
            figures: gives loss, accuracy or whatever to show; called only then, since it waits
                for the device.
            tokens: how many tokens the step read.
        """
        self._step += 1
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update()
        if self._clock() - self._read_at >= self._interval:
            self._show(figures())

    def compiled(self, compilation: Compilation) -> None:
        """Says what was compiled, and takes the time for it out of the rates."""
        self._started += compilation.seconds
        self._read_at += compilation.seconds
        self.say(compiled_line(compilation))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Sums up an epoch, and counts tokens anew: the validation before it read none."""
        self._tokens, self._read_at = 0, self._clock()
        self.say(epoch_line(record))

    def say(self, line: str) -> None:
        """Writes a line of its own; a bar stays below it."""
        if self._bar is None:
            print(line, file=self._file, flush=True)
        else:
            self._bar.write(line, file=self._file)

    def _show(self, figures: Mapping[str, float]) -> None:
        # The clock is read after the figures: having them means that the steps are really done.
        now = self._clock()
        seconds = now - self._read_at
        self.tokens_per_second = self._tokens / seconds if seconds > 0 else None
        self._tokens, self._read_at = 0, now
        text = _figures(figures)
        if self.tokens_per_second is not None:
            text += f" {self.tokens_per_second:,.0f} tokens/s"
        if self._bar is None:
            self.say(f"step {self._step}/{self._total} {text}, {self._left(now)} left")
        else:
            self._bar.set_postfix_str(text)

    def _left(self, now: float) -> str:
        from tqdm import tqdm

        each = (now - self._started) / (self._step - self._begun_at)
        return tqdm.format_interval(each * (self._total - self._step))


def _figures(figures: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _bar(total: int, done: int, file: IO[str]) -> tqdm:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, file=file, unit="step", dynamic_ncols=True)


def _print_plain(rows: list[tuple[str, ...]], file: IO[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *texts, count in rows:
        cells = [text.ljust(width) for text, width in zip(texts, widths, strict=False)]
        print(*cells, count.rjust(widths[-1]), sep="  ", file=file)


def _print_rich(
    head: tuple[str, ...], rows: list[tuple[str, ...]], total: tuple[str, ...], file: IO[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_footer=True)
    for name, footer in zip(head, total, strict=True):
        table.add_column(name, footer, justify="right" if name == "count" else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # a Text: "[...]" in a name is no markup
    Console(file=file).print(table)


def _print_rich_rows(rows: Sequence[Mapping[str, str]], file: IO[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    Console(file=file).print(table)

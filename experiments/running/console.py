"""What a user sees of a training run."""

from __future__ import annotations

import io
import os
import shlex
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Any

from experiments.running.interrupts import Interrupted
from rnnjax.checkpoint import CheckpointError
from rnnjax.training import Compilation, NonFiniteError
from rnnjax.weights import named_parameters

if TYPE_CHECKING:
    from tqdm import tqdm

# Seconds between two readings of the device. Each waits for it, so that a bar that is drawn
# after every step would slow the run; and a log file is read by people.
TERMINAL_INTERVAL = 0.5
LOG_INTERVAL = 10.0
# Of a terminal that nobody has made wider.
_COLUMNS = 80


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

    Where the table would pass 80 columns, heads of several words stand in several lines, and if it
    still would, cells of several words do.

    Args:
        rows: one or more, each with the same names, which head the columns.
        file: standard output when None.

    Example:
        >>> print_table([{"cell": "gru", "ms": "1.5"}, {"cell": "lstm", "ms": "12.0"}])
        cell    ms
        gru    1.5
        lstm  12.0
    """
    output = sys.stdout if file is None else file
    names, lines = list(rows[0]), [list(row.values()) for row in rows]
    heads = _heads(names, lines)
    if _width(_widths([*heads, *lines])) > _COLUMNS:
        narrow = _narrowed(names, lines)
        heads = _bottom_up(_wrapped_cells(names, narrow))
        lines = [line for row in lines for line in _top_down(_wrapped_cells(row, narrow))]
    widths = _widths([*heads, *lines])
    for name, *figures in [*heads, *lines]:
        cells = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells]).rstrip(), file=output)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _width(widths: list[int]) -> int:
    """That of a line, with two blanks between columns."""
    return sum(widths) + 2 * (len(widths) - 1)


def _narrowed(names: list[str], lines: list[list[str]]) -> list[int]:
    """Widths of columns for a table of at most 80 columns, if words are so short: what is widest
    is broken first."""
    widths = _widths([names, *lines])
    words = [" ".join(column).split() for column in zip(names, *lines, strict=True)]
    least = [max(map(len, column), default=0) for column in words]
    while _width(widths) > _COLUMNS:
        broken = [(width, n) for n, width in enumerate(widths) if width > least[n]]
        if not broken:
            break
        widths[max(broken)[1]] -= 1
    return widths


def _wrapped_cells(row: list[str], widths: list[int]) -> list[list[str]]:
    return [
        textwrap.wrap(text, max(1, width), break_long_words=False, break_on_hyphens=False)
        for text, width in zip(row, widths, strict=True)
    ]


def _top_down(stacks: list[list[str]]) -> list[list[str]]:
    """The lines of cells side by side, each from the first line on."""
    return [list(line) for line in zip_longest(*stacks, fillvalue="")]


def _bottom_up(stacks: list[list[str]]) -> list[list[str]]:
    """The same, each cell down to the last line."""
    return _top_down([stack[::-1] for stack in stacks])[::-1]


def _heads(names: list[str], lines: list[list[str]]) -> list[list[str]]:
    """The lines of a table's head: as few as there can be if it is to be at most 80 columns wide,
    and as many as the longest name has words if it cannot."""
    cells = _widths(lines)
    most = max(len(name.split()) for name in names)
    columns = [[name] for name in names]
    for height in range(1, most + 1):
        columns = [_stacked(name, width, height) for name, width in zip(names, cells, strict=True)]
        widths = [max(width, *map(len, c)) for width, c in zip(cells, columns, strict=True)]
        if _width(widths) <= _COLUMNS:
            break
    return _bottom_up(columns)


def _stacked(name: str, least: int, height: int) -> list[str]:
    """The words of a name in so many lines at most, as narrow as they can be but for ``least``."""
    for width in range(max(1, least), len(name)):
        lines = textwrap.wrap(name, width, break_long_words=False, break_on_hyphens=False)
        if len(lines) <= height and max(map(len, lines)) <= width:
            return lines
    return [name]


def compiled_line(compilations: Sequence[Compilation]) -> str:
    """The line that says what was compiled, of several programs together.

    Example:
        >>> compiled_line([Compilation("train step", {"tokens": "int32[64,32]"}, 1.93)])
        'compiled train step for 1 shape in 1.9 s'
        >>> made = [Compilation(name, {}, 0.5) for name in ("train step", "eval step") * 2]
        >>> compiled_line(made)
        'compiled train step for 2 shapes, eval step for 2 shapes in 2.0 s'
    """
    counts = Counter(made.name for made in compilations)
    programs = ", ".join(f"{name} for {how_many(count, 'shape')}" for name, count in counts.items())
    seconds = sum(made.seconds for made in compilations)
    return f"compiled {programs} in {seconds:.1f} s"


def how_many(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> how_many(1, "text"), how_many(2000, "text"), how_many(0, "series"), how_many(3, "class")
        ('1 text', '2,000 texts', '0 series', '3 classes')
    """
    if number != 1 and noun != "series":
        noun += "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}"


class EpochTable:
    """Rows of figures, one an epoch, under a head that names them once.

    Example:
        >>> table = EpochTable()
        >>> record = {"epoch": 2, "seconds": 12.34, "train_loss": 0.5, "validation_loss": 0.625}
        >>> print(*table.lines(record), sep="\\n")
               training  validation
        epoch      loss        loss  seconds
            2    0.5000      0.6250     12.3
        >>> print(*table.lines({**record, "best": True, "skipped": 3}), sep="\\n")
            2    0.5000      0.6250     12.3  best
               3 steps were skipped so far as not finite
    """

    def __init__(self) -> None:
        self._columns: list[tuple[str, int]] = []

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """The row of an epoch, before the first one the head.

        Args:
            record: "epoch", "seconds", figures whose names begin with "train_" or "validation_";
                "best", whether the epoch is the best so far; "skipped", steps left out so far.
        """
        head = [] if self._columns else self._head(record)
        figures = [f"{record[name]:.4f}".rjust(width) for name, width in self._columns]
        row = "  ".join([f"{record['epoch']:>5}", *figures, f"{record['seconds']:7.1f}"])
        if record.get("best"):
            row += "  best"
        skipped = record.get("skipped", 0)
        were = "was" if skipped == 1 else "were"
        said = f"       {how_many(skipped, 'step')} {were} skipped so far as not finite"
        note = [said] if skipped else []
        return [*head, row, *note]

    def _head(self, record: Mapping[str, Any]) -> list[str]:
        above, names = " " * 5, "epoch"
        for split, title in (("train", "training"), ("validation", "validation")):
            # The loss first, as it is what the steps make smaller.
            found = sorted(
                (name for name in record if name.startswith(f"{split}_")),
                key=lambda name: (not name.endswith("_loss"), name),
            )
            short = [name.removeprefix(f"{split}_") for name in found]
            widths = [max(len(name), 6) for name in short]
            if found:
                widths[0] += max(0, len(title) - sum(widths) - 2 * (len(widths) - 1))
            self._columns += zip(found, widths, strict=True)
            cells = [name.rjust(width) for name, width in zip(short, widths, strict=True)]
            names += "".join(f"  {cell}" for cell in cells)
            above += f"  {title}".ljust(2 + sum(widths) + 2 * (len(widths) - 1)) if found else ""
        return [above.rstrip(), f"{names}  seconds"]


def command(*words: str | os.PathLike[str]) -> str:
    """A command for a shell, quoted where its words need it.

    Example:
        >>> command("python", "-m", "experiments.classify", "--out", "runs/my run")
        "python -m experiments.classify --out 'runs/my run'"
    """
    return shlex.join(os.fspath(word) for word in words)


def as_text(text: str) -> tuple[str, ...]:
    """The last words of a command that gives a text: behind -- one that begins as options do.

    Example:
        >>> as_text("a word"), as_text("-a word")
        (('a word',), ('--', '-a word'))
    """
    return ("--", text) if text.startswith("-") else (text,)


def wrapped(sentence: str) -> str:
    """A long sentence in lines of at most 80 columns, the later ones set in.

    Example:
        >>> print(wrapped("warning: " + "many words " * 9))
        warning: many words many words many words many words many words many words many
          words many words many words
    """
    return textwrap.fill(
        sentence, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def shortened(text: str) -> str:
    """The lines of a text, each cut to the 80 columns of a terminal.

    Example:
        >>> print(shortened("a short line\\n" + "many words " * 9))
        a short line
        many words many words many words many words many words many words many words ...
    """
    return "\n".join(
        line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 4].rstrip()} ..."
        for line in text.split("\n")
    )


def complain(text: str) -> None:
    """Prints what is no result, as an error, where a terminal and no pipe shows it."""
    print(_for_a_reader(text, sys.stderr), file=sys.stderr)


# What a user can mend, beside too little memory and a package that is not installed.
_MENDABLE = (ValueError, OSError, CheckpointError, NonFiniteError)


def exit_code(action: Callable[[], int | None]) -> int:
    """Does what a command line is for, and says in one line what its user can mend.

    Args:
        action: what it does; gives its exit code, or None for 0.

    Returns:
        That of the action; 2 after an error that can be mended; 130 after Ctrl-C; 143 and the like
        after a signal at which the run stopped; 141 where nobody reads the output any more, as
        after ``| head``.

    Example:
        >>> exit_code(lambda: print("done"))
        done
        0
    """
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # closed by who started the program, as by ">&-"
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115 (it is open until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A letter that the terminal or the locale cannot show must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        return action() or 0
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return nobody_reads()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]  # none where the message says it all
        if package in ("experiments", "rnnjax"):
            raise
        told = f"the package {package} must be installed, got none" if package else str(error)
        complain(f"error: {told}")
        return 2
    except Exception as error:
        if not isinstance(error, _MENDABLE) and not is_out_of_memory(error):
            raise
        complain(f"error: {_message(error)}")
        return 2


def nobody_reads() -> int:
    """Lets go of a pipe whose reader is gone, as after ``| head``; the exit code that says so."""
    # Python writes what is left when it ends, and would fail a second time.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13  # SIGPIPE, which Windows has no name for


def _for_a_reader(text: str, file: IO[str]) -> str:
    """The text as it is for a log file, and with no word broken in a terminal; commands are left
    whole, to be copied."""
    if not file.isatty():
        return text
    return "\n".join(
        line if "python -m " in line else _indented(line) for line in text.splitlines()
    )


def _indented(line: str) -> str:
    words = line.lstrip(" ")
    return textwrap.indent(wrapped(words), " " * (len(line) - len(words)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had too little memory."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory")  # the second where the host has too little
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename} must be usable, got {error.strerror}"
    if not is_out_of_memory(error):
        return str(error)
    reason = str(error).partition("\n")[0][:200]
    return f"out of memory ({reason}): smaller batches, texts or layers need less"


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
        may_end_early: whether the run may end before all steps are taken, so that the time left
            is only a bound.
    """

    def __init__(
        self,
        total_steps: int,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        done: int = 0,
        may_end_early: bool = False,
    ) -> None:
        self.tokens_per_second: float | None = None
        self._total = total_steps
        self._bound = "at most " if may_end_early else ""
        self._table = EpochTable()
        self._compiled: list[Compilation] = []
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
        self._say_compiled()
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
        """Takes the time for it out of the rates; a line says it with the next epoch's."""
        self._started += compilation.seconds
        self._read_at += compilation.seconds
        if self._bar is not None:
            self._bar.start_t += compilation.seconds
        self._compiled.append(compilation)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Sums up an epoch, and counts tokens anew: the validation before it read none."""
        self._tokens, self._read_at = 0, self._clock()
        self._say_compiled()
        for line in self._table.lines(record):
            self.say(line)

    def _say_compiled(self) -> None:
        if self._compiled:
            self.say(compiled_line(self._compiled))
            self._compiled = []

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
            # Where the run may end early the total is none, and the line would pass 80 columns.
            of = "" if self._bound else f"/{self._total}"
            self.say(f"step {self._step}{of} {text}, {self._bound}{self._left(now)} left")
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

    # Without steps a second, for which the figures of the run would be cut at 80 columns.
    form = "{percentage:3.0f}%|{bar}| {n}/{total}, {remaining} left{postfix}"
    # Without smoothing, which would take the first steps, those that compile, for a rate.
    return tqdm(
        total=total, initial=done, file=file, dynamic_ncols=True, bar_format=form, smoothing=0
    )


def _print_plain(rows: list[tuple[str, ...]], file: IO[str]) -> None:
    widths = _widths(rows)
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

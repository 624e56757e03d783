"""Which cases there are, and which of them a run takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

CellName = Literal["vanilla", "lstm", "gru", "gru_reset_before"]
Lengths = Literal["full", "ragged"]
Layers = Literal["one", "bidirectional2"]
DType = Literal["float32", "bfloat16"]
Mode = Literal["forward", "training"]

GATES: dict[str, int] = {"vanilla": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}


class Shape(NamedTuple):
    """Sizes of a batch and of a layer."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SHAPES = {
    "H32": Shape(16, 50, 64, 32),
    "H128": Shape(32, 80, 128, 128),
    "H256": Shape(64, 128, 256, 256),
    "H512": Shape(32, 512, 256, 512),
    "H1024": Shape(128, 64, 512, 1024),
    "streaming": Shape(1, 1, 256, 256),
}

# Hidden units (and inputs), batches, steps of the problems of Baidu's DeepBench, for training and
# for inference on a server or a small device.
_DEEPBENCH: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]] = {
    "vanilla": [
        ((1760, 2048, 2560), (16, 32, 64, 128), (50,)),
        ((32,), (1,), (672,)),
        ((64,), (1,), (96,)),
    ],
    "lstm": [
        ((512, 1024, 2048), (16, 32, 64, 128, 1, 2, 4), (25,)),
        ((4096,), (16, 32, 64, 128), (25,)),
        ((1536,), (8, 16, 32, 1, 2, 4), (50,)),
        ((256,), (16, 32, 64, 1, 2, 4), (150,)),
    ],
    "gru": [
        ((2816,), (32,), (750, 375, 187)),
        ((2048, 1536, 2560), (32,), (1500, 750, 375, 187)),
        ((2816, 2048, 1536, 2560), (1, 2, 4), (1500, 750, 375, 187)),
        ((512,), (32, 1, 2, 4), (1,)),
        ((1024,), (32, 64, 1, 2, 4), (1500,)),
    ],
}


class Case(NamedTuple):
    """One comparison: what every library is asked to run."""

    cell: CellName
    shape: Shape
    lengths: Lengths = "full"
    layers: Layers = "one"
    dtype: DType = "float32"
    mode: Mode = "training"

    @property
    def streaming(self) -> bool:
        """Whether it is one step with the state handed on, rather than a sequence."""
        return self.shape.steps == 1

    def __str__(self) -> str:
        extra = [self.lengths] * (self.lengths == "ragged")
        extra += ["2 x bidirectional"] * (self.layers == "bidirectional2")
        extra += [self.dtype] * (self.dtype != "float32")
        mode = "step" if self.streaming else self.mode
        return " ".join([self.cell, str(self.shape), *extra, mode])


def from_json(fields: Sequence[Any]) -> Case:
    """A case from what JSON made of it."""
    cell, shape, *rest = fields
    return Case(cell, Shape(*shape), *rest)


def parse_shape(word: str) -> Shape:
    """A shape by its name, or as "B,T,D,H".

    Raises:
        ValueError: it is neither.
    """
    if word in SHAPES:
        return SHAPES[word]
    parts = word.split(",")
    if len(parts) != 4 or not all(part.isdigit() and int(part) for part in parts):
        known = ", ".join([*SHAPES, "deepbench"])
        raise ValueError(f"--shapes must be of {known} or B,T,D,H, got {word!r}")
    return Shape(*map(int, parts))


def deepbench(cell: str) -> Iterator[Shape]:
    """The shapes DeepBench has for a cell."""
    for sizes, batches, steps in _DEEPBENCH.get(cell, []):
        for size, batch, time in itertools.product(sizes, batches, steps):
            yield Shape(batch, time, size, size)


def product(
    cells: Iterable[CellName],
    shapes: Iterable[str],
    lengths: Iterable[Lengths],
    layers: Iterable[Layers],
    dtypes: Iterable[DType],
    modes: Iterable[Mode],
) -> list[Case]:
    """All combinations, less those that a single step does not have."""
    options = list(itertools.product(lengths, layers, dtypes, modes))
    wanted = [
        Case(cell, shape, *rest)
        for cell, word in itertools.product(list(cells), list(shapes))
        for shape in (deepbench(cell) if word == "deepbench" else [parse_shape(word)])
        for rest in options
    ]
    return list(dict.fromkeys(_as_step(case) if case.streaming else case for case in wanted))


def _as_step(case: Case) -> Case:
    return case._replace(lengths="full", layers="one", mode="forward")


def standard() -> list[Case]:
    """What a run takes when nothing is asked for: some seven minutes on two cores."""
    all_modes, five = get_args(Mode), [name for name in SHAPES if name != "streaming"]
    return [
        *product(["lstm"], five, ["full"], ["one"], ["float32"], all_modes),
        *product(["lstm"], five[:3], ["ragged"], ["one"], ["float32"], ["training"]),
        *product(["gru", "vanilla"], five[1:3], ["full"], ["one"], ["float32"], ["training"]),
        *product(["lstm"], five[1:2], ["ragged"], ["bidirectional2"], ["float32"], ["training"]),
        *product(["lstm"], five[2:3], ["full"], ["one"], ["bfloat16"], ["training"]),
        *product(get_args(CellName)[:3], ["streaming"], ["full"], ["one"], ["float32"], all_modes),
    ]


def everything() -> list[Case]:
    """All combinations of the six shapes and three cells."""
    cells = [cell for cell in get_args(CellName) if cell != "gru_reset_before"]
    return product(
        cells, SHAPES, get_args(Lengths), get_args(Layers), get_args(DType), get_args(Mode)
    )


def quick() -> list[Case]:
    """A few tiny ones, to see that everything works."""
    shape = "2,6,3,4"
    return [
        *product(["lstm"], [shape], ["full"], ["one"], ["float32"], ["training"]),
        *product(["gru"], [shape], ["ragged"], ["bidirectional2"], ["float32"], ["training"]),
        *product(["vanilla"], ["1,1,3,4"], ["full"], ["one"], ["float32"], ["forward"]),
    ]

"""The settings of a run as they were written down, and what has changed since."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from experiments.running.processes import is_first
from experiments.running.run_folder import CONFIG, check_usable, plain, read_json
from rnnjax.data import DataError

# Marks a setting that says where data lie, as ``Annotated[Path, PLACE]``. Another machine may have
# them elsewhere: what they are is known by their hash.
PLACE = "place"

Settings = TypeVar("Settings")
Run = TypeVar("Run", bound="RunSettings")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The folder of a run, and what is saved in it: options of all programs that train.

    Their own settings inherit it as a frozen dataclass. Help shows what is inherited behind what a
    program has of its own.
    """

    out: Path | None = None
    """Folder of the run; by default a new one in runs/."""
    checkpoint_every: str = "60s"
    """Save after so many steps (50) or seconds (60s), besides after every epoch."""
    keep: int = 2
    """Checkpoints that stay on disk."""
    resume: bool = False
    """Go on with the run in --out from its newest good checkpoint, with the settings it has."""
    replace: bool = False
    """Delete the run in --out, and begin anew."""

    # What to do with a folder is no setting of the run in it, and is not written down.
    NOT_WRITTEN: ClassVar[tuple[str, ...]] = ("resume", "replace")
    # A run that goes on with others of these comes to what it would have come to with them all
    # along. So it does with the data elsewhere, in a folder elsewhere, saved at other times, and
    # but for the last bits on other devices.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ()
    # Whether the command line offers to train in several.
    SEVERAL_PROCESSES: ClassVar[bool] = True

    @classmethod
    def groups(cls) -> list[tuple[str, list[str]]]:
        """Names of settings under a title each: first, without a title, those that a program has
        of its own, then those that it inherits."""
        kinds = [one for one in cls.__mro__ if dataclasses.is_dataclass(one)]
        names = [[field.name for field in dataclasses.fields(one)] for one in kinds]
        titles = ["", *(one.__name__.removesuffix("Settings").lower() for one in kinds[1:])]
        return [
            (title, [name for name in own if name not in inherited])
            for title, own, inherited in zip(titles, names, [*names[1:], []], strict=True)
        ]

    @classmethod
    def names(cls) -> list[str]:
        """Names of all settings, in the order of help."""
        return [name for _, group in cls.groups() for name in group]

    @classmethod
    def places(cls) -> frozenset[str]:
        """The settings that are marked as places."""
        hints = get_type_hints(cls, include_extras=True).items()
        return frozenset(n for n, hint in hints if PLACE in getattr(hint, "__metadata__", ()))

    @classmethod
    def may_change(cls) -> frozenset[str]:
        """The settings that a run may go on with others of."""
        return cls.places() | {"out", "checkpoint_every", "keep", "devices", *cls.MAY_CHANGE}

    @property
    def existing(self) -> Literal["refuse", "resume", "replace"]:
        """What to do with a folder that is not empty."""
        return "resume" if self.resume else "replace" if self.replace else "refuse"

    def written(self) -> dict[str, Any]:
        """What config.json keeps: all but `NOT_WRITTEN`."""
        values = plain(dataclasses.asdict(self))
        return {name: values[name] for name in self.names() if name not in self.NOT_WRITTEN}


def stored_settings(kind: type[Run], folder: Path) -> Run:
    """The settings of the run in a folder; those that are not written down are False.

    Raises:
        DataError: the folder holds no run, or one of another program.
    """
    written = [name for name in kind.names() if name not in kind.NOT_WRITTEN]
    values = {**own_values(folder, written), **dict.fromkeys(kind.NOT_WRITTEN, False)}
    return settings_from(kind, values, folder / CONFIG)


def own_values(folder: Path, names: Collection[str]) -> dict[str, Any]:
    """The values of settings in a run's folder, of the program whose settings have these names.

    Raises:
        DataError: the folder holds no run, or one of another program.
    """
    values = read_config(folder)["settings"]
    unknown = [name for name in values if name not in names]
    lacking = [name for name in names if name not in values]
    if unknown and lacking:
        raise DataError(
            f"{folder} must hold a run of this program and version, got one with the settings "
            f"{_few(unknown)} and without {_few(lacking)}"
        )
    return values


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def stored_config(settings: RunSettings, folder: Path) -> dict[str, Any] | None:
    """What config.json holds of the run to go on with; None where a run begins.

    Raises:
        FileExistsError: the folder is not what the settings expect.
        DataError: the run there was started with other settings.
    """
    if is_first():  # who may have begun to write there when others come to look
        check_usable(folder, settings.existing)
    if not settings.resume or not (folder / CONFIG).is_file():
        return None
    stored = read_config(folder)
    require_same(stored["settings"], settings.written(), settings.may_change(), str(folder))
    return stored


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json of a run's folder holds.

    Raises:
        DataError: there is none, or it is damaged.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise DataError(
            f"{folder / CONFIG} must have the settings of a run, got {str(config)[:60]!r}"
        )
    return config


def config_value(folder: Path, name: str, kind: type[Value]) -> Value:
    """What config.json of a run's folder holds under a name beside the settings.

    Raises:
        DataError: there is nothing, or it is of another kind.
    """
    value = read_config(folder).get(name)
    if not isinstance(value, kind):
        raise DataError(f"{folder / CONFIG} must have {name}, {kind.__name__}, got {value!r:.60}")
    return value


def settings_from(kind: type[Settings], values: Mapping[str, Any], place: Path) -> Settings:
    """Settings from their values in JSON.

    Nothing is left out, filled in or cast, but for paths, which JSON holds as strings.

    Args:
        kind: a dataclass; its fields are numbers, strings, bools, paths, literals, or None.
        values: a value for each of its fields.
        place: the file, for the message.

    Raises:
        DataError: names are unknown or missing, or a value is of the wrong kind; names them all.

    Example:
        >>> @dataclasses.dataclass
        ... class Rates:
        ...     learning_rate: float
        ...     momentum: float | None
        >>> settings_from(Rates, {"learning_rate": 0.1, "momentum": None}, Path("config.json"))
        Rates(learning_rate=0.1, momentum=None)
        >>> settings_from(Rates, {"learning_rate": "high", "decay": 0.5}, Path("config.json"))
        Traceback (most recent call last):
            ...
            ...
        rnnjax.data.errors.DataError: config.json must have the settings of Rates, got others:
          decay must be absent, got 0.5
          learning_rate must be float, got 'high'
          momentum must be float | None, got nothing
    """
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    wrong = [f"{name} must be absent, got {values[name]!r}" for name in values if name not in names]
    for name in names:
        if name not in values or not _fits(values[name], hints[name]):
            came = repr(values[name]) if name in values else "nothing"
            wrong.append(f"{name} must be {_described(hints[name])}, got {came}")
    if wrong:
        lines = "".join(f"\n  {line}" for line in wrong)
        raise DataError(f"{place} must have the settings of {kind.__name__}, got others:{lines}")
    paths = {name for name in names if Path in (hints[name], *get_args(hints[name]))}
    return kind(
        **{
            name: Path(value) if name in paths and value is not None else value
            for name, value in values.items()
        }
    )


def require_same(
    stored: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str], place: str
) -> None:
    """Refuses to go on with a run that was another one.

    Args:
        stored: what the run was started with: plain values and mappings of them.
        now: the same of today.
        may_change: names, at any depth, that need not agree.
        place: the folder, for the message.

    Raises:
        DataError: naming every difference.

    Example:
        >>> then, now = {"epochs": 3, "cell": "gru"}, {"epochs": 5, "cell": "lstm"}
        >>> require_same(then, now, ("epochs",), "runs/a")
        Traceback (most recent call last):
            ...
        rnnjax.data.errors.DataError: runs/a must be a run with these settings and data, got:
          cell: 'gru' then, 'lstm' now
    """
    lines = [f"\n  {line}" for line in _differences(stored, now, may_change)]
    if lines:
        raise DataError(
            f"{place} must be a run with these settings and data, got:" + "".join(lines)
        )


def _differences(
    stored: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str], prefix: str = ""
) -> Iterator[str]:
    for name in {**stored, **now}:
        then_value, now_value = stored.get(name, _ABSENT), now.get(name, _ABSENT)
        if name in may_change or then_value == now_value:
            continue
        if isinstance(then_value, Mapping) and isinstance(now_value, Mapping):
            yield from _differences(then_value, now_value, may_change, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}: {_short(then_value)} then, {_short(now_value)} now"


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value)} in all)"


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (str if hint is Path else hint)


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint))

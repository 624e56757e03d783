"""The records as tables on the console, as Markdown, and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.running.console import print_table
from experiments.throughput.charts import draw_ratios
from experiments.throughput.measuring import BASELINE, Record
from experiments.throughput.results import Change, Results

REPORT, CHART = "report.md", "ratios.png"
# What the width of a terminal leaves room for; the report has all columns.
_ON_CONSOLE = ("library", "ms", "tokens/s", "x rnnjax", "of the limit")
MEBIBYTE = 2**20


def print_case(records: Sequence[Record]) -> None:
    """The table of one case."""
    ran = [record for record in records if "seconds" in record]
    if ran:
        print_table([{name: _row(record)[name] for name in _ON_CONSOLE} for record in ran])
    for record in records:
        if note := _note(record):
            print(f"{record['library']}: {note}")
    print(flush=True)


def print_changes(found: Sequence[Change], environment: Sequence[str]) -> None:
    """What has changed against an earlier run, and what is not the same about the two."""
    for line in environment or ["versions, device and flags are the same"]:
        print(line)
    rows = [
        {
            "row": f"{one.case}: {one.library}",
            "ms then": _ms(one.then),
            "ms now": _ms(one.now),
            "now / then": _quotient(one),
            "verdict": one.verdict,
        }
        for one in found
    ]
    if rows:
        print_table(rows)


def write(results: Results, folder: Path) -> list[str]:
    """Write the report, and the chart if there are ratios, into a run's folder; their names."""
    (folder / REPORT).write_text(markdown(results), "utf-8")
    return [REPORT] + [CHART] * draw_ratios(results.cases, folder / CHART)


def markdown(results: Results) -> str:
    """The whole report: what it ran on, one table of all cases, and one table a case."""
    dates = sorted({r["date"] for rows in results.cases.values() for r in rows if "date" in r})
    when = f"Measured {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}: " if dates else ""
    parts = [when + _environment(results.environment), _summary(results.cases)]
    for case, records in results.cases.items():
        rows = [list(_row(record).values()) for record in records]
        parts.append(f"### {case}\n\n{_table(list(_row(records[0])), rows)}")
    return "\n\n".join(parts) + "\n"


def _environment(found: dict[str, Any]) -> str:
    names = ("jax", "jaxlib", "flax", "dm-haiku", "equinox", "keras", "torch", "rnnjax", "numpy")
    versions = ", ".join(f"{name} {found[name]}" for name in names if found.get(name))
    flags = ", ".join(f"`{n}={v}`" for n, v in found.get("flags", {}).items()) or "none"
    return (
        f"{found['device_kind']} ({found['backend']}), {found['threads']} threads, "
        f"Python {found['python']}, {versions}. Flags: {flags}."
    )


def _summary(cases: dict[str, list[Record]]) -> str:
    """One row a case: rnnjax's own figures, then how many times as long the others took."""
    peers = dict.fromkeys(r["library"] for records in cases.values() for r in records)
    peers.pop(BASELINE, None)
    limit = "of the limit"
    head = ["case (B,T,D,H)", "rnnjax, ms", "tokens/s", limit, *peers]
    rows = []
    for case, records in cases.items():
        by_name = {record["library"]: record for record in records}
        ours = by_name.get(BASELINE, {})
        figures = [_spread_ms(ours), _count(ours.get("tokens_per_second")), _share(ours)]
        rows.append([case, *figures, *(_ratio_or_reason(by_name.get(p, {})) for p in peers)])
    note = (
        "Columns of other libraries: their time as a multiple of rnnjax's, so above 1 rnnjax is "
        "the faster; median and range of the rounds."
    )
    return f"{note}\n\n{_table(head, rows)}"


def _row(record: Record) -> dict[str, str]:
    peak = record.get("process_peak_bytes") or record.get("peak_bytes")
    off = record.get("difference")
    return {
        "library": record["library"],
        "ms": _spread_ms(record),
        "tokens/s": _count(record.get("tokens_per_second")),
        "x rnnjax": _spread(record.get("ratio")),
        "of the limit": _share(record),
        "us/step": _short(record.get("microseconds_per_step")),
        "compile s": _short(record.get("compile_seconds")),
        "peak MiB": _short(None if peak is None else peak / MEBIBYTE),
        "difference": "" if off is None else f"{off:.0e}",
        "note": _note(record),
    }


def _note(record: Record) -> str:
    """What there is to say of a row beside its figures."""
    plain = record["status"] in ("measured", "cannot")
    return record["note"] if plain else f"{record['status']}: {record['note']}"


def _ratio_or_reason(record: Record) -> str:
    if record.get("ratio"):
        return _spread(record["ratio"])
    status = record.get("status", "measured")
    return "" if status == "measured" else status


def _share(record: Record) -> str:
    for name in ("share_of_products", "share_of_floor"):
        if record.get(name) is not None:
            return f"{record[name]:.0%}"
    return ""


def _spread_ms(record: Record) -> str:
    found = record.get("seconds")
    if not found:
        return ""
    return _spread({name: 1e3 * value for name, value in found.items()})


def _spread(found: dict[str, float] | None) -> str:
    if not found:
        return ""
    return f"{_short(found['median'])} ({_short(found['least'])}-{_short(found['most'])})"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _count(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else _short(1e3 * seconds)


def _quotient(change: Change) -> str:
    if change.then is None or change.now is None:
        return ""
    return f"{change.now / change.then:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

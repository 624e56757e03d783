"""The persistent kernels on a GPU, held to float64, to the scan, and to other libraries.

Run:     python -m experiments.gpu_check
Needs:   an NVIDIA GPU of compute capability 9.0 (H100, H200); jax, numpy, flax, torch; no network
Expect:  under three minutes. Every value, carry and gradient of every row within its bound and the
         same bits in two runs, else the program ends with status 1. Then the table of the goals.

Writes ``measured/<device>.json`` and ``measured/<device>.md`` beside this file (or into the folder
given as the only argument).
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import jax

from experiments.gpu_check import speed, values
from experiments.running.packages import is_installed
from rnnjax.engine.kernels import persistent

THREADS = 14
# A race that would begin later than this is left out and said to be: the whole ends in time.
LAST_RACE_SECONDS = 165
_WHAT = "Check the kernel for Hopper GPUs against float64, and race it with other libraries."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code, 1 where a value was wrong or nothing was checked."""
    parser = argparse.ArgumentParser("python -m experiments.gpu_check", description=_WHAT)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(__file__).parent / "measured",
        help="The folder for DEVICE.md and DEVICE.json; by default measured/ beside this program.",
    )
    folder: Path = parser.parse_args(arguments).folder
    began = time.time()
    device = persistent.find_device(())
    if isinstance(device, str):
        print(f"Nothing was checked. The persistent kernel cannot run here:\n{device}.")
        return 1
    if missing := [name for name in ("flax", "torch") if not is_installed(name)]:
        print(f"Nothing was checked. It is raced with {' and '.join(missing)}: install it.")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"device": device.name, "date": date.today().isoformat()}
    names = ("jax", "jaxlib", "flax", "torch", "numpy")
    report["versions"] = {name: importlib.metadata.version(name) for name in names}
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [(row, _or_error(lambda row=row: values.start(row, pool))) for row in values.rows()]
        races = [(name, _or_error(prepare)) for name, prepare in _races(pool).items()]
        report["values"] = [_checked(row, job) for row, job in jobs]
    report["seconds_to_values"] = round(time.time() - began)
    print(f"{report['seconds_to_values']} s: values are checked, all is compiled", flush=True)
    report["speed"] = [_raced(name, prepared, began) for name, prepared in races]
    report["seconds"] = round(time.time() - began)
    slug = device.name.lower().replace(" ", "_")
    (folder / f"{slug}.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    text = _markdown(report)
    (folder / f"{slug}.md").write_text(text, "utf-8")
    print(text)
    return 0 if all(row["right"] for row in report["values"]) else 1


def _or_error(function: Callable[[], Any]) -> Any:
    """The result, or the error: one row that fails is a finding, and the others go on."""
    try:
        return function()
    except Exception as error:
        return error


def _checked(row: values.Row, job: Any) -> dict[str, Any]:
    about = {"row": row.name, "dtype": jax.numpy.dtype(row.dtype).name}
    found = job if isinstance(job, Exception) else _or_error(lambda: values.finish(job))
    if isinstance(found, Exception):
        found = {"right": False, "error": f"{type(found).__name__}: {str(found)[:300]}"}
    print(about | found, flush=True)
    return about | found


def _races(pool: Any) -> dict[str, Callable[[], Any]]:
    """By name: what starts the compiling of ours, with what runs beside it."""
    races: dict[str, Callable[[], Any]] = {}

    def add(
        cell: str, size: speed.Size, training: bool, hows: list, torchs: list, *,
        ragged: bool = False, flax: bool = False,
    ) -> None:  # fmt: skip
        mode = "training" if training else "forward"
        name = f"{cell}{' ragged' if ragged else ''} {mode} {'x'.join(map(str, size))}"

        def prepare() -> Any:
            own = [
                speed.ours(pool, cell, size, dtype, training, how, ragged) for dtype, how in hows
            ]
            own += [speed.flax_nnx(pool, size, training)] if flax else []
            others = [(cell, size, dtype, training, ragged) for dtype in torchs]
            return size, training, own, others

        races[name] = prepare

    kernel, scan = "persistent", "scan"
    for size in speed.SIZES:
        small = size.hidden <= 128
        if small:
            add("lstm", size, False, [("bf16", kernel)], ["bf16", "fp16", "f32"])
        hows = [("bf16", kernel)]
        hows += [("f32", kernel)] if 128 <= size.hidden <= 512 else []
        hows += [("bf16", scan)] if 256 <= size.hidden <= 512 else []
        middle = size.hidden == 256
        hows += [("f32", scan)] if middle else []
        add("lstm", size, True, hows, ["bf16", "fp16", "f32"], flax=middle)
        if small:
            continue
        if size.hidden <= 512:
            add("gru", size, True, [("bf16", kernel)], ["bf16"])
    add("lstm", speed.SIZES[2], True, [("bf16", kernel)], ["bf16"], ragged=True)
    return races


def _raced(name: str, prepared: Any, began: float) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        if (late := time.time() - began) > LAST_RACE_SECONDS:
            raise TimeoutError(f"left out, {late:.0f} seconds had passed")
        if isinstance(prepared, Exception):
            raise prepared
        size, training, own, others = prepared
        contenders = [speed.ready(layer) for layer in own]
        contenders += [speed.torch_layer(*other) for other in others]
        found: dict[str, Any] = {"microseconds_a_step": speed.race(contenders, size.time)}
        if training and name.startswith("lstm") and "rnnjax kernel bf16" in (o.name for o in own):
            best = found["microseconds_a_step"]["rnnjax kernel bf16"]["median"]
            found["share_of_floor"] = speed.floor(size) / best
        return found

    found = _or_error(run)
    if isinstance(found, Exception):
        found = {"error": f"{type(found).__name__}: {str(found)[:300]}"}
    print(name, found.get("error", ""), flush=True)
    return {"race": name} | found


def _markdown(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"# {report['device']}",
        "",
        f"`python -m experiments.gpu_check`, {report['date']}, {report['seconds']} s; {versions}.",
        "",
        "## Values",
        "",
        "The largest error of any output or carry, and of any gradient, as a share of its norm;",
        "the loop alone, with the inputs of its gates given.",
        "",
        "| cell | dtype | kernel: values, gradients | scan: values, gradients | against | same bits"
        " | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["values"]:
        if "error" in row:
            lines.append(f"| {row['row']} | {row['dtype']} | {row['error']} | | | | no |")
            continue
        kernel, scan = (", ".join(f"{e:.1e}" for e in row[k]) for k in ("kernel", "scan"))
        said = ["yes" if row[k] else "no" for k in ("same_bits", "right")]
        cells = [row["row"], row["dtype"], kernel, scan, row["against"], *said]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Speed",
        "",
        "Whole layers, B x T x D x H, microseconds a step: the median of 7 rounds in which each",
        "has its turn, in brackets the first and the ninth decile. In training, gradients of",
        "weights and inputs. `x` is the time as a multiple of that of our kernel in bf16, or for",
        "TF32 and f32 in float32 where that was measured.",
        "",
        "| layer | who | microseconds a step | x |",
        "|---|---|---|---:|",
    ]
    for row in report["speed"]:
        if "error" in row:
            lines.append(f"| {row['race']} | | {row['error']} | |")
            continue
        times = row["microseconds_a_step"]
        for name, found in times.items():
            wide = name.endswith(("f32", "TF32")) and "rnnjax kernel f32" in times
            ours = times["rnnjax kernel f32" if wide else "rnnjax kernel bf16"]["median"]
            spread = f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
            lines.append(f"| {row['race']} | {name} | {spread} | {found['median'] / ours:.2f} |")
        if "share_of_floor" in row:
            share = row["share_of_floor"]
            lines.append(f"| {row['race']} | share of the floor, bf16 | {share:.2f} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""Programs on several devices: what they train to, and which wishes they refuse."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.full  # whole programs, each in a process of its own

SMALL = ["--hidden-size", "8", "--embedding-size", "8", "--epochs", "2"]
PAIRS = ["--examples", "500", "--longest", "6", "--attention", "none"]
PROGRAMS = {
    "classify": [*SMALL, "--take", "200", "--batch-size", "8", "--buckets", "1"],
    "write": [*SMALL, "--take", "2000", "--rows", "8", "--window", "16"],
    "translate": [*SMALL, *PAIRS, "--batch-size", "500", "--buckets", "1"],
}


def start(program, *arguments):
    command = [sys.executable, "-W", "error", "-m", f"experiments.{program}", *arguments]
    # No more devices than cores: on a CPU a device that waits for the others holds a thread of a
    # pool that has as many as there are cores.
    several = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.run(command, capture_output=True, text=True, env=several)


def epochs_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [[v for v in line.values() if v != "epoch"] for line in lines if line["kind"] == "epoch"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_on_all_devices_comes_to_what_one_on_a_single_device_comes_to(program, tmp_path):
    found = {}
    for name, devices in {"all": [], "one": ["--devices", "1"]}.items():
        done = start(program, *PROGRAMS[program], "--out", str(tmp_path / name), *devices)
        assert done.returncode == 0, done.stderr
        found[name] = epochs_of(tmp_path / name)
    assert len(found["one"]) == 2
    np.testing.assert_allclose(found["all"], found["one"], rtol=1e-3)


ODD = ["odd"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (["--devices", "3"], "--devices must be at most 2, the devices here, got 3"),
        (["--devices", "0"], "--devices must be a whole number from 1 up, got 0"),
        (ODD, "must be a multiple of 2, the devices here, got 7 rows in a batch"),
    ],
)
def test_a_number_of_devices_that_cannot_be_is_refused(program, wish, words, tmp_path):
    folder = tmp_path / "run"
    if wish is ODD:
        wish = ["--rows" if program == "write" else "--batch-size", "7"]
    done = start(program, *PROGRAMS[program], "--out", str(folder), *wish)
    assert done.returncode == 2
    assert words in done.stderr
    assert not folder.exists()

"""Programs on several devices, and in several processes: what they train to, what they refuse."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import TESTS, environment, free_port, slurm

from experiments.running import processes
from experiments.running.failures import Failures
from experiments.running.processes import Launch
from rnnjax.data import DataError

pytestmark = pytest.mark.full  # whole programs, each in a process of its own

SMALL = ["--hidden-size", "8", "--embedding-size", "8", "--epochs", "2"]
LICENSE = TESTS.parent / "LICENSE"  # a text of a few pages
PAIRS = ["--examples", "500", "--longest", "6", "--attention", "none"]
PROGRAMS = {
    "classify": [*SMALL, "--take", "200", "--batch-size", "8", "--buckets", "1"],
    "write": [*SMALL, "--dataset", str(LICENSE), "--rows", "8", "--window", "4"],
    "translate": [*SMALL, *PAIRS, "--batch-size", "500", "--buckets", "1"],
}


def command(program, *arguments):
    return [sys.executable, "-W", "error", "-m", f"experiments.{program}", *arguments]


# XLA's optimizations take most of the time of a program so small.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def start(program, *arguments):
    several = environment(devices=2) | QUICK
    return subprocess.run(command(program, *arguments), capture_output=True, text=True, env=several)


def start_together(program, *arguments, told_by_slurm=False, each=((), ())):
    """Two processes of a run, with one device each, and with arguments of its own each."""
    options = ("--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process-id")
    ways = [((*options, str(number)), {}) for number in range(2)]
    if told_by_slurm:
        ways = [(("--distributed",), variables) for variables in slurm(2)]
    return [
        subprocess.Popen(
            command(program, *arguments, *own, *given, "--heartbeat", "30"),
            env=environment() | QUICK | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own, (given, variables) in zip(each, ways, strict=True)
    ]


def epochs_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [[v for v in line.values() if v != "epoch"] for line in lines if line["kind"] == "epoch"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each program comes to on a single device."""
    found = {}

    def of(program):
        if program not in found:
            folder = tmp_path_factory.mktemp(program) / "run"
            done = start(program, *PROGRAMS[program], "--out", str(folder), "--devices", "1")
            assert done.returncode == 0, done.stderr
            found[program] = epochs_of(folder)
            assert len(found[program]) == 2
        return found[program]

    return of


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_on_all_devices_comes_to_what_one_on_a_single_device_comes_to(
    program, alone, tmp_path
):
    done = start(program, *PROGRAMS[program], "--out", str(tmp_path / "all"))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(epochs_of(tmp_path / "all"), alone(program), rtol=1e-3)


def test_two_processes_come_to_what_one_comes_to_and_the_first_alone_speaks(alone, tmp_path):
    given = [*PROGRAMS["write"], "--out", str(tmp_path / "run")]
    processes = start_together("write", *given, told_by_slurm=True)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    np.testing.assert_allclose(epochs_of(tmp_path / "run"), alone("write"), rtol=1e-3)
    first, second = ([line for line in out.splitlines() if "Gloo" not in line] for out, _ in said)
    assert any("nats a token" in line for line in first)
    assert second == []


def test_a_signal_to_one_process_stops_all_and_one_goes_on_to_the_same_end(alone, tmp_path):
    folder, saves = tmp_path / "run", ["--checkpoint-every", "2"]
    processes = start_together("classify", *PROGRAMS["classify"], *saves, "--out", str(folder))
    while not list(folder.glob("checkpoints/*-step-2")):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.001)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert "stopped by SIGTERM; go on with:" in said[0][0]
    done = start("classify", "--out", str(folder), "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    np.testing.assert_allclose(epochs_of(folder), alone("classify"), rtol=1e-3)


def test_several_seeds_in_two_processes_come_to_those_in_one(tmp_path):
    given = [*PROGRAMS["classify"], "--epochs", "1", "--repeat", "2", "--out"]
    processes = start_together("classify", *given, str(tmp_path / "two"))
    done = start("classify", *given, str(tmp_path / "one"), "--devices", "1")
    said = [process.communicate(timeout=300) for process in processes]
    codes = [process.returncode for process in (done, *processes)]
    assert codes == [0, 0, 0], (done.stderr, said)
    for seed in ("seed-0", "seed-1"):
        one, two = (epochs_of(tmp_path / run / seed) for run in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=1e-3)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_alone_says_why_and_all_end(failing, tmp_path):
    given = [[*PROGRAMS["write"], "--out", str(tmp_path / "run")] for _ in range(2)]
    given[failing] += ["--dataset", str(tmp_path / "nothing.txt")]
    processes = start_together("write", each=given)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert "error: " in said[failing][1]
    assert "nothing.txt" in said[failing][1]
    assert f"error: process {failing} failed: " in said[1 - failing][1]
    assert "nothing.txt" in said[1 - failing][1]


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


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (Launch(processes=2), "--coordinator, --processes and --process-id must be given together"),
        (Launch(True, heartbeat=0), "--heartbeat must be a whole number from 1 up, got 0"),
        (Launch(False, "first", 2, 1), "--coordinator must be HOST:PORT, got first"),
        (
            Launch(False, f"localhost:{free_port()}", 2, 1),
            "--coordinator must be reached within 0 seconds, got localhost:.*refused",
        ),
    ],
)
def test_processes_that_are_not_said_in_full_are_refused(launch, words, monkeypatch):
    monkeypatch.setattr(processes, "_SECONDS_TO_REACH", 0)
    with pytest.raises(DataError, match=words), launch.joined(Failures()):
        pass


def test_where_no_launcher_says_who_is_there_the_options_that_do_are_named(tmp_path):
    done = start("classify", "--distributed", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "--distributed must find the processes of a job (SLURM" in done.stderr
    assert not (tmp_path / "run").exists()

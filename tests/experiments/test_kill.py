"""A process that is killed, at any moment and again and again, loses nothing that was saved."""

import contextlib
import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import jax
import pytest
from processes import PYTHON
from test_resume import MODEL, checkpoints_of, contents, write_rows

from experiments.classify import main
from rnnjax.checkpoint._sealing import verified

KILLS = 20
EPOCHS = 150  # of 7 steps: so long that it outlives all kills


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with data, and what is compiled for all runs here."""
    folder = tmp_path_factory.mktemp("kill")
    write_rows(folder / "train.csv", 120, seed=0)
    write_rows(folder / "test.csv", 40, seed=1)
    return folder


@pytest.fixture(scope="module")
def environment(base):
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(base / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def arguments(base, folder):
    data = ["--dataset", "local", "--data-dir", str(base), "--out", str(folder)]
    length = ["--epochs", str(EPOCHS), "--patience", str(EPOCHS), "--checkpoint-every", "2"]
    return [*data, *MODEL, *length]


def run(environment, given, stdout=subprocess.PIPE):
    """Starts the experiment as a user does."""
    return subprocess.Popen(
        [*PYTHON, "-m", "experiments.classify", *given],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(base, environment, tmp_path_factory):
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = run(environment, arguments(base, folder))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


def timings(folder):
    path = folder / "timings.jsonl"
    return path.read_text() if path.exists() else ""


def is_saving(folder):
    return any((folder / "checkpoints").glob("*.tmp"))


def wait_for(condition, has_ended):
    while not condition():
        assert not has_ended(), "the process ended before it came to that"
        time.sleep(0.001)


def live(given, cache):
    """What a process does in the one life it has."""
    for name, value in cache.items():
        jax.config.update(name, value)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        sys.exit(main(given))


def kill_somewhere(process, folder, moment, delay):
    """Kills at a random moment: of the start, of the training, or in the middle of a save."""
    before, has_ended = len(timings(folder)), lambda: not process.is_alive()
    process.start()
    if moment != "start":
        wait_for(lambda: '"speed"' in timings(folder)[before:], has_ended)
    if moment == "save":
        wait_for(lambda: is_saving(folder), has_ended)
    else:
        time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was over: it is too short"


@pytest.mark.full
def test_twenty_kills_leave_the_run_that_nobody_killed(base, whole, tmp_path):
    # Each life is forked from a process that has imported all there is to import, and no more.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.classify", "orbax.checkpoint", "tqdm"])
    cache = {
        "jax_compilation_cache_dir": str(base / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    seconds = sorted(json.loads(line).get("seconds", 0) for line in timings(whole).splitlines())
    chance, folder, cut = random.Random(0), tmp_path / "run", []
    given = [*arguments(base, folder), "--resume"]
    moments = ["start"] * 3 + ["save"] * 6 + ["training"] * (KILLS - 9)
    for moment in chance.sample(moments, KILLS):
        # What compiled is left out; the rest of a run is what the kills are spread over.
        longest = 1.0 if moment == "start" else sum(seconds[:-5]) / 20
        process = context.Process(target=live, args=(given, cache))
        kill_somewhere(process, folder, moment, chance.uniform(0, longest))
        cut.append(moment == "save" and is_saving(folder))
        for path in checkpoints_of(folder):
            if path.suffix != ".tmp":
                verified(path)  # raises where it is not whole
    assert any(cut)  # some did come in the middle of a save
    process = context.Process(target=live, args=(given, cache))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert contents(folder) == contents(whole)
    assert timings(folder).count('"session"') > KILLS - 3


@pytest.mark.full
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_step_with_the_command_to_go_on(
    number, code, base, environment, whole, tmp_path, capsys
):
    folder = tmp_path / "a run"  # a name that a shell would cut in two
    process = run(environment, arguments(base, folder))
    wait_for(lambda: '"speed"' in timings(folder), lambda: process.poll() is not None)
    assert main(["--out", str(folder), "--resume"]) == 2
    assert f"in use by process {process.pid}" in capsys.readouterr().err
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == code, errors
    *_, said, command = output.splitlines()
    assert said == f"stopped by {number.name}; go on with:"
    python, flag, name, *given = shlex.split(command)
    assert [python, flag, name] == ["python", "-m", "experiments.classify"]
    process = run(environment, given)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert contents(folder) == contents(whole)

"""Programs of several processes, started as a launcher would start them."""

import atexit
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

TESTS = Path(__file__).parent
# A warning ends the program; but JAX warns where it reads a program that another process is still
# writing to the common folder (JAX_COMPILATION_CACHE_DIR), and then compiles it itself.
PYTHON = [
    *(sys.executable, "-W", "error"),
    *("-W", "ignore:Error reading persistent compilation cache entry"),
]


@functools.cache
def _compiled_programs():
    """Where what one process compiled is found by the next: the folder of all tests if there is
    one, or one that goes when they are over."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def environment(devices=1):
    """That of a process with so many devices of its own, far fewer than ``NPROC``."""
    return os.environ | {
        **_compiled_programs(),
        # On a CPU a device that waits for others holds a thread of a pool that has as many as there
        # are cores, or as this says: other work once took the second of two, and a sum of both
        # devices was waited for until XLA gave it up.
        "NPROC": "8",
        # Compiling is most of the time of programs so small.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS.parent, TESTS, *TESTS.glob("*/")])),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_PLATFORMS": "cpu",
    }


def complete(*command, devices=1, timeout=None, **variables):
    """A command of Python that has ended, well or not, with so many devices."""
    return subprocess.run(
        [*PYTHON, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment(devices) | variables,
        timeout=timeout,
    )


def run(*command, devices=1, **variables):
    """What a command of Python printed, once it has ended well, with so many devices."""
    done = complete(*command, devices=devices, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _is_free(port):
    with socket.socket() as free, contextlib.suppress(OSError):
        free.bind(("localhost", port))
        return True
    return False


def slurm(count):
    """The variables that srun sets in each process of a job on this machine, whose number says at
    which port from 61440 up they meet."""
    job = next(job for job in range(os.getpid() % 4096, 4096) if _is_free(61440 + job))
    of_all = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": count, "STEP_NUM_NODES": 1}
    return [
        {f"SLURM_{n}": str(v) for n, v in {**of_all, "PROCID": i, "LOCALID": i}.items()}
        for i in range(count)
    ]


def start(count, *command, devices=1):
    """Starts the command so many times, each with so many devices, and with the port, its number
    and their count at the end."""
    port = free_port()
    return [
        subprocess.Popen(
            [*PYTHON, *command, str(port), str(number), str(count)],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def program(code):
    """A command that runs this code, whose process is then one of ``count``, ``number`` from 0."""
    begin = """
import sys, jax
*given, port, number, count = sys.argv[1:]
number, count = int(number), int(count)
if count > 1:
    seconds = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
    jax.distributed.initialize(f"localhost:{port}", count, number, **seconds)
"""
    return "-c", begin + textwrap.dedent(code)


def outputs(processes):
    """What each printed, once all have ended well."""
    ended = [process.communicate(timeout=300) for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(map("".join, ended))
    return [said for said, _ in ended]

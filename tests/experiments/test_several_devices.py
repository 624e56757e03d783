"""Programs on several devices, and in several processes: what they train to, what they refuse."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from processes import PYTHON, TESTS, environment, free_port, outputs, program, slurm
from processes import start as start_processes

from experiments.running import devices, processes
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
    return [*PYTHON, "-m", f"experiments.{program}", *arguments]


def start(program, *arguments):
    several = environment(devices=2)
    return subprocess.run(command(program, *arguments), capture_output=True, text=True, env=several)


def start_together(program, *arguments, told_by_slurm=False, each=((), ()), places=(None, None)):
    """Two processes of a run, with one device each, and each with arguments of its own and in a
    folder of its own."""
    options = ("--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process-id")
    ways = [((*options, str(number)), {}) for number in range(2)]
    if told_by_slurm:
        ways = [(("--distributed",), variables) for variables in slurm(2)]
    return [
        subprocess.Popen(
            command(program, *arguments, *own, *given, "--heartbeat", "30"),
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
        )
        for own, place, (given, variables) in zip(each, places, ways, strict=True)
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


JUDGED = """
    import json
    import numpy as np
    import rnnjax
    from experiments.running import classifier_fitting, loss_fitting
    from experiments.running.devices import Devices, find_devices
    from experiments.write.training import score
    from rnnjax.data import BucketedBatches

    draw = np.random.default_rng(0)
    texts = [draw.integers(2, 9, n).tolist() for n in draw.integers(1, 6, 13)]
    labels = draw.integers(0, 3, 13)
    batches = BucketedBatches(texts, labels, batch_size=8, boundaries=(3, 5), seed=0)
    classifier = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.gru(4), 3)
    writer = rnnjax.language_model(rnnjax.embedding(9, 4), rnnjax.gru(4))
    of_classifier, of_writer = (m.init(jax.random.key(0)) for m in (classifier, writer))
    loss_fn = classifier_fitting.classification_loss(classifier, 0.0, classes=True)

    def judged(devices):
        params, letters = devices.place_state((of_classifier, of_writer))
        placed = (devices.place_batch(batch) for batch in batches.epoch(0))
        eval_step = classifier_fitting.make_eval_step(loss_fn)
        by_class = classifier_fitting.evaluate(eval_step, params, placed)
        only_loss = classifier_fitting.classification_loss(classifier, 0.0)
        step = rnnjax.make_eval_step(only_loss)
        totals = loss_fitting.total(step, params, batches.epoch(0), devices)
        sums, counts = zip(*(totals[name] for name in ("loss", "accuracy")))
        nats = score(writer, letters, np.concatenate(texts), devices)
        return {"figures": [by_class["loss"], nats, *map(float, sums)], "counts": [
            by_class["accuracy"], by_class["classes"], *map(float, counts)]}

    found = {"divided": judged(find_devices(None))}
    if count == 1:
        found["alone"] = judged(Devices(None))
    print(json.dumps(found))
"""


@pytest.mark.devices
def test_what_devices_and_processes_judge_together_is_what_one_judges_alone():
    """13 texts in batches of 8 rows, in buckets, so that rows without a text fill up two of them;
    and a text to write, of fewer tokens than its rows have places."""
    (of_devices,) = outputs(start_processes(1, *program(JUDGED), devices=2))
    of_processes = outputs(start_processes(2, *program(JUDGED)))
    alone = json.loads(of_devices.splitlines()[-1])["alone"]
    for said in (of_devices, *of_processes):
        divided = json.loads(said.splitlines()[-1])["divided"]
        assert divided["counts"] == alone["counts"]
        np.testing.assert_allclose(divided["figures"], alone["figures"], rtol=1e-6)


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
    # Any of them: on a busy machine the first may be gone before it is seen.
    while not list(folder.glob("checkpoints/*-step-*[0-9]")):
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


FOLDER = """
    import jax
    from experiments.running.processes import chosen_folder

    print(chosen_folder(None, f"tag-{['mine', 'ours'][jax.process_index()]}"))
"""


@pytest.mark.devices
def test_processes_whose_files_are_called_otherwise_agree_on_a_folder():
    first, second = (said.split()[-1] for said in outputs(start_processes(2, *program(FOLDER))))
    assert first == second
    assert first.startswith("runs/tag-mine-")


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


def test_processes_with_other_settings_than_the_first_are_refused(tmp_path):
    out = ["--out", str(tmp_path / "run")]
    each = ([], ["--epochs", "1", "--seed", "3"])
    processes = start_together("write", *PROGRAMS["write"], *out, each=each)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    words = "epochs, seed must be the same in all processes, got others in process 1"
    assert all(words in errors for _, errors in said), said
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_silent_prints_nothing_even_by_a_print_that_logs(monkeypatch, capsys):
    logged = []  # as Ray's print does, wherever standard output leads
    monkeypatch.setattr("builtins.print", lambda *values, file=None: logged.append(values))
    with processes.silent():
        print("not heard")
        print("nor this", file=sys.stdout)
        sys.stdout.write("nor that\n")
        print("an error", file=sys.stderr)
    print("afterwards")
    assert (logged, capsys.readouterr().out) == ([("an error",), ("afterwards",)], "")


def test_a_machine_without_so_many_devices_is_noticed_by_all(monkeypatch):
    of_two = [SimpleNamespace(process_index=process) for process in (0, 0, 0, 1)]
    monkeypatch.setattr(devices.jax, "devices", lambda: of_two)
    monkeypatch.setattr(devices.jax, "make_mesh", lambda shape, *_, devices: (shape, devices))
    assert devices.find_devices(None).mesh == ((4,), of_two)
    assert devices.find_devices(1).mesh == ((2,), [of_two[0], of_two[3]])
    with pytest.raises(DataError, match=r"--devices must be at most 1, .*, got 2"):
        devices.find_devices(2)


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

"""What the package and the experiments never do, read off their source; and what a run's folder
from elsewhere cannot do."""

import ast
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.running.run_folder import RunFolder, write_whole
from experiments.running.run_settings import read_config
from rnnjax.data import DataError, Vocabulary
from rnnjax.weights import save_weights

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("rnnjax/**/*.py"), *ROOT.glob("experiments/**/*.py")])
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "pd.read_pickle"}


def faults(source):
    """What in a source could run code that is read from a file or given as text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            found += faults_of(node)
        elif isinstance(node, ast.Assert) and not only_narrows(node.test):
            found.append("assert")
    return found


def faults_of(call):
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    found = [name] if name in BUILTINS | CALLS else []
    # A constant False is the only value that says no.
    for option in ("allow_pickle", "shell", "trust_remote_code"):
        found += [option] if given.get(option, "False") != "False" else []
    if name.endswith("torch.load") and given.get("weights_only") != "True":
        found.append(name)
    return found


def only_narrows(test):
    """`assert x is not None` tells the type checker what is so; python -O loses no check by it."""
    return (
        isinstance(test, ast.Compare)
        and [type(op) for op in test.ops] == [ast.IsNot]
        and ast.unparse(test.comparators[0]) == "None"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_read_is_run(path):
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, joblib.parallel as p",
        "from dill import loads",
        "def f():\n    from pickle import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "yaml.load(file)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "load_dataset(name, trust_remote_code=True)",
        "assert length > 0",
        "assert x is not None and y",
    ],
)
def test_the_rule_finds_what_it_is_to_find(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    ["re.compile(p)", "jax.jit(f).lower(x).compile()", "assert x is not None", "json.load(file)"],
)
def test_the_rule_finds_nothing_else(source):
    assert faults(source) == []


# Links in a run's folder


@pytest.fixture
def outside(tmp_path):
    """A file that is none of the run's."""
    path = tmp_path / "outside"
    path.write_text("a line\nand half a line")
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    with RunFolder(path, {"epochs": 3}):
        pass
    return path


OWN = ["config.json", "metrics.jsonl", "timings.jsonl", "checkpoints", "weights.safetensors"]


@pytest.mark.parametrize("name", OWN)
def test_a_run_writes_through_no_link(name, folder, outside):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(OSError, match=f"run must be writable, got links at {name}"):
        RunFolder(folder, {"epochs": 3}, "resume", ["weights.safetensors"])
    assert outside.read_text() == "a line\nand half a line"


@pytest.mark.parametrize("name", OWN)
def test_replacing_a_run_deletes_links_and_not_what_they_lead_to(name, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    with RunFolder(folder, {"epochs": 3}, "replace", ["weights.safetensors"]):
        assert not (folder / name).is_symlink()
    assert (elsewhere / "kept").read_text() == "kept"


def test_a_lock_that_leads_elsewhere_is_refused(folder, outside):
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(outside)
    with pytest.raises(RuntimeError, match="lock must be a file, got a link"):
        RunFolder(folder, {"epochs": 3}, "resume")
    assert outside.read_text() == "a line\nand half a line"


SAVES = pytest.mark.parametrize(
    "save",
    [
        lambda path: save_weights(path, {"w": [1.0]}),
        lambda path: Vocabulary.fit([["a"]]).save(path),
        lambda path: write_whole(path, "text"),
    ],
    ids=["weights", "vocabulary", "results"],
)


@SAVES
def test_a_file_is_replaced_and_no_link_is_followed(save, tmp_path, outside, monkeypatch):
    (tmp_path / "x").symlink_to(outside)
    save(tmp_path / "x")
    assert (tmp_path / "x").is_file()
    assert not (tmp_path / "x").is_symlink()
    # Not even one that stands where the new file is written, which nobody can know in advance.
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".x.{'0' * 16}.tmp").symlink_to(outside)
    with pytest.raises(FileExistsError):
        save(tmp_path / "x")
    assert outside.read_text() == "a line\nand half a line"


@SAVES
def test_what_died_while_it_wrote_a_file_leaves_nothing_behind_for_long(save, tmp_path):
    old, young, other = (f".x.{digit * 16}.tmp" for digit in "abz")
    for name in (old, young, other, f".y.{'a' * 16}.tmp"):
        (tmp_path / name).write_text("half a fi")
    for name in (old, other, f".y.{'a' * 16}.tmp"):
        os.utime(tmp_path / name, (0, 0))
    save(tmp_path / "x")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"x", young, other, f".y.{'a' * 16}.tmp"}


@SAVES
def test_threads_that_write_one_file_do_not_meet(save, tmp_path):
    """One number of a process for all of them, as in containers that share a disk."""
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(save, tmp_path / "x") for _ in range(50)]:
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_folder_that_a_run_goes_on_in_is_never_read_from_its_config(folder, tmp_path):
    from experiments.running.classifier import Settings
    from experiments.running.command_line import parse_settings

    settings = Settings(out=Path("../../elsewhere"))
    (folder / "config.json").write_text(json.dumps({"settings": settings.written()}))
    assert parse_settings("classify", Settings, ["--out", str(folder), "--resume"])[0].out == folder


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, "{" + "9" * 5000])
def test_a_config_without_end_is_damaged(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config\.json must be JSON"):
        read_config(folder)

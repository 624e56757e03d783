"""What needs a package that is not installed says which one, and which extra brings it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
    "project"
]["optional-dependencies"]

EXPORT = """
import jax, rnnjax
from rnnjax.interop.onnx_graph import export_classifier
model = rnnjax.classifier(rnnjax.embedding(9, 4), rnnjax.lstm(3), num_classes=2)
export_classifier(model, model.init(jax.random.key(0)))
"""
EXPORT_STEP = """
import jax, rnnjax
from rnnjax.interop.onnx_step import export_step
model = rnnjax.language_model(rnnjax.embedding(9, 4), rnnjax.lstm(3))
export_step(model, model.init(jax.random.key(0)))
"""
EXPORT_PROGRAM = """
import rnnjax
from rnnjax.exporting import export_program
export_program(rnnjax.recurrent(rnnjax.lstm(3)).apply, {}, input_size=2)
"""
H5 = "from rnnjax.interop.weight_files import read_keras_file; read_keras_file('no_file.h5')"
CHECKPOINT = """
from rnnjax.checkpoint import Checkpoints
import tempfile
Checkpoints(tempfile.mkdtemp()).save(0, {})
"""


@pytest.mark.parametrize(
    ("package", "name", "extra", "code"),
    [
        ("flax", "flax", "flax", "from rnnjax import modules"),
        ("flax", "flax", "flax", "import rnnjax.modules.nnx"),
        ("onnx", "onnx", "export", EXPORT),
        ("onnx", "onnx", "export", EXPORT_STEP),
        ("flatbuffers", "flatbuffers", "export", EXPORT_PROGRAM),
        ("h5py", "h5py", "h5", H5),
        ("orbax", "orbax-checkpoint", "checkpoint", CHECKPOINT),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(package, name, extra, code):
    hidden = f"import sys; sys.modules[{package!r}] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert f"needs the package {name}: pip install {name}, or pip install '.[{extra}]'" in last
    assert any(need.startswith(name) for need in EXTRAS[extra])

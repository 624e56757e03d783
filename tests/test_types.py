"""What the documents show has types that fit: who writes it in an editor sees no error in it."""

import importlib.util
import json
import subprocess
import sys

import pytest
from test_readme import DOCUMENTS, ROOT, named, python_blocks

# What the annotations of other libraries do not say: the type of what linen's init and apply give,
# that an RNN of nnx gives a pair when it returns the carry, that labels of Optax may be strings.
FOREIGN = {
    ("rnnjax/interop/README.md", "variables"),
    ("rnnjax/interop/README.md", "expected[1, 1]"),
    ("rnnjax/training/README.md", "optax.partition(rules"),
}


def is_foreign(document, line):
    return any(document == place and words in line for place, words in FOREIGN)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is missing")
def test_what_the_documents_show_passes_a_type_checker(tmp_path):
    settings = {"extraPaths": [str(ROOT)], "reportPossiblyUnboundVariable": False}
    tmp_path.joinpath("pyrightconfig.json").write_text(json.dumps(settings))
    blocks = {}
    for path in DOCUMENTS:
        for number, (block, _) in enumerate(python_blocks(path), start=1):
            file = tmp_path / f"block_{len(blocks)}.py"
            file.write_text(block)
            blocks[file.name] = named(path), number, block.splitlines()
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    report = json.loads(ran.stdout)
    assert report["summary"]["filesAnalyzed"] == len(blocks)
    found = []
    for error in report["generalDiagnostics"]:
        document, number, lines = blocks[error["file"].rsplit("/", 1)[-1]]
        line = lines[error["range"]["start"]["line"]]
        if error["severity"] == "error" and not is_foreign(document, line):
            found.append(f"{document}, block {number}: {line.strip()}: {error['message']}")
    assert found == []

"""The README does what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_every_python_block_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_the_first_example_trains_in_twelve_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12


def test_the_first_screen_has_the_two_commands():
    screen = "\n".join(README.splitlines()[:40])
    assert 'pip install -e ".[experiments]" && python -m experiments.classify' in screen
    assert 'pip install -e ".[test]" && pytest' in screen


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.search(r'^pip install -e "\.\[test\]".* && pytest$', script, re.MULTILINE)
    assert "-m experiments.classify" in script


def test_the_cell_of_the_readme_has_under_fifteen_lines():
    (block,) = [block for block in BLOCKS if "def leaky" in block]
    cell = block[block.index("def leaky") : block.index("layer =")]
    assert len([line for line in cell.splitlines() if line.strip()]) < 15

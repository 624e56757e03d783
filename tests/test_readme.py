"""The documents do what they say: every README.md of the project is read, and its code is run.

A block fenced ``python`` runs as it stands; one fenced ``text`` right below it is what it prints.
Other fences (``bash``, ``py NAME``) are run by the tests of what they show.
"""

import contextlib
import importlib
import inspect
import io
import re
from pathlib import Path

import index
import pytest

import rnnjax

ROOT = Path(__file__).parents[1]
FRONT = ROOT / "README.md"
DOCUMENTS = [
    FRONT,
    index.PAGE,
    *sorted(p for d in ("rnnjax", "experiments", "tests") for p in ROOT.glob(f"{d}/**/README.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(
    r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(path):
    return path.relative_to(ROOT).as_posix()


def python_blocks(path):
    """Each block of Python with what it prints, or "" where the document does not say."""
    return PYTHON.findall(path.read_text("utf-8"))


BLOCKS = [
    pytest.param(
        path, *block, id=f"{named(path)}-{number}", marks=() if path == FRONT else pytest.mark.full
    )
    for path in DOCUMENTS
    for number, block in enumerate(python_blocks(path), start=1)
]


@pytest.mark.parametrize(("path", "block", "printed"), BLOCKS)
def test_a_block_runs_and_prints_what_the_document_says(
    path, block, printed, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block, named(path), "exec"), {"__name__": "__main__"})
    if printed:
        assert output.getvalue() == printed


def anchors(path):
    """The headings of a document as the ends of links to them."""
    text = FENCE.sub("", path.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_to_files_and_headings_that_are_there(path):
    broken = []
    for link in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (heading and heading not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_files_and_tests_that_are_named_are_there(path):
    missing = []
    for word in re.findall(r"`([\w/.-]+\.py(?:::\w+)?)`", path.read_text("utf-8")):
        file, _, name = word.partition("::")
        place = next((p for p in (path.parent / file, ROOT / file) if p.exists()), None)
        if place is None or (name and f"def {name}(" not in place.read_text("utf-8")):
            missing.append(word)
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_pictures_are_small(path):
    for link in LINK.findall(path.read_text("utf-8")):
        if link.endswith(".png"):
            assert (path.parent / link).stat().st_size < 250_000, link


def test_the_front_page_is_short_and_its_example_shorter():
    assert len(FRONT.read_text("utf-8").splitlines()) <= 250
    block, printed = python_blocks(FRONT)[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 12
    assert printed


def test_the_first_screen_has_the_two_commands():
    screen = "\n".join(FRONT.read_text("utf-8").splitlines()[:40])
    assert 'pip install ".[experiments]" && python -m experiments.classify' in screen
    assert 'pip install ".[test]" && pytest' in screen


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    for first, second in (
        (r'"\.\[experiments\]"', r"python -W error -m experiments\.classify"),
        (r'"\.\[test\]"', r"pytest -rap \| tee "),
        ("torch==", r'pytest --full --without-passed="\$work/oldest/tests"$'),
    ):
        assert re.search(f"pip install --quiet {first}.*?^ *{second}", script, re.M | re.S)


def test_the_cell_of_the_guide_has_under_fifteen_lines():
    blocks = [block for block, _ in python_blocks(ROOT / "rnnjax" / "README.md")]
    (block,) = [block for block in blocks if "def leaky" in block]
    cell = block[block.index("def leaky") : block.index("layer =")]
    assert len([line for line in cell.splitlines() if line.strip()]) < 15


def test_the_index_has_every_public_name_with_the_first_line_of_its_docstring():
    assert index.written() == index.section(), "python tests/index.py writes it anew"


def test_a_new_public_module_joins_the_index_by_itself(monkeypatch, tmp_path):
    package = tmp_path / "house_of_cards"
    files = {
        "__init__.py": "",
        "open.py": "def door(): pass",
        "listed.py": "__all__ = ['door']\ndef door(): pass\ndef window(): pass",
        "_closed.py": "def cellar(): pass",
        "names/__init__.py": "from .inner import chair as chair",
        "names/inner.py": "def chair(): pass\ndef table(): pass",
        "modules/__init__.py": "",
        "modules/first.py": "def lamp(): pass",
        "modules/_second.py": "def candle(): pass",
        "_folder/__init__.py": "def attic(): pass",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = {
        module.__name__.removeprefix("house_of_cards."): sorted(dict(index.public_names(module)))
        for module in index.public_modules(importlib.import_module("house_of_cards"))
    }
    assert found == {
        "open": ["door"],
        "listed": ["door"],
        "names": ["chair"],
        "modules.first": ["lamp"],
    }


def test_every_public_name_says_what_it_is():
    silent = [
        f"{title} {name}"
        for title, rows in index.tables()
        for name, line in rows.items()
        if not line
    ]
    assert silent == []


def test_the_catalogue_has_every_cell_in_each_of_its_tables():
    equations, paths = (ROOT / "rnnjax/cells/README.md").read_text("utf-8").split("## Which paths")
    made = {
        name
        for name, value in vars(rnnjax.cells).items()
        if inspect.isfunction(inspect.unwrap(value))
        and inspect.signature(value).return_annotation is rnnjax.Cell
    }
    assert len(made) >= 12
    for table in (equations, paths):
        assert set(re.findall(r"^\| `(\w+)", table, re.MULTILINE)) == made
    row = re.search(r"^\| cells \|(.*)$", FRONT.read_text("utf-8"), re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row.group(1))) == made

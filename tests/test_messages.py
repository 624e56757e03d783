"""What the library refuses, it refuses in one grammar: "name must be this, got that"."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["rnnjax", "experiments"]

# The errors that refuse an argument, a file or a state: those of Python, and those of the library
# that are made from a message. (rows_error makes a DataError of what a file must have.)
REFUSALS = {"ValueError", "TypeError", "DataError", "CheckpointError"}

# "xs must have shape [..., T, D], got shape (3,)"; or, of what is missing altogether,
# "include_initial=True needs all_carries=True". What stands in braces in the code is "{}" here.
GRAMMAR = re.compile(r"\S.* must (not )?[a-z]+ .*\bgot\b.*|\S.* needs? .*", re.DOTALL)

# By file: texts that are no refusal of their own, with the reason.
EXCEPTIONS = {
    "experiments/recognize/files.py": {"{}: {} must be {}": "says in the same words what came"},
    "experiments/running/number_columns.py": {
        "{}: {} must be {}": "says in the same words what came"
    },
    "experiments/lessons/count_to_three.py": {"{}: {}": "the errors of all arrays, with the file"},
    "experiments/running/opening.py": {"{}": "the error of another process, in the grammar itself"},
    "experiments/running/setting_checks.py": {"{}": "the errors of all settings, a line each"},
    "experiments/running/trained.py": {"{} {}": "what came, in the message on the file"},
    "rnnjax/_recipe.py": {"{}: {}": "the same error, with what was meant behind it"},
    "rnnjax/_values.py": {"{}": "the text was made by _check, under a compiled function"},
    "rnnjax/checkpoint/_sealing.py": {"{}": "the text was made by _damage"},
    "rnnjax/checkpoint/checkpoints.py": {
        "{}": "the text is that of another process",
        "in process {}: {}": "tells the error of another process",
        "{}: could not save step {} ({}); the steps there are: {}": "the disk failed, no argument",
    },
    "rnnjax/data/tables.py": {"the field {} twice": "what came, in the message on the file"},
    "rnnjax/data/vocabulary.py": {"{}: {}": "the same error, with the file in front"},
    "rnnjax/interop/_keras_config.py": {"a model of class {}": "what came, in the message"},
    "rnnjax/interop/_parts.py": {"{}": "the errors of all parts, a line each"},
    "rnnjax/models/series_model.py": {"targets {}": "the same error, of targets by their name"},
    "rnnjax/models/_sources.py": {"{}_{}": "the same error, with whose lengths they are in front"},
}


def refusals(path):
    """(line, text) of every error of ``REFUSALS`` that a module makes with a message."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and node.args and name_of(node.func) in REFUSALS:
            yield node.lineno, literal(node.args[0])


def name_of(function):
    return getattr(function, "attr", getattr(function, "id", ""))


def literal(node):
    """The text of a message, "{}" where a value is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return literal(node.left) + literal(node.right)
    return "{}"


def is_in_the_grammar(text):
    return bool(GRAMMAR.fullmatch(text)) and not re.search(r"\bexpected\b", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_refusal_says_what_must_be_and_what_came(folder):
    wrong, excepted = [], set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for line, text in refusals(path):
            if text in EXCEPTIONS.get(name, {}):
                excepted.add((name, text))
            elif not is_in_the_grammar(text):
                wrong.append(f"{name}:{line}: {text}")
    assert wrong == []
    here = {
        (name, text)
        for name in EXCEPTIONS
        for text in EXCEPTIONS[name]
        if name.startswith(f"{folder}/")
    }
    assert excepted == here, "an exception that nothing needs any more"


@pytest.mark.parametrize(
    "code",
    [
        'raise ValueError("expected a cell, got None")',
        'raise ValueError(f"xs: expected {shape}, got {xs.shape}")',
        'raise errors.DataError(f"{path} is damaged")',
        'raise TypeError("xs must be an array")',
        "raise ValueError(message)",
        'return CheckpointError("no space" + " left")',
    ],
)
def test_another_form_is_found(code, tmp_path):
    (tmp_path / "module.py").write_text(f"def f():\n    {code}\n")
    ((line, text),) = refusals(tmp_path / "module.py")
    assert line == 2
    assert not is_in_the_grammar(text)

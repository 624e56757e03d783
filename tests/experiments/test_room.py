"""A network beyond the memory of the machine."""

import importlib

import pytest

from experiments.running import room

TEXTS = ["--dataset", "texts.csv"]
# Programs, and what makes their data small.
PROGRAMS = {
    "anomaly.command": [],
    "apis.command": TEXTS,
    "caption.command": ["--scenes", "40"],
    "classify": TEXTS,
    "ensemble": TEXTS,
    "forecast.command": [],
    "handwriting.command": ["--words", "40"],
    "memory_task": [],
    "music.command": ["--dataset", "progressions", "--pieces", "10"],
    "recognize.command": ["--series", "30"],
    "recurrent_ppo.command": [],
    "sweep": TEXTS,
    "tag.command": ["--sentences", "20"],
    "translate.command": ["--examples", "100"],
    "write.command": ["--dataset", "book.txt"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_network_that_the_memory_cannot_hold_is_refused_before_anything_is_made(
    program, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [f"{'good' if n % 2 else 'bad'} film number {n}" for n in range(60)]
    rows = "".join(f"{text},{n % 2}\n" for n, text in enumerate(words))
    (tmp_path / "texts.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "book.txt").write_text("\n".join(words * 20))
    monkeypatch.setattr(room, "device_memory", lambda device: 1000)
    main = importlib.import_module(f"experiments.{program}").main
    out = [] if program == "ensemble" else ["--out", "run"]  # which leaves nothing anyway
    assert main([*PROGRAMS[program], *out]) == 2
    assert "the weights must fit the 0.0 GB of memory to be trained" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"texts.csv", "book.txt"}

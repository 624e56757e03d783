"""What the programs say of themselves."""

import importlib

import pytest

MEASUREMENTS = (
    "batching dynamic_evaluation endurance generation million_texts parallel_in_time remat scaling "
    "series_peers"
)
PROGRAMS = [
    "classify",
    "ensemble",
    "memory_task",
    "apis",
    "convert",
    "epochs.command",
    "features.command",
    "anomaly.command",
    "gpu_check.__main__",
    "recurrent_ppo.command",
    "lessons.__main__",
    "recognize.command",
    "throughput.command",
    "translate.command",
    "write.command",
    *(f"measurements.{name}" for name in MEASUREMENTS.split()),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_terminal(program, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    main = importlib.import_module(f"experiments.{program}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80

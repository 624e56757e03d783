"""The sweep: models trained at once are each the model that its settings train alone."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from test_ensemble import batch, write_rows

import rnnjax
from experiments import sweep
from experiments.running.classifier_fitting import classification_loss
from experiments.sweep import (
    Combination,
    Found,
    Settings,
    combinations,
    init_models,
    main,
    make_scoring,
    make_step,
    table,
)
from rnnjax.training import init_train_state, make_train_step


@pytest.mark.full
def test_each_model_is_what_its_rate_dropout_and_seed_train_alone():
    model = rnnjax.classifier(rnnjax.embedding(9, 4, scale=1.0), rnnjax.gru(4), 2, dropout=0.5)
    models = [Combination(0.5, 0.6, 0.2, 1e-2, 0), Combination(0.5, 0.0, 1.0, 1e-1, 5)]
    states, step = init_models(model, models), make_step(model)
    for number in range(3):
        drops = np.array([one.word_dropout for one in models], np.float32)
        states, metrics = step(states, drops, batch(number))
    together = metrics["loss"].total / metrics["loss"].count
    scores = make_scoring(model)(states.params, [batch(0), batch(1)])
    for i, one in enumerate(models):
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(one.learning_rate))
        loss_fn = classification_loss(model, one.word_dropout)
        alone = make_train_step(loss_fn, optimizer)
        init_key, step_key = jax.random.split(jax.random.key(one.seed))
        scaled = rnnjax.embedding(9, 4, scale=one.embedding_scale)
        drawn = rnnjax.classifier(scaled, rnnjax.gru(4), 2).init(init_key)
        state = init_train_state(step_key, drawn, optimizer)
        for number in range(3):
            state, figures = alone(state, batch(number))
        np.testing.assert_allclose(together[i], figures["loss"].value, rtol=1e-4)
        for a, b in zip(jax.tree.leaves(states.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)
        pairs = [loss_fn(state.params, batch(n), None)[1]["accuracy"] for n in (0, 1)]
        total, count = (sum(float(p[k]) for p in pairs) for k in (0, 1))
        assert scores[i] == pytest.approx(total / count)
    assert abs(together[0] - together[1]) > 1e-3


def test_the_table_has_means_over_seeds_and_the_best_first():
    found = [
        Found(Combination(0.5, 0.1, 0.1, rate, seed), value, 3, value - 0.1)
        for rate, values in ((1e-3, (0.5, 0.7)), (1e-2, (0.8, 0.9)))
        for seed, value in enumerate(values)
    ]
    rows = table(found)
    assert [row["learning rate"] for row in rows] == ["0.01", "0.001"]
    assert rows[1]["validation"] == "0.6000 ± 0.1414"
    assert rows[0]["test"] == "0.7500 ± 0.0707"
    assert table(found[:1])[0]["validation"] == "0.5000"  # a single seed has no spread


def test_every_combination_is_there_once():
    settings = Settings(
        learning_rates=(1e-3, 1e-2),
        word_dropouts=(0.0, 0.5),
        embedding_scales=(0.1, 0.2, 0.3),
        seeds=2,
        seed=7,
    )
    models = combinations(settings, 0.25)
    assert len(models) == len(set(models)) == 24
    assert {one.seed for one in models} == {7, 8}
    assert {one.dropout for one in models} == {0.25}


@pytest.mark.full
def test_a_sweep_leaves_a_record_a_model_and_a_picture(tmp_path, capsys):
    write_rows(tmp_path / "train.csv", 60, 0)
    write_rows(tmp_path / "test.csv", 20, 1)
    data = ["--dataset", "local", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    small = ["--hidden-size", "4", "--embedding-size", "4", "--epochs", "2", "--buckets", "1"]
    assert main([*data, *small, "--seeds", "2", "--learning-rates", "1e-3", "1e-1"]) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines())
    assert len([line for line in lines if line["kind"] == "model"]) == 4
    assert (tmp_path / "run" / "sweep.png").stat().st_size > 5_000
    out = capsys.readouterr().out
    assert "0.001" in out
    assert f"sweep.png and a record of each model in {tmp_path / 'run'}" in out
    assert main([*data, *small, "--learning-rates", "0"]) == 2
    assert "each a finite number above 0, got (0.0,)" in capsys.readouterr().err


def test_what_is_wrong_with_the_data_leaves_no_folder_and_a_full_one_is_not_to_be_resumed(
    tmp_path, capsys
):
    folder = tmp_path / "run"
    assert main(["--dataset", str(tmp_path / "none.csv"), "--out", str(folder)]) == 2
    assert not folder.exists()
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    capsys.readouterr()
    assert main(["--out", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "must be empty, got config.json in it: choose another" in error
    assert "--resume" not in error


def test_a_value_given_twice_would_count_as_more_seeds(capsys):
    assert main(["--dropouts", "0.5", "0.25", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "--dropouts must be 1 or more without repeats" in error
    assert "got (0.5, 0.25, 0.5)" in error


def test_what_a_sweep_says_fits_a_terminal(monkeypatch, capsys):
    found = [Found(Combination(0.5, 0.1, 0.1, 1e-3, seed), 0.5, 3, 0.5) for seed in (0, 1)]
    monkeypatch.setattr(sweep, "sweep", lambda _: (found, Path("runs/a")))
    sweep.report(Settings(seeds=2))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "mean ± standard deviation over the seeds" in " ".join(" ".join(lines).split())


def test_seeds_beyond_the_last_one_are_refused(capsys):
    assert main(["--seed", "4294967295", "--seeds", "2"]) == 2
    assert "--seed plus --seeds must be at most 4,294,967,296" in capsys.readouterr().err


def test_what_a_stopped_sweep_has_found_is_kept_and_what_is_left_is_said(
    tmp_path, monkeypatch, capsys
):
    write_rows(tmp_path / "own.csv", 60, 0)

    def train(settings, models, prepared):
        if models[0].dropout == 0.25:
            raise KeyboardInterrupt
        return [Found(one, 0.5, 1, 0.5) for one in models]

    monkeypatch.setattr(sweep, "train_together", train)
    out = tmp_path / "run"
    given = ["--dataset", str(tmp_path / "own.csv"), "--out", str(out), "--seeds", "1"]
    assert main([*given, "--dropouts", "0.5", "0.25", "0"]) == 130
    records = map(json.loads, (out / "metrics.jsonl").read_text("utf-8").splitlines())
    assert [record["dropout"] for record in records] == [0.5] * 3
    assert (out / "sweep.png").stat().st_size > 5_000
    said = capsys.readouterr().out
    assert "for the rest: --dropouts 0.25 0 and another --out" in " ".join(said.split())
    assert max(map(len, said.replace(str(out), "").splitlines())) <= 80


def test_lines_of_one_colour_differ_in_dashes_and_marks(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(sweep, "save_figure", lambda figure, _: figures.append(figure))
    found = [
        Found(Combination(0.5, drop / 100, 0.1, rate, 0), 0.5, 3, 0.5)
        for drop in range(23)
        for rate in (1e-3, 1e-2)
    ]
    sweep.draw(found, tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert len(set(looks)) == len(looks) == 23
    marks = [dots.get_paths()[0].vertices.tobytes() for dots in axes.collections]
    assert len(set(zip((color for color, _ in looks), marks, strict=True))) == 23

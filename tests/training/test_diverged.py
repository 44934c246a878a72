"""A training that diverges has its row in the table, and the others go on."""

import dataclasses
import itertools
import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from run_directories import write_training

import gbn_train
from gbn_keras.training import study, trainer
from gbn_keras.training.errors import NotFinite
from gbn_keras.training.planner import Planner
from gbn_keras.training.report import pictures, report
from gbn_keras.training.search import hypermodel, tuning

HIGH = 1e6  # Pretended trainings diverge at such a rate.
EXAMPLES = 60_000


@pytest.fixture
def pretended(monkeypatch):
    """Trainings that only pretend; the run directories that were trained in."""
    started = []

    def train(settings, *_, **__):
        started.append(settings.run_dir)
        plan = Planner(EXAMPLES).plan(settings)
        rate = plan.regime.learning_rate[0][1] * plan.learning_rate.scale
        is_good = rate < HIGH
        write_training(settings, 0.9 / (1 + rate), finished=is_good)
        if is_good:
            return
        record = {
            "diverged": 12,
            "reason": "diverged at update 12: loss nan",
            "updates": 12,
            "samples": 12 * plan.settings.batch_size,
            "wall_seconds": 0.5,
            "seed": settings.seed,
            "settings": dataclasses.asdict(plan.settings),
            "versions": {},
            "hardware": {},
        }
        file = pathlib.Path(settings.run_dir) / "diverged.json"
        file.write_text(json.dumps(record))
        raise NotFinite(12, "loss nan")

    monkeypatch.setattr(hypermodel, "train", train)
    monkeypatch.setattr(study, "train", train)
    return started


def program(*flags):
    return gbn_train.main(["train.py", *flags])


def no_picture(*_):
    """In place of `pictures.save`, for a command that would draw the same again."""


# Of keras-tuner's model, where trials came to the same.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "tuner, rates",
    [
        ("random", "0.1,1e8,1e9"),
        ("bayesian", "1e-3..1e12"),
        ("hyperband", "0.1,1e8,1e9"),
        ("grid", "0.1,1e8,1e9"),
        ("grid", "1e8,1e9"),
        *(
            pytest.param(tuner, rates, marks=pytest.mark.slow)
            for tuner, rates in itertools.product(
                ["random", "bayesian", "hyperband", "grid"],
                ["0.1,1e8,1e9", "1e-3..1e12", "1e8,1e9"],
            )
        ),
    ],
)
def test_every_tuner_puts_what_diverges_last(pretended, make_settings, tuner, rates):
    space = (f"--search=learning_rate:{rates}", "--search=batch_size:128,256")
    flags = ("--model=f1", f"--tuner={tuner}", "--trials=8", "--epochs=9")
    settings = make_settings("--mode=tune", "--lr_scaling=none", *flags, *space)
    table = pd.read_csv(tuning.tune(settings) / "tune.csv")
    assert len(pretended) == table["run_dir"].nunique() == len(set(pretended))
    assert "diverged_at" in table
    assert (table["accuracy"].isna() == table["diverged_at"].notna()).all()
    assert (table["accuracy"].isna() == (table["learning_rate"] >= HIGH)).all()
    assert table["accuracy"].isna().is_monotonic_increasing
    # Each row is that of a trial: none was run again for having no accuracy.
    assert sorted(table["trial"]) == list(range(1, len(table) + 1))
    assert report.summarize(pathlib.Path(settings.run_dir)).pictures


@pytest.mark.parametrize(
    "flags, table",
    [
        (("--mode=tune", "--search=learning_rate:1e8,1e9"), "tune.csv"),
        (("--mode=study", "--batch_size=256", "--learning_rate=1e9"), "study.csv"),
        (("--mode=sweep", "--batch_sizes=64", "--learning_rate=1e9"), "sweep.csv"),
    ],
)
def test_where_all_diverge_the_table_is_written_and_one_line_told(
    pretended, tmp_path, capsys, monkeypatch, flags, table
):
    run_dir = tmp_path / "run"
    for _ in range(2):  # Nor is any run again.
        assert program(*flags, "--model=f1_digits", f"--run_dir={run_dir}") == 3
        told = capsys.readouterr()
        assert told.err.startswith("\nstopped: all trainings diverged")
        assert told.err.count("\n") == 2
        assert "diverged at update 12" in told.out
        monkeypatch.setattr(pictures, "save", no_picture)
    assert len(pretended) == len(set(pretended)) == len(pd.read_csv(run_dir / table))
    assert not (run_dir / "best.cfg").exists()
    assert "diverged" in report.report_page([run_dir]).read_text()


def test_a_studys_other_arms_are_trained_and_shown(
    pretended, tmp_path, capsys, monkeypatch
):
    run_dir = tmp_path / "run"
    flags = ("--mode=study", "--batch_size=512", "--lr_scaling=1e9", "--seeds=2")
    assert program(*flags, f"--run_dir={run_dir}") == 0
    told = capsys.readouterr().out
    assert re.search(r"\+GBN +512 +diverged at update 12 ", told)
    assert re.search(r"LB +512 +[0-9.]+ ± 0.00 ", told)
    table = pd.read_csv(run_dir / "study.csv", index_col="arm")
    assert table["accuracy_mean"].notna().tolist() == [True] * 2 + [False] * 3
    assert table["diverged"].tolist() == [0, 0, 2, 2, 2]
    assert (run_dir / "plots" / "study.png").stat().st_size > 10_000
    page = report.report_page([run_dir]).read_text()
    assert "All trainings diverged with: +LR, +GBN, +RA." in page
    assert "Unfinished" not in page
    monkeypatch.setattr(pictures, "save", no_picture)
    assert program(*flags, f"--run_dir={run_dir}") == 0
    assert len(pretended) == 10  # None of them twice.


def test_an_arm_of_which_one_seed_diverges_keeps_the_others(
    pretended, make_settings, monkeypatch
):
    train = study.train

    def first_diverges(settings, *args, **kwargs):
        rate = 1e9 if settings.seed == 1 else 0.1
        train(dataclasses.replace(settings, learning_rate=rate), *args, **kwargs)

    monkeypatch.setattr(study, "train", first_diverges)
    flags = ("--mode=sweep", "--batch_sizes=64", "--seeds=3")
    run_dir = study.run_study(make_settings(*flags))
    table = report.report_sweep(run_dir)
    assert re.search(r"batch 64 +64 +[0-9.]+ ± 0.00 +1 of 3 ", table), table
    page = report.report_page([run_dir]).read_text()
    assert "Validation accuracy: " in page and "1 of 3" in page


@pytest.mark.usefixtures("shallow")
def test_a_network_that_the_last_update_broke_is_not_finished(make_settings, tmp_path):
    """Loss and gradient of the only update are finite; its weights are not."""
    settings = make_settings(
        *("--learning_rate=1e30", "--clipnorm=0", "--max_updates=1"),
        *("--batch_size=1536", "--lr_scaling=none"),
    )
    with pytest.raises(NotFinite, match="update 1 is not finite: the validation loss"):
        trainer.train(settings, verbose=0)
    assert not (tmp_path / "run" / "result.json").exists()
    page = report.report_page([tmp_path / "run"]).read_text()
    assert "Unfinished: diverged at update 1" in page


@pytest.mark.usefixtures("shallow")
def test_a_training_that_broke_in_its_profile_leaves_the_profiler_to_the_next(
    make_settings, tmp_path
):
    settings = make_settings(
        *("--learning_rate=1e30", "--clipnorm=0", "--profile=2-3"),
        *("--batch_size=512", "--lr_scaling=none"),
    )
    with pytest.raises(NotFinite, match="update 2"):
        trainer.train(settings, verbose=0)
    tf.profiler.experimental.start(str(tmp_path))  # Of which a process has only one.
    tf.profiler.experimental.stop(save=False)


def test_a_table_without_a_row_is_no_curve(make_settings, tmp_path):
    """That of a training in its first epoch."""
    settings = make_settings("--model=f1_digits")
    write_training(settings, np.nan, finished=False)
    file = tmp_path / "run" / "metrics.csv"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    page = report.report_page([tmp_path / "run"]).read_text()
    assert "its first epoch has not ended" in page

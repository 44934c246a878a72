"""Each arm of a study adds one technique, and an interrupted study goes on."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from conftest import settings_of
from kills import Killed
from run_directories import write_training

import gbn_train
from gbn_keras.training import study, trainer
from gbn_keras.training.data import datasets
from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.report import comparison, report
from gbn_keras.training.settings import Settings

pytestmark = pytest.mark.usefixtures("shallow")

# As short as can be: a large batch of all digits, two epochs.
TINY = ("--mode=study", "--batch_size=768", "--small_batch_size=256", "--epochs=2")


def plans(settings):
    plan = Planner(1536).plan(settings)
    arms = study.study_arms(plan.settings)
    return {arm: Planner(1536).plan(settings) for arm, settings in arms.items()}


def test_each_arm_adds_one_technique(make_settings):
    flags = ("--mode=study", "--batch_size=512", "--warmup_updates=3")
    arms = plans(make_settings(*flags))
    assert tuple(arms) == study.ARMS
    described = {
        arm: (
            plan.settings.batch_size,
            plan.learning_rate.scale,
            plan.learning_rate.warmup_updates,
            plan.settings.virtual_batch_size,
            plan.epochs,
            plan.updates,
        )
        for arm, plan in arms.items()
    }
    assert described == {
        "SB": (32, 1, 0, 0, 6, 288),
        "LB": (512, 1, 0, 0, 6, 18),
        "+LR": (512, 4, 3, 0, 6, 18),
        "+GBN": (512, 4, 3, 32, 6, 18),
        "+RA": (512, 4, 3, 32, 96, 288),
    }


def test_all_arms_share_the_small_batch_regime(make_settings):
    settings = make_settings(
        "--mode=study", "--batch_size=512", "--epochs=12", "--learning_rate=0.2"
    )
    for plan in plans(settings).values():
        assert plan.regime.epochs == 12
        assert plan.regime.learning_rate[0] == (0, 0.2)


# Only these trainings of a study are real: one without ghosts, and the last arm's.
REAL = ("lb/seed_1", "ra/seed_1")


@pytest.fixture
def trainings(monkeypatch):
    """The run directories of the trainings that a study starts."""
    started = []

    def train(settings, *args, **kwargs):
        started.append(settings.run_dir)
        if settings.run_dir.endswith(REAL):
            return trainer.train(settings, *args, **kwargs)
        write_training(settings, 0.5 + settings.seed / 10, examples=1536)
        return None

    monkeypatch.setattr(study, "train", train)
    return started


SWEEP = ("--mode=sweep", "--epochs=2", "--weight_distance")


@pytest.fixture(scope="module")
def sweep(shallow, tmp_path_factory):
    """The run directory of a finished sweep."""
    run_dir = tmp_path_factory.mktemp("sweep") / "run"
    return study.run_study(
        settings_of(*SWEEP, "--batch_sizes=16,256", f"--run_dir={run_dir}")
    )


def test_a_training_that_is_killed_goes_on_in_its_middle(
    sweep, make_settings, monkeypatch, tmp_path, capsys
):
    """As all of a study's, a sweep's and a search's."""
    killed = make_settings(*SWEEP, "--batch_sizes=256", "--checkpoint_every=4")

    class KilledProgress(study.RunProgress):
        def on_train_batch_end(self, batch, logs=None):
            if self._done + batch == 10:
                raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(study, "RunProgress", KilledProgress)
        study.run_study(killed)
    study.run_study(killed)
    assert "resumed after update 8 of" in capsys.readouterr().out
    for name in ("metrics.csv", "weight_distance.csv"):
        file = f"batch_256/seed_1/{name}"
        assert (tmp_path / "run" / file).read_text() == (sweep / file).read_text()


def test_an_interrupted_study_goes_on_where_it_was(
    make_settings, trainings, monkeypatch, tmp_path
):
    settings = make_settings(*TINY)
    calls = []

    def interrupt(model, *args, **kwargs):
        calls.append(model)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(model, *args, **kwargs)

    fit = trainer.keras.Model.fit
    with monkeypatch.context() as patch:
        patch.setattr(trainer.keras.Model, "fit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            study.run_study(settings)
    assert len(trainings) == 5

    del trainings[:]
    # With a seed more. The four that were finished are not among these, the fifth is.
    run_dir = study.run_study(dataclasses.replace(settings, seeds=2))
    assert len(trainings) == len(set(trainings)) == 10 - 4
    assert report.report_study(run_dir)
    table = pd.read_csv(run_dir / "study.csv", index_col="arm")
    assert tuple(table.index) == study.ARMS
    assert (table["seeds"] == 2).all()
    assert table.loc["SB", "updates"] == table.loc["+RA", "updates"] == 12
    assert table.loc["LB", "samples"] == 2 * 2 * 768
    for arm in study.ARMS:
        accuracies = [
            pd.read_csv(run_dir / arm.lower().strip("+") / f"seed_{seed}/metrics.csv")
            for seed in (1, 2)
        ]
        last = np.array([100 * a["val_accuracy"].iloc[-1] for a in accuracies])
        assert table.loc[arm, "accuracy_mean"] == pytest.approx(last.mean())
        assert table.loc[arm, "accuracy_deviation"] == pytest.approx(last.std(ddof=1))
    assert (run_dir / "plots" / "study.png").stat().st_size > 10_000
    # Three times the epochs, and an evaluation after every third.
    curve = pd.read_csv(run_dir / "ra/seed_1/metrics.csv")
    evaluated = curve.dropna(subset=["val_accuracy"])["epoch"] + 1
    assert evaluated.tolist() == [1, 3, 6]

    del trainings[:]
    study.run_study(settings)
    again = gbn_train.parse(["train.py", f"--flagfile={run_dir / 'flags.cfg'}"])
    study.run_study(Settings(**again))
    assert not trainings
    # A study is a folder that may be moved.
    moved = run_dir.rename(tmp_path / "moved")
    assert report.report_study(moved)


@pytest.mark.parametrize("eval_every, epochs", [(0, [1, 3, 6]), (2, [1, 2, 4, 6])])
def test_an_arm_of_more_epochs_is_evaluated_as_often_unless_told_otherwise(
    make_settings, eval_every, epochs
):
    settings = make_settings(*TINY, f"--eval_every={eval_every}")
    _, arms = study.prepare_study(settings, Planner(1536))
    assert arms["+RA"].evaluation_epochs == epochs


def result(accuracy, model="f1", dataset="mnist"):
    return {
        "accuracy": accuracy,
        "updates": 4680,
        "samples": 599_040,
        "wall_seconds": 12.0,
        "settings": {
            "model": model,
            "dataset": dataset,
            "batch_size": 4096,
            "train_examples": 0,
        },
    }


def test_the_papers_figures_stand_beside_ours():
    table = comparison.study_table({arm: [result(0.98)] for arm in study.ARMS})
    published = [row["paper_accuracy"] for row in table.values()]
    assert published == [98.27, 97.05, 97.55, 97.60, 98.53]
    other = {arm: [result(0.98, dataset="digits")] for arm in study.ARMS}
    assert "paper_accuracy" not in comparison.study_table(other)["SB"]


def test_the_table_is_mean_and_deviation_over_the_seeds():
    runs = [result(a) for a in (0.97, 0.98, 0.99)]
    table = comparison.study_table({arm: runs for arm in study.ARMS})
    assert table["SB"]["accuracy_mean"] == pytest.approx(98)
    assert table["SB"]["accuracy_deviation"] == pytest.approx(1)


@pytest.mark.parametrize(
    "flags, received",
    [
        (("--batch_size=32",), "--batch_size: got 32"),
        (("--batch_size=64", "--virtual_batch_size=0"), "--virtual_batch_size: got 0"),
        (("--batch_size=1537",), "--batch_size: got 1537"),
    ],
)
def test_a_study_of_nothing_is_refused(make_settings, flags, received, tmp_path):
    with pytest.raises(UsageError, match=received):
        study.run_study(make_settings("--mode=study", *flags))
    assert not (tmp_path / "run").exists()


def test_a_study_with_other_flags_is_refused(make_settings):
    settings = make_settings(*TINY)
    data = datasets.load("digits")
    plan = Planner(data.examples).plan(settings)
    with study.open_run_directory(plan.settings):
        pass
    other = dataclasses.replace(settings, epochs=3)
    with pytest.raises(UsageError, match="--epochs=2 there, --epochs=3 here"):
        study.run_study(other)


def test_the_noise_belongs_to_the_arms_with_a_scaled_rate(make_settings):
    flags = ("--mode=study", "--batch_size=512", "--gradient_noise=full")
    arms = plans(make_settings(*flags))
    noise = [plan.settings.gradient_noise for plan in arms.values()]
    assert noise == [0, 0, 15, 15, 15]


def test_a_sweep_trains_with_each_batch_size(sweep, trainings):
    run_dir = sweep
    text = report.report_sweep(run_dir)
    table = pd.read_csv(run_dir / "sweep.csv", index_col="arm")
    assert table["batch_size"].tolist() == [16, 256]
    # 48 small batches an epoch: as many updates for all.
    assert table["updates"].tolist() == [96, 96]
    assert "log t (R²" in text
    for size in (16, 256):
        flags = (run_dir / f"batch_{size}" / "seed_1" / "flags.cfg").read_text()
        assert f"--virtual_batch_size={min(size, 32)}\n" in flags
        distance = pd.read_csv(run_dir / f"batch_{size}/seed_1/weight_distance.csv")
        phase = distance[distance["updates"] <= 48]
        slope = np.polyfit(np.log(phase["updates"]), phase["total"], 1)[0]
        assert table.loc[f"batch {size}", "log_b"] == pytest.approx(slope)
    for name in ("error_by_epoch", "error_by_update", "weight_distance"):
        assert (run_dir / "plots" / f"{name}.png").stat().st_size > 10_000

    again = gbn_train.parse(["train.py", f"--flagfile={run_dir / 'flags.cfg'}"])
    study.run_study(Settings(**again))
    assert not trainings


def test_part_of_the_data_is_not_the_papers_training():
    short = result(0.98)
    short["settings"]["train_examples"] = 10_000
    table = comparison.study_table({arm: [short] for arm in study.ARMS})
    assert "paper_accuracy" not in table["SB"]


@pytest.mark.parametrize("batch, ghosts", [(4096, 54.92), (8192, 53.93)])
def test_table_2_has_a_row_for_each_batch(batch, ghosts):
    row = result(0.5, "alexnet", "imagenet2012")
    row["settings"]["batch_size"] = batch
    table = comparison.study_table({arm: [row] for arm in study.ARMS})
    assert table["+GBN"]["paper_accuracy"] == ghosts

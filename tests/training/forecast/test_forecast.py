"""`--mode=plan` forecasts a training from a short one, or from one that is there."""

import dataclasses
import json

import pandas as pd
import pytest
from conftest import settings_of

import gbn_train
from gbn_keras.training import trainer
from gbn_keras.training.errors import UsageError
from gbn_keras.training.forecast.forecast import forecast
from gbn_keras.training.forecast.probe import probe_settings
from gbn_keras.training.planner import Planner
from gbn_keras.training.report.forecast_report import report_forecast
from gbn_keras.training.report.summary import summarize
from gbn_keras.training.settings import Settings

PLAN = ("--mode=plan", "--epochs=2", "--replicas=4", "--cost_per_hour=2")


pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def planned(digits, tmp_path_factory):
    """The directory of a plan from a probe that is half of the training."""
    folder = tmp_path_factory.mktemp("planned") / "run"
    flags = (*PLAN, "--probe_updates=48", "--batch_sizes=64,128,768")
    settings = settings_of(*flags, f"--run_dir={folder}")
    assert forecast(settings, digits) == folder
    return settings, folder


def test_the_table_has_the_small_batch_and_the_others(planned):
    _, folder = planned
    table = pd.read_csv(folder / "plan.csv")
    assert table["batch_size"].tolist() == [32, 64, 128, 768]
    small = table.iloc[0]
    assert (small.gain, small.stretch, small.updates) == (1, 1, 96)
    assert (table["gain"].diff()[1:] > 0).all()
    assert (table["stretch"].diff()[1:] > 0).all()
    assert (table["samples"] == table["updates"] * table["batch_size"]).all()
    assert table["hours_on_4"].isna().tolist() == [True, True, False, False]
    cost = 2 * table["hours"] * table["replicas"]
    assert table["cost"].to_numpy() == pytest.approx(cost.to_numpy())


def test_its_flagfile_trains_the_fastest_choice(planned, digits):
    _, folder = planned
    facts = json.loads((folder / "plan.json").read_text())
    flags = gbn_train.parse(["train.py", f"--flagfile={folder / 'plan.cfg'}"])
    training = Settings(**flags)
    assert training.batch_size == facts["fastest"]["batch_size"]
    assert training.strategy == ("mirrored" if training.replicas else "one")
    assert training.mode == "train" and training.run_dir is None
    plan = Planner(digits.examples, max(1, training.replicas)).plan(training)
    assert plan.is_auto == (training.batch_size > 32)
    assert plan.small_batch_updates == 96


def test_the_probe_is_not_repeated(planned, digits):
    settings, folder = planned
    result = folder / "probe" / "result.json"
    before, table = result.stat().st_mtime_ns, pd.read_csv(folder / "plan.csv")
    forecast(settings, digits)
    again = pd.read_csv(folder / "plan.csv")
    assert result.stat().st_mtime_ns == before
    for name in ("gain", "stretch", "updates", "samples"):
        assert (again[name] == table[name]).all()
    # Its flagfile gives the defaults.
    again = settings_of("--mode=plan", f"--run_dir={folder}")
    assert (
        again.flagfile()
        == settings_of(
            *PLAN,
            "--probe_updates=48",
            "--batch_sizes=64,128,768",
            f"--run_dir={folder}",
        ).flagfile()
    )
    other = dataclasses.replace(again, probe_updates=96)
    with pytest.raises(UsageError, match="--probe_updates=48 there"):
        forecast(other, digits)


def test_the_text_and_the_page_say_what_was_found(planned):
    _, folder = planned
    facts = json.loads((folder / "plan.json").read_text())
    text = report_forecast(folder)
    size = facts["fastest"]["batch_size"]
    assert f"Fastest with at most 4 replicas: batch {size:,} on" in text
    assert f"train.py --flagfile={folder / 'plan.cfg'}" in text
    summary = summarize(folder)
    assert summary.title == "f1_digits on digits: a plan"
    assert all(line in text for line in summary.headlines)
    [table], [caption] = summary.tables, summary.pictures
    assert list(table.rows) == ["32", "64", "128", "768"]
    assert "a short probe" in table.note
    assert "forecast" in caption
    assert (folder / "plots" / "plan.png").stat().st_size > 10_000


def test_a_training_that_measured_its_noise_needs_no_probe(digits, tmp_path, capsys):
    flags = ("--batch_size=256", "--micro_batch_size=64", "--epochs=2", "--stretch=2")
    folder = tmp_path / "run"
    settings = settings_of(*flags, "--noise_scale", f"--run_dir={folder}")
    result = trainer.train(settings, digits, verbose=0)
    # By the run directory alone.
    words = ["train.py", "--mode=plan", f"--run_dir={folder}"]
    forecast(Settings(**gbn_train.parse(words)), digits)
    assert not (folder / "probe").exists()
    found = pd.read_csv(folder / "plan.csv").set_index("batch_size")
    # Both count the updates that this training needed.
    advised = result["noise_scale"]["suitable_stretch"]
    assert found["stretch"][256] == pytest.approx(advised, rel=0.25)
    summary = summarize(folder)
    assert any("Fastest: batch" in line for line in summary.headlines)
    assert any("this training" in table.note for table in summary.tables)
    (folder / "noise_scale.csv").unlink()
    with pytest.raises(UsageError, match="did not measure its noise"):
        forecast(Settings(**gbn_train.parse(words)), digits)


@pytest.mark.parametrize(
    ("flags", "epochs", "examples"),
    [((), 6, 0), (("--probe_updates=144",), 3, 0), (("--probe_updates=10",), 1, 320)],
)
def test_the_probe_is_the_regime_shortened_as_a_whole(flags, epochs, examples):
    settings = settings_of("--mode=plan", "--run_dir=here", *flags)
    small = Planner(1536).plan(settings_of("--run_dir=here"))
    probe = probe_settings(settings, small)
    assert (probe.epochs, probe.train_examples) == (epochs, examples)
    plan = Planner(examples or 1536).plan(probe)
    assert plan.is_auto and plan.settings.batch_size == 64
    assert plan.micro_batch_size == 32
    assert plan.small_batch_updates == (10 if examples else 48 * epochs)
    # It comes through the two phases of the rate.
    assert plan.high_rate_small_batch_updates == plan.small_batch_updates // 2


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--probe_updates=289", "wanted at most the 288 updates"),
        ("--strategy=mirrored", "--strategy: got mirrored, wanted one"),
        ("--virtual_batch_size=0", "--virtual_batch_size: got 0, wanted at least 1"),
        ("--gradient_noise=full", "--gradient_noise: got full, wanted none"),
        ("--batch_sizes=16,64", "--batch_sizes: got 16,64, wanted numbers from the"),
        ("--batch_sizes=many", "--batch_sizes: got many, wanted numbers from the"),
        ("--batch_sizes=2000", "to the 1,536 training examples"),
        ("--cost_per_hour=nan", "--cost_per_hour: got nan, wanted a finite number"),
        ("--link_gbytes=inf", "--link_gbytes: got inf, wanted a finite number"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flag, wanted, digits, tmp_path):
    settings = settings_of("--mode=plan", f"--run_dir={tmp_path / 'run'}", flag)
    with pytest.raises(UsageError, match=wanted):
        forecast(settings, digits)
    assert not (tmp_path / "run").exists()

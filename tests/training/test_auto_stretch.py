"""`--stretch=auto` trains until the small batch's work is done, on any devices."""

import numpy as np
import pandas as pd
import pytest
from conftest import settings_of
from kills import KillAfter, Killed
from trainings import weights

from gbn_keras.training import trainer
from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.report.summary import summarize
from gbn_keras.training.search.budget import within_budget
from gbn_keras.training.study import prepare_study

pytestmark = pytest.mark.usefixtures("shallow")

# 48 updates of the small batch, in two phases of its rate.
SHORT = ("--batch_size=256", "--epochs=1", "--stretch=auto", "--micro_batch_size=64")
SMALL_BATCH_UPDATES = 48


@pytest.fixture(scope="module")
def finished(shallow, digits, tmp_path_factory):
    """A training that nothing disturbed: its directory, its result."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = settings_of(*SHORT, f"--run_dir={folder}")
    return folder, trainer.train(settings, digits, verbose=0)


def test_it_ends_when_the_small_batchs_updates_are_done(finished):
    folder, result = finished
    metrics = pd.read_csv(folder / "metrics.csv")
    last = metrics.iloc[-1]
    assert last.updates == result["updates"] < SMALL_BATCH_UPDATES
    assert SMALL_BATCH_UPDATES <= last.small_batch_updates
    assert last.small_batch_updates - last.gain < SMALL_BATCH_UPDATES
    assert result["small_batch_updates"] == last.small_batch_updates
    assert result["stretch"] == result["updates"] * 8 / SMALL_BATCH_UPDATES
    assert result["samples"] == result["updates"] * 256
    assert result["skipped_updates"] == 0
    assert (metrics.gain >= 1).all() and (metrics.gain <= 8).all()


def test_the_rate_falls_where_the_small_batchs_does(finished):
    folder, result = finished
    metrics = pd.read_csv(folder / "metrics.csv")
    high = metrics.learning_rate > 0.03
    # The position before the epoch's last update decides.
    before = metrics.small_batch_updates - metrics.gain
    assert (high == (before < SMALL_BATCH_UPDATES / 2)).all()
    phase = metrics.updates[high].max()
    assert phase <= result["high_rate_updates"] <= phase + 6


def test_the_plan_says_how_long_it_may_take(finished):
    folder, _ = finished
    assert (folder / "plan.txt").read_text().splitlines()[-1] == (
        "until 48 small-batch updates (1 epoch) are done, at most 8 epochs = 48 updates"
    )


def test_the_page_shows_what_was_found(finished):
    folder, result = finished
    summary = summarize(folder)
    assert f"a stretch of {result['stretch']:.3g}" in summary.headlines[1]
    assert "What each update was worth, and the sum of it." in summary.pictures


def test_it_is_killed_and_goes_on_bit_for_bit(finished, digits, tmp_path):
    folder, result = finished
    flags = (*SHORT, "--checkpoint_every=2", f"--run_dir={tmp_path / 'run'}")
    with pytest.raises(Killed):
        trainer.train(settings_of(*flags), digits, (KillAfter(5),), verbose=0)
    again = trainer.train(settings_of(*flags), digits, verbose=0)
    for one, other in zip(weights(tmp_path / "run"), weights(folder), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "run" / "metrics.csv").read_text() == (
        folder / "metrics.csv"
    ).read_text()
    assert again["small_batch_updates"] == result["small_batch_updates"]


@pytest.mark.cluster
@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_replicas_find_the_same(finished, digits, tmp_path, replicas):
    """The gradients whose sizes are compared are those of 64 examples everywhere."""
    folder, result = finished
    settings = settings_of(
        *SHORT,
        "--strategy=mirrored",
        f"--replicas={replicas}",
        f"--run_dir={tmp_path / 'run'}",
    )
    found = trainer.train(settings, digits, verbose=0)
    assert found["updates"] == result["updates"]
    assert found["small_batch_updates"] == pytest.approx(
        result["small_batch_updates"], rel=1e-5
    )
    for one, other in zip(weights(tmp_path / "run"), weights(folder), strict=True):
        # The optimizer's counters are integers, the others float32.
        assert np.abs(one - other).max() <= 1e-5 * max(1, np.abs(other).max())


def test_gain_is_a_rate_too(make_settings):
    settings = make_settings(*SHORT, "--lr_scaling=gain")
    plan = Planner(1536).plan(settings)
    assert plan.learning_rate.scale is None
    assert "learning rate 0.03 x the gain of each update, from 1 to 8" in (
        plan.describe()
    )


@pytest.mark.parametrize("ghost, micro_batch", [(32, 128), (64, 128), (96, 96)])
def test_without_a_micro_batch_size_there_are_two(ghost, micro_batch, make_settings):
    settings = make_settings(
        "--batch_size=256", "--stretch=auto", f"--virtual_batch_size={ghost}"
    )
    assert Planner(1536).plan(settings).micro_batch_size == micro_batch


def test_the_small_batch_itself_needs_no_micro_batches(make_settings):
    settings = make_settings("--batch_size=32", "--stretch=auto")
    plan = Planner(1536).plan(settings)
    assert plan.micro_batch_size == 32
    assert plan.epochs == 6


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--micro_batch_size=256"], "--micro_batch_size: got 256, wanted at most 128"),
        (["--virtual_batch_size=0"], "--stretch: got auto, .* plain batch norm"),
        (["--virtual_batch_size=256"], "--stretch: got auto, .* one ghost of 256"),
        (["--gradient_noise=full"], "--gradient_noise: got full, wanted none"),
        (["--stretch=2", "--lr_scaling=gain"], "--lr_scaling: got gain"),
        (["--stretch=long"], "--stretch: got 'long', wanted full"),
        (["--stretch=0.5"], "--stretch must be at least 1"),
    ],
)
def test_what_it_cannot_do_is_refused(flags, told, make_settings):
    settings = make_settings("--batch_size=256", "--stretch=auto", *flags)
    with pytest.raises(UsageError, match=told):
        Planner(1536).plan(settings)


def test_a_studys_arms_cannot_all_measure_the_gain(make_settings):
    settings = make_settings(*SHORT, "--mode=study", "--lr_scaling=gain")
    with pytest.raises(UsageError, match="--lr_scaling: got gain"):
        prepare_study(settings, Planner(1536))


def test_a_trial_of_unknown_length_has_no_budget(make_settings):
    settings = make_settings(*SHORT, "--mode=tune", "--trial_updates=10")
    with pytest.raises(UsageError, match="--trial_updates: got 10 with --stretch=auto"):
        within_budget(settings, Planner(1536))


def test_a_stretch_may_be_longer_than_full(make_settings):
    settings = make_settings("--batch_size=64", "--stretch=4")
    plan = Planner(1536).plan(settings)
    assert plan.epochs == 24
    assert "more updates than the small batch's" in plan.describe()


@pytest.mark.parametrize(
    "stretches",
    [(1, 8), pytest.param((1, 2, 4, 8, 24), marks=pytest.mark.slow)],
)
def test_trainings_of_any_length_advise_the_same(digits, tmp_path, stretches):
    advised = []
    for stretch in stretches:
        settings = settings_of(
            *("--batch_size=768", "--noise_scale", "--micro_batch_size=384"),
            f"--stretch={stretch}",
            f"--run_dir={tmp_path / str(stretch)}",
        )
        result = trainer.train(settings, digits, verbose=0)
        advised.append(result["noise_scale"]["suitable_stretch"])
    assert max(advised) < 1.5 * min(advised), advised

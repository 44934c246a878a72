"""The search: what a trial may spend, what is found, and how it goes on."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib

import hypothesis
import keras_tuner
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gbn_train
from gbn_keras.training import trainer
from gbn_keras.training.data.datasets import load
from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.report.report import report_page
from gbn_keras.training.run.run_directory import read_result
from gbn_keras.training.search import hypermodel, tuning
from gbn_keras.training.search.budget import within_budget
from gbn_keras.training.search.search_space import SearchSpace
from gbn_keras.training.settings import Settings

EXAMPLES = 1536


def settings_of(*flags):
    return Settings(**gbn_train.parse(["train.py", "--model=f1_digits", *flags]))


def pretend(patch):
    """Makes trainings only pretend; returns the settings of each that is started."""
    started = []

    def train(settings, *_, **__):
        started.append(settings)
        settings = Planner(EXAMPLES).plan(settings).settings
        run_dir = pathlib.Path(settings.run_dir)
        run_dir.mkdir(parents=True)
        (run_dir / "flags.cfg").write_text(settings.flagfile())
        # Best with batch 256 and a rate of 0.1.
        accuracy = 1 / (
            1 + abs(settings.batch_size - 256) + abs(settings.learning_rate - 0.1)
        )
        result = {
            "accuracy": accuracy,
            "loss": 1 - accuracy,
            "updates": Planner(EXAMPLES).plan(settings).updates,
            "samples": Planner(EXAMPLES).plan(settings).updates * settings.batch_size,
            "wall_seconds": 1.0,
            "settings": dataclasses.asdict(settings),
        }
        (run_dir / "result.json").write_text(json.dumps(result))
        return result

    patch.setattr(hypermodel, "train", train)
    # There are no other workers whose results a trial could wait for.
    patch.setattr(tuning.time, "sleep", lambda _: None)
    return started


@pytest.fixture
def pretended(monkeypatch):
    """Trainings that only pretend; the settings of each that was started."""
    return pretend(monkeypatch)


SPACE = ("--search=batch_size:64..512", "--search=learning_rate:0.01..1")


@given(
    batch_size=st.sampled_from([16, 32, 64, 200, 512, 1536]),
    stretch=st.sampled_from(["1", "full"]),
    budget=st.integers(1, 400),
    in_samples=st.booleans(),
)
@example(batch_size=200, stretch="full", budget=260, in_samples=False)
@hypothesis.settings(deadline=None, derandomize=True)
def test_no_trial_is_longer_than_its_budget(batch_size, stretch, budget, in_samples):
    budget *= 1600 if in_samples else 1
    settings = settings_of(
        f"--batch_size={batch_size}",
        f"--stretch={stretch}",
        f"--trial_{'samples' if in_samples else 'updates'}={budget}",
    )
    whole = Planner(EXAMPLES).plan(settings)
    plan = Planner(EXAMPLES).plan(within_budget(settings, Planner(EXAMPLES)))
    allowed = budget // batch_size if in_samples else budget
    assert plan.updates == min(whole.updates, allowed)
    if whole.updates <= allowed:
        assert plan.settings.stretch == whole.settings.stretch
        assert plan.regime == whole.regime


def test_a_shortened_regime_ends_with_its_last_rate(make_settings):
    settings = make_settings(
        "--model=f1", "--batch_size=512", "--small_batch_size=32", "--trial_updates=300"
    )
    plan = Planner(EXAMPLES).plan(within_budget(settings, Planner(EXAMPLES)))
    assert plan.updates == 300
    rates = [rate for _, rate in plan.regime.learning_rate]
    assert len(rates) > 1
    last = float(plan.learning_rate(plan.updates - 1)) / plan.learning_rate.scale
    assert last == pytest.approx(rates[-1])


def test_batches_of_all_sizes_make_as_many_updates(pretended, make_settings):
    run_dir = tuning.tune(
        make_settings("--mode=tune", "--tuner=grid", "--trial_updates=100", *SPACE[:1])
    )
    plan = (run_dir / "plan.txt").read_text()
    assert plan.startswith("grid search, 20 trials, at most 100 updates each")
    table = pd.read_csv(run_dir / "tune.csv")
    assert sorted(table["batch_size"]) == [64, 128, 256, 512]
    assert (table["updates"] == 100).all()
    assert (table["samples"] == 100 * table["batch_size"]).all()


def test_batches_of_all_sizes_see_as_many_samples(pretended, make_settings):
    run_dir = tuning.tune(
        make_settings("--mode=tune", "--tuner=grid", "--trial_samples=5120", *SPACE[:1])
    )
    table = pd.read_csv(run_dir / "tune.csv")
    assert (table["samples"] == 5120).all()
    assert (table["updates"] == 5120 // table["batch_size"]).all()


TUNERS = ("random", "bayesian", "hyperband", "grid")
# The Bayesian one chooses the first six at random.
TRIALS = 7


@pytest.fixture(scope="module")
def whole_search(tmp_path_factory):
    """By tuner: the settings of a search, its table, the trainings that it started."""

    @functools.cache
    def search(tuner):
        flags = ("--mode=tune", f"--tuner={tuner}", f"--trials={TRIALS}", *SPACE)
        run_dir = tmp_path_factory.mktemp(tuner) / "run"
        settings = settings_of(*flags, "--epochs=9", f"--run_dir={run_dir}")
        with pytest.MonkeyPatch.context() as patch:
            started = pretend(patch)
            return settings, pd.read_csv(tuning.tune(settings) / "tune.csv"), started

    return search


@pytest.mark.parametrize("tuner", TUNERS)
def test_every_tuner_gives_each_trial_a_row_and_the_best_one_first(whole_search, tuner):
    _, table, started = whole_search(tuner)
    if tuner != "hyperband":
        assert len(table) == TRIALS
    assert sorted(table["trial"]) == list(range(1, len(table) + 1))
    assert table["accuracy"].is_monotonic_decreasing
    assert len(started) == table["run_dir"].nunique()
    assert table["learning_rate"].between(0.01, 1).all()
    assert set(table["batch_size"]) <= {64, 128, 256, 512}


def test_hyperbands_epochs_are_the_small_batchs(whole_search):
    _, table, started = whole_search("hyperband")
    assert set(table["epochs"]) == {1, 3, 9}
    for settings in started:
        plan = Planner(EXAMPLES).plan(settings)
        # With the full stretch, the default: as many updates for any batch.
        assert plan.epochs == settings.epochs * settings.batch_size // 32
        assert plan.updates == settings.epochs * EXAMPLES // 32
    # The best third of a round goes on to the next one.
    rounds = table[table["epochs"] == 1]["accuracy"], table[table["epochs"] == 9]
    assert rounds[1]["accuracy"].max() >= rounds[0].max()


def test_hyperband_spends_the_budget_in_proportion(pretended, make_settings):
    settings = make_settings(
        *("--mode=tune", "--tuner=hyperband", "--epochs=9", "--trial_updates=90"),
        *SPACE,
    )
    table = pd.read_csv(tuning.tune(settings) / "tune.csv")
    assert set(table["updates"]) == {10, 30, 90}


def test_ghosts_that_do_not_suit_a_batch_are_tried_with_the_others(
    pretended, make_settings
):
    settings = make_settings(
        *("--mode=tune", "--tuner=grid"),
        "--search=virtual_batch_size:16,64,128",
        "--search=batch_size:32,64,256",
    )
    table = pd.read_csv(tuning.tune(settings) / "tune.csv")
    sizes = zip(table["batch_size"], table["virtual_batch_size"], strict=True)
    assert sorted(sizes) == [
        *((32, 16), (64, 16), (64, 64), (256, 16), (256, 64), (256, 128)),
    ]


@pytest.mark.parametrize("tuner", TUNERS)
def test_an_interrupted_search_goes_on_where_it_was(
    whole_search, pretended, tmp_path, monkeypatch, tuner
):
    settings, whole, trainings = whole_search(tuner)
    again = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
    train = hypermodel.train
    for until in (3, 5):

        def interrupt(*args, until=until, **kwargs):
            if len(pretended) == until:
                raise KeyboardInterrupt
            return train(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(hypermodel, "train", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tuning.tune(again)
        # What a kill may have left of keras-tuner's files.
        for file in pathlib.Path(again.run_dir).glob("keras_tuner/**/*.json"):
            file.write_text(file.read_text()[:20])
    table = pd.read_csv(tuning.tune(again) / "tune.csv")
    assert len(pretended) == len(trainings)  # None was run twice.
    same = [name for name in table if name != "run_dir"]
    pd.testing.assert_frame_equal(table[same], whole[same])


def test_more_trials_can_be_added(pretended, make_settings):
    settings = make_settings("--mode=tune", "--trials=3", *SPACE)
    first = pd.read_csv(tuning.tune(settings) / "tune.csv")
    more = tuning.tune(dataclasses.replace(settings, trials=5))
    table = pd.read_csv(more / "tune.csv").set_index("trial").sort_index()
    assert len(table) == len(pretended) == 5
    first = first.set_index("trial").sort_index()
    pd.testing.assert_frame_equal(table.loc[first.index], first)


# Two trials. The second one's rate is far too high.
REAL = (
    *("--mode=tune", "--tuner=grid", "--trials=2", "--trial_updates=3"),
    *("--search=learning_rate:0.03,1e30", "--search=batch_size:256"),
    "--search=virtual_batch_size:64",
)


@pytest.fixture(scope="module")
def real_search(shallow, tmp_path_factory):
    """A search that trains: its directory, and what the program printed."""
    run_dir = tmp_path_factory.mktemp("real") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert gbn_train.main(["train.py", *REAL, f"--run_dir={run_dir}"]) == 0
    return run_dir, told.getvalue()


def test_a_search_goes_on_after_a_trial_that_diverges(real_search, monkeypatch):
    run_dir, told = real_search
    assert "2 trials, at most 3 updates each" in told
    assert "diverged at update 2: loss nan, gradient norm nan" in told
    table = pd.read_csv(run_dir / "tune.csv")
    assert table["learning_rate"].tolist() == [0.03, 1e30]
    assert table["accuracy"].notna().tolist() == [True, False]
    assert f"{table['accuracy'][0]:.2f}" in told
    assert table["diverged_at"].tolist()[1] == 2
    assert "diverged at update 2" in report_page([run_dir]).read_text()
    assert (run_dir / "plots" / "tune.png").stat().st_size > 10_000

    # Nor is it repeated.
    monkeypatch.setattr(hypermodel, "train", None)
    assert gbn_train.main(["train.py", *REAL, f"--run_dir={run_dir}"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(run_dir / "tune.csv"), table)
    # Its record is that of a file for any reader of JSON.
    for file in run_dir.glob("trials/*/*.json"):
        assert "NaN" not in file.read_text()


def test_the_flagfile_of_the_best_trains_it_again(real_search, tmp_path):
    run_dir, _ = real_search
    best = pd.read_csv(run_dir / "tune.csv").iloc[0]
    settings = settings_of(
        f"--flagfile={run_dir / 'best.cfg'}", f"--run_dir={tmp_path / 'x'}"
    )
    for name in ("learning_rate", "batch_size", "virtual_batch_size"):
        assert getattr(settings, name) == best[name]
    again = trainer.train(settings, verbose=0)
    found = read_result(pathlib.Path(best["run_dir"]))
    assert (again["accuracy"], again["loss"]) == (found["accuracy"], found["loss"])
    assert again["updates"] == best["updates"] == 3


def test_the_hypermodel_suits_any_tuner_of_keras_tuner(
    pretended, make_settings, tmp_path
):
    settings = make_settings("--mode=tune", "--model=f1_digits", "--trial_updates=3")
    data = load("digits")
    space = SearchSpace(("batch_size:128,256",), settings, Planner(data.examples))
    tuner = keras_tuner.RandomSearch(
        hypermodel.TrainingHyperModel(settings, space, data, Planner(data.examples)),
        objective=keras_tuner.Objective("val_accuracy", "max"),
        max_trials=1,
        directory=tmp_path,
        seed=1,
    )
    tuner.search(verbose=0)
    (hp,) = tuner.get_best_hyperparameters()
    (trained,) = pretended
    assert hp["batch_size"] == trained.batch_size in (128, 256)
    assert tuner.hypermodel.build(hp).optimizer.iterations == 0


def test_a_failure_of_a_trial_is_not_swallowed(pretended, make_settings, monkeypatch):
    def fail(*_, **__):
        raise UsageError("--flag: no")

    monkeypatch.setattr(hypermodel, "train", fail)
    with pytest.raises(UsageError, match="--flag: no"):
        tuning.tune(make_settings("--mode=tune", *SPACE))


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "--search: got ''"),
        ((*SPACE, "--strategy=multi_worker"), "--strategy: got multi_worker"),
        ((*SPACE, "--trial_updates=9", "--trial_samples=9"), "--trial_samples: got 9"),
        ((*SPACE, "--trial_samples=511"), "--trial_samples: got 511"),
    ],
)
def test_a_search_that_cannot_be_made_is_told(pretended, make_settings, flags, message):
    with pytest.raises(UsageError) as error:
        tuning.tune(make_settings("--mode=tune", *flags))
    assert message in str(error.value)
    assert not pretended

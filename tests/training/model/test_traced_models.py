"""A model that was trained trains again as a new one, bit for bit."""

import dataclasses
import gc
import weakref

import keras
import numpy as np
import pandas as pd
import pytest
from kills import KillAfter, Killed
from trainings import SHORT, curves, weights

from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.training import study, trainer
from gbn_keras.training.model import traced_models
from gbn_keras.training.model.traced_models import TracedModels
from gbn_keras.training.planner import Planner
from gbn_keras.training.strategy import strategy_of

TIMES = ("updates_per_second", "images_per_second", "waiting_for_data")

FLAGS = {
    "auto": (
        *("--batch_size=768", "--stretch=auto", "--max_updates=9"),
        *("--optimizer=adamw", "--second_moment=small_batch"),
    ),
    "float16": (*SHORT, "--precision=mixed_float16", "--gradient_noise=full"),
    "replicas": (*SHORT, "--strategy=mirrored", "--replicas=2"),
}

# The last arm trains for three times as many updates.
STUDY = ("--mode=study", "--batch_size=768", "--small_batch_size=256", "--epochs=2")


@pytest.fixture
def train(tmp_path, make_settings, digits, shallow):
    """Trains in a folder of this name, and returns the folder."""

    def train(name, *flags, models=None, callbacks=()):
        settings = make_settings(*flags)
        if settings.mode == "study":  # The name begins with the arm's.
            settings = arm_settings(settings)[name.split()[0]]
        run_dir = tmp_path / name
        settings = dataclasses.replace(settings, run_dir=str(run_dir))
        trainer.train(settings, digits, callbacks, verbose=0, models=models)
        return run_dir

    return train


@pytest.fixture
def traces(monkeypatch):
    """A list with an entry for each time that an update or evaluation was traced."""
    traced = []
    for name in ("train_step", "test_step"):
        step = getattr(LargeBatchModel, name)

        def noted(model, data, step=step):
            traced.append(step.__name__)
            return step(model, data)

        monkeypatch.setattr(LargeBatchModel, name, noted)
    return traced


@pytest.fixture
def models_for(digits):
    """Makes the `TracedModels` for a number of trainings of each of these settings."""

    def make(number, *settings):
        strategy = strategy_of(settings[0])
        planner = Planner.of(digits, strategy)
        return TracedModels(strategy, digits, number * [*map(planner.plan, settings)])

    return make


def arm_settings(settings):
    return study.study_arms(Planner(1536).plan(settings).settings)


def assert_same_run(found, expected):
    assert all(map(np.array_equal, weights(found), weights(expected)))
    rates = [
        keras.models.load_model(x / "model.keras").optimizer.get_config()
        for x in (found, expected)
    ]
    assert rates[0] == rates[1]
    tables = [pd.read_csv(x / "metrics.csv") for x in (found, expected)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for folder in ("train", "validation"):
        points, wanted = (curves(x / "tensorboard" / folder) for x in (found, expected))
        assert points.keys() == wanted.keys() > {"loss"}
        for tag in points.keys() - TIMES:
            assert points[tag] == wanted[tag], tag


@pytest.mark.parametrize(
    "name",
    [
        "auto",
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("replicas", marks=pytest.mark.cluster),
    ],
)
def test_a_second_seed_is_trained_as_by_a_new_model(
    name, train, make_settings, models_for
):
    flags = FLAGS[name]
    models = models_for(2, make_settings(*flags))
    other = train("first", *flags, models=models)
    found = train("second", *flags, "--seed=2", models=models)
    expected = train("alone", *flags, "--seed=2")
    assert_same_run(found, expected)
    assert not all(map(np.array_equal, weights(found), weights(other)))


SLOW, CLUSTER = pytest.mark.slow, pytest.mark.cluster


@pytest.mark.parametrize(
    "first, second, flags",
    [
        ("LB", "+LR", ()),
        ("+GBN", "+RA", ()),
        pytest.param("+RA", "+GBN", ("--jit=on",), marks=SLOW),
        pytest.param("LB", "+LR", ("--optimizer=adam",), marks=SLOW),
        pytest.param("+RA", "+GBN", ("--precision=mixed_float16",), marks=SLOW),
        pytest.param("+GBN", "+RA", ("--gradient_noise=full",), marks=SLOW),
        pytest.param(
            *("+GBN", "+RA", ("--strategy=mirrored", "--replicas=2")), marks=CLUSTER
        ),
    ],
)
def test_an_arm_is_trained_as_by_a_new_model(
    first, second, flags, train, make_settings, models_for, traces
):
    flags = (*STUDY, *flags)
    arms = arm_settings(make_settings(*flags))
    models = models_for(1, arms[first], arms[second])
    train(first, *flags, models=models)
    before = len(traces)
    found = train(second, *flags, models=models)
    is_adam = "--optimizer=adam" in flags  # Its betas follow the scale of the rate.
    assert (len(traces) > before) == is_adam
    assert_same_run(found, train(f"{second} alone", *flags))


def test_a_killed_arm_goes_on_with_the_model_of_another(
    train, make_settings, models_for, traces
):
    flags = (*STUDY, "--checkpoint_every=3")
    models = models_for(3, arm_settings(make_settings(*flags))["+RA"])
    with pytest.raises(Killed):
        train("+RA", *flags, models=models, callbacks=(KillAfter(7),))
    train("+GBN", *flags, "--seed=2", models=models)
    before = len(traces)
    found = train("+RA", *flags, models=models)
    assert len(traces) == before
    assert_same_run(found, train("+RA alone", *flags))


@pytest.fixture
def built(monkeypatch):
    """A list with the seed of each model that is built, not counting its weights'."""
    seeds = []

    def build_model(plan, data):
        seeds.append(plan.settings.seed)
        return traced_models.untraced_model(plan, data)

    monkeypatch.setattr(traced_models, "build_model", build_model)
    return seeds


def test_only_what_ended_well_is_trained_again(train, make_settings, models_for, built):
    models = models_for(4, make_settings(*SHORT))
    train("1", *SHORT, "--seed=1", models=models)
    train("2", *SHORT, "--seed=2", models=models)
    with pytest.raises(Killed):
        train("3", *SHORT, "--seed=3", models=models, callbacks=(KillAfter(2),))
    train("4", *SHORT, "--seed=4", models=models)
    train("5", *SHORT, "--seed=5", "--clipnorm=1", models=models)
    assert built == [1, 4, 5]


@pytest.mark.parametrize(
    "number, flags",
    [
        (3, ()),
        # What a traced update has as constants, an arm with others cannot use.
        (5, ("--warmup_updates=2",)),
        (5, ("--small_batch_size=250",)),
        (5, ("--optimizer=adam",)),
        (4, ("--gradient_noise=full",)),
        # The last arm makes 1,008 updates, so it is compiled by XLA.
        (4, ("--epochs=168",)),
    ],
)
def test_a_study_keeps_a_model_for_arms_that_are_alike(
    number, flags, make_settings, digits, shallow, built, models_for
):
    settings = make_settings(*STUDY, *flags)
    planner, arms = Planner(1536), arm_settings(settings)
    models = models_for(2, *arms.values())
    for seed in (1, 2):
        for arm in arms.values():
            plan = planner.plan(dataclasses.replace(arm, seed=seed))
            models.give_back(plan, models.take(plan))
    assert built == [1] * number


def test_models_that_no_training_will_take_are_freed(
    make_settings, models_for, shallow, built
):
    settings = make_settings(*SHORT)
    plan, models = Planner(1536).plan(settings), models_for(2, settings)
    taken = []
    for _ in range(3):  # One more than was planned, as when a training is repeated.
        model = models.take(plan)
        models.give_back(plan, model)
        taken.append(weakref.ref(model))
        del model
    gc.collect()
    assert len(built) == 2
    assert [model() for model in taken] == [None] * 3

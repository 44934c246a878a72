"""A model that was trained trains with another seed as a new one, bit for bit."""

import numpy as np
import pandas as pd
import pytest
from kills import KillAfter, Killed
from trainings import SHORT, curves, weights

from gbn_keras.training import trainer
from gbn_keras.training.model import traced_models
from gbn_keras.training.model.traced_models import TracedModels
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


@pytest.fixture
def train(tmp_path, make_settings, digits, shallow):
    """Trains in a folder of this name, and returns the folder."""

    def train(name, *flags, models=None, callbacks=()):
        run_dir = tmp_path / name
        settings = make_settings(*flags, f"--run_dir={run_dir}")
        trainer.train(settings, digits, callbacks, verbose=0, models=models)
        return run_dir

    return train


@pytest.mark.parametrize(
    "name",
    [
        "auto",
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("replicas", marks=pytest.mark.cluster),
    ],
)
def test_a_second_seed_is_trained_as_by_a_new_model(name, train, make_settings, digits):
    flags = FLAGS[name]
    models = TracedModels(strategy_of(make_settings(*flags)), digits)
    other = train("first", *flags, models=models)
    found = train("second", *flags, "--seed=2", models=models)
    expected = train("alone", *flags, "--seed=2")
    assert all(map(np.array_equal, weights(found), weights(expected)))
    assert not all(map(np.array_equal, weights(found), weights(other)))
    tables = [pd.read_csv(x / "metrics.csv") for x in (found, expected)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for folder in ("train", "validation"):
        points, wanted = (curves(x / "tensorboard" / folder) for x in (found, expected))
        assert points.keys() == wanted.keys() > {"loss"}
        for tag in points.keys() - TIMES:
            assert points[tag] == wanted[tag], tag


def test_only_what_ended_well_is_trained_again(
    train, make_settings, digits, monkeypatch
):
    built = []

    def build_model(plan, data):
        built.append(plan.settings.seed)
        return traced_models.untraced_model(plan, data)

    monkeypatch.setattr(traced_models, "build_model", build_model)
    models = TracedModels(strategy_of(make_settings(*SHORT)), digits)
    train("1", *SHORT, "--seed=1", models=models)
    train("2", *SHORT, "--seed=2", models=models)
    with pytest.raises(Killed):
        train("3", *SHORT, "--seed=3", models=models, callbacks=(KillAfter(2),))
    train("4", *SHORT, "--seed=4", models=models)
    train("5", *SHORT, "--seed=5", "--clipnorm=1", models=models)
    assert built == [1, 4, 5]

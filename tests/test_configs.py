"""Every flagfile can be planned, and trains on tiny data of the right shape."""

import dataclasses
import functools
import pathlib

import numpy as np
import pandas as pd
import pytest

import gbn_train
from gbn_keras.training import study, trainer
from gbn_keras.training.data import datasets
from gbn_keras.training.planner import Planner
from gbn_keras.training.search.search_space import SearchSpace
from gbn_keras.training.settings import Settings
from gbn_keras.training.trained import loss_landscape

ROOT = pathlib.Path(gbn_train.__file__).parent
CONFIGS = sorted(ROOT.glob("configs/**/*.cfg"))

# Image shape and number of classes.
SHAPES = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "imagenet2012": ((224, 224, 3), 1000),
}
# Number of training examples.
EXAMPLES = {
    "digits": 1536,
    "mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "imagenet2012": 1_281_167,
}
# The same networks with fewer layers, whose updates take seconds to trace, and images
# of the size that the largest one takes at least.
SHALLOW = {
    "resnet44": "resnet8",
    "resnet20": "resnet8",
    "wresnet16_4": "wresnet10_1",
    "vgg": "vgg11",
}
SMALLER = {**SHAPES, "imagenet2012": ((63, 63, 3), 1000)}


def name_of(config):
    return config.relative_to(ROOT / "configs").with_suffix("").as_posix()


def read(config, *flags, shapes=SHAPES):
    """The settings of a flagfile, and tiny data for them."""
    flags = [f"--flagfile={config}", "--download", *flags]
    settings = Settings(**gbn_train.parse(["train.py", *flags]))
    shape, classes = shapes[settings.dataset]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, *shape), np.uint8)
    labels = random.integers(0, classes, 24, np.int32)
    data = datasets.ImageData(
        settings.dataset, classes, images, labels, images[:5], labels[:5]
    )
    return settings, data


def trainings(settings, data):
    """The settings of each training that the program would make of these."""
    if settings.mode == "study":
        _, plans = study.prepare_study(settings, Planner(data.examples))
    elif settings.mode == "sweep":
        _, plans = study.prepare_sweep(settings, Planner(data.examples))
    else:
        return [settings]
    return [plan.settings for plan in plans.values()]


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_config_is_planned_on_all_of_its_data(config):
    settings, _ = read(config)
    planner = Planner(settings.train_examples or EXAMPLES[settings.dataset])
    if settings.mode == "study":
        plans = study.prepare_study(settings, planner)[1]
        assert tuple(plans) == study.ARMS
    elif settings.mode == "sweep":
        plans = study.prepare_sweep(settings, planner)[1]
        assert len(plans) == len(settings.batch_sizes)
    else:
        plans = {"only": planner.plan(settings)}
    if settings.mode == "tune":
        space = SearchSpace(settings.search, settings, planner)  # Plans each value.
        assert len(space.flags) == len(settings.search)
    assert all(plan.updates > 0 for plan in plans.values())


# Each mode, network and option of the others once, but for `--mode=tune` and
# `--stretch=1`, with which other files' tests train. The paper's are those of `scaled`
# with larger networks and longer regimes.
TRAINED = {
    "mnist_f1",
    "quickstart",
    "scaled/alpha_f1",
    "scaled/figure2a_no_l2",
    "scaled/table1_c1_cifar10",
    "scaled/table1_resnet20_cifar10",
}


def marks_of(config):
    return () if name_of(config) in TRAINED else pytest.mark.slow


@pytest.mark.parametrize(
    "config",
    [pytest.param(config, marks=marks_of(config)) for config in CONFIGS],
    ids=name_of,
)
def test_a_config_starts_and_makes_two_updates(config, tmp_path):
    model = read(config)[0].model
    flags = [f"--model={SHALLOW[model]}"] if model in SHALLOW else []
    make_two_updates(config, tmp_path, *flags, shapes=SMALLER)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_config_starts_with_its_own_network(config, tmp_path):
    make_two_updates(config, tmp_path)


def make_two_updates(config, tmp_path, *flags, shapes=SHAPES):
    """Trains, or measures, as the flagfile says, but for these flags and shapes."""
    # And for batches that the tiny data can fill.
    sizes = [*flags, "--small_batch_size=4", "--epochs=1", "--max_updates=2"]
    sizes += ["--train_examples=0", f"--run_dir={tmp_path / 'run'}"]
    settings, _ = read(config)
    if settings.mode == "sweep":
        sizes.append("--batch_sizes=4,12")
    else:
        sizes.append("--batch_size=12")
    if settings.virtual_batch_size:
        sizes.append("--virtual_batch_size=4")
    settings, data = read(config, *sizes, shapes=shapes)
    if settings.mode == "landscape":
        settings = dataclasses.replace(settings, directions=10)
        loss_landscape.measure_landscape(settings, data)
        assert (tmp_path / "run" / "landscape.csv").exists()
        return
    *_, last = trainings(settings, data)  # The others are planned, too.
    last = dataclasses.replace(last, run_dir=str(tmp_path / "run"))
    result = trainer.train(last, data, verbose=0)
    assert result["updates"] == 2
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_config_says_how_to_run_it(config):
    command = f"#   python train.py --flagfile={config.relative_to(ROOT).as_posix()}"
    lines = config.read_text(encoding="utf-8").splitlines()
    assert command in [line.removesuffix(" --data_dir=...") for line in lines]


@functools.cache
def run_dir_of(config):
    return read(config)[0].run_dir


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_config_has_a_run_directory_of_its_own(config):
    mine = run_dir_of(config)
    assert mine and mine.startswith("runs/")
    assert mine not in [run_dir_of(other) for other in CONFIGS if other != config]

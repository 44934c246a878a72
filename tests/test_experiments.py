"""The benchmarks that train differ in what they say, and in nothing else."""

import dataclasses
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from conftest import settings_of
from run_directories import write_training

from gbn_keras import GhostBatchNormalization
from gbn_keras.regime import REGIMES
from gbn_keras.training import study, trainer
from gbn_keras.training.errors import NotFinite
from gbn_keras.training.planner import Planner
from gbn_keras.training.settings import FREE_TO_CHANGE

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import as_published  # noqa: E402
import experiment  # noqa: E402
import ghost_size  # noqa: E402
import result_files  # noqa: E402
import result_runs  # noqa: E402
import result_tables  # noqa: E402
import where_it_turns  # noqa: E402

TASKS = [(one, task) for one in result_runs.EXPERIMENTS for task in one.tasks]


def decisive(settings):
    """What decides a training's result."""
    values = dataclasses.asdict(settings)
    return {k: v for k, v in values.items() if k not in FREE_TO_CHANGE}


def resolved(one, task, arm):
    return decisive(result_runs.resolved(one.flags(task, arm, 1)))


def differences(one, other):
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize(
    "one, task", TASKS, ids=lambda x: x if isinstance(x, str) else x.script
)
def test_the_program_takes_the_flags_of_every_arm_and_no_two_share_a_folder(one, task):
    folders = set()
    for arm in one.arms(task):
        assert resolved(one, task, arm)["mode"] == "train"
        folders.add(experiment.arm_directory(pathlib.Path("x"), arm).name.lower())
    assert len(folders) == len(one.arms(task))


@pytest.mark.parametrize("task", ["mnist", "mnist_50", "c1"])
def test_the_arms_without_a_defect_are_those_of_the_flagfiles_study(task):
    one = as_published.EXPERIMENT
    config = one.tasks[task][0]
    # C1's flagfile has ten times the published rate.
    variant = "ten times the rate" if task == "c1" else "as ours"
    arms = study.study_arms(result_runs.resolved([config]))
    for arm, settings in arms.items():
        wanted = Planner(1_000_000).plan(dataclasses.replace(settings, mode="train"))
        assert resolved(one, task, f"{variant}: {arm}") == decisive(wanted.settings)


def test_c1_has_the_published_rates():
    flags = as_published.EXPERIMENT.flags("c1", "momentum 0: SB", 1)
    plan = Planner(10_000).plan(settings_of(*flags, "--download"))
    assert [rate for _, rate in plan.regime.learning_rate] == pytest.approx(
        [rate for _, rate in REGIMES["c1"].learning_rate]
    )
    assert plan.regime.momentum == 0


@pytest.mark.parametrize(
    "arm, momentum, padding, loses",
    [
        ("as ours: SB", 0.9, None, False),
        ("momentum lost: +GBN", 0.9, None, True),
        ("flips and crops: LB", 0.9, 2, False),
        ("both: +RA", 0.9, 2, True),
        ("momentum 0: SB", 0.0, None, False),
        ("momentum 0.9: SB", 0.9, None, False),
        ("momentum 0.9, lost: SB", 0.9, None, True),
        ("ten times the rate: SB", 0.0, None, False),
    ],
)
def test_a_variant_trains_with_what_its_name_says(
    arm, momentum, padding, loses, digits, monkeypatch
):
    name = "c1" if arm.partition(":")[0] in as_published.VARIANTS["c1"] else "f1"
    before = dict(REGIMES)
    seen = []

    def train(settings, data, callbacks, verbose):
        seen.append((REGIMES[name].momentum, data.augmentation, callbacks))

    monkeypatch.setattr(trainer, "train", train)
    as_published.train(arm, settings_of(f"--model={name}"), digits)
    ((found, augmentation, callbacks),) = seen
    assert found == momentum
    assert (augmentation and augmentation.padding) == padding
    assert len(callbacks) == loses
    assert REGIMES == before


def test_losing_the_momentum_is_a_new_optimizer_at_every_epoch():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 12, 3)).astype("float32")
    start = None
    found = []
    for is_anew in (False, True):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        start = start or model.get_weights()
        model.set_weights(start)
        callbacks = [] if is_anew else [as_published.LosesMomentum()]
        for epochs in [1, 1, 1] if is_anew else [3]:
            if is_anew or not found:
                model.compile(keras.optimizers.SGD(0.1, 0.9), "mse")
                model.optimizer.build(model.trainable_variables)  # As the program does.
            model.fit(
                *(x, y, 4, epochs),
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
        found.append(model.get_weights()[0])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_training_that_resumes_within_an_epoch_loses_nothing_there():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1, 0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    loses = as_published.LosesMomentum()
    loses.set_model(model)
    loses.set_params({"steps": 3})
    for updates, is_lost in ((4, False), (5, False), (6, True)):
        model.optimizer.iterations.assign(updates)
        for momentum in model.optimizer.momentums:
            momentum.assign(keras.ops.ones_like(momentum))
        loses.on_epoch_begin(1)
        for momentum in model.optimizer.momentums:
            assert np.all(momentum.numpy() == (not is_lost))


def test_the_published_running_statistics_are_ours_but_for_the_variances_estimate():
    # PyTorch's: a step for each ghost, in order, of the mean and of the variance with
    # n - 1. So there is no defect to train with.
    random = np.random.default_rng(0)
    images = random.normal(3, 2, size=(32, 5))
    layer = GhostBatchNormalization(8, momentum=0.9)
    layer(images, training=True)
    mean, variance, biased = np.zeros(5), np.ones(5), np.ones(5)
    for ghost in np.split(images, 4):
        mean = 0.9 * mean + 0.1 * ghost.mean(axis=0)
        variance = 0.9 * variance + 0.1 * ghost.var(axis=0, ddof=1)
        biased = 0.9 * biased + 0.1 * ghost.var(axis=0)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, biased, rtol=1e-5)
    # What the ghosts contribute differs by 8/7, and the initial value does not.
    np.testing.assert_allclose(variance - 0.9**4, 8 / 7 * (biased - 0.9**4), rtol=1e-12)


@pytest.mark.parametrize("task", ghost_size.TASKS)
def test_only_the_size_of_the_ghosts_differs(task):
    one = ghost_size.EXPERIMENT
    arms = {arm: resolved(one, task, arm) for arm in one.arms(task)}
    sizes = [arm["virtual_batch_size"] for arm in arms.values()]
    whole = arms["plain"]["batch_size"]
    assert sizes[:2] in ([0, 8], [0, 12])
    assert sizes[-1] == whole and all(whole % size == 0 for size in sizes[1:])
    for arm in arms.values():
        assert differences(arms["plain"], arm) <= {"virtual_batch_size"}


@pytest.mark.parametrize("task", where_it_turns.TASKS)
def test_each_change_changes_one_flag_of_the_shortest_regime(task):
    one = where_it_turns.EXPERIMENT
    shortest = next(iter(one.arms(task))).partition(": ")[0]
    flags = []
    for arm in one.arms(task):
        change, _, name = arm.partition(": ")
        if change != shortest:
            base = resolved(one, task, f"{shortest}: {name}")
            changed = differences(base, resolved(one, task, arm))
            assert len(changed) == 1
            flags += changed
    assert set(flags) == {"epochs", "warmup_updates", "clipnorm", "lr_scaling"}


def outcomes(*accuracies, **more):
    settings = {"model": "f1", "dataset": "mnist", "train_examples": 0}
    settings |= {"batch_size": 4096, "small_batch_size": 128}
    return [
        {
            "seed": seed,
            "accuracy": accuracy / 100,
            "updates": 140,
            "samples": 573_440,
            "wall_seconds": 1.0,
            "settings": settings,
            **more,
        }
        for seed, accuracy in enumerate(accuracies, 1)
    ]


def test_the_table_says_what_a_defect_explains_of_the_papers_gap():
    results = {
        "as ours: SB": outcomes(98, 98.2),
        "as ours: LB": outcomes(97.5, 97.3),
        "momentum lost: SB": outcomes(98, 98),
        "momentum lost: LB": outcomes(97),
    }
    shown = as_published.table(results)
    assert "| as ours | 2 | 98.10 ± 0.14 | 97.40 ± 0.14 |  |" in shown
    assert "| the paper |  | 98.27 | 97.05 | 97.55 | 97.60 | 98.53 |" in shown
    # 0.5 and 0.9: t is 12.706 at one degree of freedom.
    assert "| gap, SB - LB | 1.22 | as ours | 0.70 ± 2.54 |  |  |" in shown
    # Seed 1 alone has both: 1.0 - 0.5, of 1.22.
    assert "| gap, SB - LB | 1.22 | momentum lost | 1.00 | +0.50 | 41 % |" in shown
    assert "gain of" not in shown


def test_the_best_size_is_told_beside_the_small_batchs():
    results = {
        "plain": outcomes(99),
        "ghosts of 64": outcomes(97, 97.2),
        "ghosts of 128": outcomes(96, 97),
    }
    assert ghost_size.table(results).endswith(
        "The best size is 64. The small batch's, 128, is 0.60 points below it; the "
        "best one's deviation is 0.14."
    )
    assert "| no ghosts, plain | 1 | 99.00 |  |" in ghost_size.table(results)
    results["ghosts of 128"] = outcomes(98)
    assert ghost_size.best(results) == "The best size is the small batch's, 128."
    assert "It takes ghosts of 128" in ghost_size.best({"plain": outcomes(99)})
    figure = ghost_size.picture(results, "mnist")
    assert figure.axes[0].get_title() == "mnist, batch 4,096"


def test_a_change_is_compared_with_its_own_large_batch_if_it_has_one():
    results = {
        "10 epochs: SB": outcomes(98),
        "10 epochs: LB": outcomes(97, 97, high_rate_updates=30),
        "10 epochs: +LR": outcomes(96, 96.4, high_rate_updates=30),
        "no clipping: LB": outcomes(95, high_rate_updates=30),
        "no clipping: +LR": outcomes(96, high_rate_updates=30),
        "rate times 2: +LR": outcomes(97.5),
    }
    *_, base, clipping, rate = where_it_turns.table(results).splitlines()
    start = "| 10 epochs | 1 | 140 | 30 | 98.00 | 97.00 ± 0.00 | 96.20 ± 0.28 |"
    assert base == f"{start}  | -0.80 |  |"
    assert clipping.endswith("| 95.00 | 96.00 |  | +1.00 |  |")
    assert rate.endswith("| 97.50 |  | +0.50 |  |")


def test_an_experiment_trains_what_is_missing_and_is_collected(
    tmp_path, monkeypatch, capsys
):
    trained = []

    def train(arm, settings, data):
        trained.append((arm, settings.seed))
        write_training(settings, 0.9 + settings.seed / 100, examples=data.examples)
        run_dir = pathlib.Path(settings.run_dir)
        if (arm, settings.seed) == ("ghosts of 24", 2):
            outcome = json.loads((run_dir / "result.json").read_text())
            del outcome["accuracy"], outcome["loss"]
            diverged = json.dumps(outcome | {"diverged": 3})
            (run_dir / "result.json").unlink()
            (run_dir / "diverged.json").write_text(diverged)
            raise NotFinite(3, "of the test")

    one = dataclasses.replace(ghost_size.EXPERIMENT, train=train)
    words = [f"--folder={tmp_path}", "--seeds=2", "--only=plain|of (24|48)$"]
    picture = tmp_path / "sizes.png"
    words.append(f"--picture={picture}")
    monkeypatch.setattr(sys, "argv", ["ghost_size.py", "digits", *words])
    assert one.run("Tests") == 0
    names = ["plain", "ghosts of 24", "ghosts of 48"]
    assert trained == [(name, seed) for name in names for seed in (1, 2)]
    assert picture.stat().st_size > 1000
    assert "| 24 | 2 | 91.00 |  |" in capsys.readouterr().out

    rows = result_runs.collect([tmp_path / "digits"], "abc")
    assert [(row["arm"], row["seed"]) for row in rows] == trained
    assert {row["command"] for row in rows} == {
        "python benchmarks/ghost_size.py digits"
    }
    file = tmp_path / "kept.csv"
    result_files.write(file, rows)
    shown = result_tables.findings(result_files.read(file))
    assert shown == ghost_size.table(result_files.by_arm(rows))
    assert result_tables.kind_of(rows) == "ghost_size.py"
    assert result_tables.title(rows) == "small F1, digits, 6 epochs, 768 / 32"

    (tmp_path / "digits" / "command.txt").write_text("python other.py digits\n")
    with pytest.raises(result_runs.UsageError, match="command.txt of an experiment"):
        result_runs.collect([tmp_path / "digits"], "abc")


def test_an_experiment_without_its_data_ends_in_one_line(tmp_path, monkeypatch, capsys):
    words = ["mnist", f"--folder={tmp_path}", f"--data_dir={tmp_path / 'none'}"]
    monkeypatch.setattr(sys, "argv", ["ghost_size.py", *words])
    assert ghost_size.EXPERIMENT.run("Tests") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --dataset: got 'mnist'")

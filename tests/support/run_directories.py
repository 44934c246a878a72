"""Writes run directories like those of the program, without training."""

import dataclasses
import json
import pathlib

import pandas as pd
from conftest import settings_of

from gbn_keras.analysis.fits import AlphaFit
from gbn_keras.training import study
from gbn_keras.training.planner import Planner
from gbn_keras.training.report import paper, search_report
from gbn_keras.training.run.circumstances import circumstances

EXAMPLES = 60_000
STUDY = ("--mode=study", "--dataset=mnist", "--download", "--batch_size=4096")


def write_training(settings, accuracy, finished=True, examples=EXAMPLES):
    """Writes the files that a training writes."""
    plan = Planner(examples).plan(settings)
    run_dir = pathlib.Path(settings.run_dir)
    run_dir.mkdir(parents=True)
    (run_dir / "flags.cfg").write_text(plan.settings.flagfile())
    (run_dir / "plan.txt").write_text(plan.describe() + "\n")
    updates = [1, plan.updates]
    metrics = {
        "epoch": [0, plan.epochs - 1],
        "accuracy": [0.1, accuracy],
        "loss": [2.3, 0.1],
        "updates": updates,
        "val_accuracy": [0.1, accuracy],
        "val_loss": [2.3, 0.2],
    }
    pd.DataFrame(metrics).to_csv(run_dir / "metrics.csv", index=False)
    result = {
        "accuracy": accuracy,
        "loss": 0.2,
        "updates": plan.updates,
        "samples": plan.updates * plan.settings.batch_size,
        "high_rate_updates": plan.high_rate_updates,
        "wall_seconds": 1.5,
        "seed": settings.seed,
        "settings": dataclasses.asdict(plan.settings),
        "versions": {"keras": "3.99"},
        "hardware": {"devices": ["GPU of the test"], "cores": 7},
    }
    if finished:
        (run_dir / "result.json").write_text(json.dumps(result))


def write_study(run_dir, *flags, finished=10):
    """Writes a study with two seeds. The first `finished` trainings are finished.

    The arms' accuracies are 5, 4, ... points below the paper's. Seed 1 has a point less
    than that, seed 2 a point more.
    """
    settings = settings_of(*STUDY, "--seeds=2", f"--run_dir={run_dir}", *flags)
    settings, plans = study.prepare_study(settings, Planner(EXAMPLES))
    run_dir.mkdir(parents=True)
    (run_dir / "flags.cfg").write_text(settings.flagfile())
    wanted = paper.arms(dataclasses.asdict(settings))
    trainings = [(seed, arm) for seed in (1, 2) for arm in plans]
    for number, (seed, arm) in enumerate(trainings):
        accuracy = wanted.get(arm, 90) - (5 - study.ARMS.index(arm)) + (2 * seed - 3)
        folder = study.arm_directory(run_dir, arm, seed)
        own = dataclasses.replace(plans[arm].settings, run_dir=str(folder), seed=seed)
        if number <= finished:
            write_training(own, accuracy / 100, finished=number < finished)
    return run_dir


def write_sweep(run_dir, sizes):
    """Writes a sweep. 50 more examples in a batch give one more percent of accuracy."""
    flags = ("--mode=sweep", f"--batch_sizes={sizes}", "--dataset=mnist", "--download")
    settings = settings_of(*flags, f"--run_dir={run_dir}")
    settings, plans = study.prepare_sweep(settings, Planner(EXAMPLES))
    run_dir.mkdir(parents=True)
    (run_dir / "flags.cfg").write_text(settings.flagfile())
    for arm, plan in plans.items():
        folder = str(study.arm_directory(run_dir, arm, 1))
        own = dataclasses.replace(plan.settings, run_dir=folder)
        write_training(own, own.batch_size / 5000)
    return run_dir


def write_landscape(run_dir, *flags):
    """Writes the landscape of a fresh F1 on MNIST. Alpha is 2, or 1.9 far away."""
    flags = ("--mode=landscape", "--dataset=mnist", "--download", *flags)
    plan = Planner(EXAMPLES).plan(settings_of(*flags, f"--run_dir={run_dir}"))
    run_dir.mkdir(parents=True)
    (run_dir / "flags.cfg").write_text(plan.settings.flagfile())
    near = AlphaFit(2.0, 0.01, 0.9999)
    far = AlphaFit(1.9, 0.02, 0.9995)
    measured = {
        "network": "f1 on mnist, at initialization",
        "loss": 2.5,
        "weights_norm": 72.5,
        "directions": plan.settings.directions,
        "examples": plan.settings.batch_size,
        "fits": {
            "distance 0.1 to 1": dataclasses.asdict(near),
            "distance 1 to 10": dataclasses.asdict(far),
        },
        "paper": {"alpha": 2},
        **circumstances(plan),
    }
    (run_dir / "landscape.json").write_text(json.dumps(measured))
    return run_dir


def write_search(run_dir, trials=3, finished=True):
    """Writes a search over the learning rate. The larger it is, the better."""
    flags = ("--mode=tune", "--search=learning_rate:0.1,0.2,0.3", "--dataset=mnist")
    settings = settings_of(*flags, "--download", "--model=f1", f"--run_dir={run_dir}")
    run_dir.mkdir(parents=True)
    (run_dir / "flags.cfg").write_text(settings.flagfile())
    (run_dir / "plan.txt").write_text("random search\n")
    for rate in range(1, trials + 1):
        folder = run_dir / "trials" / f"rate{rate}"
        own = dataclasses.replace(
            settings, mode="train", run_dir=str(folder), learning_rate=rate / 10
        )
        write_training(own, 0.9 + rate / 100)
    if finished:
        table = search_report.read_trials(run_dir).assign(trial=[3, 2, 1])
        table.to_csv(run_dir / "tune.csv", index=False)
    return run_dir

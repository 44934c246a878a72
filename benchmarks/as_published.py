"""What the defects of the paper's published code do to its results.

    python benchmarks/as_published.py mnist --data_dir=...     # 10 epochs
    python benchmarks/as_published.py mnist_50 --data_dir=...  # the paper's 50
    python benchmarks/as_published.py c1 --data_dir=...        # a fifth of CIFAR-10
    python benchmarks/as_published.py c1_200 --data_dir=...    # the paper's 200 epochs
    python benchmarks/as_published.py mnist --data_dir=... --only=   # with +RA, too

Trains the paper's arms as the program does, and once more with each defect. Each
training has its own run directory and resumes bit for bit, so the same command goes on
after an interruption. `python benchmarks/results.py collect` keeps what is finished.

The defects (https://github.com/eladhoffer/bigBatch, read in 2026):

- **momentum lost**: the optimizer is made anew at every epoch, so its momentum starts
  from zero.
- **flips and crops**: MNIST's digits are padded by 2 pixels, cropped at random and
  flipped, as if they were photos.
- **C1's momentum**: its regime names none, so it has 0, at a rate of 0.001 and from
  epoch 60 on 0.01. The paper says 0.9. The task `c1` starts from the published 0, with
  the published rates, in as many epochs as `configs/scaled/table1_c1_cifar10.cfg` has.
  That file's own rate is ten times as large, which is a training of its own here.

Its running statistics are no defect. They take a step for each ghost, in order, as ours
do. But for the estimate of the variance (theirs has n - 1 where ours has n), both are
the same, as `tests/test_experiments.py` shows. Left out, too: the partial last batch
of an epoch, which it cuts into smaller ghosts, and which the program does not train on.
"""

import dataclasses
import statistics
import sys

import experiment
import keras
import table1
from experiment import PADDING, Experiment, Variant, regime_of

from gbn_keras.training.report import paper
from gbn_keras.training.report.comparison import accuracy_shown, study_table
from gbn_keras.training.run.tables import ARMS

# For each task, that of `table1.py` with the same regime and batch sizes.
_IN_TABLE = {
    "mnist": "mnist_10",
    "mnist_50": "mnist_50",
    "c1": "c1_10",
    "c1_200": "c1_200",
}
TASKS = {task: table1.TASKS[name] for task, name in _IN_TABLE.items()}

_MNIST = {
    "as ours": Variant(),
    "momentum lost": Variant(loses_momentum=True),
    "flips and crops": Variant(flips_and_crops=True),
    "both": Variant(loses_momentum=True, flips_and_crops=True),
}
_PUBLISHED_RATE = ("--learning_rate=0.001",)
_C1 = {
    "momentum 0": Variant(_PUBLISHED_RATE),
    "momentum 0.9": Variant(_PUBLISHED_RATE, momentum=0.9),
    "momentum 0.9, lost": Variant(_PUBLISHED_RATE, momentum=0.9, loses_momentum=True),
}
# The first one of each task is what the others are compared with.
VARIANTS = {
    "mnist": _MNIST,
    "mnist_50": _MNIST,
    "c1": {**_C1, "ten times the rate": Variant()},
    "c1_200": _C1,
}
_ALL = {name: variant for task in VARIANTS.values() for name, variant in task.items()}

# What a remedy does, by its name: the arms that it is the difference of.
_DIFFERENCES = {
    "gap, SB - LB": ("SB", "LB"),
    "gain of +LR": ("+LR", "LB"),
    "gain of +GBN": ("+GBN", "+LR"),
    "gain of +RA": ("+RA", "+GBN"),
}


def arms(task):
    """The flags of each arm: its name is that of the variant and of the paper's arm."""
    study = table1.arms(_IN_TABLE[task])
    return {
        f"{name}: {arm}": [*variant.flags, *flags]
        for name, variant in VARIANTS[task].items()
        for arm, flags in study.items()
    }


def variant_of(arm):
    """The variant of an arm."""
    return _ALL[arm.partition(": ")[0]]


def train(arm, settings, data):
    """Trains one arm of a variant."""
    from gbn_keras.training import trainer
    from gbn_keras.training.data.augmentation import ShiftAndFlip

    variant = variant_of(arm)
    if variant.flips_and_crops:
        data = dataclasses.replace(data, augmentation=ShiftAndFlip(PADDING))
    callbacks = (LosesMomentum(),) if variant.loses_momentum else ()
    with regime_of(settings.model, variant):
        trainer.train(settings, data, callbacks, verbose=0)


class LosesMomentum(keras.callbacks.Callback):
    """Sets the momentum of `keras.optimizers.SGD` to zero when an epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        """Forgets, unless a resumed training begins in the middle of the epoch."""
        optimizer = self.model.optimizer
        if int(optimizer.iterations.numpy()) % self.params["steps"] == 0:
            for momentum in optimizer.momentums:
                momentum.assign(keras.ops.zeros_like(momentum))


def table(results):
    """The accuracies of all variants, and what each defect explains."""
    return f"{_accuracies(results)}\n\n{_explained(results)}"


def _accuracies(results):
    lines = {}
    for arm, row in study_table(results).items():
        variant, _, study_arm = arm.partition(": ")
        line = lines.setdefault(variant, {"accuracy %": variant, "seeds": ""})
        line["seeds"] = str(row["seeds"])
        line[study_arm] = accuracy_shown(row)
    wanted = _of_the_paper(results)
    shown = {arm: f"{percent:.2f}" for arm, percent in wanted.items()}
    lines["paper"] = {"accuracy %": "the paper", **shown}
    return experiment.markdown(["accuracy %", "seeds", *ARMS], list(lines.values()))


def _explained(results):
    """A line for each difference between arms, and each variant."""
    names = ["difference of arms", "the paper's", "trained", "points", "change"]
    names.append("of the paper's")
    variants = list(dict.fromkeys(arm.partition(": ")[0] for arm in results))
    wanted, lines = _of_the_paper(results), []
    for name, (arm, other) in _DIFFERENCES.items():
        papers = wanted[arm] - wanted[other]
        found = {
            variant: points
            for variant in variants
            if (points := _differences(results, variant, arm, other))
        }
        base = found.get(variants[0], {})
        for variant, points in found.items():
            cells = (name, f"{papers:.2f}", variant, _mean(points.values()))
            line = dict(zip(names, cells, strict=False))
            both = [seed for seed in points if seed in base]
            if variant != variants[0] and both:
                changes = [points[seed] - base[seed] for seed in both]
                line["change"] = _mean(changes, sign="+")
                share = statistics.mean(changes) / papers
                line["of the paper's"] = f"{share:.0%}".replace("%", " %")
            lines.append(line)
    return (
        f"{experiment.markdown(names, lines)}\n\n"
        f"Points: mean over the seeds ± half of its 95 % interval. Change: from "
        f"`{variants[0]}`, seed by seed."
    )


def _differences(results, variant, arm, other):
    """By seed, how many points an arm of a variant is above another one."""
    one, two = (
        experiment.accuracies(results.get(f"{variant}: {name}", []))
        for name in (arm, other)
    )
    return {seed: one[seed] - two[seed] for seed in one if seed in two}


def _mean(values, sign=""):
    """The mean, and half its 95 % interval if there is one."""
    values = list(values)
    text = f"{statistics.mean(values):{sign}.2f}"
    if values[1:]:
        deviation = statistics.stdev(values)
        text += f" ± {experiment.half_interval(deviation, len(values)):.2f}"
    return text


def _of_the_paper(results):
    """The paper's accuracies for the network on the whole of the data set."""
    outcome = next(iter(results.values()))[0]
    return paper.arms(outcome["settings"] | {"train_examples": 0})


EXPERIMENT = Experiment(
    "as_published.py",
    "The published code's defects",
    TASKS,
    arms,
    table,
    train=train,
    variant=variant_of,
    usual=r": (SB|LB|\+LR|\+GBN)$",
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.run(__doc__.partition("\n")[0]))

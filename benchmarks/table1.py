"""The paper's arms, one training after the other: Table 1 in full and scaled down.

    python benchmarks/accelerator.py train table1:resnet44 --data=... --folder=...
    python benchmarks/table1.py mnist_50 --data_dir=... [--seeds=3] [--only=...]

`train.py` with a task's flagfile trains the same arms, and has a report page. This is
for `accelerator.py`, and where a single arm is wanted.
"""

import pathlib
import sys

from experiment import Experiment, markdown, study_flags
from matplotlib.figure import Figure

from gbn_keras.training.report import paper
from gbn_keras.training.report.comparison import accuracy_shown, study_table
from gbn_keras.training.run.tables import ARMS

_CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
# The flagfile of each task.
_FILES = {
    "mnist_10": "scaled/table1_f1_mnist.cfg",
    "mnist_50": "paper/table1_f1_mnist.cfg",
    "c1_10": "scaled/table1_c1_cifar10.cfg",
    "c1_200": "paper/table1_c1_cifar10.cfg",
    "resnet20": "scaled/table1_resnet20_cifar10.cfg",
    "resnet44": "paper/table1_resnet44_cifar10.cfg",
}
TASKS = {
    task: [f"--flagfile={_CONFIGS / file}", "--mode=train", "--seeds=1"]
    for task, file in _FILES.items()
}
_TITLES = {
    "mnist_10": "F1 on MNIST, a fifth of the regime",
    "mnist_50": "F1 on MNIST, batch 4,096 for 128",
    "c1_10": "C1 on 10,000 images of CIFAR-10, batch 1,024 for 128",
    "c1_200": "C1 on CIFAR-10, batch 4,096 for 128",
    "resnet20": "ResNet-20 on 5,000 images of CIFAR-10, batch 1,024 for 128",
    "resnet44": "ResNet-44 on CIFAR-10, batch 4,096 for 128",
}
_LARGE = {task: 4096 for task in TASKS} | {"c1_10": 1024, "resnet20": 1024}


def arms(task):
    """The flags of each arm."""
    return study_flags(_LARGE[task], 128)


def table(results):
    """The arms' accuracies, and the paper's below them."""
    rows = study_table(results)
    line = {arm: accuracy_shown(row) for arm, row in rows.items()}
    lines = [{"accuracy %": "ours", **line}]
    outcome = next(iter(results.values()))[0]
    if wanted := paper.arms(outcome["settings"]):
        of_paper = {arm: f"{percent:.2f}" for arm, percent in wanted.items()}
        lines.append({"accuracy %": "the paper", **of_paper})
    return markdown(["accuracy %", *ARMS], lines)


def picture(results, task):
    """Each arm's accuracy, beside the paper's."""
    rows = study_table(results)
    first = next(iter(results.values()))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        list(rows),
        [row["accuracy_mean"] for row in rows.values()],
        [row["accuracy_deviation"] for row in rows.values()],
        fmt="o",
        capsize=4,
        label=f"ours, ± one deviation of {len(first)} seeds",
    )
    if wanted := paper.arms(first[0]["settings"]):
        axes.plot(list(wanted), list(wanted.values()), "x", label="the paper")
    axes.axhline(rows["SB"]["accuracy_mean"], color="grey", linestyle=":")
    axes.set(ylabel="validation accuracy (%)", title=_TITLES[task])
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="lower right")
    return figure


EXPERIMENT = Experiment("table1.py", "The paper's Table 1", TASKS, arms, table, picture)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.run(__doc__.partition("\n")[0]))

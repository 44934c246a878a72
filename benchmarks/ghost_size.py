"""What ghosts alone do: validation accuracy against the number of examples in a ghost.

    python benchmarks/ghost_size.py digits [--seeds=3] [--picture=...]
    python benchmarks/ghost_size.py mnist --data_dir=...
    python benchmarks/ghost_size.py c1 --data_dir=...

Trains the large batch with ghosts of 8 examples, 16, 32 and so on up to the whole
batch, and with plain batch normalization. All else is the same for all: updates, order,
initial weights, and the small batch's rate times sqrt(M). Each training has its own run
directory, so the same command goes on after an interruption.
`python benchmarks/results.py collect` keeps what is finished.

Small ghosts do two things at once. Their statistics are noisier in training, which is
what the paper is about. The running statistics, which evaluation uses, take a step for
each ghost, so they also remember fewer examples: about ten ghosts.
"""

import sys

from experiment import Experiment, accuracies, half_interval, markdown
from matplotlib.figure import Figure

from gbn_keras.training.report.comparison import accuracy_shown, study_table

TASKS = {
    "digits": ["--batch_size=768", "--stretch=1"],
    # Evaluated at the beginning and the end only, to take a minute or so.
    "mnist": [
        *("--dataset=mnist", "--batch_size=4096", "--stretch=1"),
        *("--epochs=10", "--eval_every=10"),
    ],
    # As configs/scaled/table1_c1_cifar10.cfg, in half the updates.
    "c1": [
        *("--dataset=cifar10", "--model=c1", "--batch_size=1024", "--stretch=1"),
        *("--train_examples=10000", "--epochs=5", "--eval_every=5"),
        "--learning_rate=0.01",
    ],
}
_BATCH_SIZES = {"digits": 768, "mnist": 4096, "c1": 1024}
PLAIN, _GHOSTS = "plain", "ghosts of "
_SMALLEST = 8


def arms(task):
    """The flags of each arm."""
    sizes = [_BATCH_SIZES[task]]
    while (half := sizes[0] / 2) >= _SMALLEST and half.is_integer():
        sizes.insert(0, int(half))
    return {
        PLAIN: ["--virtual_batch_size=0"],
        **{f"{_GHOSTS}{size}": [f"--virtual_batch_size={size}"] for size in sizes},
    }


def table(results):
    """Accuracy by size as Markdown, and the best size in a sentence."""
    rows, lines = study_table(results), []
    names = ["ghosts of", "seeds", "accuracy %", "95 % interval: ±"]
    for arm, row in rows.items():
        number = len(accuracies(results[arm]))
        half = half_interval(row["accuracy_deviation"], number)
        cells = (
            "no ghosts, plain" if arm == PLAIN else f"{_size(arm):,}",
            str(row["seeds"]),
            accuracy_shown(row),
            f"{half:.2f}" if number > 1 else "",
        )
        lines.append(dict(zip(names, cells, strict=True)))
    return f"{markdown(names, lines)}\n\n{best(results)}"


def best(results):
    """The best size, beside the small batch's, in a sentence."""
    rows = {
        _size(arm): row
        for arm, row in study_table(results).items()
        if arm != PLAIN and accuracies(results[arm])
    }
    small = next(iter(results.values()))[0]["settings"]["small_batch_size"]
    if small not in rows:
        return f"It takes ghosts of {small}, the small batch's size, to compare them."
    size = max(rows, key=lambda size: rows[size]["accuracy_mean"])
    if size == small:
        return f"The best size is the small batch's, {small}."
    behind = rows[size]["accuracy_mean"] - rows[small]["accuracy_mean"]
    return (
        f"The best size is {size:,}. The small batch's, {small}, is {behind:.2f} "
        f"points below it; the best one's deviation is "
        f"{rows[size]['accuracy_deviation']:.2f}."
    )


def picture(results, task):
    """Accuracy by size, and plain batch normalization as a band."""
    rows = study_table(results)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if plain := rows.pop(PLAIN, None):
        mean, deviation = plain["accuracy_mean"], plain["accuracy_deviation"]
        axes.axhline(mean, color="grey", label="plain batch normalization")
        axes.axhspan(mean - deviation, mean + deviation, color="grey", alpha=0.3)
    axes.errorbar(
        [_size(arm) for arm in rows],
        [row["accuracy_mean"] for row in rows.values()],
        [row["accuracy_deviation"] for row in rows.values()],
        fmt="o-",
        capsize=3,
        label="ghosts, ± one deviation",
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    small = next(iter(results.values()))[0]["settings"]["small_batch_size"]
    axes.axvline(small, color="black", linestyle=":", label="the small batch")
    axes.set(xlabel="examples in a ghost", ylabel="validation accuracy (%)")
    axes.set_title(f"{task}, batch {_BATCH_SIZES[task]:,}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _size(arm):
    return int(arm.removeprefix(_GHOSTS))


EXPERIMENT = Experiment(
    "ghost_size.py", "What ghosts alone do", TASKS, arms, table, picture
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.run(__doc__.partition("\n")[0]))

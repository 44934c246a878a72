"""Validation accuracy against stretch, and what `--stretch=auto` makes of it.

    python benchmarks/stretch_curve.py digits [--seeds=3] [--folder=runs/stretch_curve]
    python benchmarks/stretch_curve.py mnist --data_dir=...     # 10 epochs
    python benchmarks/stretch_curve.py mnist_50 --data_dir=...  # the paper's 50
    python benchmarks/stretch_curve.py c1 --data_dir=... [--only=...]

Trains the small batch (SB) and the large batch with all remedies, with stretches of 1,
2, 4, 8, M and 2 M and with `auto`, the longest at last. `auto x 1.5` goes through a
regime with half as many epochs again. Each training has its own run directory, so the
same command goes on after an interruption. The table has for each

- the number of seeds, the mean validation accuracy over them and its deviation;
- the updates, and how many times more epochs than SB they are, the stretch;
- for a fixed stretch, the one that `--noise_scale` advises at its end.

Below it stands the smallest stretch whose mean is within one deviation of SB's.
`python benchmarks/results.py collect` keeps what is finished.
"""

import statistics
import sys

from experiment import Experiment, Results, markdown
from matplotlib.figure import Figure

TASKS = {
    "digits": ["--batch_size=768"],
    "mnist": ["--dataset=mnist", "--batch_size=4096", "--epochs=10"],
    "mnist_50": ["--dataset=mnist", "--batch_size=4096"],
    "c1": [
        *("--dataset=cifar10", "--model=c1", "--batch_size=1024"),
        *("--train_examples=10000", "--epochs=10", "--learning_rate=0.01"),
    ],
}
BATCH_RATIO = {"digits": 24, "mnist": 32, "mnist_50": 32, "c1": 8}
SMALL_BATCH = {"digits": 32, "mnist": 128, "mnist_50": 128, "c1": 128}
EPOCHS = {"digits": 6, "mnist": 10, "mnist_50": 50, "c1": 10}


def arms(task):
    """The flags of each arm."""
    ratio = BATCH_RATIO[task]
    small = [f"--batch_size={SMALL_BATCH[task]}", "--virtual_batch_size=0"]
    auto, longer = "--stretch=auto", f"--epochs={EPOCHS[task] * 3 // 2}"
    return {
        "SB": small,
        "auto": [auto],
        "auto, rate by gain": [auto, "--lr_scaling=gain"],
        "auto x 1.5": [auto, longer],
        "auto x 1.5, rate by gain": [auto, "--lr_scaling=gain", longer],
        # Two micro-batches, as with auto.
        **{
            f"stretch {stretch}": [
                *(f"--stretch={stretch}", "--noise_scale"),
                f"--micro_batch_size={ratio // 2 * SMALL_BATCH[task]}",
            ]
            for stretch in sorted({1, 2, 4, 8, ratio, 2 * ratio})
        },
    }


def rows_of(results):
    """A row for each arm: means over the seeds that did not diverge, and deviations."""
    rows = []
    for arm, outcomes in results.items():
        runs = [run for run in outcomes if "accuracy" in run]
        if not runs:
            continue
        accuracy = [100 * run["accuracy"] for run in runs]
        advised = [
            run["noise_scale"]["suitable_stretch"]
            for run in runs
            if "noise_scale" in run
        ]
        small = results.get("SB", runs)[0]
        stretches = [_stretch(run, small) for run in runs]
        rows.append(
            {
                "arm": arm,
                "seeds": len(runs),
                "accuracy": statistics.mean(accuracy),
                "deviation": statistics.stdev(accuracy) if len(runs) > 1 else 0,
                "updates": statistics.mean(run["updates"] for run in runs),
                "stretch": statistics.mean(stretches),
                "advised": statistics.mean(advised) if advised else None,
            }
        )
    return rows


def _stretch(run, small):
    """How many times more epochs than the small batch a training made."""
    # With `auto`, each training found its own.
    stretch = float(run.get("stretch", run["settings"]["stretch"]))
    return stretch * run["settings"]["epochs"] / small["settings"]["epochs"]


def table(results):
    """The table as Markdown, and which stretch was enough."""
    rows = rows_of(results)
    return f"{rows_table(rows)}\n\n{needed(rows)}"


def rows_table(rows):
    """The rows as Markdown."""
    lines = [
        "| training | seeds | accuracy % | updates | stretch | advised |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = f"{row['accuracy']:.2f}"
        if row["seeds"] > 1:
            accuracy += f" ± {row['deviation']:.2f}"
        advised = f"{row['advised']:.2f}" if row["advised"] else ""
        lines.append(
            f"| {row['arm']} | {row['seeds']} | {accuracy} | {row['updates']:,.0f} | "
            f"{row['stretch']:.4g} | {advised} |"
        )
    return "\n".join(lines)


def needed(rows):
    """The smallest of the fixed stretches that was enough, in a sentence."""
    fixed = [row for row in rows if row["arm"].startswith("stretch")]
    if not fixed or rows[0]["arm"] != "SB":
        return "It takes SB and a fixed stretch to say which stretch is enough."
    return (
        "The smallest fixed stretch with SB's mean accuracy, less one deviation: "
        f"{smallest_that_is_enough(rows)}."
    )


def smallest_that_is_enough(rows):
    """The smallest of the fixed stretches that was enough; SB's row is the first."""
    for row in rows:
        if row["arm"].startswith("stretch") and _is_enough(row, rows[0]):
            return f"{row['stretch']:g}"
    return "none of these"


def _is_enough(row, small):
    """Whether a mean is at least SB's, less one deviation."""
    return row["accuracy"] >= small["accuracy"] - small["deviation"]


# The columns of `summary` that show what an arm reached.
_REACHED = {
    "auto": "auto",
    "auto, rate by gain": "by gain",
    "auto x 1.5": "x 1.5",
    "auto x 1.5, rate by gain": "x 1.5, by gain",
}


def summary(named: dict[str, Results]) -> str:
    """A line for each task: what was needed, what was advised, what `auto` reached.

    Args:
        named: The results of each task, by its name.
    """
    lines = []
    for name, results in named.items():
        rows = {row["arm"]: row for row in rows_of(results)}
        small = rows["SB"]
        fixed = [row for arm, row in rows.items() if arm.startswith("stretch")]
        advised = [row["advised"] for row in fixed if row["advised"]]
        line = {
            "task": name,
            "SB": f"{_percent(small)} ({small['updates']:,})",
            "needed": smallest_that_is_enough(list(rows.values())),
            "advised": f"{min(advised):.2f} to {max(advised):.2f}",
            "auto chose": f"{rows['auto']['stretch']:.2f}",
        }
        for arm, column in _REACHED.items():
            if row := rows.get(arm):
                misses = "" if _is_enough(row, small) else ", misses"
                line[column] = f"{_percent(row)} ({row['updates']:,.0f}{misses})"
        lines.append(line)
    first = ["task", "SB", "needed", "advised", "auto chose"]
    return (
        f"{markdown([*first, *_REACHED.values()], lines)}\n\n"
        "Accuracy in percent, and the updates in brackets. `misses`: below SB's mean "
        "less one deviation. `by gain`: with `--lr_scaling=gain`. `x 1.5`: with half "
        "as many epochs again."
    )


def _percent(row):
    return f"{row['accuracy']:.2f} ± {row['deviation']:.2f}"


def picture(results, task):
    """Accuracy by stretch: fixed ones, what `auto` found, and SB as a band."""
    rows = rows_of(results)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    small = rows[0]
    least, most = (small["accuracy"] + sign * small["deviation"] for sign in (-1, 1))
    axes.axhspan(least, most, color="grey", alpha=0.3, label="SB ± one deviation")
    fixed = [row for row in rows if row["arm"].startswith("stretch")]
    auto = [row for row in rows if row["arm"] in ("auto", "auto x 1.5")]
    for chosen, style in ((fixed, "o-"), (auto, "*")):
        axes.errorbar(
            [row["stretch"] for row in chosen],
            [row["accuracy"] for row in chosen],
            [row["deviation"] for row in chosen],
            fmt=style,
            markersize=12 if style == "*" else 5,
            capsize=3,
            label="--stretch=auto" if style == "*" else "fixed stretch",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel="stretch", ylabel="validation accuracy (%)", title=task)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


EXPERIMENT = Experiment(
    "stretch_curve.py", "Stretch curves", TASKS, arms, table, picture
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.run(__doc__.partition("\n")[0]))

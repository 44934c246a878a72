"""Validation accuracy against stretch, and what `--stretch=auto` makes of it.

    python benchmarks/stretch_curve.py digits [--seeds=3] [--folder=runs/stretch]
    python benchmarks/stretch_curve.py mnist --data_dir=...
    python benchmarks/stretch_curve.py c1 --data_dir=... [--arm=SB --arm="stretch 4"]

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

import argparse
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

from matplotlib.figure import Figure
from side_by_side import write_json

import gbn_train
from gbn_keras.training import trainer
from gbn_keras.training.settings import Settings

TASKS = {
    "digits": ["--batch_size=768"],
    "mnist": ["--dataset=mnist", "--batch_size=4096", "--epochs=10"],
    "c1": [
        *("--dataset=cifar10", "--model=c1", "--batch_size=1024"),
        *("--train_examples=10000", "--epochs=10", "--learning_rate=0.01"),
    ],
}
BATCH_RATIO = {"digits": 24, "mnist": 32, "c1": 8}
SMALL_BATCH = {"digits": 32, "mnist": 128, "c1": 128}
EPOCHS = {"digits": 6, "mnist": 10, "c1": 10}


def main():
    """Trains what is missing, and prints the table after each arm."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arm", action="append", help="train only these")
    parser.add_argument("--folder", type=pathlib.Path, default="runs/stretch")
    parser.add_argument("--data_dir")
    parser.add_argument("--json", help="file to write all figures to")
    parser.add_argument("--picture", help="file to draw the curve to")
    arguments = parser.parse_args()
    task, folder = arguments.task, arguments.folder / arguments.task
    if unknown := set(arguments.arm or ()) - set(arms(task)):
        parser.error(f"--arm: got {unknown}, wanted some of {', '.join(arms(task))}")
    flags = TASKS[task] + [f"--data_dir={arguments.data_dir}"] * bool(
        arguments.data_dir
    )
    results, data = {}, None
    for arm in arguments.arm or arms(task):
        more = arms(task)[arm]
        for seed in range(1, arguments.seeds + 1):
            run_dir = arm_directory(folder, arm) / f"seed_{seed}"
            own = [*flags, *more, f"--seed={seed}", f"--run_dir={run_dir}"]
            settings = Settings(**gbn_train.parse(["train.py", *own]))
            data = data or trainer.load_data(settings)
            print(f"\n{arm}, seed {seed}", flush=True)
            found = trainer.train(settings, data, verbose=0)
            results.setdefault(arm, []).append(found)
        print(f"{table(rows_of(results))}\n\n{needed(rows_of(results))}", flush=True)
    write_json(arguments.json, rows_of(results))
    if arguments.picture:
        picture(rows_of(results), task).savefig(arguments.picture, dpi=150)


def arms(task):
    """The flags of each arm."""
    ratio = BATCH_RATIO[task]
    small = [f"--batch_size={SMALL_BATCH[task]}", "--virtual_batch_size=0"]
    stretches = sorted({1, 2, 4, 8, ratio, 2 * ratio})
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
            for stretch in stretches
        },
    }


def arm_directory(folder, arm):
    """The folder of an arm's trainings, inside that of its task."""
    return folder / arm.replace(" ", "_")


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
        stretches = [stretch_of(run, small) for run in runs]
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


def stretch_of(run, small):
    """How many times more epochs than the small batch a training made."""
    # With `auto`, each training found its own.
    stretch = float(run.get("stretch", run["settings"]["stretch"]))
    return stretch * run["settings"]["epochs"] / small["settings"]["epochs"]


def table(rows):
    """The table as Markdown."""
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
    least = rows[0]["accuracy"] - rows[0]["deviation"]
    enough = [f"{row['stretch']:g}" for row in fixed if row["accuracy"] >= least]
    return (
        "The smallest fixed stretch with SB's mean accuracy, less one deviation: "
        f"{enough[0] if enough else 'none of these'}."
    )


def picture(rows, task):
    """Accuracy by stretch: fixed ones, what `auto` found, and SB as a band."""
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


if __name__ == "__main__":
    main()

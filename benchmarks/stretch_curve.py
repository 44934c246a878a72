"""Validation accuracy against stretch, and what `--stretch=auto` makes of it.

    python benchmarks/stretch_curve.py digits [--seeds=3] [--folder=runs/stretch]
    python benchmarks/stretch_curve.py mnist --data_dir=...
    python benchmarks/stretch_curve.py c1 --data_dir=...

Trains the small batch (SB) and the large batch with all remedies, with stretches of 1,
2, 4, 8, M and 2 M and with `auto`. Each training has its own run directory, so the same
command goes on after an interruption. The table has for each

- the mean validation accuracy over the seeds and its deviation;
- the updates, and the stretch that they are;
- for a fixed stretch, the one that `--noise_scale` advises at its end.

Below it stands the smallest stretch whose mean is within one deviation of SB's.
"""

import argparse
import pathlib
import statistics

import gbn_train  # First: it turns on what the program turns on.
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


def main():
    """Trains what is missing, and prints the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, default="runs/stretch")
    parser.add_argument("--data_dir")
    arguments = parser.parse_args()
    task, folder = arguments.task, arguments.folder / arguments.task
    flags = TASKS[task] + [f"--data_dir={arguments.data_dir}"] * bool(
        arguments.data_dir
    )
    results, data = {}, None
    for seed in range(1, arguments.seeds + 1):
        for arm, more in arms(task).items():
            run_dir = folder / arm.replace(" ", "_") / f"seed_{seed}"
            own = [*flags, *more, f"--seed={seed}", f"--run_dir={run_dir}"]
            settings = Settings(**gbn_train.parse(["train.py", *own]))
            data = data or trainer.load_data(settings)
            print(f"\n{arm}, seed {seed}", flush=True)
            found = trainer.train(settings, data, verbose=0)
            results.setdefault(arm, []).append(found)
        print(table(results), flush=True)


def arms(task):
    """The flags of each arm."""
    ratio = BATCH_RATIO[task]
    small = [f"--batch_size={SMALL_BATCH[task]}", "--virtual_batch_size=0"]
    stretches = sorted({1, 2, 4, 8, ratio, 2 * ratio})
    return {
        "SB": small,
        "auto": ["--stretch=auto"],
        "auto, rate by gain": ["--stretch=auto", "--lr_scaling=gain"],
        # Two micro-batches, as with auto.
        **{
            f"stretch {stretch}": [
                *(f"--stretch={stretch}", "--noise_scale"),
                f"--micro_batch_size={ratio // 2 * SMALL_BATCH[task]}",
            ]
            for stretch in stretches
        },
    }


def table(results):
    """The table as Markdown."""
    lines = ["| | accuracy % | updates | stretch | advised |", "|---|---|---|---|---|"]
    means = {}
    for arm, runs in results.items():
        accuracy = [100 * run["accuracy"] for run in runs]
        means[arm] = statistics.mean(accuracy)
        text = f"{means[arm]:.2f}"
        if len(runs) > 1:
            text += f" ± {statistics.stdev(accuracy):.2f}"
        updates = statistics.mean(run["updates"] for run in runs)
        found = [run["stretch"] for run in runs if "stretch" in run]
        stretch = f"{statistics.mean(found):.2f}" if found else arm.split()[-1]
        advised = [
            run["noise_scale"]["suitable_stretch"]
            for run in runs
            if "noise_scale" in run
        ]
        advice = f"{statistics.mean(advised):.2f}" if advised else ""
        lines.append(f"| {arm} | {text} | {updates:,.0f} | {stretch} | {advice} |")
    small = [100 * run["accuracy"] for run in results["SB"]]
    least = means["SB"] - (statistics.stdev(small) if len(small) > 1 else 0)
    enough = [arm for arm in results if arm[:7] == "stretch" and means[arm] >= least]
    needed = enough[0].split()[1] if enough else "none of these"
    lines.append(f"\nneeded for SB's accuracy, less one deviation: stretch {needed}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

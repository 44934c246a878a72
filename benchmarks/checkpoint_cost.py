"""Measures what fraction of F1's training time on MNIST goes into checkpoints.

    python benchmarks/checkpoint_cost.py --data_dir=DIR [--json=FILE]

The program trains with batches of 4096 for 20 epochs of 14 updates. It writes a
checkpoint after each epoch and every 100 updates; then, for comparison, every 10. The
time of a checkpoint runs from reading the first variable until the file has its final
name, and is part of the training time. Takes five minutes on two cores.
"""

import argparse
import statistics
import tempfile
import time

import gbn_train  # isort: skip (sets variables that TensorFlow reads on import)
from side_by_side import write_json

from gbn_keras.training import driver, trainer
from gbn_keras.training.data import datasets
from gbn_keras.training.run.checkpoint import Checkpointing
from gbn_keras.training.settings import Settings

FLAGS = ("--dataset=mnist", "--batch_size=4096", "--epochs=20", "--stretch=1")


class TimedCheckpointing(Checkpointing):
    """Records how long each checkpoint takes."""

    all_seconds = []

    def _save(self):
        started = time.perf_counter()
        super()._save()
        self.all_seconds.append(time.perf_counter() - started)


def main():
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", required=True, help="folder that holds MNIST")
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    data = datasets.load("mnist", arguments.data_dir)
    driver.Checkpointing = TimedCheckpointing
    rows = []
    print(f"{'every':>6}{'seconds':>12}{'checkpoints':>13}{'ms each':>9}{'share':>8}")
    for every in (100, 10):
        seconds = TimedCheckpointing.all_seconds = []
        with tempfile.TemporaryDirectory() as run_dir:
            flags = (*FLAGS, f"--data_dir={arguments.data_dir}", f"--run_dir={run_dir}")
            values = gbn_train.parse(
                ["train.py", *flags, f"--checkpoint_every={every}"]
            )
            result = trainer.train(Settings(**values), data, verbose=0)
        row = {
            "every": every,
            "training_seconds": result["wall_seconds"],
            "checkpoints": len(seconds),
            "milliseconds": 1e3 * statistics.median(seconds),
            "share": sum(seconds) / result["wall_seconds"],
        }
        rows.append(row)
        print(
            f"{every:6}{row['training_seconds']:12.1f}{row['checkpoints']:13}"
            f"{row['milliseconds']:9.0f}{row['share']:8.2%}",
            flush=True,
        )
    write_json(arguments.json, rows)


if __name__ == "__main__":
    main()

"""Resident memory of one process that trains many models, one after another.

    python benchmarks/memory_growth.py [--trainings=100] [--case=program|fit]

`program`: ResNet-8 on digits by the program's trainer, two batch sizes in turn, a few
updates each. `fit`: six convolutions with ghosts by Keras's own `fit`, made anew each
time, two batch sizes in turn. `--plain` does the same without ghosts, for comparison:
what TensorFlow and Keras keep themselves. The figure is the growth from the tenth
training to the last, in MB of 2^20 bytes.
"""

import argparse
import contextlib
import gc
import io
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import gbn_train
from gbn_keras import GhostBatchNormalization
from gbn_keras.training import trainer
from gbn_keras.training.settings import Settings

BATCH_SIZES = (256, 512)


def program(batch_size: int, ghost: int) -> None:
    """One training of a run directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            "--model=resnet8",
            f"--batch_size={batch_size}",
            f"--virtual_batch_size={ghost}",
            "--max_updates=3",
            f"--run_dir={folder}/run",
        )
        settings = Settings(**gbn_train.parse(["train.py", *flags]))
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train(settings, verbose=0)


def fit(batch_size: int, ghost: int) -> None:
    """One training by Keras alone."""
    keras.backend.clear_session()
    layers = [keras.Input((8, 8, 1))]
    for _ in range(6):
        layers += [
            keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
            GhostBatchNormalization(ghost or None),
            keras.layers.ReLU(),
        ]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = np.zeros((2 * batch_size, 8, 8, 1), "float32")
    y = np.zeros(2 * batch_size, "int32")
    model.fit(x, y, batch_size=batch_size, verbose=0)


def resident_megabytes() -> float:
    """Of this process, now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainings", type=int, default=100)
    parser.add_argument("--case", choices=("program", "fit"), default="program")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()

    train = program if arguments.case == "program" else fit
    after_ten = None
    for number in range(1, arguments.trainings + 1):
        train(BATCH_SIZES[number % 2], 0 if arguments.plain else 32)
        if number % 10 == 0:
            gc.collect()
            now = resident_megabytes()
            after_ten = after_ten or now
            print(
                f"after {number:4} trainings: {now:6.0f} MB, {now - after_ten:+.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()

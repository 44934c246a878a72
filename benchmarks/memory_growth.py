"""Measures the resident memory of a process that trains many models in turn.

    python benchmarks/memory_growth.py [--trainings=100] [--case=program|fit] [--plain]

`program`: the program trains ResNet-8 on digits, a few updates each time.
`fit`: Keras's `fit` trains a new model each time, six convolutions with ghosts.
`--plain`: the same without ghosts, to show what TensorFlow and Keras keep themselves.

Both cases alternate between two batch sizes. The figure is the growth since the tenth
training, in MB of 2^20 bytes.
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
    """Trains once with the program, in a new run directory."""
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
    """Trains once with Keras's `fit`."""
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
    """The memory that this process has now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Trains, and prints the memory after every ten trainings."""
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

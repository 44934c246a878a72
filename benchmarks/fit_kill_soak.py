"""Kills a plain Keras `fit` with `ExactResume`; it must end like an undisturbed one.

    python benchmarks/fit_kill_soak.py [--kills=30] [--backends=tensorflow,jax,torch]

A training is a small network on scikit-learn's digits, with dropout, ghosts and Adam,
and a checkpoint every 3 updates (an epoch has 29). On each backend, it gets SIGKILL at
random moments after its first update, until there were enough kills. Three more kills
come while it writes a checkpoint:

- in the middle of writing it
- when it is written but does not have its final name yet
- when it has its name but the oldest one is not deleted yet

A training that ends is compared: the last checkpoint (weights, running statistics,
optimizer, seeds, metrics) and the logs of all epochs must be the undisturbed one's, bit
for bit. Then another one begins. The exit code is 1 if anything differs.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

from killed_program import PROVOKED, checkpoints, kill_at
from side_by_side import write_json

from gbn_keras.resume.checkpoint_file import decode

_TIMEOUT = 300  # Seconds of a process. SIGTERM gives another exit code.
EPOCHS = 6


def main():
    """Kills, resumes, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="random kills, each")
    parser.add_argument("--backends", default="tensorflow,jax,torch")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments")
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    rows = []
    for backend in arguments.backends.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = soak(backend, pathlib.Path(folder), arguments)
        print(
            f"{backend}: {row['kills']} random kills and {row['provoked']} while "
            f"writing, {row['in an epoch']} of which left a checkpoint within an "
            f"epoch; {row['same']} of {row['trainings']} trainings equal the "
            "undisturbed one",
            flush=True,
        )
        rows.append(row)
    write_json(arguments.json, rows)
    return int(any(row["same"] < row["trainings"] for row in rows))


def soak(backend, folder, arguments):
    """The row of a backend: how many kills, and how many trainings are the same."""
    # It imports the whole program, for which the killed processes would wait.
    from kill_soak import same_arrays

    generator = random.Random(f"{arguments.seed} {backend}")
    run(backend, folder / "undisturbed")
    wanted = result(folder / "undisturbed")
    row = {"backend": backend, "kills": 0, "in an epoch": 0, "provoked": 0}
    row |= {"trainings": 0, "same": 0}
    provoked = [f"{moment}:{generator.randint(3, 9)}" for moment in PROVOKED]
    while row["kills"] < arguments.kills or provoked:
        own = folder / f"run_{row['trainings']}"
        is_killed = True
        while is_killed:
            if provoked:
                is_killed = run(backend, own, provoked.pop())
                row["provoked"] += is_killed
            elif row["kills"] < arguments.kills:
                is_killed = run(backend, own, after=generator.uniform(0, 0.4))
                row["kills"] += is_killed
            else:
                is_killed = run(backend, own)
            row["in an epoch"] += is_killed and result(own)[1]["place"] > 0
        row["trainings"] += 1
        arrays, facts = result(own)
        is_same = facts["logs_of_epochs"] == wanted[1]["logs_of_epochs"]
        row["same"] += is_same and same_arrays(arrays, wanted[0])
    return row


def result(folder):
    """The arrays and facts of the newest checkpoint, of none if there is none yet."""
    files = checkpoints(folder)
    return decode(files[-1].read_bytes()) if files else ({}, {"place": 0})


def run(backend, folder, moment="", after=None):
    """Trains in a process, and kills it at a moment or `after` seconds of training.

    Returns:
        Whether it was killed before it ended.
    """
    command = [sys.executable, __file__, "train", str(folder), moment]
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        alarm = threading.Timer(_TIMEOUT, process.terminate)
        alarm.start()
        for line in process.stdout:
            if after is not None and line.startswith("first update"):
                time.sleep(after)
                process.kill()
        code = process.wait()
        alarm.cancel()
    if code not in (0, -9):
        raise RuntimeError(f"{backend}: exit code {code}")
    return code == -9


def train(folder, moment):
    """The training, in a process of its own."""
    import keras
    from sklearn.datasets import load_digits

    from gbn_keras import ExactResume, GhostBatchNormalization

    if moment:
        kill_at(*moment.split(":"))
    told = keras.callbacks.LambdaCallback(on_train_batch_end=tell_once())
    if not checkpoints(pathlib.Path(folder)):  # Later starts have random seeds.
        keras.utils.set_random_seed(1)
    layers = keras.layers
    hidden = [layers.Dense(64), GhostBatchNormalization(16), layers.ReLU()]
    model = keras.Sequential(
        [keras.Input((64,)), *hidden, layers.Dropout(0.3), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    x, y = load_digits(return_X_y=True)
    resume = ExactResume(folder, every=3)
    model.fit(
        resume.batches(x.astype("float32") / 16, y, batch_size=64, seed=1),
        validation_data=(x[:100].astype("float32") / 16, y[:100]),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[told, resume],
    )


def tell_once():
    """Prints one line after the first update: the model is compiled."""
    lines = ["first update"]

    def tell(batch, logs):
        while lines:
            print(lines.pop(), flush=True)

    return tell


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        sys.exit(train(*sys.argv[2:]))
    sys.exit(main())

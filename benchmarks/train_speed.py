"""Measures training steps, and the program's speed compared with code by hand.

    python benchmarks/train_speed.py [--json=FILE]
    python benchmarks/train_speed.py --part=pytorch
    python benchmarks/train_speed.py --part=f1 --data_dir=DIR
    python benchmarks/train_speed.py --part=weight_distance --data_dir=DIR
    python benchmarks/train_speed.py --part=tensorboard --data_dir=DIR
    python benchmarks/train_speed.py --part=noise_scale --rounds=31

`resnet`: a step of ResNet-44 on CIFAR-10's shapes with each kind of normalization. Time
of an update, time of the first call (tracing and compiling), and peak memory.

`pytorch`: an update of ResNet-44, C1 and F1 as the program makes it, with ghosts and
with plain batch normalization, compared with PyTorch's own training loop in
channels_last with as many threads, in a process of its own.

`f1`: images per second of each arm of configs/scaled/table1_f1_mnist.cfg, compared with
the same training by hand: arrays, Keras's BatchNormalization, SGD and `fit`. Also the
fraction of a step that waits for data.

`weight_distance`: the fraction of F1's training time that logging the weights' distance
from their initial values takes.

`tensorboard`: the fraction that TensorBoard's events take, of the time by the clock and
of the processor's time.

`noise_scale`: how much longer an update in micro-batches takes if it also estimates the
gradient noise scale, and with `--stretch=auto`.
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys
import tempfile
import time

# The program is a script in the folder above, and not in the package.
sys.path.append(os.fspath(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

import keras
import numpy as np
import tensorflow as tf
from layer_speed import SplitGhosts
from program_updates import random_pixels, update_of
from side_by_side import median_ratio, peak_megabytes, time_in_turn, write_json
from train_speed_peers import measure_pytorch

import gbn_train as program
from gbn_keras import GhostBatchNormalization
from gbn_keras.analysis.weight_distance import WeightDistance
from gbn_keras.networks import f1, resnet
from gbn_keras.training import study
from gbn_keras.training.data import datasets
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner
from gbn_keras.training.run.tensorboard import TensorBoardLog
from gbn_keras.training.run.update_log import UpdateLog
from gbn_keras.training.settings import Settings


def main():
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = {
        "resnet": measure_resnet,
        "pytorch": measure_pytorch,
        "f1": measure_f1,
        "weight_distance": measure_weight_distance,
        "tensorboard": measure_tensorboard,
        "noise_scale": measure_noise_scale,
    }
    parser.add_argument("--part", choices=parts, default="resnet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--virtual_batch_size", type=int, default=128)
    parser.add_argument("--data_dir", help="MNIST's folder; default: random pixels")
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    write_json(arguments.json, parts[arguments.part](arguments))


def measure_resnet(arguments):
    """Compares an update of ResNet-44 with each kind of normalization."""
    batch, size = arguments.batch_size, arguments.virtual_batch_size
    kinds = {
        "Keras BatchNormalization": keras.layers.BatchNormalization,
        "GhostBatchNormalization": functools.partial(GhostBatchNormalization, size),
        "split, Keras BN, concat": functools.partial(SplitGhosts, size),
        "no normalization": None,
    }
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(batch, 32, 32, 3)), tf.float32)
    labels = tf.constant(random.integers(0, 10, batch))
    updates, first_call, memory = {}, {}, {}
    for name, normalization in kinds.items():
        model = resnet((32, 32, 3), 10, normalization)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=5.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
        updates[name] = tf.function(
            functools.partial(model.train_step, (images, labels)), autograph=False
        )
        started = time.perf_counter()
        updates[name]()
        first_call[name] = time.perf_counter() - started
        memory[name] = peak_megabytes(updates[name])
    times = time_in_turn(updates, arguments.rounds)
    print(f"ResNet-44, 32x32x3, batch {batch}, ghosts of {size}, graph")
    print(f"{'':28}{'s':>8}{'ratio':>8}{'first call s':>14}{'ratio':>8}{'peak MB':>9}")
    rows = []
    stock = "Keras BatchNormalization"
    for name in kinds:
        row = {
            "network": "resnet44",
            "batch_size": batch,
            "virtual_batch_size": size,
            "layer": name,
            "seconds": statistics.median(times[name]),
            "ratio": median_ratio(times[name], times[stock]),
            "first_call_seconds": first_call[name],
            "first_call_ratio": first_call[name] / first_call[stock],
            "peak_megabytes": memory[name],
        }
        rows.append(row)
        print(
            f"{name:28}{row['seconds']:8.2f}{row['ratio']:8.2f}"
            f"{row['first_call_seconds']:14.1f}{row['first_call_ratio']:8.2f}"
            f"{memory[name] or 0:9.0f}"
        )
    return rows


def measure_f1(arguments):
    """Compares one epoch of each arm of the MNIST study with `fit` by hand."""
    data = mnist(arguments.data_dir)
    config = "configs/scaled/table1_f1_mnist.cfg"
    config = pathlib.Path(program.__file__).parent / config
    flags = [f"--flagfile={config}", "--download", "--mode=train"]
    settings = Settings(**program.parse(["train.py", *flags]))
    plan = Planner(data.examples).plan(settings)
    print("F1 on MNIST, one epoch of fit, images per second")
    print(
        f"{'arm':8}{'batch':>6}{'program':>10}{'by hand':>10}{'ratio':>8}{'waits':>8}"
    )
    rows = []
    for arm, arm_settings in study.study_arms(plan.settings).items():
        plan = Planner(data.examples).plan(arm_settings)
        epochs = {
            "program": program_epoch(plan, data),
            "by hand": hand_epoch(plan, data),
        }
        times = time_in_turn(epochs, arguments.rounds, seconds=0)
        images = plan.updates_per_epoch * plan.settings.batch_size
        by = {name: images / statistics.median(times[name]) for name in epochs}
        row = {
            "arm": arm,
            "batch_size": plan.settings.batch_size,
            "images_per_second": by["program"],
            "images_per_second_by_hand": by["by hand"],
            "ratio": median_ratio(times["by hand"], times["program"]),
            "share_waiting_for_data": share_waiting(plan, data),
        }
        rows.append(row)
        print(
            f"{arm:8}{row['batch_size']:6}{by['program']:10,.0f}{by['by hand']:10,.0f}"
            f"{row['ratio']:8.2f}{row['share_waiting_for_data']:8.1%}",
            flush=True,
        )
    return rows


def measure_weight_distance(arguments):
    """Measures the callback's fraction of `fit`, for few updates and for many."""
    data = mnist(arguments.data_dir)
    rows = []
    print(f"{'batch':>6}{'updates':>9}{'rows':>8}{'ms a row':>12}{'share':>8}")
    for batch, updates in ((128, 100), (128, 2000), (4096, 100), (4096, 500)):
        flags = ("--dataset=mnist", "--download", f"--batch_size={batch}")
        settings = Settings(**program.parse(["train.py", *flags]))
        plan = Planner(data.examples).plan(settings)
        model = build_model(plan, data)
        batches = data.training_batches(batch, seed=1)
        model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)  # Traces.
        model.optimizer.iterations.assign(0)
        callback = TimedWeightDistance(tempfile.mkdtemp())
        started = time.perf_counter()
        model.fit(
            batches,
            steps_per_epoch=updates,
            shuffle=False,
            callbacks=[callback],
            verbose=0,
        )
        share = sum(callback.seconds) / (time.perf_counter() - started)
        row = {
            "batch_size": batch,
            "updates": updates,
            "rows": len(callback.seconds),
            "milliseconds": 1e3 * statistics.median(callback.seconds),
            "share": share,
        }
        rows.append(row)
        print(
            f"{batch:6}{updates:9,}{row['rows']:8}{row['milliseconds']:12.1f}"
            f"{share:8.2%}",
            flush=True,
        )
    return rows


def measure_tensorboard(arguments):
    """Compares epochs of F1 with and without the callback, in turn."""
    data = mnist(arguments.data_dir)
    rows = []
    print(f"{'batch':>6}{'updates':>9}{'clock':>9}{'processor':>11}")
    for batch, epochs in ((128, 1), (4096, 2)):
        flags = ("--dataset=mnist", "--download", f"--batch_size={batch}")
        plan = Planner(data.examples).plan(
            Settings(**program.parse(["train.py", *flags]))
        )
        model = build_model(plan, data)
        batches = data.training_batches(batch, seed=1)
        callback = TensorBoardLog(tempfile.mkdtemp(), plan)
        contenders = {"with": [callback], "without": []}
        clock, processor = ({name: [] for name in contenders} for _ in range(2))
        for done in range(arguments.rounds + 1):
            for name, callbacks in contenders.items():
                model.optimizer.iterations.assign(0)
                started = time.perf_counter(), time.process_time()
                model.fit(
                    batches,
                    steps_per_epoch=plan.updates_per_epoch,
                    epochs=epochs,
                    shuffle=False,
                    callbacks=callbacks,
                    verbose=0,
                )
                if done:  # The first round includes tracing.
                    clock[name].append(time.perf_counter() - started[0])
                    processor[name].append(time.process_time() - started[1])
        row = {"batch_size": batch, "updates": epochs * plan.updates_per_epoch}
        for unit, times in (("clock", clock), ("processor", processor)):
            row[unit] = median_ratio(times["with"], times["without"]) - 1
        rows.append(row)
        print(
            f"{batch:6}{row['updates']:9,}{row['clock']:9.1%}{row['processor']:11.1%}",
            flush=True,
        )
    return rows


class TimedWeightDistance(WeightDistance):
    """Records how long each row takes."""

    def __init__(self, folder):
        super().__init__(folder)
        self.seconds = []

    def _write_row(self):
        started = time.perf_counter()
        super()._write_row()
        self.seconds.append(time.perf_counter() - started)


def measure_noise_scale(arguments):
    """Measures how much longer an update in micro-batches takes with the estimate."""
    rows = []
    ways = {"plain": (), "noise scale": ("--noise_scale",), "auto": ("--stretch=auto",)}
    print(f"{'network':10}{'batch':>6}{'micro':>7}{'ms without':>12}", end="")
    print(f"{'noise scale':>13}{'auto':>8}")
    for network, shape, batch, micro_batch in (
        ("f1", (28, 28, 1), 4096, 512),
        ("f1", (28, 28, 1), 4096, 128),
        ("resnet20", (32, 32, 3), 512, 128),
    ):
        data = random_pixels("pixels", shape, batch)
        own = (
            *(f"--model={network}", f"--batch_size={batch}"),
            f"--micro_batch_size={micro_batch}",
        )
        updates = {way: update_of(data, *own, *more) for way, more in ways.items()}
        times = time_in_turn(updates, arguments.rounds)
        row = {
            "network": network,
            "batch_size": batch,
            "micro_batch_size": micro_batch,
            "milliseconds": 1e3 * statistics.median(times["plain"]),
            "share": median_ratio(times["noise scale"], times["plain"]) - 1,
            "share_of_auto": median_ratio(times["auto"], times["plain"]) - 1,
        }
        rows.append(row)
        print(
            f"{network:10}{batch:6}{micro_batch:7}{row['milliseconds']:12.1f}"
            f"{row['share']:13.2%}{row['share_of_auto']:8.2%}",
            flush=True,
        )
    return rows


def mnist(data_dir):
    """MNIST, or random pixels of its shape if there is no folder."""
    if data_dir:
        return datasets.load("mnist", data_dir)
    return random_pixels("mnist", (28, 28, 1), 60_000)


def program_epoch(plan, data):
    """An epoch as `trainer.train` runs it, with its log and TensorBoard's."""
    model = build_model(plan, data)
    folder = tempfile.mkdtemp()

    def epoch():
        model.fit(
            data.training_batches(plan.settings.batch_size, seed=1),
            steps_per_epoch=plan.updates_per_epoch,
            shuffle=False,
            callbacks=[
                UpdateLog(os.path.join(folder, "metrics.csv"), plan),
                TensorBoardLog(os.path.join(folder, "tensorboard"), plan),
            ],
            verbose=0,
        )

    return epoch


def hand_epoch(plan, data):
    """The same epoch by hand, as a user of Keras would write it."""
    mean, deviation = data.mean_and_deviation
    images = ((data.train_images - mean) / deviation).astype("float32")
    model = f1(data.image_shape, 10, keras.layers.BatchNormalization)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=5.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    batch = plan.settings.batch_size
    images = images[: plan.updates_per_epoch * batch]
    labels = data.train_labels[: len(images)]
    return lambda: model.fit(images, labels, batch_size=batch, verbose=0)


def share_waiting(plan, data):
    """The fraction of an epoch's time spent waiting for the next batch."""
    model = build_model(plan, data)
    batches = iter(data.training_batches(plan.settings.batch_size, seed=1))
    step = tf.function(model.train_step, autograph=False)
    step(next(batches))
    waited, started = 0.0, time.perf_counter()
    for _ in range(plan.updates_per_epoch):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    return waited / (time.perf_counter() - started)


if __name__ == "__main__":
    main()

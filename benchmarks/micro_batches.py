"""Measures what micro-batches cost: memory and time of ResNet-44's update, batch 4096.

    python benchmarks/micro_batches.py [--part=memory|time|estimate] [--json=FILE]

`memory`: peak resident memory of a process that makes two updates, each with one
micro-batch, with the whole batch in micro-batches, or with the whole batch at once
(which fails if the machine has too little memory).
`time`: one update in micro-batches, compared with as many updates of that size.
`estimate`: the memory that `--micro_batch_size=0` estimates, compared with the peak of
TensorFlow's allocator.
"""

import argparse
import functools
import os
import resource
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

import keras
import numpy as np
import tensorflow as tf
from side_by_side import median_ratio, peak_megabytes, time_in_turn, write_json

from gbn_keras import GhostBatchNormalization
from gbn_keras.large_batch.backends import tensorflow_memory as memory
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.networks import f1, resnet

# Memory left to the system when a process takes all it can get.
_RESERVE_GIB = 2


def main():
    """Measures and prints the chosen parts, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=["memory", "time", "estimate"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--micro_batch_size", type=int, default=512)
    parser.add_argument("--virtual_batch_size", type=int, default=128)
    parser.add_argument("--json", help="file to write all figures to")
    # Makes this process one of those that `memory` measures.
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return print_peak(arguments)
    parts = {
        "memory": measure_memory,
        "time": measure_time,
        "estimate": measure_estimate,
    }
    chosen = [arguments.part] if arguments.part else parts
    rows = [row for part in chosen for row in parts[part](arguments)]
    return write_json(arguments.json, rows)


def model_of(network, micro_batch_size, virtual_batch_size):
    """A compiled `LargeBatchModel`, and the shape of its images."""
    shape = {"resnet44": (32, 32, 3), "f1": (28, 28, 1)}[network]
    build = {"resnet44": resnet, "f1": f1}[network]
    ghosts = functools.partial(GhostBatchNormalization, virtual_batch_size)
    model = LargeBatchModel(build(shape, 10, ghosts), micro_batch_size)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=5.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    return model, shape


def update_of(network, batch_size, micro_batch_size, virtual_batch_size):
    """A function that makes one update with random images."""
    model, shape = model_of(network, micro_batch_size, virtual_batch_size)
    random = np.random.default_rng(0)
    images = tf.constant(random.standard_normal((batch_size, *shape), np.float32))
    labels = tf.constant(random.integers(0, 10, batch_size))
    step = functools.partial(model.train_step, (images, labels))
    return tf.function(step, autograph=False)


def measure_memory(arguments):
    """Measures the peak resident memory of a process for each batch."""
    batch, micro = arguments.batch_size, arguments.micro_batch_size
    rows = []
    for batch_size, micro_batch_size in (
        (micro, micro),
        (batch, micro),
        (batch, batch),
    ):
        command = [sys.executable, __file__, "--child"]
        command += [f"--batch_size={batch_size}"]
        command += [f"--micro_batch_size={micro_batch_size}"]
        command += [f"--virtual_batch_size={arguments.virtual_batch_size}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        peak = float(lines[-1]) if done.returncode == 0 else None
        rows.append(
            {
                "batch_size": batch_size,
                "micro_batch_size": micro_batch_size,
                "peak_resident_megabytes": peak,
                "ratio": peak
                and peak / (rows[0]["peak_resident_megabytes"] if rows else peak),
            }
        )
        told = f"{peak:,.0f} MB, {rows[-1]['ratio']:.2f} x" if peak else "out of memory"
        print(f"batch {batch_size} in micro-batches of {micro_batch_size}: {told}")
    return rows


def print_peak(arguments):
    """Makes two updates, and prints the peak memory of this process."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = total - _RESERVE_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    update = update_of(
        "resnet44",
        arguments.batch_size,
        arguments.micro_batch_size,
        arguments.virtual_batch_size,
    )
    for _ in range(2):
        update()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_time(arguments):
    """Compares one update of the whole batch with updates of the micro-batch's size."""
    batch, micro = arguments.batch_size, arguments.micro_batch_size
    large = update_of("resnet44", batch, micro, arguments.virtual_batch_size)
    small = update_of("resnet44", micro, micro, arguments.virtual_batch_size)

    def several():
        for _ in range(batch // micro):
            small()

    times = time_in_turn({"one": large, "several": several}, arguments.rounds)
    ratio = median_ratio(times["one"], times["several"])
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"one update of {batch} in micro-batches of {micro}: {seconds['one']:.2f} s; "
        f"{batch // micro} updates of {micro}: {seconds['several']:.2f} s; "
        f"ratio {ratio:.3f}"
    )
    return [{"seconds": seconds, "ratio": ratio}]


def measure_estimate(arguments):
    """Compares the estimated memory with the allocator's peak."""
    rows = []
    for network, sizes in (("f1", (512, 4096)), ("resnet44", (128, 512))):
        for size in sizes:
            model, _ = model_of(network, size, arguments.virtual_batch_size)
            estimate = memory.peak_bytes(model, size) / 2**20
            update = update_of(network, size, size, arguments.virtual_batch_size)
            update()
            measured = peak_megabytes(update)
            rows.append(
                {
                    "network": network,
                    "micro_batch_size": size,
                    "estimated_megabytes": estimate,
                    "measured_megabytes": measured,
                }
            )
            print(
                f"{network}, {size} examples: estimated {estimate:,.0f} MB, "
                f"measured {measured or 0:,.0f} MB"
            )
    return rows


if __name__ == "__main__":
    main()

"""What a layer takes whose ghosts the replicas cut, in milliseconds and bytes.

    python benchmarks/cut_ghosts.py [--examples=512] [--channels=64] [--json=FILE]

Each contender is one layer, forward and backward, on 2 and 4 logical devices of the
CPU. They share its cores and its memory, so the times compare what the contenders
compute, not a network's speed. The bytes are what a replica gives to all-reduces,
running statistics included, counted from the calls.
"""

import argparse
import os
import statistics
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

import keras
import numpy as np
import tensorflow as tf
from side_by_side import median_ratio, time_in_turn, write_json

from gbn_keras import GhostBatchNormalization

REPLICAS = (2, 4)


def main():
    """Prints a table for each number of replicas."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=512, help="in the whole batch")
    parser.add_argument("--size", type=int, default=8, help="height and width")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * max(REPLICAS),
    )
    rows = [row for number in REPLICAS for row in compare(number, arguments)]
    write_json(arguments.json, rows)


def compare(replicas, arguments):
    """The contenders' rows on so many replicas, measured in turn."""
    share = arguments.examples // replicas
    layers = {
        "whole ghosts": lambda: GhostBatchNormalization(share // 2),
        "a ghost on two replicas": lambda: GhostBatchNormalization(2 * share),
        "straddling ghosts": lambda: GhostBatchNormalization(share * 3 // 4),
        "synchronized=True": lambda: keras.layers.BatchNormalization(synchronized=True),
    }
    calls, counts = {}, {}
    for name, make in layers.items():
        calls[name], counts[name] = update_of(make, replicas, arguments)
    times = time_in_turn(calls, arguments.rounds)
    shape = f"{arguments.examples}x{arguments.size}x{arguments.size}"
    print(f"\n{replicas} replicas, {shape}x{arguments.channels}, float32")
    print(f"{'':24}{'ms':>9}{'of whole':>10}{'all-reduces':>13}{'bytes':>9}")
    rows = []
    for name, seconds in times.items():
        row = {
            "replicas": replicas,
            "layer": name,
            "milliseconds": 1000 * statistics.median(seconds),
            "ratio": median_ratio(seconds, times["whole ghosts"]),
            **counts[name],
        }
        rows.append(row)
        print(
            f"{name:24}{row['milliseconds']:9.2f}{row['ratio']:10.2f}"
            f"{row['all_reduces']:13}{row['bytes']:9,}"
        )
    return rows


def update_of(make, replicas, arguments):
    """A layer's update as a function, and what it sends."""
    shape = (arguments.examples // replicas, arguments.size, arguments.size)
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        layer = make()
        layer.build((None, *shape[1:], arguments.channels))
    random = np.random.default_rng(0)
    shares = [
        strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                random.standard_normal((*shape, arguments.channels), np.float32)
            )
        )
        for _ in range(2)
    ]

    def on_replica(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        weights = [weight.value for weight in layer.trainable_variables]
        gradients = tape.gradient(y, [x, *weights], upstream)
        # One number stands for all, so that nothing else has to be copied.
        return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients])

    update = tf.function(
        lambda *args: strategy.run(on_replica, args), autograph=False
    ).get_concrete_function
    sent, context = [], tf.distribute.ReplicaContext
    original = context.all_reduce

    def counted(self, operation, value, *rest):
        sent.append(sum(x.shape.num_elements() * 4 for x in tf.nest.flatten(value)))
        return original(self, operation, value, *rest)

    with mock.patch.object(context, "all_reduce", counted):
        concrete = update(*shares)
    counts = {"all_reduces": len(sent) // replicas, "bytes": sum(sent) // replicas}

    def call():
        results = concrete(*shares)
        for value in strategy.experimental_local_results(results):
            value.numpy()

    return call, counts


if __name__ == "__main__":
    main()

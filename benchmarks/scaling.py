"""Estimates and measures the updates per second with more replicas.

    python benchmarks/scaling.py [--link_gbytes=12.5] [--images_per_second=...]
    python benchmarks/scaling.py --check

The estimate is that of `--mode=plan`; `gbn_keras.training.forecast.all_reduce` says
what it assumes of the all-reduce. Replace the assumptions by figures of your own. Also:

- A replica's share takes images / `--images_per_second`, however small it is. For small
  shares on a GPU, this is too optimistic.
- A replica whose share is smaller than a ghost of 128, or straddles some, exchanges the
  statistics of ghosts in each ghost layer. The last columns say how many bytes, in how
  many all-reduces, and which part of the update's time they take.

`--check` measures one and two workers on this machine, and the bare all-reduce, and
compares them with the estimate. Each worker is a process with a core of its own; they
communicate over 127.0.0.1.
"""

import argparse
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

import keras
import numpy as np
import tensorflow as tf
from side_by_side import write_json

from gbn_keras import GhostBatchNormalization
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.networks import f1, f1_digits, resnet
from gbn_keras.training.forecast import all_reduce

GHOST = 128
NETWORKS = {
    "f1_digits": (f1_digits, (8, 8, 1)),
    "f1": (f1, (28, 28, 1)),
    "resnet44": (resnet, (32, 32, 3)),
}


def main():
    """Prints the table or the check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch_size", type=int, help="131072; for --check, 4096")
    parser.add_argument(
        "--images_per_second",
        type=float,
        default=20_000,
        help="speed of one replica, forward and backward pass (measure it)",
    )
    parser.add_argument(
        "--link_gbytes",
        type=float,
        default=all_reduce.LINK_GBYTES,
        help="GB/s; 12.5 is 100 Gbit/s",
    )
    parser.add_argument(
        "--latency_us", type=float, default=all_reduce.LATENCY_US, help="per message"
    )
    parser.add_argument("--check", action="store_true", help="measure 1 and 2 replicas")
    parser.add_argument("--network", choices=NETWORKS, default="f1")
    parser.add_argument("--json", help="file to write all figures to")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch_size is None:
        arguments.batch_size = 4096 if arguments.check else 1024 * GHOST
    if arguments.worker is not None:
        return work(arguments)
    rows = check(arguments) if arguments.check else table(arguments)
    return write_json(arguments.json, rows)


@functools.cache
def model_of(network):
    """The network, with ghosts."""
    build, shape = NETWORKS[network]
    return build(shape, 10, functools.partial(GhostBatchNormalization, GHOST))


def bytes_of(network):
    """The number of bytes that the replicas sum for an update."""
    return all_reduce.bytes_of_update(model_of(network))


def seconds_of_update(replicas, batch_size, size, per_second, link, latency):
    """The estimated seconds `(computing, summing)`."""
    computing = batch_size / replicas / per_second
    summing = all_reduce.seconds_of_all_reduce(replicas, size, link, latency)
    return computing, summing


def table(arguments):
    """Prints and returns the updates per second for 1 to 1,024 replicas."""
    rows = []
    for network in NETWORKS:
        size = bytes_of(network)
        print(
            f"\n{network}: {size / 1e6:.2f} MB summed per update; batch "
            f"{arguments.batch_size}, {arguments.images_per_second:,.0f} images/s per "
            f"replica, links of {arguments.link_gbytes:g} GB/s, "
            f"{arguments.latency_us:g} us per message"
        )
        print(
            f"{'replicas':>9}{'share':>9}{'updates/s':>11}{'speedup':>9}{'efficiency':>12}"
            f"{'ghosts: MB':>12}{'all-reduces':>13}{'of update':>11}"
        )
        alone, costly = None, None
        link, latency = arguments.link_gbytes * 1e9, arguments.latency_us * 1e-6
        for replicas in (2**k for k in range(13)):
            share = arguments.batch_size // replicas
            if not share:
                break
            seconds = sum(
                seconds_of_update(
                    *(replicas, arguments.batch_size, size),
                    *(arguments.images_per_second, link, latency),
                )
            )
            cut = all_reduce.bytes_of_cut_ghosts(model_of(network), replicas, share)
            about_ghosts = sum(
                all_reduce.seconds_of_all_reduce(replicas, x, link, latency)
                for x in cut
            )
            seconds += about_ghosts
            if about_ghosts > 0.05 * seconds:
                costly = costly or replicas
            alone = alone or seconds
            row = {
                "network": network,
                "bytes": size,
                "replicas": replicas,
                "updates_per_second": 1 / seconds,
                "speedup": alone / seconds,
                "ghost_bytes": sum(cut),
                "ghost_all_reduces": len(cut),
                "ghost_part": about_ghosts / seconds,
            }
            rows.append(row)
            print(
                f"{replicas:9,}{share:9,}"
                f"{1 / seconds:11,.2f}{row['speedup']:9.1f}"
                f"{row['speedup'] / replicas:12.0%}"
                f"{row['ghost_bytes'] / 1e6:12.2f}{len(cut):13}"
                f"{row['ghost_part']:11.0%}"
            )
        print(
            f"ghosts across replicas cost more than 5 % of an update from {costly:,} "
            "replicas on"
            if costly
            else "ghosts across replicas never cost more than 5 % of an update"
        )
    return rows


def check(arguments):
    """Measures one and two workers on this machine, and compares the estimate."""
    one, two = (run_workers(number, arguments) for number in (1, 2))
    size = bytes_of(arguments.network)
    per_second = arguments.batch_size / one["update"]
    # A small all-reduce gives the latency, a full one the speed of the link.
    latency = two["few"] / 2
    link = size / max(1e-9, two["all"] - two["few"])
    computing, summing = seconds_of_update(
        2, arguments.batch_size, size, per_second, link, latency
    )
    rows = [
        {"replicas": 1, "measured": one["update"], "reckoned": one["update"]},
        {"replicas": 2, "measured": two["update"], "reckoned": computing + summing},
    ]
    print(
        f"{arguments.network}, batch {arguments.batch_size}, one core each: "
        f"{per_second:,.0f} images/s alone; {size / 1e6:.2f} MB summed at "
        f"{link / 1e6:,.0f} MB/s, {latency * 1e6:,.0f} us per message"
    )
    for row in rows:
        row["speedup"] = one["update"] / row["measured"]
        print(
            f"{row['replicas']} replica(s): {row['measured']:.3f} s per update "
            f"measured, {row['reckoned']:.3f} s estimated; speedup {row['speedup']:.2f}"
        )
    return rows


def run_workers(number, arguments):
    """The figures that the first of several workers measures."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    command = [sys.executable, __file__, f"--worker={number}"]
    command += [f"--batch_size={arguments.batch_size}"]
    command += [f"--network={arguments.network}"]
    workers = []
    try:
        for index in range(number):
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            workers.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, "TF_CONFIG": json.dumps(config)},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return json.loads(outputs[0].splitlines()[-1])


def work(arguments):
    """Times an update, a small and a full all-reduce as a worker; prints the times."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
    replicas = int(arguments.worker)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    build, shape = NETWORKS[arguments.network]
    share = arguments.batch_size // replicas
    with strategy.scope():
        ghosts = functools.partial(GhostBatchNormalization, GHOST)
        model = LargeBatchModel(build(shape, 10, ghosts), share)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
    random = np.random.default_rng(0)
    images = random.standard_normal((share, *shape), np.float32)
    labels = random.integers(0, 10, share)
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    data = strategy.distribute_datasets_from_function(lambda context, data=data: data)
    durations = Durations()
    model.fit(data, steps_per_epoch=25, shuffle=False, verbose=0, callbacks=[durations])
    few, all_of_them = (
        seconds_of_sum(strategy, floats)
        for floats in (1, bytes_of(arguments.network) // all_reduce.FLOAT)
    )
    # No worker may exit while another one still measures.
    seconds_of_sum(strategy, 1)
    print(
        json.dumps(
            {
                "update": statistics.median(durations.seconds[5:]),
                "few": few,
                "all": all_of_them,
            }
        )
    )


def seconds_of_sum(strategy, floats):
    """The median seconds of one all-reduce."""

    @tf.function(autograph=False)
    def summed(values):
        def on_replica(values):
            context = tf.distribute.get_replica_context()
            # Moves them to the replica's device, by which TensorFlow finds replicas.
            values = tf.identity(values)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, values)

        return strategy.run(on_replica, args=(values,))

    values, seconds = tf.ones([floats]), []
    for _ in range(25):
        started = time.perf_counter()
        tf.nest.map_structure(lambda v: v.numpy(), summed(values))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[5:])


class Durations(keras.callbacks.Callback):
    """Records the seconds of each update."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Stops the clock."""
        self.seconds.append(time.perf_counter() - self._started)


if __name__ == "__main__":
    main()

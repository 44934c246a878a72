"""Invariant 2: the same weights for any number of replicas and micro-batches."""

import functools
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import sameness
import tensorflow as tf

# What the design allows: relative, float32, after twenty updates. In float64 anything
# but rounding would show.
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}

SOME = [
    ("float64", 1, 4, False),
    ("float64", 2, 2, False),
    ("float64", 4, 1, False),
    ("float32", 2, 2, False),
    ("float32", 1, 2, True),
    ("float32", 2, 1, True),
]
EVERY = [*itertools.product(TOLERANCE, [1, 2, 4], [1, 2, 4], [False, True])]


def replicas_of(number):
    """A strategy over logical devices of the processor."""
    if number == 1:
        return None
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(number)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


@functools.cache
def one_device(network, dtype):
    """What Keras itself makes of it on one device."""
    return sameness.trained(network, dtype, wrapped=False)


def check(network, dtype, replicas, micro_batches, jit):
    strategy = replicas_of(replicas)
    result = sameness.trained(network, dtype, strategy, micro_batches, jit)
    assert sameness.distance(result, one_device(network, dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("network", sameness.NETWORKS)
@pytest.mark.parametrize("dtype, replicas, micro_batches, jit", SOME)
def test_replicas_and_micro_batches_do_not_matter(
    network, dtype, replicas, micro_batches, jit
):
    check(network, dtype, replicas, micro_batches, jit)


@pytest.mark.slow
@pytest.mark.parametrize("network", sameness.NETWORKS)
@pytest.mark.parametrize("dtype, replicas, micro_batches, jit", EVERY)
def test_no_combination_matters(network, dtype, replicas, micro_batches, jit):
    check(network, dtype, replicas, micro_batches, jit)


@pytest.mark.parametrize("network", sameness.NETWORKS)
def test_two_machines_give_the_result_of_one(network, tmp_path):
    result = tmp_path / "result.npz"
    run_workers(2, pathlib.Path(sameness.__file__), network, str(result))
    with np.load(result) as file:
        arrays = [file[key] for key in file.files]
    expected = one_device(network, "float32")
    assert sameness.distance(arrays, expected) < TOLERANCE["float32"]


def run_workers(number, script, *arguments):
    """Runs a script as so many workers on this machine, to their good end."""
    ports = free_ports(number)
    workers = []
    try:
        for index in range(number):
            config = {
                "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
                "task": {"type": "worker", "index": index},
            }
            workers.append(
                subprocess.Popen(
                    [sys.executable, str(script), *arguments],
                    env={**os.environ, "TF_CONFIG": json.dumps(config)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        for worker in workers:
            output, _ = worker.communicate(timeout=300)
            assert worker.returncode == 0, output[-3000:]
    finally:
        for worker in workers:
            worker.kill()


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports

"""`strategy_of`: the devices that share the batch, as a `tf.distribute` strategy.

A strategy does not change the result. The data sets give each replica its contiguous
share of the batch; `LargeBatchModel` and the layers do the rest.
"""

import contextlib
import functools
import json
import os
import socket

import numpy as np
import tensorflow as tf

from gbn_keras.shares import Shares
from gbn_keras.training.cluster.cluster_config import cluster_config
from gbn_keras.training.errors import Stopped, UsageError, first_line
from gbn_keras.training.settings import Settings

# TensorFlow raises these on one machine when another one is lost.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
)


class WorkerLost(Stopped):
    """Another machine of the cluster was lost."""


def strategy_of(settings: Settings) -> tf.distribute.Strategy:
    """The strategy that the settings name.

    Call it before TensorFlow computes anything, because it sets up devices. Later calls
    return the same strategy.

    Raises:
        UsageError: If the devices or the cluster cannot be found.
    """
    return _strategy(
        settings.strategy,
        settings.replicas,
        settings.cluster,
        settings.cluster_port,
        settings.tpu,
    )


@functools.cache
def _strategy(name, replicas, cluster, port, tpu):
    if name in ("one", "tpu") and replicas > 1:
        raise UsageError(
            f"--replicas: got {replicas}, wanted 0 with --strategy={name}. Leave it "
            "out, or use --strategy=mirrored."
        )
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multi_worker":
        return _multi_worker(replicas, cluster, port)
    if name == "tpu":
        return _tpu(tpu)
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the chief, which writes the files and prints."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    resolver = strategy.cluster_resolver
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return resolver.task_type == first and resolver.task_id == 0


def chief_says(strategy: tf.distribute.Strategy, said: bool) -> bool:
    """The chief's value of `said`, on all machines."""
    if strategy.num_replicas_in_sync == 1:
        return said
    vote = float(said and is_chief(strategy))
    votes = strategy.run(tf.function(lambda: tf.constant(vote)))
    return float(strategy.reduce(tf.distribute.ReduceOp.SUM, votes, axis=None)) > 0


def from_chief(strategy: tf.distribute.Strategy, content: bytes) -> bytes:
    """The chief's `content`, on all machines, with exactly the same bits."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return content
    content = content if is_chief(strategy) else b""
    length = int(_sum_over_replicas(strategy, np.array(len(content))))
    # Integers, because a sum of floats could change bits.
    words = np.zeros(-(-length // 4), np.int32)
    words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
    return _sum_over_replicas(strategy, words).tobytes()[:length]


def _sum_over_replicas(strategy, values):
    """The first replica's values, as a sum in which the others count as zeros."""

    def on_replica():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.where(tf.equal(replica, 0), values, tf.zeros_like(values))

    summed = strategy.run(tf.function(on_replica))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, summed, axis=None).numpy()


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Waits for all machines: one that left earlier would seem lost to the others."""
    chief_says(strategy, True)


@contextlib.contextmanager
def one_line_if_a_worker_is_lost():
    """Turns TensorFlow's errors about a lost machine into `WorkerLost`."""
    try:
        yield
    except _LOST as error:
        if "TF_CONFIG" not in os.environ:
            raise
        raise WorkerLost(
            "another machine of the cluster was lost, so this one stops too. Run the "
            "same command on all machines to resume."
        ) from error


def distribute(strategy: tf.distribute.Strategy, batches):
    """A data set that gives each replica its share of each batch.

    Args:
        strategy: The strategy.
        batches: A function from `Shares` to a data set, such as `validation_batches`.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batches()

    def pipeline(context):
        number = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * number
        return batches(shares=Shares(replicas, first, number))

    return strategy.distribute_datasets_from_function(pipeline)


def _mirrored(replicas):
    accelerators = tf.config.list_physical_devices("GPU")
    if accelerators:
        if replicas > len(accelerators):
            raise UsageError(
                f"--replicas: got {replicas}, wanted at most the {len(accelerators)} "
                "GPUs of this machine. Lower it, or use 0 for all GPUs."
            )
        number = replicas or len(accelerators)
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(number)])
    if not replicas:
        raise UsageError(
            "--replicas: got 0, wanted at least 1, because this machine has no GPU. "
            "Set the number of logical CPU devices."
        )
    _divide_processor(replicas)
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)],
        # The devices share one memory, so nothing has to be sent. The default's
        # collectives also fail if a process has strategies of several sizes.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def _divide_processor(replicas):
    """Makes logical CPU devices, unless there are enough already."""
    (processor,) = tf.config.list_physical_devices("CPU")
    if len(tf.config.get_logical_device_configuration(processor) or ()) >= replicas:
        return
    try:
        tf.config.set_logical_device_configuration(
            processor, [tf.config.LogicalDeviceConfiguration()] * replicas
        )
    except RuntimeError as error:
        raise UsageError(
            f"--replicas: got {replicas}, wanted at most the logical devices with "
            "which TensorFlow started in this process. Start a new process."
        ) from error


def _multi_worker(replicas, cluster, port):
    if replicas > 1:
        raise UsageError(
            f"--replicas: got {replicas}, wanted 0 with --strategy=multi_worker, which "
            "uses all GPUs of a machine, or else its processor. Leave it out."
        )
    config = cluster_config(cluster, port)
    workers = [x for job in ("chief", "worker") for x in config["cluster"].get(job, [])]
    task = config["task"]
    print(
        f"{task['type']} {task['index']} is waiting for all of {', '.join(workers)}",
        flush=True,
    )
    os.environ["TF_CONFIG"] = json.dumps(config)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        # TensorFlow would wait forever for a TPU that does not answer.
        host, separator, port = (
            resolver.master().removeprefix("grpc://").rpartition(":")
        )
        if separator:
            socket.create_connection((host, int(port)), timeout=30).close()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise UsageError(
            f"--tpu: got {name!r}, wanted a TPU that answers ({first_line(error)}). "
            "Name one (local on a TPU machine), or use another --strategy."
        ) from error
    return tf.distribute.TPUStrategy(resolver)

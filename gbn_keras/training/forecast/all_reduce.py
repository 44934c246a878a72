"""The time in which replicas sum their gradients, estimated.

The estimate assumes the following.

- Training is synchronous. An update is a replica's share, then one all-reduce, then the
  step, and nothing overlaps. (Only the last micro-batch could overlap, because the
  gradients of all micro-batches are summed before they are sent.)
- The all-reduce is a ring. Each of `R` replicas sends and receives `2 (R - 1) / R`
  times the bytes over its link, in `2 (R - 1)` messages. Trees, and switches that sum,
  are faster with 100 replicas or more.
- The bytes are float32 gradients, running statistics and a few sums, including loss and
  metrics. Reading data and the step itself take no time: data is read in the
  background, and the step takes milliseconds.
- If replicas cut ghosts, each ghost layer adds an all-reduce in the forward pass and
  one in the backward pass, which nothing overlaps either.
"""

import math

from gbn_keras._keras_internals import layers_of
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization

# Counts, weights, and the totals and counts of two metrics.
_SUMS = 6
FLOAT = 4

# GB per second of a link of 100 Gbit per second, and the microseconds of a message.
LINK_GBYTES = 12.5
LATENCY_US = 10.0


def bytes_of_update(model) -> int:
    """The number of bytes that the replicas sum for an update of a Keras model."""
    floats = sum(math.prod(variable.shape) for variable in model.weights)
    return FLOAT * (floats + _SUMS)


def bytes_of_cut_ghosts(model, replicas: int, share: int) -> list[int]:
    """The number of bytes in each all-reduce about ghosts that replicas cut.

    There are two for each ghost layer that no share fits: forward, mean and squares of
    each replica's one or two pieces; backward, two sums for each ghost.

    Args:
        model: A Keras model.
        replicas: Number of replicas.
        share: Number of examples of each replica.
    """
    sizes = []
    for layer in layers_of(model):
        ghost = getattr(layer, "virtual_batch_size", None)
        if isinstance(layer, GhostBatchNormalization) and ghost and share % ghost:
            row = FLOAT * 2 * layer.moving_mean.shape[0]
            pieces = 2 if ghost % share else 1
            sizes += [replicas * pieces * row, replicas * row]
    return sizes


def seconds_of_all_reduce(
    replicas: int, size: int, link: float, latency: float
) -> float:
    """The seconds of one all-reduce.

    Args:
        replicas: Number of replicas.
        size: Number of bytes that they sum.
        link: Bytes per second of each replica's link.
        latency: Seconds of a message.
    """
    sent = 2 * (replicas - 1) / replicas * size
    return sent / link + 2 * (replicas - 1) * latency

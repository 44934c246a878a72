"""Which examples each batch holds: the order of every epoch, cut into shares.

This module gives indices. Every data set, in memory or on disk, turns them into images.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gbn_keras.shares import WHOLE_BATCH, Shares


def training_shares(
    examples: int,
    batch_size: int,
    seed: int,
    start_update: int = 0,
    shares: Shares = WHOLE_BATCH,
    draw: Callable | None = None,
) -> tf.data.Dataset:
    """The endless stream of the training examples' indices, starting at any update.

    Every epoch has its own order, which depends only on `(seed, epoch)`. So the stream
    can start at any update, without computing the ones before it. Examples that do not
    fill the last batch of an epoch are left out of that epoch.

    Args:
        examples: Number of training examples.
        batch_size: Number of examples in an update.
        seed: Seed of the order and of the random numbers.
        start_update: Update to start with.
        shares: Shares of each batch to give, one after the other.
        draw: Function of `(examples, seed, epoch)` that draws random numbers for all
            examples, `(examples, count)`, for the augmentation.

    Returns:
        Elements `(indices,)`, int32 of shape `(batch_size / replicas,)`, or
        `(indices, numbers)` if there are numbers to draw.
    """
    updates_per_epoch = examples // batch_size
    sizes = [updates_per_epoch, shares.replicas, batch_size // shares.replicas]

    def shares_of_epoch(epoch):
        keys = tf.random.stateless_uniform(
            [examples],
            seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
            dtype=tf.int32,
            minval=None,
            maxval=None,
            alg="philox",  # The default depends on the device; the order must not.
        )
        order = tf.argsort(keys, stable=True)
        order = _cut(order[: updates_per_epoch * batch_size], sizes, shares)
        if draw is None:
            return tf.data.Dataset.from_tensor_slices((order,))
        numbers = tf.gather(draw(examples, seed, epoch), order)
        return tf.data.Dataset.from_tensor_slices((order, numbers))

    first_epoch, done_in_it = divmod(start_update, updates_per_epoch)
    return (
        tf.data.Dataset.range(first_epoch, tf.int64.max)
        .flat_map(shares_of_epoch)
        .skip(done_in_it * shares.number)
    )


def validation_shares(
    examples: int, largest: int, shares: Shares = WHOLE_BATCH
) -> tf.data.Dataset:
    """The validation examples' indices, in order, with weights.

    All batches have the same size, because accelerators work best that way. The last
    batch is filled up with the last example at weight 0. Means over a batch divide by
    its size, including the filling, so each example has a weight of
    `places / examples`, a little more than 1. Then the mean over all batches is the
    mean over the examples.

    Args:
        examples: Number of validation examples.
        largest: Largest number of examples in a batch.
        shares: Shares of each batch to give, one after the other.

    Returns:
        Elements `(indices, weights)`, int32 and float32, both of shape `(share,)`.
    """
    replicas = shares.replicas
    steps = validation_steps(examples, largest, replicas)
    sizes = [steps, replicas, _validation_share(examples, largest, replicas)]
    weight = np.prod(sizes) / examples

    def weighted(places):
        weights = tf.where(places < examples, tf.constant(weight, tf.float32), 0.0)
        return tf.minimum(places, examples - 1), weights

    places = tf.range(np.prod(sizes), dtype=tf.int32)
    return tf.data.Dataset.from_tensor_slices(_cut(places, sizes, shares)).map(weighted)


def validation_steps(examples: int, largest: int, replicas: int = 1) -> int:
    """Number of validation batches."""
    return -(-examples // (replicas * _validation_share(examples, largest, replicas)))


def _validation_share(examples, largest, replicas):
    return -(-min(largest, examples) // replicas)


def _cut(places, sizes, shares):
    """Cuts places into `sizes` (batches, replicas, examples); gives some shares."""
    cut = tf.reshape(places, sizes)[:, shares.first : shares.first + shares.number]
    return tf.reshape(cut, [-1, sizes[-1]])

"""Which examples the batches hold: the order of every epoch, cut into shares.

Written once for all data sets, in memory or on disk: they turn the indices that come
from here into images.
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
    """The endless stream of the training examples' indices from an update on.

    Every epoch has its own order, which depends on `(seed, epoch)` alone, so any update
    can be reached without the ones before it. The examples that do not fill an epoch's
    last batch are left out of that epoch.

    Args:
        examples: Number of training examples.
        batch_size: Number of examples of an update.
        seed: Of the order and the numbers.
        start_update: The update to start with.
        shares: The shares of each batch to give, one after the other.
        draw: Function of `(examples, seed, epoch)` that draws the random numbers of all
            examples, `(examples, count)`, for their augmentation.

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
            alg="philox",  # Elsewhere the default is another: the same order there.
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

    All batches are of one size, as accelerators want them: the last is filled up with
    the last example, at weight 0. What is summed over a batch is divided by its size,
    fillings included, so all others weigh a little more than 1: as many times as there
    are places for each example. Then a mean over all places, and over batches of one
    size, is the mean over the examples.

    Args:
        examples: Number of validation examples.
        largest: The largest batch.
        shares: The shares of each batch to give, one after the other.

    Returns:
        Elements `(indices, weights)`, int32 and float32 of one shape `(share,)`.
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
    """Cuts places by `sizes`: batches, replicas, examples; gives some replicas'."""
    cut = tf.reshape(places, sizes)[:, shares.first : shares.first + shares.number]
    return tf.reshape(cut, [-1, sizes[-1]])

"""Replicas on logical devices of the processor."""

import functools

import tensorflow as tf


@functools.cache  # Variables of two strategies do not mix, even of one size.
def replicas_of(number):
    """A strategy over logical devices of the processor."""
    if number == 1:
        return None
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(number)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )

"""Replicas on logical devices of the CPU."""

import functools

import tensorflow as tf


# Cached, because variables of two strategies do not mix, even if the sizes are equal.
@functools.cache
def replicas_of(number):
    """A strategy over `number` logical devices of the CPU; `None` for 1."""
    if number == 1:
        return None
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(number)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )

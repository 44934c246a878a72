"""Replicas on logical devices of the CPU."""

import contextlib
import functools

import pytest
from backend import IS_TENSORFLOW, TENSORFLOW_ONLY

if IS_TENSORFLOW:
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


def scope_of(number):
    """The scope in which to make a model for that many replicas."""
    if number == 1:
        return contextlib.nullcontext()
    if not IS_TENSORFLOW:
        pytest.skip(TENSORFLOW_ONLY)
    return replicas_of(number).scope()

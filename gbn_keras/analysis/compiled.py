"""Compilation of a pure function by whichever backend is in use."""

from collections.abc import Callable

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax


def compiled(function: Callable) -> Callable:
    """The function, traced once for each shape; on PyTorch, the function itself."""
    if keras.backend.backend() == "tensorflow":
        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        return jax.jit(function)
    return function

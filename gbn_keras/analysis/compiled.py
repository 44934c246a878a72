"""Compiles a pure function with the backend in use."""

from collections.abc import Callable

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax


def compiled(function: Callable) -> Callable:
    """The function, traced once per shape. On PyTorch, it is the function itself."""
    if keras.backend.backend() == "tensorflow":
        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        return jax.jit(function)
    return function

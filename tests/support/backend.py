"""The Keras backend under test: ways to run a function, and gradients."""

import importlib.util

import keras
import pytest
from keras import ops

NAME = keras.backend.backend()
IS_TENSORFLOW = NAME == "tensorflow"
IS_JAX = NAME == "jax"
# Values for Keras's `jit_compile`. PyTorch's compiler needs a C++ compiler.
JIT_COMPILE = (False,) if NAME == "torch" else (False, True)

# `test_backends.py` checks that nothing else is skipped.
TENSORFLOW_ONLY = "only for TensorFlow"
tensorflow_only = pytest.mark.skipif(not IS_TENSORFLOW, reason=TENSORFLOW_ONLY)

# JAX takes long to compile: a network for up to a minute.
SLOW_ON_JAX = [pytest.mark.slow] if NAME == "jax" else []

if NAME == "tensorflow":
    import tensorflow as tf

    WAYS = ("eager", "graph", "dynamic batch", "XLA")
elif NAME == "jax":
    import jax

    # Without it, JAX compiles every operation separately for every shape.
    WAYS = ("jit",)
else:
    import torch

    WAYS = ("eager",)


# Flags of XLA. LLVM's optimizations take long. With a plugin JAX computes on a GPU, for
# which it cannot compile without them.
JAX_COMPILES_FAST = (
    ""
    if importlib.util.find_spec("jax_plugins")
    else "--xla_backend_optimization_level=0"
)


def jax_keeps_programs_in(folder):
    """Environment of processes whose JAX compiles no program that another one did."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def without_tensorflow(folder):
    """A folder for PYTHONPATH: with it, TensorFlow is as if it were not installed."""
    (folder / "tensorflow.py").write_text("raise ImportError('blocked')")
    return str(folder)


def compiled(function, way=WAYS[-1], arguments=()):
    """A function of tensors that runs in one of the `WAYS`.

    With "dynamic batch", the batch size of the first of the `arguments` is unknown. All
    other sizes are those of the `arguments`.
    """
    if way == "eager":
        return function
    if way == "jit":
        return jax.jit(function)
    signature = None
    if way == "dynamic batch":
        signature = [tf.TensorSpec(x.shape, x.dtype) for x in arguments]
        signature[0] = tf.TensorSpec(
            [None, *arguments[0].shape[1:]], signature[0].dtype
        )
    return tf.function(function, input_signature=signature, jit_compile=way == "XLA")


def with_gradients(function, arrays, way=WAYS[0]):
    """`(results, gradients)` of `function(*tensors) -> (loss, results)`, in numpy."""
    return gradient_function(function, arrays, len(arrays), way)(*arrays)


def gradient_function(function, arrays, number, way=WAYS[0]):
    """`with_gradients` for arrays like `arrays`, compiled once for all of one shape.

    The gradients are those by the first `number` tensors.
    """
    if NAME == "tensorflow":

        def forward_and_backward(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors[:number])
                loss, results = function(*tensors)
            return results, tape.gradient(loss, tensors[:number])

    elif NAME == "jax":

        def forward_and_backward(*tensors):
            places = tuple(range(number))
            derived = jax.value_and_grad(function, places, has_aux=True)
            (_, results), gradients = derived(*tensors)
            return results, gradients

    else:

        def forward_and_backward(*tensors):
            sources = [tensor.clone().requires_grad_() for tensor in tensors[:number]]
            loss, results = function(*sources, *tensors[number:])
            return results, torch.autograd.grad(loss, sources)

    run = compiled(forward_and_backward, way, as_tensors(arrays))

    def in_numpy(*arrays):
        results = run(*as_tensors(arrays))
        return keras.tree.map_structure(ops.convert_to_numpy, results)

    return in_numpy


def as_tensors(arrays):
    return [ops.convert_to_tensor(array) for array in arrays]

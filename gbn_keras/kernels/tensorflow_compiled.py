"""XLA-compiled functions as single graph operations that do not leak memory."""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from gbn_keras.kernels.tensorflow_gradients import (
    dtypes_attribute,
    function_attribute,
    operation,
)

# Number of traced functions to keep. It is more than a network has, and few enough for
# a process that trains one network after another. Dropped functions are traced again.
_KEPT = 128


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function of tensors, compiled by XLA for each of their shapes.

    If a graph calls a `tf.function(jit_compile=True)`, TensorFlow (2.21) keeps a copy
    of the function's body for that graph forever, so memory grows with every model you
    train. When the graph runs, such a call becomes the operation `XlaLaunch`, of which
    TensorFlow keeps nothing. `Compiled` creates that operation directly. TensorFlow
    then also traces no gradient functions for each call.

    The gradient, of any order, is that of the function's own operations. It is traced
    where it is needed.

    Args:
        function: Function from tensors to a tuple of tensors. Its operations must have
            gradients. It is kept forever, so it must not hold tensors. Equal functions
            are traced once.
    """

    function: Callable

    def __call__(self, *tensors):
        """The outputs of the function."""
        shapes = tuple(tf.TensorSpec(x.shape, x.dtype) for x in tensors)
        function = _traced(self.function, shapes)
        if tf.executing_eagerly():
            return function(*tensors)
        with tf.init_scope():  # Otherwise it would keep the first caller's graph.
            function = function.get_concrete_function()
        return self._launch(function, tensors)

    def _launch(self, function, tensors):
        # Not `outputs`: TensorFlow appends to them for a gradient.
        known = function.structured_outputs
        dtypes = [x.dtype for x in known]
        launch = operation(
            "XlaLaunch",
            list(tensors),
            dtypes,
            {
                "Tconstants": dtypes_attribute([]),
                "Targs": dtypes_attribute([x.dtype for x in tensors]),
                "Nresources": tf.compat.v1.AttrValue(i=0),
                "Tresults": dtypes_attribute(dtypes),
                "function": function_attribute(function),
            },
            _GradientOfLaunch(self.function),
        )
        for output, traced in zip(launch.outputs, known, strict=True):
            output.set_shape(traced.shape)
        return tuple(launch.outputs)


@dataclasses.dataclass(frozen=True)
class _GradientOfLaunch:
    """Gradient by the inputs of an operation that launches a function."""

    function: Callable

    def __call__(self, operation, *upstreams):
        inputs = operation.inputs
        upstreams = [
            tf.zeros_like(output) if upstream is None else upstream
            for upstream, output in zip(upstreams, operation.outputs, strict=True)
        ]
        gradient = Compiled(_Gradient(self.function, len(inputs)))
        found = iter(gradient(*inputs, *upstreams))
        return [next(found) if x.dtype.is_floating else None for x in inputs]


@dataclasses.dataclass(frozen=True)
class _Gradient:
    """Gradient of a function of `number` tensors, by those with a floating dtype."""

    function: Callable
    number: int

    def __call__(self, *tensors):
        inputs, upstreams = tensors[: self.number], tensors[self.number :]
        sources = [x for x in inputs if x.dtype.is_floating]
        # Not a tape: it records nothing where `__call__` has this traced.
        outputs = self.function(*inputs)
        return tuple(
            tf.gradients(outputs, sources, upstreams, unconnected_gradients="zero")
        )


@functools.lru_cache(_KEPT)
def _traced(function, shapes):
    """The function, traced for inputs of these shapes and dtypes.

    Each combination gets its own `tf.function`, because TensorFlow warns about one that
    is traced often. It treats equal functions as the same one, but not partial ones.
    """
    return tf.function(
        functools.partial(function),
        input_signature=shapes,
        autograph=False,
        jit_compile=True,
    )

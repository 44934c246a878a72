"""Functions that XLA compiles, as single operations of graphs that can be forgotten."""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from gbn_keras._tensorflow_internals import record_gradient
from gbn_keras.kernels.tensorflow_gradients import registered

# The functions of so many shapes are kept: more than a network has, and few enough for
# a process that trains ever other networks. What is left out is traced again.
_KEPT = 128


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function of tensors, compiled by XLA for each of their shapes.

    Where a graph calls a `tf.function(jit_compile=True)`, TensorFlow (2.21) keeps a
    copy of the function's body for that graph, for good: memory grows with every model
    that is trained. When the graph runs, such a call becomes the operation `XlaLaunch`,
    of which nothing is kept; so here it is made to begin with. That also spares each
    call the functions that TensorFlow would trace for its gradient.

    The gradient, of any order, is that of the function's own operations. It is traced
    where it is asked for.

    Args:
        function: From tensors to a tuple of tensors, made of operations that have
            gradients. It is kept for good, so it holds no tensors; equal functions
            are traced once.
    """

    function: Callable

    def __call__(self, *tensors):
        """The function's outputs."""
        shapes = tuple(tf.TensorSpec(x.shape, x.dtype) for x in tensors)
        function = _traced(self.function, shapes)
        if tf.executing_eagerly():
            return function(*tensors)
        with tf.init_scope():  # Else it would hold the graph that was first to call it.
            function = function.get_concrete_function()
        return self._launch(function, tensors)

    def _launch(self, function, tensors):
        graph = tf.compat.v1.get_default_graph()
        function.add_to_graph(graph)
        # Not all of its `outputs`: for a gradient, TensorFlow appends to them.
        known = function.structured_outputs
        attribute, types = tf.compat.v1.AttrValue, [x.dtype for x in known]
        name = tf.compat.v1.NameAttrList(name=function.name)
        gradient = _GradientOfLaunch(self.function)
        with graph.gradient_override_map({"XlaLaunch": registered(gradient)}):
            operation = graph.create_op(
                "XlaLaunch",
                list(tensors),
                types,
                name="Compiled",
                attrs={
                    "Tconstants": _types([]),
                    "Targs": _types([x.dtype for x in tensors]),
                    "Nresources": attribute(i=0),
                    "Tresults": _types(types),
                    "function": attribute(func=name),
                },
            )
        for output, traced in zip(operation.outputs, known, strict=True):
            output.set_shape(traced.shape)
        # For a tape, which knows no names.
        record_gradient(
            "XlaLaunch",
            list(operation.outputs),
            list(operation.inputs),
            functools.partial(gradient, operation),
        )
        return tuple(operation.outputs)


@dataclasses.dataclass(frozen=True)
class _GradientOfLaunch:
    """By the inputs of an operation that launches a function."""

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
    """Of a function of so many tensors, by those that are numbers."""

    function: Callable
    number: int

    def __call__(self, *tensors):
        inputs, upstreams = tensors[: self.number], tensors[self.number :]
        sources = [x for x in inputs if x.dtype.is_floating]
        # Not by a tape, which records nothing where `__call__` has this traced.
        outputs = self.function(*inputs)
        return tuple(
            tf.gradients(outputs, sources, upstreams, unconnected_gradients="zero")
        )


def _types(types):
    """The attribute of an operation that lists dtypes."""
    types = [x.as_datatype_enum for x in types]
    return tf.compat.v1.AttrValue(list=tf.compat.v1.AttrValue.ListValue(type=types))


@functools.lru_cache(_KEPT)
def _traced(function, shapes):
    """For inputs of such shapes and dtypes.

    One for each, rather than one that is traced anew for each: TensorFlow warns of
    functions that are traced often, and takes equal ones for one, but not partial ones.
    """
    return tf.function(
        functools.partial(function),
        input_signature=shapes,
        autograph=False,
        jit_compile=True,
    )

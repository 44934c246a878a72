"""XLA's reduction of two tensors, for TensorFlow graphs that XLA compiles."""

import dataclasses
import functools

import tensorflow as tf

from gbn_keras.kernels.tensorflow_gradients import (
    dtypes_attribute,
    function_attribute,
    operation,
)


def reduced_together(first, second, axis: int):
    """As `paired_sums`. TensorFlow has no public name for the operation."""
    with tf.init_scope():  # Otherwise it would keep the first caller's graph.
        add = _sum_of_pairs(first.dtype)
    zero, dtypes = tf.zeros((), first.dtype), [first.dtype] * 2
    attribute = tf.compat.v1.AttrValue
    reduced = operation(
        "XlaVariadicReduceV2",
        [first, second, zero, zero],
        dtypes,
        {
            "T": dtypes_attribute(dtypes),
            "dimensions_to_reduce": attribute(list=attribute.ListValue(i=[axis])),
            "reducer": function_attribute(add),
        },
        _GradientOfSums(axis),
    )
    return tuple(reduced.outputs)


@dataclasses.dataclass(frozen=True)
class _GradientOfSums:
    """Gradient by the inputs of the operation."""

    axis: int

    def __call__(self, operation, *upstreams):
        first, second, *_ = operation.inputs
        return [
            *(
                tf.broadcast_to(tf.expand_dims(upstream, self.axis), tf.shape(values))
                for upstream, values in zip(upstreams, (first, second), strict=True)
            ),
            None,
            None,
        ]


@functools.cache
def _sum_of_pairs(dtype):
    """What the reduction does with two sums so far and two values."""
    scalar = tf.TensorSpec([], dtype)

    @tf.function(autograph=False, input_signature=[scalar] * 4)
    def add(first, second, first_value, second_value):
        return first + first_value, second + second_value

    return add.get_concrete_function()

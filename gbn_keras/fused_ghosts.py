"""Ghost batches by TensorFlow's fused kernels, for graphs that run op by op.

The fused kernel reads and writes a ghost in few passes; the price is one call for each
ghost. Forward and backward are functions of their own, traced once for each shape, so
that a network with many layers is traced as fast as with one operation a layer.
"""

import functools

import tensorflow as tf

# No public name says whether XLA is compiling the function that is being traced.
from tensorflow.python.framework import ops as framework_ops
from tensorflow.python.ops import control_flow_util

# With more, the calls cost more than the passes they save.
_MOST_GHOSTS = 64

_DTYPES = ("float32", "bfloat16", "float16")


def can_take(inputs, virtual_batch_size: int) -> bool:
    """Whether these inputs, channels last, are best normalized here.

    Not where XLA compiles: it fuses better by itself, and would compute the variance as
    a difference of squares, which cancels. Not where the ghosts' sizes are unknown.
    """
    graph = framework_ops.get_default_graph()
    return (
        isinstance(inputs, tf.Tensor)
        and inputs.shape.is_fully_defined()
        and 0 not in inputs.shape
        and inputs.dtype.name in _DTYPES
        and inputs.shape[0] // virtual_batch_size <= _MOST_GHOSTS
        and not control_flow_util.GraphOrParentsInXlaContext(graph)
    )


def normalize(inputs, gamma, beta, virtual_batch_size: int, epsilon: float):
    """As `ghost_normalize`, with the channels last and float32 parameters."""
    forward, backward = _kernels(tuple(inputs.shape), virtual_batch_size, epsilon)

    @tf.custom_gradient
    def with_gradient(inputs, gamma, beta):
        outputs, mean, variance, reserved = forward(inputs, gamma, beta)

        def gradient(upstream, *_):
            return backward(upstream, inputs, gamma, reserved)

        return (outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)), gradient

    return with_gradient(inputs, gamma, beta)


@functools.cache
def _kernels(shape, virtual_batch_size, epsilon):
    """The forward and the backward function for inputs of one shape.

    A pair for each shape, rather than one that is traced anew for each: TensorFlow
    warns of functions that are traced often.
    """
    batch, *_, channels = shape
    ghosts = max(1, batch // virtual_batch_size)
    sizes = [virtual_batch_size] * (ghosts - 1)
    sizes.append(batch - sum(sizes))

    def split(values):
        """Ghosts in the kernel's four dimensions; TensorFlow copies nothing for it."""
        return tf.split(tf.reshape(values, [batch, -1, 1, channels]), sizes)

    def join(pieces):
        return tf.reshape(tf.concat(pieces, axis=0), shape)

    @tf.function(autograph=False)
    def forward(inputs, gamma, beta):
        outputs, means, variances, reserved = [], [], [], []
        for ghost in split(inputs):
            result = tf.raw_ops.FusedBatchNormV3(
                x=ghost,
                scale=gamma,
                offset=beta,
                mean=[],
                variance=[],
                epsilon=epsilon,
                is_training=True,
            )
            outputs.append(result.y)
            means.append(result.batch_mean)
            # The kernel applies Bessel's correction, unlike Keras.
            count = ghost.shape.num_elements() // channels
            variances.append(result.batch_variance * ((count - 1) / count))
            reserved.append(result[3:])
        return join(outputs), tf.stack(means), tf.stack(variances), reserved

    @tf.function(autograph=False)
    def backward(upstream, inputs, gamma, reserved):
        by_inputs, by_gamma, by_beta = [], [], []
        for ghost, ghost_upstream, spaces in zip(
            split(inputs), split(upstream), reserved, strict=True
        ):
            result = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=ghost_upstream,
                x=ghost,
                scale=gamma,
                reserve_space_1=spaces[0],
                reserve_space_2=spaces[1],
                reserve_space_3=spaces[2],
                epsilon=epsilon,
                is_training=True,
            )
            by_inputs.append(result.x_backprop)
            by_gamma.append(result.scale_backprop)
            by_beta.append(result.offset_backprop)
        return join(by_inputs), tf.add_n(by_gamma), tf.add_n(by_beta)

    return forward, backward

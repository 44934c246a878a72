"""`GradientNorm`, the size of the last update's gradient, and `squared_norm`."""

import keras
import tensorflow as tf


def squared_norm(gradients, loss_scale):
    """The squared norm of all gradients together, without the loss scale.

    `None` stands for a weight without a gradient.
    """
    # `l2_loss` gives half of the sum of squares, in one pass over memory; `square`
    # needs two.
    halves = [
        tf.nn.l2_loss(tf.cast(gradient, tf.float32))
        for gradient in gradients
        if gradient is not None
    ]
    return 2 * tf.add_n(halves) / tf.cast(loss_scale, tf.float32) ** 2


class GradientNorm:
    """The global norm of the last update's gradient. `float(...)` reads it.

    It is the norm for the mean loss of the whole batch, in float32, before clipping and
    without the loss scale. It is not finite if an entry of the gradient is not, and NaN
    before the first update. It is the same on all replicas, and it is not a weight of
    the model.
    """

    def __init__(self):
        self._norm = keras.Variable(float("nan"), trainable=False, dtype="float32")

    def update(self, gradients, loss_scale):
        """Takes the gradients of an update, `None` where a weight has none."""
        # These are the operations of Keras's clipping, so TensorFlow runs them only
        # once.
        squares = [
            tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32)))
            for gradient in gradients
            if gradient is not None
        ]
        norm = tf.sqrt(tf.reduce_sum(squares))
        self._norm.assign(norm / tf.cast(loss_scale, tf.float32))

    def is_finite(self):
        """Whether all entries of the last update's gradient are, a tensor."""
        return tf.math.is_finite(self._norm.value)

    def __float__(self):
        return float(keras.ops.convert_to_numpy(self._norm))

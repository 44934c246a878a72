"""`GradientNorm`: how large the gradient of the last update was; `squared_norm`."""

import keras
import tensorflow as tf


def squared_norm(gradients, loss_scale):
    """The squared norm of all gradients together, without the factor of the loss.

    `None` stands for a weight without a gradient.
    """
    # Half of each square, in one pass over memory, where `square` needs two.
    halves = [
        tf.nn.l2_loss(tf.cast(gradient, tf.float32))
        for gradient in gradients
        if gradient is not None
    ]
    return 2 * tf.add_n(halves) / tf.cast(loss_scale, tf.float32) ** 2


class GradientNorm:
    """The global norm of the last update's gradient, `float(...)` of this.

    Of the whole batch's mean loss, in float32, before clipping and without the factor
    of a loss scale; not finite where an entry of the gradient is not, and NaN before
    the first update. The same on all replicas. It is no weight of the model.
    """

    def __init__(self):
        self._norm = keras.Variable(float("nan"), trainable=False, dtype="float32")

    def update(self, gradients, loss_scale):
        """Takes an update's gradients, `None` where a weight has none."""
        # In the operations of Keras's clipping, which TensorFlow then does only once.
        squares = [
            tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32)))
            for gradient in gradients
            if gradient is not None
        ]
        norm = tf.sqrt(tf.reduce_sum(squares))
        self._norm.assign(norm / tf.cast(loss_scale, tf.float32))

    def __float__(self):
        return float(keras.ops.convert_to_numpy(self._norm))

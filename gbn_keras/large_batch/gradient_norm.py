"""`GradientNorm`, the size of the last update's gradient, and `squared_norm`."""

import keras
from keras import ops

from gbn_keras.large_batch.backends import squares_of


def squared_norm(gradients, loss_scale):
    """The squared norm of all gradients together, without the loss scale.

    `None` stands for a weight without a gradient.
    """
    known = [
        ops.cast(gradient, "float32") for gradient in gradients if gradient is not None
    ]
    return squares_of(known) / ops.cast(loss_scale, "float32") ** 2


class GradientNorm:
    """The global norm of the last update's gradient. `float(...)` reads it.

    It is the norm for the mean loss of the whole batch, in float32, before clipping and
    without the loss scale. It is not finite if an entry of the gradient is not, and NaN
    before the first update. It is the same on all replicas, and it is not a weight of
    the model.
    """

    def __init__(self):
        self._norm = keras.Variable(float("nan"), trainable=False, dtype="float32")

    @property
    def variables(self) -> list[keras.Variable]:
        """The norm, as JAX's trainer takes it through a step."""
        return [self._norm]

    def update(self, gradients, loss_scale):
        """Takes the gradients of an update, `None` where a weight has none."""
        # These are the operations of Keras's clipping, so TensorFlow runs them only
        # once.
        squares = [
            ops.sum(ops.square(ops.cast(gradient, "float32")))
            for gradient in gradients
            if gradient is not None
        ]
        norm = ops.sqrt(ops.sum(ops.stack(squares)))
        self._norm.assign(norm / ops.cast(loss_scale, "float32"))

    def is_finite(self):
        """Whether all entries of the last update's gradient are, a tensor."""
        return ops.isfinite(self._norm.value)

    def __float__(self):
        return float(ops.convert_to_numpy(self._norm))

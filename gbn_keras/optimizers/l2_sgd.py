"""Stochastic gradient descent as the paper uses it."""

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule


@keras.saving.register_keras_serializable(package="gbn_keras")
class L2SGD(keras.optimizers.SGD):
    """SGD with the gradient of an L2 penalty.

    `l2 * w` is added to each gradient, after clipping and before momentum: where the
    published training scripts (and PyTorch's SGD) add it. Keras's own `weight_decay`
    is another method: it shrinks the weights past the momentum. A kernel regularizer
    is a third: it would be clipped along, and reported in the loss.

    Args:
        learning_rate: A number or a schedule.
        l2: The coefficient, or a schedule of it by update. The penalty is
            `l2 / 2 * ||w||^2`.
        l2_kernels_only: Whether to leave out the variables of less than two
            dimensions: biases, and a normalization's gamma and beta. The published
            scripts penalize all trainable variables.
        **kwargs: The arguments of `keras.optimizers.SGD`.
    """

    def __init__(
        self,
        learning_rate=0.01,
        l2: float | LearningRateSchedule = 0.0,
        l2_kernels_only: bool = False,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self.l2 = l2
        self.l2_kernels_only = l2_kernels_only

    def update_step(self, gradient, variable, learning_rate):
        """One update of one variable."""
        gradient = ops.cast(gradient, variable.dtype)
        if len(variable.shape) > 1 or not self.l2_kernels_only:
            l2 = self.l2
            if isinstance(l2, LearningRateSchedule):
                l2 = l2(self.iterations)
            gradient = gradient + ops.cast(l2, variable.dtype) * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "l2": keras.saving.serialize_keras_object(self.l2),
            "l2_kernels_only": self.l2_kernels_only,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The inverse of `get_config`."""
        config = {**config, "l2": keras.saving.deserialize_keras_object(config["l2"])}
        return super().from_config(config, custom_objects)

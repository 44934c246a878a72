"""Stochastic gradient descent as the paper uses it."""

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule


@keras.saving.register_keras_serializable(package="gbn_keras")
class L2SGD(keras.optimizers.SGD):
    """SGD with the gradient of an L2 penalty, on every trainable variable.

    `l2 * w` is added to each gradient, after clipping and before momentum: where the
    published training scripts (and PyTorch's SGD) add it. Keras's own `weight_decay`
    is another method: it shrinks the weights past the momentum. A kernel regularizer
    is a third: it would be clipped along, and reported in the loss.

    Args:
        learning_rate: A number or a schedule.
        l2: The coefficient, or a schedule of it by update. The penalty is
            `l2 / 2 * ||w||^2`.
        **kwargs: The arguments of `keras.optimizers.SGD`.
    """

    def __init__(
        self, learning_rate=0.01, l2: float | LearningRateSchedule = 0.0, **kwargs
    ):
        super().__init__(learning_rate, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        """One update of one variable."""
        l2 = self.l2
        if isinstance(l2, LearningRateSchedule):
            l2 = l2(self.iterations)
        gradient = ops.cast(gradient, variable.dtype)
        gradient = gradient + ops.cast(l2, variable.dtype) * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """The constructor's arguments."""
        l2 = keras.saving.serialize_keras_object(self.l2)
        return {**super().get_config(), "l2": l2}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The inverse of `get_config`."""
        config = {**config, "l2": keras.saving.deserialize_keras_object(config["l2"])}
        return super().from_config(config, custom_objects)

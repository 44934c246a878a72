"""Stochastic gradient descent as the paper uses it."""

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from gbn_keras.regime_adaptation import RegimeAdaptation


@keras.saving.register_keras_serializable(package="gbn_keras")
class L2SGD(keras.optimizers.SGD):
    """SGD that adds the gradient of an L2 penalty.

    It adds `l2 * w` to each gradient, after clipping and before momentum, as the
    published training scripts and PyTorch's SGD do. Keras has two other methods:
    `weight_decay` shrinks the weights without momentum, and a kernel regularizer's
    gradient is clipped with the loss's and its penalty is part of the reported loss.

    Args:
        learning_rate: A number or a schedule.
        l2: Coefficient of the penalty `l2 / 2 * ||w||^2`, or a schedule of it by
            update. If it and the rate are each a `RegimeAdaptation`, both take the
            rate's `progress`.
        l2_kernels_only: Whether to leave out variables with fewer than two dimensions:
            biases, and a normalization's gamma and beta. The published scripts penalize
            all trainable variables.
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
        if isinstance(learning_rate, RegimeAdaptation):
            if isinstance(l2, RegimeAdaptation):  # One training has one position.
                l2.progress = learning_rate.progress

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable."""
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

"""`StopIfNotFinite`: a training that has broken down ends at that update."""

import math

import keras

from gbn_keras.training.errors import NotFinite
from gbn_keras.training.plan import Plan


class StopIfNotFinite(keras.callbacks.Callback):
    """Ends the training at the update whose loss or gradient is not finite.

    With a loss scale (`mixed_float16`) a gradient that overflows is no breakdown: Keras
    skips that update and lowers the scale.

    Args:
        plan: Of the training.
        updates: Those made before, if it goes on.

    Raises:
        NotFinite: In training. It names the update, its rate and its gradient's norm.
    """

    def __init__(self, plan: Plan, updates: int = 0):
        super().__init__()
        self._plan, self._updates = plan, updates

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the update just made."""
        self._updates += 1
        # Of the epoch until now, so once it is not finite it stays so.
        loss = logs["loss"]
        norm = float(self.model.gradient_norm)
        is_scaled = isinstance(
            self.model.optimizer, keras.optimizers.LossScaleOptimizer
        )
        if math.isfinite(loss) and (math.isfinite(norm) or is_scaled):
            return
        rate = float(self._plan.learning_rate(self._updates - 1))
        raise NotFinite(
            self._updates,
            f"loss {loss:g}, gradient norm {norm:g} at the learning rate {rate:.4g}",
        )

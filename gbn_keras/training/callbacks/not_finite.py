"""`StopIfNotFinite`: ends a training that diverges."""

import math

import keras

from gbn_keras.training.errors import NotFinite
from gbn_keras.training.plan import Plan


class StopIfNotFinite(keras.callbacks.Callback):
    """Ends the training at the first update whose loss or gradient is not finite.

    With a loss scale (`mixed_float16`), a gradient may overflow: Keras then skips the
    update and lowers the scale.

    Args:
        plan: The plan of the training.
        updates: Number of updates made before, if the training is resumed.

    Raises:
        NotFinite: During training. Names the update, its rate and its gradient norm.
    """

    def __init__(self, plan: Plan, updates: int = 0):
        super().__init__()
        self._plan, self._updates = plan, updates

    def on_train_batch_end(self, batch, logs=None):
        """Checks the update just made."""
        self._updates += 1
        # A mean over the epoch so far: once it is not finite, it stays so.
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

"""`StopIfNotFinite`: a training that has broken down ends at that update."""

import math

import keras

from gbn_keras.training.plan import Plan
from gbn_keras.training.stopped import Stopped


class NotFinite(Stopped):
    """A training diverged: its loss or its gradient is infinite or not a number.

    Args:
        update: The update that is not finite, counted from 1.
        what: What is not finite, with its value.

    Attributes:
        update: As given.
        in_short: What a study or a search says of the training, and goes on.
    """

    exit_code = 3

    def __init__(self, update: int, what: str):
        super().__init__(
            f"update {update:,} is not finite: {what}. The last checkpoint is kept. "
            "Train in another folder with a lower --learning_rate, --warmup_updates or "
            "--clipnorm."
        )
        self.update = update
        self.in_short = f"diverged at update {update:,}: {what}"


class AllDiverged(Stopped):
    """Each training of a study, a sweep or a search diverged."""

    exit_code = NotFinite.exit_code


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

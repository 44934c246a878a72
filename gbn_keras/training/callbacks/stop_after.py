"""`StopAfter`: ends a training after a number of updates."""

import keras


class StopAfter(keras.callbacks.Callback):
    """Stops the training after a number of updates.

    Args:
        updates: Number of updates, not counting those of an interrupted training.
    """

    def __init__(self, updates: int):
        super().__init__()
        self._left = updates

    def on_train_batch_end(self, batch, logs=None):
        """Counts the update."""
        self._left -= 1
        if self._left <= 0:
            self.model.stop_training = True

"""`EndOfRegime`: ends a training when the small batch's updates are done."""

import keras

from gbn_keras.arguments import integer


class EndOfRegime(keras.callbacks.Callback):
    """Ends the training of a `LargeBatchModel` with `stretch="auto"`.

    The training ends after the update with which the gains add up to the number of the
    small batch's updates (AdaScale SGD). Give `fit` as many epochs as the small batch
    has times `M`: there are never more, because a gain is at least 1.

    Example:
    ```python
    model.fit(images, labels, 4096, epochs=320, callbacks=[EndOfRegime(4680)])
    ```

    Args:
        small_batch_updates: Number of updates of the small batch's training.

    Raises:
        ValueError: If it is not a positive integer. In training, if the model measures
            no gain: it has no `RegimeAdaptation` with `stretch="auto"`, or a batch is
            one micro-batch on one replica.

    Reference:
        Johnson, Agrawal, Gu, Guestrin, "AdaScale SGD", algorithm 1, arXiv 2007.05105.
    """

    def __init__(self, small_batch_updates: int):
        super().__init__()
        self._end = integer("small_batch_updates", small_batch_updates, 1)

    def on_train_batch_end(self, batch, logs=None):
        """Stops if the small batch's updates are done."""
        if "small_batch_updates" not in logs:
            raise ValueError(
                "EndOfRegime needs the gain of each update. Received: a model that "
                "does not measure it. Train a LargeBatchModel, with the learning rate "
                "RegimeAdaptation(..., stretch='auto')."
            )
        if logs["small_batch_updates"] >= self._end:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        """Looks whether any update of the epoch could be measured."""
        progress = self.model.regime_progress
        if progress.batch_size == progress.small_batch_size:
            return  # The gain is 1 anyway.
        if self.model.gradient_moments.estimate() is None:
            raise ValueError(
                "EndOfRegime needs the gain of each update, which takes the gradients "
                "of at least two micro-batches or replicas. Received: batches of one. "
                f"Lower micro_batch_size={self.model.micro_batch_size}."
            )

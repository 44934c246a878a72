"""`AccuracyOfExamples`: the accuracy that the program's models are compiled with."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("gbn_keras")
class AccuracyOfExamples(keras.metrics.SparseCategoricalAccuracy):
    """Accuracy over the examples with a weight other than 0, all counted equally."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts a batch."""
        if sample_weight is not None:
            sample_weight = ops.cast(ops.not_equal(sample_weight, 0), self.dtype)
        return super().update_state(y_true, y_pred, sample_weight)

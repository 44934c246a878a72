"""`LossTrackers`: the metrics in which a Keras model tracks its losses."""

import keras

from gbn_keras._keras_internals import compile_loss_of, loss_tracker_of


class LossTrackers:
    """The metrics of a compiled model that only a whole batch can update.

    Args:
        model: A compiled, built Keras model.
        losses: Losses of its outputs, see `counted_losses`.
        variables: Variables of its metrics, in the order of the values below.
    """

    def __init__(self, model, losses, variables):
        self._weights = [
            1.0 if one.loss_weights is None else one.loss_weights for one in losses
        ]
        self._total, self._variables = loss_tracker_of(model), variables
        # Keras has none of them if there is only one loss.
        self._of_outputs = compile_loss_of(model).metrics if losses else []
        metrics = (self._total, *self._of_outputs)
        self._own = {id(v) for metric in metrics for v in metric.variables}

    def kept(self, old, new):
        """The new values of all metrics, but the old values of these trackers."""
        pairs = zip(self._variables, old, new, strict=True)
        return [old if id(v) in self._own else new for v, old, new in pairs]

    def updated(self, values, losses, size):
        """The values of all metrics after one more batch.

        Args:
            values: Values before.
            losses: The batch's losses: those of the outputs, then that of the layers.
            size: Weight of the batch in the means.
        """
        total = losses[-1] + sum(
            weight * losses[index] for index, weight in enumerate(self._weights)
        )
        mapping = list(zip(self._variables, values, strict=True))
        with keras.StatelessScope(mapping) as scope:
            self._total.update_state(total, sample_weight=size)
            for index, metric in enumerate(self._of_outputs):
                metric.update_state(losses[index], sample_weight=size)
        return [scope.get_current_value(v) for v in self._variables]

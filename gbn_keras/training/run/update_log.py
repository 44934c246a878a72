"""`UpdateLog`: the table of a run's metrics."""

import os

import keras

from gbn_keras.analysis.update_table import UpdateTable
from gbn_keras.training.plan import Plan
from gbn_keras.training.run.rates import Rates

_METRICS = ["accuracy", "loss", "val_accuracy", "val_loss"]
_GAINS = ["gain", "small_batch_updates"]


class UpdateLog(keras.callbacks.Callback):
    """Writes a row into a CSV file at the end of each epoch.

    Keras's own `CSVLogger` does not know updates. It also cannot continue a file with
    rows of epochs that will be trained again.

    Args:
        file: CSV file with the columns `updates`, `epoch` (from 0), `samples`,
            `learning_rate` (of the epoch's last update) and the metrics. Those of the
            validation are empty in epochs without validation. With `--stretch=auto`
            also `gain` (of the last update) and `small_batch_updates` (done so far).
        plan: Plan of the training.
        updates: Number of updates made before, if the training resumes.
    """

    def __init__(self, file: str | os.PathLike, plan: Plan, updates: int = 0):
        super().__init__()
        self._plan, self._updates = plan, updates
        self._rates = Rates(plan)
        self._logged = _METRICS + _GAINS * plan.is_auto
        columns = ["epoch", "samples", "learning_rate", *self._logged]
        self._table = UpdateTable(file, columns, updates)

    def on_train_batch_end(self, batch, logs=None):
        """Counts the update."""
        self._updates += 1

    def on_epoch_end(self, epoch, logs=None):
        """Writes the row."""
        samples = self._updates * self._plan.settings.batch_size
        rate = self._rates(self._updates - 1)
        metrics = [logs.get(name, "") for name in self._logged]
        self._table.append(self._updates, [epoch, samples, rate, *metrics])

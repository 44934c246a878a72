"""`LogSpacedLog`, a table that grows while a model trains, at ever rarer updates."""

import math
import os
from collections.abc import Sequence

import keras
from keras import ops

from gbn_keras.analysis.update_table import UpdateTable

# How many updates have a row while their number grows tenfold.
_ROWS_PER_DECADE = 20


class LogSpacedLog(keras.callbacks.Callback):
    """Writes a row into a CSV file at logarithmically spaced updates.

    At each of the first ten, then at 20 each time that their number grows tenfold. A
    training of 10,000 updates has about 70 rows, so they cost next to nothing. A
    training that goes on (whose optimizer has made updates already) goes on with its
    file (`UpdateTable`).

    For any backend, any `tf.distribute` strategy, several updates per execution.

    Subclasses say what is in a row by `columns()` and `row()`.

    Args:
        file: The CSV file. Its folder is made.

    Attributes:
        newest_row: What it has written last, by column; `None` before its first row.
    """

    def __init__(self, file: str | os.PathLike):
        super().__init__()
        self._file = file
        self.newest_row: dict | None = None

    def columns(self) -> list[str]:
        """Names of a row's values, which the first, `updates`, comes before."""
        raise NotImplementedError

    def row(self) -> Sequence[float | str]:
        """The values after the update just made."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        """Starts the file, or goes on with it."""
        self._updates = self._updates_made()
        self._table = UpdateTable(self._file, self.columns(), self._updates)

    def on_epoch_begin(self, epoch, logs=None):
        """Counts from here: the number of updates is on the device, and slow to ask."""
        self._before_epoch = self._updates_made()

    def on_train_batch_end(self, batch, logs=None):
        """Writes a row, if it is time."""
        before, self._updates = self._updates, self._before_epoch + batch + 1
        if _bucket(self._updates) > _bucket(before):
            self._write_row()

    def _write_row(self):
        if keras.backend.backend() == "jax":
            # While it trains, the variables are not in the model.
            self.model.jax_state_sync()
        # By the optimizer, since the last execution of an epoch may have been shorter.
        self._updates = self._updates_made()
        row = self.row()
        self._table.append(self._updates, row)
        columns = ["updates", *self.columns()]
        self.newest_row = dict(zip(columns, [self._updates, *row], strict=True))

    def _updates_made(self):
        # Of a variable on several replicas `int` makes none.
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))


def _bucket(updates):
    """Updates that are in one bucket have one row."""
    return math.floor(_ROWS_PER_DECADE * math.log10(updates)) if updates else -1

"""`LogSpacedLog`, a CSV table with rows at logarithmically spaced updates."""

import math
import os
from collections.abc import Sequence

import keras
from keras import ops

from gbn_keras.analysis.update_table import UpdateTable

# Number of rows while the number of updates grows tenfold.
_ROWS_PER_DECADE = 20


class LogSpacedLog(keras.callbacks.Callback):
    """Writes a row to a CSV file at logarithmically spaced updates.

    There is a row for each of the first ten updates, then 20 rows each time the number
    of updates grows tenfold. A training of 10,000 updates has about 70 rows, so the log
    costs next to nothing. If training resumes (the optimizer has made updates already),
    it continues its file (see `UpdateTable`).

    It works on any backend, with any `tf.distribute` strategy and with several updates
    per execution.

    Subclasses define what is in a row with `columns()` and `row()`.

    Args:
        file: Path of the CSV file. Its folder is created.

    Attributes:
        newest_row: The last row written, by column; `None` before the first row.
    """

    def __init__(self, file: str | os.PathLike):
        super().__init__()
        self._file = file
        self.newest_row: dict | None = None

    def columns(self) -> list[str]:
        """Names of a row's values, without the first column, `updates`."""
        raise NotImplementedError

    def row(self) -> Sequence[float | str]:
        """The values after the last update."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        """Creates the file, or continues it."""
        self._updates = self._updates_made()
        self._table = UpdateTable(self._file, self.columns(), self._updates)

    def on_epoch_begin(self, epoch, logs=None):
        """Reads the number of updates once, because reading from the device is slow."""
        self._before_epoch = self._updates_made()

    def on_train_batch_end(self, batch, logs=None):
        """Writes a row if one is due."""
        before, self._updates = self._updates, self._before_epoch + batch + 1
        if _bucket(self._updates) > _bucket(before):
            self._write_row()

    def _write_row(self):
        if keras.backend.backend() == "jax":
            # On JAX, the model does not hold the variables during training.
            self.model.jax_state_sync()
        # The last execution of an epoch may be shorter, so ask the optimizer.
        self._updates = self._updates_made()
        row = self.row()
        self._table.append(self._updates, row)
        columns = ["updates", *self.columns()]
        self.newest_row = dict(zip(columns, [self._updates, *row], strict=True))

    def _updates_made(self):
        # `int` cannot convert a variable that lies on several replicas.
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))


def _bucket(updates):
    """The bucket of a number of updates. Each bucket has one row."""
    return math.floor(_ROWS_PER_DECADE * math.log10(updates)) if updates else -1

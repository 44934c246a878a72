"""A verdict on the batch size from the gradient noise scale, and the scale's log.

See `large_batch.gradient_moments`.
"""

import csv
import os
from collections.abc import Sequence

import numpy as np
from keras import ops

from gbn_keras.analysis.log_spaced import LogSpacedLog

# The name of the table.
NOISE_SCALE = "noise_scale.csv"


def updates_needed(
    updates: Sequence[int], done: Sequence[float], small_batch_updates: int
) -> float:
    """The number of updates that a training needed to do the small batch's work.

    An update does the work of as many small-batch updates as its gain says. If the
    training ended before all were done, it would have gone on with the mean gain of its
    second half. Gains grow along a training, so this is rather too many.

    Args:
        updates: Numbers of updates, in order, from 1 on.
        done: The sum of the gains after each.
        small_batch_updates: Number of updates of the small batch's regime.
    """
    updates, done = [0, *updates], [0, *done]
    if done[-1] >= small_batch_updates:
        return float(np.interp(small_batch_updates, done, updates))
    half = updates[-1] / 2
    gain = (done[-1] - np.interp(half, updates, done)) / half
    return float(updates[-1] + (small_batch_updates - done[-1]) / gain)


def noise_scale_advice(
    stretch: float, suitable: float, done: float, small_batch_updates: int
) -> str:
    """One sentence on whether the training was long enough.

    Args:
        stretch: How many times more epochs the training had than the regime.
        suitable: The stretch with which it would have done the small batch's work.
        done: The number of small-batch updates whose work it did.
        small_batch_updates: Number of updates of the small batch's regime.
    """
    # The estimate is no more accurate.
    is_enough = stretch > 0.9 * suitable
    verdict = "would have been enough" if is_enough else "would suit"
    return (
        f"By its gradients, this training learned as much as {done:,.0f} updates of "
        f"the small batch, which makes {small_batch_updates:,}: a stretch of "
        f"{suitable:.3g} {verdict} (it was {stretch:.3g}) to learn as much from the "
        "training examples. Accuracy on others may need more or less."
    )


UNKNOWN_NOISE_SCALE = (
    "The gradient noise scale is unknown, because it needs at least two micro-batches "
    "or replicas."
)


def read_progress(file: str | os.PathLike, *more: str) -> list[list[float]]:
    """The columns `updates`, `small_batch_updates` and `more` of a CSV file.

    Only of rows that say how many small-batch updates are done. There may be none.
    """
    with open(file, newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row.get("small_batch_updates")]
    names = "updates", "small_batch_updates", *more
    return [[float(row[name]) for row in rows] for name in names]


class NoiseScaleLog(LogSpacedLog):
    """Logs the gradient noise scale at logarithmically spaced updates.

    It writes `noise_scale.csv` with the columns `updates`, `gradient_square`, `noise`
    and `noise_scale`, and with the regime's progress also `gain` (of the last update)
    and `small_batch_updates` (the sum of all gains).

    Args:
        folder: Folder of the file.
        moments: The `GradientMoments` that training updates, such as
            `LargeBatchModel.gradient_moments`.
        progress: The `RegimeProgress` that training advances, such as
            `LargeBatchModel.regime_progress`; `None` for none.
    """

    def __init__(self, folder: str | os.PathLike, moments, progress=None):
        super().__init__(os.path.join(folder, NOISE_SCALE))
        self._moments, self._progress = moments, progress

    def columns(self) -> list[str]:
        """The columns after `updates`."""
        columns = ["gradient_square", "noise", "noise_scale"]
        return columns + ["gain", "small_batch_updates"] * bool(self._progress)

    def row(self) -> list[float | str]:
        """The current estimate."""
        now = self._moments.estimate()
        if now is None:  # No batch was split yet.
            return [""] * len(self.columns())
        row = [now.gradient_square, now.noise, now.noise_scale]
        if self._progress:
            values = self._progress.gain, self._progress.done
            row += [float(ops.convert_to_numpy(value)) for value in values]
        return row

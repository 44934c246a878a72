"""`Speed`: the seconds of an update by its number of examples, measured here."""

import dataclasses
import statistics
import time

import keras
import numpy as np

from gbn_keras.training.driver import training_batches
from gbn_keras.training.model.build_model import build_model

# The first updates are slower. The others are measured for about these seconds.
_FIRST = 2
_SECONDS = 5.0
_FEWEST, _MOST = 3, 20
# Between measured sizes, the seconds grow evenly.
_FACTOR = 8


@dataclasses.dataclass(frozen=True)
class Speed:
    """The seconds of an update, measured at several sizes.

    Attributes:
        examples: Numbers of examples, in increasing order.
        seconds: Seconds of an update of each.
    """

    examples: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, examples: int) -> float:
        """The seconds of an update of so many examples.

        Between the measured sizes, and above the largest, it is a straight line. Below
        the smallest, it is the smallest's: a device is no faster with less to do.
        """
        last = len(self.examples) - 1
        if examples <= self.examples[last] or not last:
            seconds = float(np.interp(examples, self.examples, self.seconds))
            return seconds * max(1.0, examples / self.examples[last])
        slope = self.seconds[last] - self.seconds[last - 1]
        slope /= self.examples[last] - self.examples[last - 1]
        return self.seconds[last] + slope * (examples - self.examples[last])


def measure(plan_of, data, smallest: int, largest: int) -> Speed:
    """Measures the seconds of an update, at sizes from the smallest on.

    It stops before a size whose updates would take too long.

    Args:
        plan_of: Gives the `Plan` of a training with so many examples per update.
        data: The data set that gives the batches.
        smallest: Fewest examples of an update.
        largest: Most examples of an update.
    """
    examples, seconds, size = [], [], smallest
    while size <= largest:
        examples.append(size)
        seconds.append(_seconds_of_update(plan_of(size), data))
        if (_FIRST + _FEWEST) * _FACTOR * seconds[-1] > 2 * _SECONDS:
            break
        size *= _FACTOR
    return Speed(tuple(examples), tuple(seconds))


def _seconds_of_update(plan, data):
    keras.backend.clear_session()
    model, clock = build_model(plan, data), _Clock()
    model.fit(
        training_batches(data, plan.settings, 0),
        steps_per_epoch=min(_FIRST + _MOST, plan.updates),
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return statistics.median(clock.seconds[_FIRST:] or clock.seconds)


class _Clock(keras.callbacks.Callback):
    """The seconds of each update, including those of its data."""

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self.seconds, self._last = [], time.perf_counter()
        self._end = None

    def on_train_batch_end(self, batch, logs=None):
        """Reads the clock, and ends the training when enough is measured."""
        float(logs["loss"])  # Waits for the device.
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        if len(self.seconds) == _FIRST:
            self._end = now + _SECONDS
        is_enough = len(self.seconds) >= _FIRST + _FEWEST
        if is_enough and now > self._end:
            self.model.stop_training = True

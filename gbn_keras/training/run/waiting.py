"""`WaitingForData`: how long a training waits for its batches."""

import itertools
import time

import keras


class WaitingForData:
    """Measures how long a training waits for its next batch.

    It takes the batches from the iterator that Keras would use, and passes them on. An
    accelerator may still be busy while the program waits. So the time for which the
    accelerator has no data is at most this.

    Attributes:
        seconds: Seconds of waiting so far.
    """

    def __init__(self):
        self.seconds = 0.0

    def start(self, model: keras.Model) -> None:
        """Starts to measure. Call it in a callback's `on_train_begin`."""
        self._function = model.train_function
        number = model.steps_per_execution

        def function(iterator):
            asked = time.perf_counter()
            batches = list(itertools.islice(iterator, number))
            self.seconds += time.perf_counter() - asked
            if not batches:
                raise StopIteration
            return self._function(iter(batches))

        model.train_function = function

    def stop(self, model: keras.Model) -> None:
        """Restores the model's train function."""
        model.train_function = self._function

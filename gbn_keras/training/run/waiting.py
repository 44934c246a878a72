"""`WaitingForData`: how long a training waits for its batches."""

import itertools
import time

import keras


class WaitingForData:
    """Measures the time in which the next batch is asked for and not there yet.

    It takes the batches out of the data set, by the same iterator that Keras would
    take them by, and hands them on. On an accelerator, which may still be busy while
    the program waits, its own time without data is at most this.

    Attributes:
        seconds: Until now.
    """

    def __init__(self):
        self.seconds = 0.0

    def start(self, model: keras.Model) -> None:
        """Begins to measure, in `on_train_begin` of a callback."""
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
        """Leaves the model as it was."""
        model.train_function = self._function

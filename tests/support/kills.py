"""Callbacks that end a training in the middle, in this process."""

import os

import keras


class Killed(BaseException):
    """In place of the system's."""


class KillAfter(keras.callbacks.Callback):
    """Ends a training in the update after so many, without a chance to save it."""

    def __init__(self, updates):
        super().__init__()
        self._left = updates

    def on_train_batch_end(self, batch, logs=None):
        self._left -= 1
        if self._left < 0:
            raise Killed


class AskToStop(keras.callbacks.Callback):
    """Sends a signal to this process during an update."""

    def __init__(self, number, updates):
        super().__init__()
        self._number, self._left = number, updates

    def on_train_batch_begin(self, batch, logs=None):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._number)

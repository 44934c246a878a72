"""`Profiler`: TensorFlow's profile of a range of updates."""

import os
from collections.abc import Callable

import tensorflow as tf


class Profiler:
    """Profiles a range of updates, for TensorBoard's Profile tab.

    The trace is in the folder's `plugins/profile`. You need the package
    `tensorboard-plugin-profile` to view it, but not to record it.

    Args:
        folder: Folder for the profile.
        updates: Updates to profile, counted from 1; `None` for none. A resumed training
            does not profile updates that were made before.
        wait: Function that returns when the last update is computed.
    """

    def __init__(
        self, folder: str | os.PathLike, updates: range | None, wait: Callable
    ):
        self._folder = os.fspath(folder)
        self._updates = updates or range(0)
        self._wait = wait
        self._step = None
        self._runs = False

    def begin(self, update: int) -> None:
        """Starts profiling, if it is time. Call it before each update."""
        if update not in self._updates:
            return
        if not self._runs:
            self._wait()
            tf.profiler.experimental.start(self._folder)
            self._runs = True
        # `_r` marks the root of a step, which the profile's analysis of steps needs.
        self._step = tf.profiler.experimental.Trace("train", step_num=update, _r=1)
        self._step.__enter__()

    def end(self, update: int) -> None:
        """Stops profiling, if it is time. Call it after each update."""
        if self._step:
            self._step.__exit__(None, None, None)
            self._step = None
        if update + 1 not in self._updates:
            self.stop()

    def stop(self) -> None:
        """Writes the profile, if one is being taken."""
        if self._runs:
            self._wait()
            tf.profiler.experimental.stop()
            self._runs = False

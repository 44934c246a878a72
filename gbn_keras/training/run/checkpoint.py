"""Exact resume: a training killed at any moment resumes as if nothing had happened.

A checkpoint holds all that decides the rest of the training: the variables of the model
(including the seeds of random layers), of the optimizer (including the number of
updates and the loss scale) and of the metrics, and the number of updates, which decides
the order of the data, augmentation and gradient noise. Keras's `BackupAndRestore` saves
neither seeds nor the place in an epoch, and overwrites its only file.
"""

import pathlib
import signal
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gbn_keras.replicas import this_replica
from gbn_keras.resume import checkpoint_file
from gbn_keras.resume.checkpoint_folder import (
    CheckpointFolder,
    NoneIntact,
    warn_of_other_versions,
)
from gbn_keras.resume.model_state import (
    Unfit,
    arrays_of,
    name_of,
    restore,
    value_of,
    variables_of,
)
from gbn_keras.resume.signals import Signals
from gbn_keras.training.errors import Interrupted, UsageError
from gbn_keras.training.run.run_directory import digest
from gbn_keras.training.settings import Settings
from gbn_keras.whole_file import to_disk

FOLDER = "checkpoints"

_KEPT = 2

# Saving after epochs takes at most this share of the time, so it skips short epochs.
_SHARE_OF_TIME = 0.02


class State(NamedTuple):
    """A training between two updates.

    Attributes:
        updates: Number of updates so far.
        seconds: Time that they took.
        arrays: Values of the variables, by kind and place.
    """

    updates: int
    seconds: float
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: keras.Model, updates: int, seconds: float) -> "State":
        """The state of a model in training. The first replica holds all of it."""
        return cls(updates, seconds, arrays_of(model))

    def restore(self, model: keras.Model, *kinds: str) -> None:
        """Restores the model's variables of these kinds.

        Raises:
            UsageError: If the state is of another model.
        """
        try:
            for kind in kinds:
                if kind == "metrics":
                    _restore_metrics(model, self.arrays)
                else:
                    restore(model, self.arrays, kind)
        except Unfit as error:
            raise UsageError(
                f"--run_dir: the checkpoint of update {self.updates:,} does not fit "
                f"the network: {error}. Resume with the gbn-keras version that wrote "
                "it, or choose another folder."
            ) from error

    def encode(self, facts: dict) -> bytes:
        """The state as bytes, together with facts about the run."""
        facts = {**facts, "updates": self.updates, "seconds": self.seconds}
        return checkpoint_file.encode(self.arrays, facts)

    @classmethod
    def decode(cls, raw: bytes) -> tuple["State", dict]:
        """The state and the facts.

        Raises:
            NotWhole: If the bytes have changed since they were written.
        """
        arrays, facts = checkpoint_file.decode(raw)
        return cls(facts["updates"], facts["seconds"], arrays), facts


def _restore_metrics(model, arrays):
    """Gives the first replica the values, others zeros: see `joined_update`."""
    variables = variables_of(model)["metrics"]
    values = [
        value_of(arrays, name_of("metrics", place), variable)
        for place, variable in enumerate(variables)
    ]

    def on_replica():
        replica, _ = this_replica()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(tf.where(tf.equal(replica, 0), value, tf.zeros_like(value)))

    model.distribute_strategy.run(tf.function(on_replica))


class Checkpoints:
    """The checkpoints of a run directory. The last two are kept.

    Args:
        settings: Settings of the run.
        versions: Versions of the software.
    """

    def __init__(self, settings: Settings, versions: dict[str, str]):
        self._folder = CheckpointFolder(pathlib.Path(settings.run_dir) / FOLDER, _KEPT)
        self._facts = {
            "run": digest(settings),
            "flags": settings.flagfile(),
            "versions": versions,
        }

    def save(self, state: State) -> None:
        """Writes a checkpoint, and deletes all but the last two.

        Raises:
            OSError: If it cannot be written. Then the earlier ones are still there.
        """
        path = self._folder.path
        path.mkdir(exist_ok=True)
        for table in path.parent.glob("*.csv"):
            to_disk(table)  # A resumed training does not write these rows again.
        self._folder.save(state.updates, state.encode(self._facts))

    def newest(self) -> bytes:
        """The newest intact checkpoint; empty if none ever was. Warns of damaged ones.

        Raises:
            UsageError: If there are checkpoints, but none is intact.
        """
        try:
            return self._folder.newest(self._checked) or b""
        except NoneIntact as error:
            raise UsageError(
                f"--run_dir: no checkpoint in {self._folder.path} is intact. Restore a "
                "copy of one, or delete the run's folder to train from the beginning."
            ) from error

    def _checked(self, file, raw):
        state, facts = State.decode(raw)
        is_own = facts["run"] == self._facts["run"]
        if not is_own or file != self._folder.file(state.updates):
            raise checkpoint_file.NotWhole("it belongs to another run or update")
        warn_of_other_versions(file, facts["versions"], self._facts["versions"])
        return raw


class Checkpointing(keras.callbacks.Callback):
    """Saves checkpoints during a training, and resumes from one.

    Put it last among the callbacks, so that the others have already written what
    belongs to an update. A resumed epoch ends where it would have ended.

    Args:
        checkpoints: Where to save; `None` on all workers but the chief.
        resumed: State to resume from. This callback only restores its metrics.
        updates_per_epoch: Number of updates in a whole epoch.
        every: Number of updates between checkpoints, in addition to those after epochs.
            0: only after epochs.
        signals: Signals that ask the training to stop.
        logs: Callbacks to `flush()` before a checkpoint.

    Attributes:
        updates: Number of updates so far, including those of earlier processes.

    Raises:
        Interrupted: In training, after the update and a checkpoint, if a signal came.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        resumed: State | None,
        updates_per_epoch: int,
        every: int,
        signals: Signals,
        logs: tuple = (),
    ):
        super().__init__()
        self._checkpoints, self._signals, self._logs = checkpoints, signals, logs
        self._updates_per_epoch, self._every = updates_per_epoch, every
        self._resumed = resumed
        self.updates, seconds = resumed[:2] if resumed else (0, 0.0)
        self._started = time.monotonic() - seconds
        self._is_cut = self._ends_cut_epoch = False
        self._next_at_end = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training, including those of earlier processes."""
        return time.monotonic() - self._started

    def on_epoch_begin(self, epoch, logs=None):
        """Restores the metrics, if the epoch was interrupted."""
        self._is_cut = self.updates % self._updates_per_epoch != 0
        if self._is_cut:
            # Keras has just reset them.
            self._resumed.restore(self.model, "metrics")

    def on_train_batch_end(self, batch, logs=None):
        """Saves if a checkpoint is due or a signal came."""
        self.updates += 1
        is_end = self.updates % self._updates_per_epoch == 0
        if is_end and self._is_cut and not self.model.stop_training:
            self._ends_cut_epoch = self.model.stop_training = True
        if is_end or self.model.stop_training:
            return  # `on_epoch_end` saves, when the evaluation is done too.
        if self._signals.received or self._is_due():
            self._save()
        self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        """Saves if the training ends, a checkpoint is due, or it is worth the time."""
        if self._ends_cut_epoch:
            self._ends_cut_epoch = self.model.stop_training = False
        is_last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        is_worth_it = is_last or time.monotonic() > self._next_at_end
        if is_worth_it or self._signals.received or self._is_due():
            self._save()
        self._stop_if_asked()

    def _is_due(self):
        return self._every and self.updates % self._every == 0

    def _save(self):
        if self._checkpoints is None:
            return
        started = time.monotonic()
        for log in self._logs:
            log.flush()
        self._checkpoints.save(State.of(self.model, self.updates, self.seconds))
        done = time.monotonic()
        self._next_at_end = done + (done - started) / _SHARE_OF_TIME

    def _stop_if_asked(self):
        if number := self._signals.received:
            what = f"received signal {number} ({signal.Signals(number).name})"
            if self._checkpoints:
                what += f"; update {self.updates:,} is saved"
            raise Interrupted(number, f"{what}. Run the same command again to resume.")

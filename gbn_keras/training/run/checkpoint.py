"""Exact resume: a training killed at any moment resumes as if nothing had happened.

A checkpoint holds all that decides the rest of the training: the variables of the model
(including the seeds of random layers), of the optimizer (including the number of
updates and the loss scale) and of the metrics, and the number of updates, which decides
the order of the data, augmentation and gradient noise. Keras's `BackupAndRestore` saves
neither seeds nor the place in an epoch, and overwrites its only file.
"""

import pathlib
import signal
import sys
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gbn_keras.replicas import this_replica
from gbn_keras.training.errors import UsageError
from gbn_keras.training.run import checkpoint_file
from gbn_keras.training.run.run_directory import digest
from gbn_keras.training.run.signals import Interrupted, Signals
from gbn_keras.training.settings import Settings
from gbn_keras.whole_file import to_disk, whole_file

FOLDER = "checkpoints"

_KEPT = 2
_DIGITS = 10  # Digits of an update in a file's name, so that names sort as numbers.

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
        strategy = model.distribute_strategy
        arrays = {
            _name(kind, place): strategy.experimental_local_results(v.value)[0].numpy()
            for kind, variables in _variables(model).items()
            for place, v in enumerate(variables)
        }
        return cls(updates, seconds, arrays)

    def restore(self, model: keras.Model, *kinds: str) -> None:
        """Restores the model's variables of these kinds.

        Raises:
            UsageError: If the state is of another model.
        """
        for kind in kinds:
            variables = _variables(model)[kind]
            values = [self._value(kind, *pair) for pair in enumerate(variables)]
            if kind == "metrics":
                _assign_metrics(model.distribute_strategy, variables, values)
            else:
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)

    def _value(self, kind, place, variable):
        value = self.arrays.get(_name(kind, place))
        if value is None or value.shape != tuple(variable.shape):
            raise UsageError(
                f"--run_dir: the checkpoint of update {self.updates:,} does not fit "
                f"the network: {variable.path} is missing or has another shape. Resume "
                "with the gbn-keras version that wrote it, or choose another folder."
            )
        if value.dtype.kind == "V":  # bfloat16: numpy only knows its size.
            value = value.view(tf.as_dtype(variable.dtype).as_numpy_dtype)
        return value

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


def _variables(model):
    moments, progress = model.gradient_moments, model.regime_progress
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
        "moments": moments.variables if moments else [],
        "progress": progress.variables if progress else [],
    }


def _name(kind, place):
    return f"{kind}_{place}"


def _assign_metrics(strategy, variables, values):
    """Gives the first replica the values, others zeros: see `joined_update`."""

    def on_replica():
        replica, _ = this_replica()
        for variable, value in zip(variables, values, strict=True):
            variable.assign(tf.where(tf.equal(replica, 0), value, tf.zeros_like(value)))

    strategy.run(tf.function(on_replica))


class Checkpoints:
    """The checkpoints of a run directory. The last two are kept.

    Args:
        settings: Settings of the run.
        versions: Versions of the software.
    """

    def __init__(self, settings: Settings, versions: dict[str, str]):
        self._folder = pathlib.Path(settings.run_dir) / FOLDER
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
        self._folder.mkdir(exist_ok=True)
        for table in self._folder.parent.glob("*.csv"):
            to_disk(table)  # A resumed training does not write these rows again.
        with whole_file(self._file(state.updates)) as draft:
            draft.write_bytes(state.encode(self._facts))
        for old in self._files()[_KEPT:]:
            old.unlink()

    def newest(self) -> bytes:
        """The newest intact checkpoint; empty if none ever was. Warns of damaged ones.

        Raises:
            UsageError: If there are checkpoints, but none is intact.
        """
        files = self._files()
        for file in files:
            try:
                raw = file.read_bytes()
                self._check(file, raw)
                return raw
            except checkpoint_file.NotWhole as error:
                _warn(f"{file} is not used: {error}")
        if files:
            raise UsageError(
                f"--run_dir: no checkpoint in {self._folder} is intact. Restore a copy "
                "of one, or delete the run's folder to train from the beginning."
            )
        return b""

    def _check(self, file, raw):
        state, facts = State.decode(raw)
        if facts["run"] != self._facts["run"] or file != self._file(state.updates):
            raise checkpoint_file.NotWhole("it belongs to another run or update")
        before, now = facts["versions"], self._facts["versions"]
        if before != now:
            changed = ", ".join(
                f"{name} {before.get(name)} there, {now[name]} here"
                for name in now
                if before.get(name) != now[name]
            )
            _warn(f"{file} is from other versions and may round differently: {changed}")

    def _file(self, updates):
        return self._folder / f"update_{updates:0{_DIGITS}d}.checkpoint"

    def _files(self):
        """All checkpoints, the newest first."""
        # This does not match the drafts that a killed process left.
        pattern = f"update_{'[0-9]' * _DIGITS}.checkpoint"
        return sorted(self._folder.glob(pattern), reverse=True)


def _warn(line):
    print(f"warning: {line}", file=sys.stderr, flush=True)


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

"""Exact resume: a training that is killed at any moment goes on as if it was not.

A checkpoint holds all that decides the future: the variables of the model (its random
layers' seeds among them), of the optimizer (with the number of updates and the loss
scale) and of the metrics, and how many batches were taken, from which the order of the
data, augmentation and gradient noise follow. Keras's `BackupAndRestore` keeps neither
seeds nor the place in an epoch, and writes over its only file.
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
_DIGITS = 10  # Of an update's number, so that names sort as numbers.

# Ends of epochs take at most this share of the time: of short ones not all are saved.
_SHARE_OF_TIME = 0.02


class State(NamedTuple):
    """A training between two updates.

    Attributes:
        updates: Batches taken.
        seconds: Time they took.
        arrays: The variables' values, by kind and place.
    """

    updates: int
    seconds: float
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: keras.Model, updates: int, seconds: float) -> "State":
        """That of a model in training. Of replicas the first one knows all of it."""
        strategy = model.distribute_strategy
        arrays = {
            _name(kind, place): strategy.experimental_local_results(v.value)[0].numpy()
            for kind, variables in _variables(model).items()
            for place, v in enumerate(variables)
        }
        return cls(updates, seconds, arrays)

    def restore(self, model: keras.Model, *kinds: str) -> None:
        """Gives the model's variables of these kinds the values they had.

        Raises:
            UsageError: If they are of another model.
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
                f"the network: {variable.path} is missing or of another shape. Resume "
                "with the version of gbn-keras that began, or choose another folder."
            )
        if value.dtype.kind == "V":  # bfloat16, of which numpy knows the size.
            value = value.view(tf.as_dtype(variable.dtype).as_numpy_dtype)
        return value

    def encode(self, facts: dict) -> bytes:
        """As bytes, with facts about who wrote them."""
        facts = {**facts, "updates": self.updates, "seconds": self.seconds}
        return checkpoint_file.encode(self.arrays, facts)

    @classmethod
    def decode(cls, raw: bytes) -> tuple["State", dict]:
        """The state and the facts.

        Raises:
            NotWhole: If the bytes are not those that were written.
        """
        arrays, facts = checkpoint_file.decode(raw)
        return cls(facts["updates"], facts["seconds"], arrays), facts


def _variables(model):
    moments = model.gradient_moments
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
        "moments": moments.variables if moments else [],
    }


def _name(kind, place):
    return f"{kind}_{place}"


def _assign_metrics(strategy, variables, values):
    """On several replicas the first one gets the values: see `joined_update`."""

    def on_replica():
        replica, _ = this_replica()
        for variable, value in zip(variables, values, strict=True):
            is_first = tf.equal(replica, 0)
            variable.assign(tf.where(is_first, value, tf.zeros_like(value)))

    strategy.run(tf.function(on_replica))


class Checkpoints:
    """The checkpoints of a run directory, of which the last two are kept.

    Args:
        settings: Of the run.
        versions: Of the software.
    """

    def __init__(self, settings: Settings, versions: dict[str, str]):
        self._folder = pathlib.Path(settings.run_dir) / FOLDER
        self._facts = {
            "run": digest(settings),
            "flags": settings.flagfile(),
            "versions": versions,
        }

    def save(self, state: State) -> None:
        """Writes a checkpoint, and deletes the one before the last.

        Raises:
            OSError: If it cannot be written; those before are there.
        """
        self._folder.mkdir(exist_ok=True)
        for table in self._folder.parent.glob("*.csv"):
            to_disk(table)  # With the rows that a resumed training does not write.
        with whole_file(self._file(state.updates)) as draft:
            draft.write_bytes(state.encode(self._facts))
        for old in self._files()[_KEPT:]:
            old.unlink()

    def newest(self) -> bytes:
        """The last one that is whole; empty if none was ever written.

        Warns of others.

        Raises:
            UsageError: If there are some, but none is whole.
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
                f"--run_dir: no checkpoint in {self._folder} is whole. Put back a "
                "copy of one, or delete the run's folder to train from the beginning."
            )
        return b""

    def _check(self, file, raw):
        state, facts = State.decode(raw)
        if facts["run"] != self._facts["run"] or file != self._file(state.updates):
            raise checkpoint_file.NotWhole("it is another run's or another update's")
        before, now = facts["versions"], self._facts["versions"]
        if before != now:
            changed = ", ".join(
                f"{name} {before.get(name)} there, {now[name]} here"
                for name in now
                if before.get(name) != now[name]
            )
            _warn(f"{file} is of other versions, which may round otherwise: {changed}")

    def _file(self, updates):
        return self._folder / f"update_{updates:0{_DIGITS}d}.checkpoint"

    def _files(self):
        """The newest first."""
        # Not the drafts that a process left which was killed.
        pattern = f"update_{'[0-9]' * _DIGITS}.checkpoint"
        return sorted(self._folder.glob(pattern), reverse=True)


def _warn(line):
    print(f"warning: {line}", file=sys.stderr, flush=True)


class Checkpointing(keras.callbacks.Callback):
    """Saves a training, and goes on with a saved one.

    To come last of the callbacks, so that the others have written what belongs to an
    update. A resumed epoch ends where it would have ended.

    Args:
        checkpoints: Where to save; `None` on all machines of a cluster but the first.
        resumed: What is gone on with, which `restore` has been given.
        updates_per_epoch: Batches of a whole epoch.
        every: Updates from one checkpoint to the next, besides those at ends of epochs;
            0 for none.
        signals: Those that ask the training to stop.
        logs: Callbacks to `flush()` before a checkpoint.

    Raises:
        Interrupted: In training, if a signal came; after the update and a checkpoint.
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
        self._updates, seconds = resumed[:2] if resumed else (0, 0.0)
        self._started = time.monotonic() - seconds
        self._is_cut = self._ends_cut_epoch = False
        self._next_at_end = 0.0

    @property
    def seconds(self) -> float:
        """The training's time, that of processes before included."""
        return time.monotonic() - self._started

    def on_epoch_begin(self, epoch, logs=None):
        """Gives the metrics what they had in the middle of the epoch."""
        self._is_cut = self._updates % self._updates_per_epoch != 0
        if self._is_cut:
            # Keras has just reset them.
            self._resumed.restore(self.model, "metrics")

    def on_train_batch_end(self, batch, logs=None):
        """Saves, if it is time or a signal came."""
        self._updates += 1
        is_end = self._updates % self._updates_per_epoch == 0
        if is_end and self._is_cut and not self.model.stop_training:
            self._ends_cut_epoch = self.model.stop_training = True
        if is_end or self.model.stop_training:
            return  # To be saved when all is done that belongs to an epoch's end.
        if self._signals.received or self._is_time():
            self._save()
        self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        """Saves, if it is the end or worth the time."""
        if self._ends_cut_epoch:
            self._ends_cut_epoch = self.model.stop_training = False
        is_last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        is_worth_it = is_last or time.monotonic() > self._next_at_end
        if is_worth_it or self._signals.received or self._is_time():
            self._save()
        self._stop_if_asked()

    def _is_time(self):
        return self._every and self._updates % self._every == 0

    def _save(self):
        if self._checkpoints is None:
            return
        started = time.monotonic()
        for log in self._logs:
            log.flush()
        self._checkpoints.save(State.of(self.model, self._updates, self.seconds))
        done = time.monotonic()
        self._next_at_end = done + (done - started) / _SHARE_OF_TIME

    def _stop_if_asked(self):
        number = self._signals.received
        if number:
            what = f"signal {number} ({signal.Signals(number).name}) came"
            if self._checkpoints:
                what += f", update {self._updates:,} is saved"
            raise Interrupted(number, f"{what}. Run the same command again to resume.")

"""`ExactResume`: any `fit` that was killed goes on as if nothing had happened."""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import warnings

import keras

from gbn_keras._keras_internals import build_by_trace, start_at_epoch
from gbn_keras.arguments import integer
from gbn_keras.resume import checkpoint_file
from gbn_keras.resume.batches import EpochBatches, batches_of
from gbn_keras.resume.checkpoint_folder import (
    CheckpointFolder,
    warn_of_other_versions,
)
from gbn_keras.resume.devices import refuse_unsupported_devices
from gbn_keras.resume.identity import difference, identity, plain, versions
from gbn_keras.resume.model_state import (
    arrays_of,
    generators,
    restore,
    restore_generators,
)
from gbn_keras.resume.signals import Signals

# The exit code after SIGTERM, EX_TEMPFAIL: start the same command again.
_TRY_AGAIN = 75


class ExactResume(keras.callbacks.Callback):
    """Makes `fit` go on after a kill, with the same bits as if it had not been killed.

    Run the same script again: the training goes on after the last update that is saved.
    A checkpoint holds the variables of the model, with the seeds of its random layers,
    of the optimizer and of the metrics, the place in the data, and the logs of the
    epochs. It is complete on the disk before it gets its name, and has a checksum.

    Example:
    ```python
    resume = ExactResume("runs/mnist", every=100)
    batches = resume.batches(images, labels, batch_size=32, seed=1)
    model.fit(batches, epochs=10, callbacks=[..., resume])
    ```

    The training must get its data from `batches`, because the data decide the rest of
    the training, too: Keras's own order of the examples is another one in each process.
    Put `ExactResume` last among the callbacks. Then it saves what the others did.

    - The logs and metrics of an epoch are those of the whole epoch, and `fit` returns
      the `History` of all epochs. In the epoch that goes on, callbacks and the progress
      bar count batches from 0.
    - The state of other callbacks is not saved. `EarlyStopping`, `ReduceLROnPlateau`
      and `ModelCheckpoint(save_best_only=True)` look for the best epoch since the last
      start. A learning rate that they set is saved. `CSVLogger` needs `append=True`.
    - If a callback ends the training, `fit` makes no update more.
    - SIGTERM saves after the current update, and ends the process with code 75. A
      second SIGTERM ends it at once.
    - It runs in one process, without a `tf.distribute` strategy. The program
      (`train.py`) resumes on replicas and on several machines.

    Args:
        folder: Folder for the checkpoints of this training, and of no other.
        every: Number of updates between checkpoints. Default: a checkpoint at the end
            of each epoch. The end of the training is always saved.
        keep: Number of checkpoints to keep. If one is damaged, the one before is used.

    Raises:
        ValueError: If an argument is invalid. When `fit` begins, if the folder holds
            another training (other data, model, optimizer or backend, or on PyTorch
            another number of GPUs) or only damaged checkpoints, if the data do not come
            from `batches`, or if there is `tf.distribute` or another process.
        OSError: In training, if a checkpoint cannot be written, for example because the
            disk is full. The earlier ones stay.
        SystemExit: In training, after SIGTERM.
    """

    def __init__(self, folder: str | os.PathLike, every: int | None = None, keep=2):
        super().__init__()
        self.every = None if every is None else integer("every", every, 1)
        # With one, a damaged checkpoint would be the last.
        self.keep = integer("keep", keep, 2)
        self._folder = CheckpointFolder(pathlib.Path(folder), self.keep)
        self._data: EpochBatches | None = None
        self._identified: keras.Model | None = None

    def batches(
        self,
        x,
        y=None,
        sample_weight=None,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> keras.utils.PyDataset:
        """The training data for `fit`, which start where the training goes on.

        Args:
            x: One of three:

                - Arrays, examples first, as for `fit`. Keras's order is replaced by
                  one that depends on `seed` and the epoch only.
                - A `keras.utils.PyDataset`. A batch must depend on its index and the
                  epoch only. The order of the batches is shuffled as in `fit`. If it
                  changes in `on_epoch_end`, it must draw from a generator with a fixed
                  seed of its own: after a kill, `on_epoch_begin` and `on_epoch_end` are
                  called for the past epochs. `workers` load in threads.
                - A function of the number of updates done, that returns a
                  `tf.data.Dataset` or another iterable of the batches from there on.
                  It is called for each epoch.
            y: Targets, for arrays.
            sample_weight: Weights of the examples, for arrays.
            batch_size: Number of examples in a batch, for arrays. The last batch of an
                epoch may be smaller.
            shuffle: Whether to shuffle arrays by example, and a `PyDataset` by batch.
            seed: Seed of that order, an integer of at least 0.
            steps_per_epoch: Number of batches in an epoch, for a function.

        Raises:
            ValueError: If an argument is invalid, or does not go with `x`.
        """
        self._data = batches_of(
            x, y, sample_weight, batch_size, shuffle, seed, steps_per_epoch
        )
        return self._data

    def on_train_begin(self, logs=None):
        """Restores the newest checkpoint, if there is one."""
        data = self._checked_data()
        refuse_unsupported_devices(self.model)
        if data.spec is not None:  # TensorFlow would build it in the first update.
            build_by_trace(self.model, data.spec)
        if self._identified is not self.model:  # Callbacks may change it in training.
            self._identity = identity(self.model, data.facts)
            self._identified = self.model
        self._epoch = self._place = self._first = self._saved_updates = 0
        self._cut: dict = {}  # Arrays of an interrupted epoch, until it goes on.
        self._generators: dict = {}  # Their states after the last update.
        self._logs_of_epochs: list = []
        self._is_over = self._has_begun = False
        self._thread = threading.get_ident()
        self._quiet = contextlib.ExitStack()
        self._folder.path.mkdir(parents=True, exist_ok=True)
        if newest := self._folder.newest(self._read):
            self._resume(*newest)
        self._signals = Signals((signal.SIGTERM,))
        self._signals.__enter__()

    def on_epoch_begin(self, epoch, logs=None):
        """Enters the data, and restores the metrics if the epoch was interrupted."""
        self._begin()
        self._epoch, self._first = epoch, self._place
        self._data.enter(epoch, self._first)
        if self._cut:
            # Keras has just reset them.
            restore(self.model, self._cut, "metrics")
            self._cut = {}
            # Keras expects a whole epoch of data, and warns.
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Your input ran out of data")

    def on_train_batch_begin(self, batch, logs=None):
        """Ends an interrupted epoch where it would have ended."""
        if self._generators and self._place == self._first:
            # What happens between two epochs draws numbers, too: each iterator of
            # PyTorch's data. After an interrupted epoch, there is one iterator less.
            restore_generators(self._generators)
        if self._is_whole():
            # As data that end do. But if they end within an update of TensorFlow, parts
            # of the update take place, such as its number.
            raise StopIteration

    def on_train_batch_end(self, batch, logs=None):
        """Saves if a checkpoint is due or SIGTERM came."""
        if threading.get_ident() != self._thread:
            raise ValueError("callbacks must be a list. Received: ExactResume alone.")
        if not self._data.given:
            raise ValueError(_wrong_data("other data"))
        # Several updates may be one execution, and the last one may be shorter.
        self._place = min(self._first + batch + 1, self._data.batches_per_epoch)
        self._generators = generators()
        if self._is_whole() or self.model.stop_training:
            return  # `on_epoch_end` saves, when the evaluation is done too.
        if self._signals.received or self._is_due():
            self._save()
        self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        """Saves if the training ends or a checkpoint is due."""
        self._quiet.close()
        self._logs_of_epochs.append([epoch, plain(logs or {})])
        if not self._is_whole():
            return  # Another callback stopped the training: `on_train_end` saves.
        self._epoch, self._place = epoch + 1, 0
        is_last = self._epoch == self.params["epochs"]
        if is_last or self.every is None or self._signals.received or self._is_due():
            self._save()
        self._stop_if_asked()

    def on_train_end(self, logs=None):
        """Saves if a callback ended the training."""
        self._begin()
        if self.model.stop_training and not self._is_over:
            self._is_over = True
            self._save()
        self._signals.__exit__()

    def _checked_data(self):
        if self._data is None:
            raise ValueError(_wrong_data("other data"))
        steps, wanted = self.params["steps"], self._data.batches_per_epoch
        if steps != wanted:
            raise ValueError(_wrong_data(f"epochs of {steps} batches, not {wanted}"))
        return self._data

    def _read(self, file, raw):
        arrays, facts = checkpoint_file.decode(raw)
        if "identity" not in facts or file != self._folder.file(facts["updates"]):
            raise checkpoint_file.NotWhole("it belongs to another run or update")
        return file, arrays, facts

    def _resume(self, file, arrays, facts):
        other = difference(facts["identity"], self._identity)
        if other:
            raise ValueError(
                f"{file} is of another training ({other}). Use what it began with, or "
                "choose another folder."
            )
        warn_of_other_versions(file, facts["versions"], versions())
        restore(self.model, arrays, "model", "optimizer", "moments", "progress")
        self._epoch, self._place = facts["epoch"], facts["place"]
        self._cut = arrays if self._place else {}
        self._generators = {name: arrays[name] for name in generators()}
        self._saved_updates = facts["updates"]
        self._logs_of_epochs = facts["logs_of_epochs"]
        self._is_over = facts["is_over"]
        start_at_epoch(
            self.model, self.params["epochs"] if self._is_over else self._epoch
        )
        print(f"resumed after update {facts['updates']:,}", flush=True)

    def _begin(self):
        """Before the first epoch, or after the last: tells Keras of the past ones."""
        if self._has_begun:
            return
        self._has_begun = True
        start_at_epoch(self.model, None)  # It would hold for another `fit`, too.
        history = self.model.history
        for epoch, logs in self._logs_of_epochs:
            history.epoch.append(epoch)
            for name, value in logs.items():
                history.history.setdefault(name, []).append(value)

    def _is_whole(self):
        return self._place == self._data.batches_per_epoch

    def _updates(self):
        return self._epoch * self._data.batches_per_epoch + self._place

    def _is_due(self):
        every = self.every
        return every and self._updates() // every > self._saved_updates // every

    def _save(self):
        facts = {
            "updates": self._updates(),
            "epoch": self._epoch,
            "place": self._place,
            "is_over": self._is_over,
            "logs_of_epochs": self._logs_of_epochs,
            "identity": self._identity,
            "versions": versions(),
        }
        arrays = {**arrays_of(self.model), **self._generators}
        content = checkpoint_file.encode(arrays, facts)
        self._folder.save(self._updates(), content)
        self._saved_updates = self._updates()

    def _stop_if_asked(self):
        if self._signals.received:
            print(
                f"received SIGTERM; update {self._updates():,} is saved. Run the same "
                "script again to resume.",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(_TRY_AGAIN)


def _wrong_data(received):
    return (
        "fit must train on the data of `ExactResume.batches`, without steps_per_epoch. "
        f"Received: {received}. Pass model.fit(resume.batches(...), "
        "callbacks=[resume])."
    )

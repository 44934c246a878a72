"""`TensorBoardLog`: a training in TensorBoard, by update."""

import contextlib
import os
import pathlib
import shutil
import time

import keras
import tensorflow as tf
from keras import ops
from tensorboard.plugins.hparams import api

from gbn_keras.analysis.compiled import compiled
from gbn_keras.analysis.log_spaced import LogSpacedLog
from gbn_keras.training.plan import Plan
from gbn_keras.training.run.events import EventLog, cut_events, read_events
from gbn_keras.training.run.profiler import Profiler
from gbn_keras.training.run.waiting import WaitingForData
from gbn_keras.training.settings import COMPARED

# What TensorBoard's curves show of a tag is a sample of 1,000.
_POINTS = 500


class TensorBoardLog(keras.callbacks.Callback):
    """Writes TensorBoard's event files; as in Keras, runs `train` and `validation`.

    Every point's step is the number of updates that the optimizer has made. `train`
    has about 500 points evenly spaced, and one at the end of every epoch:

    - `loss` and `accuracy`, as the progress bar shows them: means over the epoch until
      then; `learning_rate` and `gradient_norm` (before clipping) of the last update;
    - since the point before, or the epoch's start: `updates_per_second`,
      `images_per_second` and `waiting_for_data`, the share of time (`WaitingForData`);
    - `weight_distance`, `noise_scale`: where they are logged, with their own spacing.

    `validation` has `loss` and `accuracy` of each evaluation. The folder itself is a
    session of the HParams tab, with the validation's last values as its metrics.

    A training that goes on, whose optimizer has made updates already, goes on with the
    files: `on_train_begin` removes what is later (`cut_events`). What is written until
    `flush()` is in the files for a later `on_train_begin` to find.

    Args:
        folder: Where the files go.
        plan: The training's.
        logs: By tag, a callback that logs a table and the column to take from it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        plan: Plan,
        logs: dict[str, tuple[LogSpacedLog, str]] | None = None,
    ):
        super().__init__()
        self._folder = pathlib.Path(folder)
        self._plan = plan
        self._logs = logs or {}
        self._every = max(1, plan.updates // _POINTS)
        self._learning_rate = compiled(plan.learning_rate)
        self._events = {}
        self._profiler = None
        self._began = None
        self._trains = False

    def flush(self) -> None:
        """Returns when all points are in the files; for before a checkpoint."""
        for events in self._events.values():
            events.flush()

    def close(self) -> None:
        """Ends the files; for a training that fails, which has no other end."""
        with contextlib.ExitStack() as stack:  # All of them, if one cannot be written.
            while self._events:
                stack.callback(self._events.popitem()[1].close)
            if self._profiler:  # The process has one, and may train again.
                self._profiler.stop()

    def on_train_begin(self, logs=None):
        """Starts the files, or goes on with them."""
        self._start()
        self._counted = self._began
        self._last_row = dict.fromkeys(self._logs, self._began)
        self._profiler = Profiler(
            self._folder / "train", self._plan.profile, self._updates_made
        )
        self._waiting = WaitingForData()
        self._waiting.start(self.model)
        self._trains = True

    def on_epoch_begin(self, epoch, logs=None):
        """Counts from here: the number of updates is on the device, and slow to ask."""
        self._before_epoch = self._updates_made()
        self._start_interval(self._before_epoch)  # Evaluation is not counted.

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the profile, if it is time."""
        self._profiler.begin(self._before_epoch + batch + 1)

    def on_train_batch_end(self, batch, logs=None):
        """Writes a point, if it is time."""
        before, self._counted = self._counted, self._before_epoch + batch + 1
        self._profiler.end(self._counted)
        is_last = batch + 1 == self.params["steps"] or self.model.stop_training
        if is_last or before // self._every < self._counted // self._every:
            self._write_train(logs)
        for tag, (log, column) in self._logs.items():
            row = log.newest_row
            if row and row["updates"] > self._last_row[tag]:
                self._last_row[tag] = row["updates"]
                if row[column] != "":
                    self._run("train").scalars(row["updates"], {tag: row[column]})

    def on_test_end(self, logs=None):
        """Writes the evaluation's point."""
        if self._began is None:  # A training that was killed after its last update.
            self._start()
        self._write("validation", self._updates_made(), dict(logs))
        if not self._trains:
            self.close()

    def on_train_end(self, logs=None):
        """Ends the files."""
        self._profiler.stop()
        self._waiting.stop(self.model)
        self._trains = False
        self._began = self._updates_made()
        self.close()

    def _start(self):
        updates = self._updates_made()
        if updates:
            cut_events(self._folder, updates)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._began = updates
        self._last = {"train": updates, "validation": self._last_evaluation()}
        if not updates:
            self._write_hparams()

    def _write_train(self, logs):
        updates = self._updates_made()
        since_update, since, waited = self._interval
        seconds = time.perf_counter() - since
        rate = (updates - since_update) / seconds
        self._write(
            "train",
            updates,
            {
                **logs,
                "learning_rate": self._learning_rate(tf.constant(updates - 1)),
                "gradient_norm": float(self.model.gradient_norm),
                "updates_per_second": rate,
                "images_per_second": rate * self._plan.settings.batch_size,
                "waiting_for_data": (self._waiting.seconds - waited) / seconds,
            },
        )
        self._start_interval(updates)

    def _write_hparams(self):
        values = {name: getattr(self._plan.settings, name) for name in COMPARED}
        # A name or a number, but TensorBoard wants one type.
        values["lr_scaling"] = str(values["lr_scaling"])
        events = self._run("")
        config = api.hparams_config_pb(
            [api.HParam(name) for name in COMPARED],
            [api.Metric(tag, "validation") for tag in ("accuracy", "loss")],
        )
        for summary in (config, api.hparams_pb(values)):
            events.summary(summary.SerializeToString())
        events.flush()

    def _write(self, run, updates, values):
        # An update whose gradient float16 could not hold is none: no point of its own.
        if updates > self._last[run]:
            self._last[run] = updates
            self._run(run).scalars(updates, {k: float(v) for k, v in values.items()})

    def _run(self, name):
        if name not in self._events:
            self._events[name] = EventLog(self._folder / name, self._began)
        return self._events[name]

    def _last_evaluation(self):
        events = read_events(self._folder / "validation")
        return max((e.step for e in events if e.HasField("summary")), default=0)

    def _start_interval(self, updates):
        self._interval = updates, time.perf_counter(), self._waiting.seconds

    def _updates_made(self):
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))

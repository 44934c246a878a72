"""`TensorBoardLog`: shows a training in TensorBoard, by update."""

import contextlib
import os
import pathlib
import shutil
import time

import keras
from keras import ops
from tensorboard.plugins.hparams import api

from gbn_keras.analysis.log_spaced import LogSpacedLog
from gbn_keras.training.plan import Plan
from gbn_keras.training.run.events import EventLog, cut_events, read_events
from gbn_keras.training.run.profiler import Profiler
from gbn_keras.training.run.rates import Rates
from gbn_keras.training.run.waiting import WaitingForData
from gbn_keras.training.settings import COMPARED

# TensorBoard's curves show a sample of 1,000 points of a tag.
_POINTS = 500


class TensorBoardLog(keras.callbacks.Callback):
    """Writes TensorBoard's event files, with Keras's runs `train` and `validation`.

    The step of each point is the number of updates that the optimizer has made. `train`
    has about 500 evenly spaced points, and one at the end of every epoch:

    - `loss` and `accuracy`, means over the epoch so far, as in the progress bar;
      `learning_rate` and `gradient_norm` (before clipping) of the last update;
    - `updates_per_second`, `images_per_second` and `waiting_for_data` (the share of the
      time, see `WaitingForData`), since the previous point or the start of the epoch;
    - `weight_distance` and `noise_scale`, if they are logged, with their own spacing.

    `validation` has `loss` and `accuracy` of each evaluation. The folder itself is a
    session of the HParams tab, with the last validation values as its metrics.

    A resumed training continues the files. If the optimizer has already made updates,
    `on_train_begin` removes later events (`cut_events`). After `flush()`, all points so
    far are in the files, where a later `on_train_begin` finds them.

    Args:
        folder: Folder for the files.
        plan: Plan of the training.
        logs: For each tag, a callback that logs a table, and the column to take.
        updates: Number of updates made before, if the training resumes, including those
            that float16 skipped.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        plan: Plan,
        logs: dict[str, tuple[LogSpacedLog, str]] | None = None,
        updates: int = 0,
    ):
        super().__init__()
        self._folder = pathlib.Path(folder)
        self._plan = plan
        self._logs = logs or {}
        self._tried = updates
        self._every = max(1, plan.updates // _POINTS)
        self._rates = Rates(plan)
        self._events = {}
        self._profiler = None
        self._began = None
        self._trains = False

    def flush(self) -> None:
        """Returns when all points are in the files. Call it before a checkpoint."""
        for events in self._events.values():
            events.flush()

    def close(self) -> None:
        """Closes the files. Call it if a training fails: that skips `on_train_end`."""
        with contextlib.ExitStack() as stack:  # Closes all, even if one fails.
            while self._events:
                stack.callback(self._events.popitem()[1].close)
            if self._profiler:  # A process has only one profiler, and may train again.
                self._profiler.stop()

    def on_train_begin(self, logs=None):
        """Starts or continues the files."""
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
        """Reads the number of updates once, as reading it from the device is slow."""
        self._before_epoch = self._updates_made()
        self._start_interval(self._before_epoch)  # Leaves out the evaluation.

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the profile, if it is time."""
        self._profiler.begin(self._before_epoch + batch + 1)

    def on_train_batch_end(self, batch, logs=None):
        """Writes a point, if it is time."""
        before, self._counted = self._counted, self._before_epoch + batch + 1
        self._profiler.end(self._counted)
        self._tried += 1
        # Not by `batch`: an epoch that was interrupted has fewer.
        is_end = self._tried % self.params["steps"] == 0
        is_last = is_end or self.model.stop_training
        if is_last or before // self._every < self._counted // self._every:
            self._write_train(logs)
        for tag, (log, column) in self._logs.items():
            row = log.newest_row
            if row and row["updates"] > self._last_row[tag]:
                self._last_row[tag] = row["updates"]
                if row[column] != "":
                    self._run("train").scalars(row["updates"], {tag: row[column]})

    def on_test_end(self, logs=None):
        """Writes the point of the evaluation."""
        if self._began is None:  # The training was killed after its last update.
            self._start()
        self._write("validation", self._updates_made(), dict(logs))
        if not self._trains:
            self.close()

    def on_train_end(self, logs=None):
        """Closes the files."""
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
                "learning_rate": self._rates(updates - 1),
                "gradient_norm": float(self.model.gradient_norm),
                "updates_per_second": rate,
                "images_per_second": rate * self._plan.settings.batch_size,
                "waiting_for_data": (self._waiting.seconds - waited) / seconds,
            },
        )
        self._start_interval(updates)

    def _write_hparams(self):
        values = {name: getattr(self._plan.settings, name) for name in COMPARED}
        # Only AdamW has a weight decay.
        values = {name: value for name, value in values.items() if value is not None}
        # It is a name or a number, but TensorBoard wants one type.
        values["lr_scaling"] = str(values["lr_scaling"])
        events = self._run("")
        config = api.hparams_config_pb(
            [api.HParam(name) for name in values],
            [api.Metric(tag, "validation") for tag in ("accuracy", "loss")],
        )
        for summary in (config, api.hparams_pb(values)):
            events.summary(summary.SerializeToString())
        events.flush()

    def _write(self, run, updates, values):
        # Updates whose gradient float16 cannot hold do not count. They add no point.
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

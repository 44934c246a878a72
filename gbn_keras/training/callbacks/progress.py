"""Progress of a training, and estimates of the time that is left."""

import math
import sys
import time

import keras

from gbn_keras.training.plan import Plan

# Seconds between two changes of the bar, at least.
_INTERVAL = 0.2
_WIDTH = 20
_SHOWN = ("loss", "val_accuracy")


class RunProgress(keras.callbacks.Callback):
    """A progress bar for a whole training, on a terminal or in a notebook.

    Elsewhere, for example in a file, it shows nothing. The estimate of the time left
    does not include the first update and the first evaluation: they are traced, which
    may take longer than all others together.

    Args:
        max_updates: The update after which the training stops early. 0: none.
        small_batch_updates: With `--stretch=auto`, the number of small-batch updates
            after which the training ends; the bar counts these. 0: a fixed length.
    """

    def __init__(self, max_updates: int = 0, small_batch_updates: int = 0):
        super().__init__()
        self._max_updates = max_updates
        self._small_batch_updates = small_batch_updates
        self._is_shown = sys.stdout.isatty() or "ipykernel" in sys.modules
        self._is_open = False
        self._made, self._ended = 0, None

    @classmethod
    def of(cls, plan: Plan) -> "RunProgress":
        """The progress bar of a planned training."""
        end = plan.small_batch_updates if plan.is_auto else 0
        return cls(plan.settings.max_updates, end)

    @property
    def seconds_per_update(self) -> float | None:
        """Mean seconds of an update, with evaluations; `None` before the second."""
        if self._made < 2:
            return None
        return ((self._ended or time.monotonic()) - self._traced) / (self._made - 1)

    def on_train_begin(self, logs=None):
        """Starts the bar at the first update, or at the one to resume from."""
        if self._small_batch_updates:
            self._updates = self._small_batch_updates
            progress = self.model.regime_progress
            self._done = int(keras.ops.convert_to_numpy(progress.done))
        else:
            updates = self.params["epochs"] * self.params["steps"]
            self._updates = min(updates, self._max_updates or updates)
            self._done = int(self.model.optimizer.iterations.numpy())
        self._before = self._done
        self._traced = self._shown_at = time.monotonic()
        self._evaluating = self._evaluations = 0
        self._logs = {}

    def on_train_batch_end(self, batch, logs=None):
        """Counts the update."""
        self._made += 1
        if self._made == 1:
            self._traced = time.monotonic()
        self._show(self._reached(self._done + batch + 1, logs), logs)

    def on_test_begin(self, logs=None):
        """Notes when an evaluation starts."""
        self._evaluating = time.monotonic()

    def on_test_end(self, logs=None):
        """Excludes the first evaluation from the time."""
        self._evaluations += 1
        if self._evaluations == 1:
            self._traced += time.monotonic() - self._evaluating

    def on_epoch_end(self, epoch, logs=None):
        """Moves the bar to the end of the epoch, also if the epoch was resumed."""
        self._done = self._reached((epoch + 1) * self.params["steps"], logs)
        self._show(self._done, logs)

    def on_train_end(self, logs=None):
        """Notes when the training ends."""
        self._ended = time.monotonic()

    def close(self) -> None:
        """Ends the bar's line if the training stopped early."""
        if self._is_open:
            print(flush=True)
            self._is_open = False

    def _reached(self, updates, logs):
        """How far the bar is after a number of updates."""
        if self._small_batch_updates:
            updates = int(logs["small_batch_updates"])
        return min(updates, self._updates)

    def _seconds_left(self, done):
        """The estimate of the time left; `None` if it is unknown."""
        if done in (self._before, self._updates) or self.seconds_per_update is None:
            return None
        seconds = self.seconds_per_update * self._made
        return seconds * (self._updates - done) / (done - self._before)

    def _show(self, done, logs):
        self._logs |= {name: logs[name] for name in _SHOWN if name in logs}
        now = time.monotonic()
        is_early = now < self._shown_at + _INTERVAL and done < self._updates
        if not self._is_shown or is_early:
            return
        self._shown_at = now
        full = _WIDTH * done // self._updates
        parts = [f"{name}: {value:.4f}" for name, value in self._logs.items()]
        if (left := self._seconds_left(done)) is not None:
            parts.insert(0, f"{in_words(left)} left")
        # Clears the rest of the line, because the previous text may be longer.
        print(
            f"\r\x1b[1m{done:,}/{self._updates:,}\x1b[0m "
            f"\x1b[32m{'━' * full}\x1b[37m{'━' * (_WIDTH - full)}\x1b[0m "
            f"{' - '.join(parts)}\x1b[K",
            end="",
            flush=True,
        )
        self._is_open = True
        if done == self._updates:
            self.close()


class Pace:
    """Estimates how long trainings will take from how long others took."""

    def __init__(self):
        self._timed = []
        # By batch size, the updates that the last training with `auto` made.
        self._found = {}

    def add(
        self, plan: Plan, updates: int, seconds: float, per_update: float | None
    ) -> None:
        """Adds a training.

        Args:
            plan: The plan of the training.
            updates: Number of updates that it made.
            seconds: The whole time that it took.
            per_update: Seconds of one update without tracing, if known.
        """
        per_update = min(per_update or math.inf, seconds / updates)
        beside = seconds - updates * per_update
        self._timed.append((plan.settings.batch_size, per_update, beside))
        if plan.is_auto:
            self._found[plan.settings.batch_size] = updates

    def left(self, plans: list[Plan]) -> str:
        """The time that trainings will take, as text; empty if unknown or none left."""
        if not (plans and self._timed):
            return ""
        return f"; about {in_words(sum(map(self._seconds, plans)))} left"

    def _seconds(self, plan):
        """The estimate for a training, from those with the nearest batch size.

        An update's time is taken as proportional to its batch size.
        """
        batch_size = plan.settings.batch_size
        updates = plan.updates
        if plan.is_auto:
            updates = self._found.get(batch_size, updates)

        def distance(timed):
            return abs(math.log(timed[0] / batch_size))

        nearest = min(map(distance, self._timed))
        alike = [timed for timed in self._timed if distance(timed) == nearest]
        seconds = [
            beside + updates * per_update * batch_size / size
            for size, per_update, beside in alike
        ]
        return sum(seconds) / len(seconds)


def outcome_line(outcome: dict) -> str:
    """The outcome of a training, from `read_outcome`, as one line."""
    if "diverged" in outcome:
        return outcome["reason"]
    return (
        f"validation accuracy {100 * outcome['accuracy']:.2f} %, "
        f"{outcome['updates']:,} updates, {outcome['wall_seconds']:.1f} s"
    )


def in_words(seconds: float) -> str:
    """A duration as text, such as `4 s`, `3 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

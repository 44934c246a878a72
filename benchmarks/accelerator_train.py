"""One training of Table 1, in pieces that resume bit for bit.

Each batch is a function of the seed and the update's number. A checkpoint holds all
that an update changes. So a training that is stopped after any update goes on as if it
had not been. Stopped or not, the same compiled program makes the updates: it takes the
first and the last update as values.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_data import Images
from accelerator_folder import Deadline, environment, memory_limit, write_rows
from accelerator_task import Task
from accelerator_update import advance, correct, epoch_plan

from gbn_keras.whole_file import whole_file

_EVALUATED_AT_ONCE = 1000
_SECONDS_BETWEEN_CHECKPOINTS = 120
# The share of the device's memory that an update may use.
_MEMORY_SHARE = 0.9


def train(
    task: Task,
    data: Images,
    folder: pathlib.Path,
    deadline: Deadline,
    max_updates: int | None = None,
) -> bool:
    """Starts a training or goes on with it; says whether it is finished.

    Args:
        task: What to train.
        data: What to train it on.
        folder: Where its checkpoint and its result are.
        deadline: When to stop, with a checkpoint.
        max_updates: After how many updates to stop at the latest.

    Raises:
        ValueError: If the folder's checkpoint is of another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    if result.exists():
        return True
    started = time.monotonic()
    training = _Training(task, data, folder / "checkpoint.npz")
    deadline.took(time.monotonic() - started, "compilation")
    is_finished = training.go_on(deadline, max_updates)
    if is_finished:
        write_rows(result, [training.row()])
        print(f"{task.name}: {training.outcome()}", flush=True)
    return is_finished


class _Training:
    """The state of a training, and what goes on with it."""

    def __init__(self, task, data, checkpoint):
        self.task, self.checkpoint = task, checkpoint
        examples = len(data.train_labels)
        self.updates_per_epoch = examples // task.batch_size
        epochs = max(1, round(task.regime.epochs * task.stretch))
        self.updates = epochs * self.updates_per_epoch
        self.eval_every = max(1, epochs // 40)
        mean, deviation = data.mean_and_deviation()
        self.settings = {
            **dataclasses.asdict(task),
            "updates": self.updates,
            "data": data.name,
            "channel_means": mean.tolist(),
        }
        self.train_data = tuple(
            map(jnp.asarray, (data.train_images, data.train_labels, mean, deviation))
        )
        self.test_data = tuple(map(jnp.asarray, (*_filled_up(data), mean, deviation)))
        self.tested = len(data.test_labels)
        self.model = task.model(data.train_images.shape[1:])
        self.optimizer = task.optimizer(examples)
        self.optimizer.build(self.model.trainable_variables)
        self.done, self.seconds, self.history, self.loss = 0, 0.0, [], math.nan
        self.micro_batch_size = task.micro_batch_size or None
        self.state = [
            [variable.value for variable in group]
            for group in (
                self.model.trainable_variables,
                self.model.non_trainable_variables,
                self.optimizer.variables,
            )
        ]
        if checkpoint.exists():
            self._read()
        self.plan = jax.jit(functools.partial(epoch_plan, examples=examples))
        self.advance = self._compiled()
        self.correct = jax.jit(functools.partial(correct, self.model))

    def go_on(self, deadline, max_updates):
        """Trains until the end or the deadline; says whether it is the end."""
        last = min(self.updates, max_updates or self.updates)
        saved, count = time.monotonic(), 1
        is_first = True
        while self.done < last and not self.is_diverged:
            if deadline.is_over() and not is_first:
                break
            is_first = False
            started = time.monotonic()
            count = self._updates(min(count, last - self.done))
            took = time.monotonic() - started
            deadline.took(took)
            self.seconds += took
            # Few calls, but the clock is looked at every few seconds.
            count = max(1, min(2 * count, int(3 * count / took)))
            if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                self._write()
                saved = time.monotonic()
        self._write()
        return self.done >= self.updates or self.is_diverged

    @property
    def is_diverged(self):
        return self.done > 0 and not math.isfinite(self.loss)

    def _updates(self, count):
        """Makes up to `count` updates of one epoch; returns how many."""
        epoch, first = divmod(self.done, self.updates_per_epoch)
        end = min(first + count, self.updates_per_epoch)
        plan = self.plan(self.task.seed, epoch)
        self.state, loss = self.advance(
            self.state, *self.train_data, *plan, np.int32(first), np.int32(end)
        )
        self.loss = float(loss) / (end - first)
        self.done += end - first
        is_end = self.done == self.updates
        if end == self.updates_per_epoch:
            if is_end or (epoch + 1) % self.eval_every == 0:
                accuracy = int(self.correct(*self.state[:2], *self.test_data))
                self.history.append([self.done, accuracy / self.tested])
        return end - first

    def row(self):
        """The result, as a table's row."""
        task = self.task
        return {
            "network": task.network,
            "arm": task.arm,
            "seed": task.seed,
            "accuracy": None if self.is_diverged else self.history[-1][1],
            "diverged": self.is_diverged,
            "updates": self.done,
            "samples": self.done * task.batch_size,
            "seconds": self.seconds,
            "batch_size": task.batch_size,
            "small_batch_size": task.regime.small_batch_size,
            "micro_batch_size": self.micro_batch_size,
            "momentum": task.regime.momentum,
            "precision": task.precision,
            "data": self.settings["data"],
            "history": self.history,
        }

    def outcome(self):
        """The result in words."""
        if self.is_diverged:
            return f"diverged after {self.done} updates"
        accuracy = 100 * self.history[-1][1]
        return f"{accuracy:.2f} % after {self.done} updates, {self.seconds:.0f} s"

    def _compiled(self):
        """The compiled function that makes updates, with what fits into memory."""
        task = self.task
        sizes = [self.micro_batch_size or task.batch_size]
        if task.ghost_size and not self.micro_batch_size:
            ghosts = task.batch_size // task.ghost_size
            sizes = [
                task.ghost_size * ghosts // parts
                for parts in range(1, ghosts + 1)
                if ghosts % parts == 0
            ]
        plan = self.plan(task.seed, 0)
        for size in sizes:
            function = functools.partial(
                advance, self.model, self.optimizer, task.batch_size, size
            )
            compiled = (
                jax.jit(function, donate_argnums=0)
                .lower(self.state, *self.train_data, *plan, np.int32(0), np.int32(1))
                .compile()
            )
            if size == sizes[-1] or _fits(compiled):
                self.micro_batch_size = size
                return compiled

    def _write(self):
        arrays = {
            f"{group}_{place}": np.asarray(value)
            for group, values in enumerate(self.state)
            for place, value in enumerate(values)
        }
        about = {
            "settings": self.settings,
            "done": self.done,
            "seconds": self.seconds,
            "history": self.history,
            "loss": self.loss,
            "micro_batch_size": self.micro_batch_size,
            "environment": environment(),
        }
        with whole_file(self.checkpoint) as draft:
            np.savez(draft, about=json.dumps(about), **arrays)

    def _read(self):
        with np.load(self.checkpoint) as arrays:
            about = json.loads(str(arrays["about"]))
            # Tuples become lists in JSON.
            if about["settings"] != json.loads(json.dumps(self.settings)):
                raise ValueError(
                    f"{self.checkpoint} is of another training. Give the arguments of "
                    f"before, or another --folder. It has {about['settings']}."
                )
            self.state = [
                [jnp.asarray(arrays[f"{g}_{i}"]) for i in range(len(values))]
                for g, values in enumerate(self.state)
            ]
        for name in ("done", "seconds", "history", "loss", "micro_batch_size"):
            setattr(self, name, about[name])


def _filled_up(data):
    """The test examples in parts of one size; what fills them up is never correct."""
    size = min(_EVALUATED_AT_ONCE, len(data.test_labels))
    more = -len(data.test_labels) % size
    images = np.pad(data.test_images, ((0, more), (0, 0), (0, 0), (0, 0)))
    labels = np.pad(data.test_labels, (0, more), constant_values=-1)
    return images.reshape(-1, size, *images.shape[1:]), labels.reshape(-1, size)


def _fits(compiled):
    """Whether a compiled function's arrays fit into the device's memory."""
    limit, needs = memory_limit(), compiled.memory_analysis()
    if limit is None or needs is None:
        return True
    used = needs.temp_size_in_bytes + needs.argument_size_in_bytes
    return used + needs.output_size_in_bytes < _MEMORY_SHARE * limit

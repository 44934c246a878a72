"""One training of an experiment on JAX, in pieces that resume bit for bit.

The program's planner says what to train, and `LargeBatchModel` makes the updates. Each
batch is a function of the seed and the update's number. A checkpoint holds all that an
update changes. So a training that is stopped after any update goes on as if it had not
been. Stopped or not, the same compiled program makes the updates: it takes the first
and the last update as values.

The order of the examples and their shifts are other random numbers than the program's.
"""

import dataclasses
import functools
import json
import math
import time

import jax
import jax.numpy as jnp
import keras
import numpy as np
from accelerator_data import Images
from accelerator_folder import Deadline, commit, memory_limit
from accelerator_folder import environment as environment_of_jax
from accelerator_update import advance, epoch_plan, evaluate
from experiment import PADDING, UNCHANGED, Variant, regime_of

from gbn_keras._keras_internals import build_by_trace
from gbn_keras.analysis.noise_scale import NOISE_SCALE
from gbn_keras.analysis.update_table import UpdateTable
from gbn_keras.large_batch.ghost_sizes import smallest_micro_batch
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.training.errors import UsageError
from gbn_keras.training.model.network import loss_and_metrics, make_network
from gbn_keras.training.model.optimizer import make_optimizer
from gbn_keras.training.planner import Planner
from gbn_keras.training.run.lengths import lengths
from gbn_keras.training.run.processor import processor
from gbn_keras.training.run.run_directory import (
    METRICS,
    open_run_directory,
    read_outcome,
    write_divergence,
    write_result,
)
from gbn_keras.training.settings import Settings
from gbn_keras.whole_file import whole_file

# What the program pads photos by.
_PADDING_OF = {"cifar10": 4, "cifar100": 4}
_CHECKPOINT = "checkpoint.npz"
_EVALUATED_AT_ONCE = 1000
_SECONDS_BETWEEN_CHECKPOINTS = 120
# The share of the device's memory that an update may use.
_MEMORY_SHARE = 0.9


def train(
    settings: Settings,
    data: Images,
    deadline: Deadline,
    variant: Variant = UNCHANGED,
) -> bool:
    """Starts a training or goes on with it; says whether it has ended.

    Its run directory has `result.json`, or `diverged.json`, as the program writes them.

    Args:
        settings: What to train.
        data: What to train it on.
        deadline: When to stop, with a checkpoint.
        variant: What to change.

    Raises:
        UsageError: If the settings ask for something that only the program does, or if
            the run directory is of another training, or in use.
    """
    for name in ("gradient_noise", "weight_distance"):
        if (value := getattr(settings, name)) not in (False, "none"):
            raise UsageError(
                f"--{name}: got {value}, wanted it left out, because trainings on JAX "
                "do not have it. Use train.py."
            )
    images = data.first(settings.train_examples)
    with regime_of(settings.model, variant):
        plan = Planner(len(images.train_labels)).plan(settings)
    with open_run_directory(plan.settings) as run_dir:
        if read_outcome(run_dir):
            return True
        started = time.monotonic()
        training = _Training(plan, variant, images, run_dir)
        deadline.took(time.monotonic() - started, "compilation")
        return training.go_on(deadline)


class _Training:
    """The state of a training, and what goes on with it."""

    def __init__(self, plan, variant, data, run_dir):
        self._plan, self._variant, self._run_dir = plan, variant, run_dir
        padding = PADDING if variant.flips_and_crops else 0
        self._padding = _PADDING_OF.get(plan.settings.dataset, padding)
        mean, deviation = data.mean_and_deviation()
        self._train_data = tuple(
            map(jnp.asarray, (data.train_images, data.train_labels, mean, deviation))
        )
        self._test_data = tuple(map(jnp.asarray, (*_filled_up(data), mean, deviation)))
        self._tested = len(data.test_labels)
        self._done, self._seconds, self._rows, self._loss = 0, 0.0, [], math.nan
        plan_of = functools.partial(
            epoch_plan, examples=plan.examples, padding=self._padding
        )
        self._epoch_plan = jax.jit(plan_of)
        self._advance = self._compiled(data.train_images.shape[1:])
        self._evaluate = jax.jit(functools.partial(evaluate, self._model))
        if (run_dir / _CHECKPOINT).exists():
            self._read()

    def go_on(self, deadline):
        """Trains until the end or the deadline; says whether it is the end."""
        saved, count = time.monotonic(), 1
        is_first = True
        while not self._is_over():
            if deadline.is_over() and not is_first:
                self._write()
                return False
            is_first = False
            started = time.monotonic()
            made = self._updates(count)
            took = time.monotonic() - started
            deadline.took(took)
            self._seconds += took
            # Few calls, but the clock is looked at every few seconds.
            count = max(1, min(2 * count, int(3 * made / took)))
            if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                self._write()
                saved = time.monotonic()
        self._write()
        self._report()
        return True

    def _is_over(self):
        is_end = self._done >= self._plan.updates or self._is_diverged()
        if self._plan.is_auto:
            is_end |= self._small_batch_updates() >= self._plan.small_batch_updates
        return is_end

    def _is_diverged(self):
        return self._done > 0 and not math.isfinite(self._loss)

    def _small_batch_updates(self):
        """How many of the small batch's updates are done; NaN if nobody counts."""
        progress = self._model.regime_progress
        if progress is None:
            return math.nan
        self._assign()
        return float(keras.ops.convert_to_numpy(progress.done))

    def _updates(self, count):
        """Makes up to `count` updates of one epoch; returns how many."""
        plan = self._plan
        epoch, first = divmod(self._done, plan.updates_per_epoch)
        end = min(first + count, plan.updates_per_epoch)
        end = min(end, first + plan.updates - self._done)
        if first == 0 and self._variant.loses_momentum:
            self._lose_momentum()
        of_epoch = self._epoch_plan(plan.settings.seed, epoch)
        self._state, stopped, loss = self._advance(
            self._state, *self._train_data, *of_epoch, np.int32(first), np.int32(end)
        )
        self._loss = float(loss)
        # Each call has a mean loss of its own.
        metrics = self._state[3]
        means = len(metrics) - len(self._model._measured())
        metrics[:means] = map(jnp.zeros_like, metrics[:means])
        made = int(stopped) - first
        self._done += made
        is_over = self._is_over()
        if int(stopped) == plan.updates_per_epoch or is_over:
            is_shown = epoch + 1 in plan.evaluation_epochs or is_over
            scores = self._scores() if is_shown else {}
            self._rows.append([self._done, self._small_batch_updates(), scores])
        return made

    def _lose_momentum(self):
        variables = self._model.optimizer.variables
        lost = set(map(id, self._model.optimizer.momentums))
        self._state[2] = [
            jnp.zeros_like(value) if id(variable) in lost else value
            for variable, value in zip(variables, self._state[2], strict=True)
        ]

    def _scores(self):
        loss, correct = self._evaluate(self._state, *self._test_data)
        # The program's accuracy is a float32, too.
        accuracy = float(np.float32(int(correct) / self._tested))
        return {"accuracy": accuracy, "loss": float(loss) / self._tested}

    def _report(self):
        """Writes how it ended."""
        plan, settings = self._plan, self._plan.settings
        environment = environment_of_jax()
        device = environment["device"]
        hardware = {**processor(), "cores": environment["cores"], "devices": [device]}
        record = {
            "updates": self._done,
            "samples": self._done * settings.batch_size,
            "wall_seconds": round(self._seconds, 2),
            "seed": settings.seed,
            "settings": dataclasses.asdict(settings),
            "commit": commit(),
            "versions": {
                name: environment[name]
                for name in ("gbn_keras", "python", "jax", "keras")
            },
            "hardware": hardware,
            "xla_flags": environment["xla_flags"],
            "micro_batch_size": self._model.micro_batch_size,
        }
        if self._is_diverged():
            write_divergence(self._run_dir, {"diverged": self._done, **record})
            print(f"{self._run_dir}: diverged after {self._done} updates", flush=True)
            return
        self._write_tables()
        scores = self._rows[-1][2]
        found = lengths(plan, self._model, self._run_dir)
        write_result(self._run_dir, {**scores, **record, **found})
        print(
            f"{self._run_dir}: {100 * scores['accuracy']:.2f} % after {self._done} "
            f"updates, {self._seconds:.0f} s",
            flush=True,
        )

    def _write_tables(self):
        """The tables that `lengths` reads, and that curves are drawn from."""
        self._assign()
        files = [METRICS] + [NOISE_SCALE] * self._plan.settings.noise_scale
        columns = ["small_batch_updates", "val_accuracy", "val_loss"]
        for name in files:
            table = UpdateTable(self._run_dir / name, columns)
            for updates, done, scores in self._rows:
                known = "" if math.isnan(done) else done
                cells = [scores.get(key, "") for key in ("accuracy", "loss")]
                table.append(updates, [known, *cells])

    def _variables(self):
        model = self._model
        return [
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ]

    def _assign(self):
        """Gives the model's variables the values of the state."""
        for variables, values in zip(self._variables(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _make_model(self, image_shape, micro_batch_size):
        settings = self._plan.settings
        keras.config.set_dtype_policy(settings.precision)
        keras.utils.set_random_seed(settings.seed)
        network = make_network(self._plan, image_shape, 10)
        model = LargeBatchModel(network, micro_batch_size, settings.noise_scale)
        model.compile(make_optimizer(self._plan), **loss_and_metrics())
        model.optimizer.build(model.trainable_variables)
        build_by_trace(
            model, (np.zeros((1, *image_shape), "float32"), np.zeros(1, int))
        )
        self._model = model
        self._state = [[v.value for v in group] for group in self._variables()]

    def _compiled(self, image_shape):
        """The compiled function that makes updates, with what fits into memory."""
        plan = self._plan
        size = plan.micro_batch_size
        of_epoch = self._epoch_plan(plan.settings.seed, 0)
        while True:
            self._make_model(image_shape, size)
            function = functools.partial(
                advance,
                self._model,
                plan.settings.batch_size,
                self._padding,
                plan.small_batch_updates,
            )
            compiled = (
                jax.jit(function, donate_argnums=0)
                .lower(
                    self._state,
                    *self._train_data,
                    *of_epoch,
                    jnp.int32(0),
                    jnp.int32(1),
                )
                .compile()
            )
            ghosts = smallest_micro_batch(self._model)
            can_split = plan.settings.virtual_batch_size and size >= 2 * ghosts
            if plan.settings.micro_batch_size or not can_split or _fits(compiled):
                return compiled
            size = size // 2 // ghosts * ghosts

    def _write(self):
        arrays = {
            f"{group}_{place}": np.asarray(value)
            for group, values in enumerate(self._state)
            for place, value in enumerate(values)
        }
        about = {
            "done": self._done,
            "seconds": self._seconds,
            "rows": self._rows,
            "loss": self._loss,
        }
        with whole_file(self._run_dir / _CHECKPOINT) as draft:
            np.savez(draft, about=json.dumps(about), **arrays)

    def _read(self):
        with np.load(self._run_dir / _CHECKPOINT) as arrays:
            about = json.loads(str(arrays["about"]))
            self._state = [
                [jnp.asarray(arrays[f"{g}_{i}"]) for i in range(len(values))]
                for g, values in enumerate(self._state)
            ]
        self._done, self._seconds = about["done"], about["seconds"]
        self._rows, self._loss = about["rows"], about["loss"]


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

"""`Driver`: one training, step by step."""

import contextlib
import functools
import math
import pathlib

import keras

from gbn_keras.analysis.noise_scale import NoiseScaleLog
from gbn_keras.analysis.weight_distance import WeightDistance
from gbn_keras.gradient_noise import GradientNoise
from gbn_keras.large_batch.end_of_regime import EndOfRegime
from gbn_keras.shares import WHOLE_BATCH
from gbn_keras.training.callbacks.not_finite import StopIfNotFinite
from gbn_keras.training.callbacks.stop_after import StopAfter
from gbn_keras.training.errors import NotFinite
from gbn_keras.training.model.build_model import compile_model
from gbn_keras.training.model.variable_rate import saveable
from gbn_keras.training.run.checkpoint import Checkpointing, Checkpoints, State
from gbn_keras.training.run.circumstances import circumstances, versions
from gbn_keras.training.run.lengths import lengths
from gbn_keras.training.run.run_directory import (
    METRICS,
    MODEL_FILE,
    PLAN,
    read_result,
    write_divergence,
    write_result,
    write_whole,
)
from gbn_keras.training.run.tensorboard import TensorBoardLog
from gbn_keras.training.run.update_log import UpdateLog
from gbn_keras.training.strategy import (
    distribute,
    from_chief,
    is_chief,
    wait_for_all,
)
from gbn_keras.whole_file import whole_file


class Driver:
    """One training in its run directory: model, resume, fit, evaluate, report.

    A resumed training takes the same steps as a new one, so it ends with the same bits:

    1. Take a model with the seed's variables.
    2. Copy the initial weights, if distances are measured from them.
    3. Restore the variables of the model, the optimizer and the gradient moments from
       the newest intact checkpoint, on all workers.
    4. Start the data at the next update, whose batch depends only on its number.
    5. When `fit` begins, `Checkpointing` restores the metrics of the interrupted epoch,
       and the tables and event files are cut back to the checkpoint's update.

    Only the chief writes files and prints.

    Args:
        plan: The `Plan` of the training.
        strategy: The `tf.distribute` strategy.
        data: The data set that gives the batches.
        models: The `TracedModels` that give the model.
        signals: The `Signals` that catch SIGTERM and SIGINT.
    """

    def __init__(self, plan, strategy, data, models, signals):
        self._plan, self._strategy, self._data = plan, strategy, data
        self._models, self._signals = models, signals
        self._is_chief = is_chief(strategy)
        self._run_dir = pathlib.Path(plan.settings.run_dir)
        # Now, because the source may change during hours of training.
        self._circumstances = circumstances(plan)

    def train(self, callbacks, verbose) -> dict | None:
        """Runs all steps; returns the result on the chief, and `None` elsewhere."""
        self._take_model()
        self._resume()
        self._prepare_reports()
        with contextlib.ExitStack() as files:
            for reporter in self._reporters:
                files.callback(reporter.close)
            if self._is_chief:
                files.enter_context(self._recorded())
            history = self._fit(callbacks, verbose)
            scores = self._scores(history)
        result = self._report(scores)
        self._models.give_back(self._plan, self._model)
        return result

    def _take_model(self):
        self._model = self._models.take(self._plan)
        told = self._plan.describe(self._model.micro_batch_size)
        self._tell(told)
        if self._is_chief:
            write_whole(self._run_dir / PLAN, told + "\n")

    def _resume(self):
        """Restores the state of an interrupted training (steps 2 and 3)."""
        settings, model = self._plan.settings, self._model
        self._start = None
        if settings.weight_distance:
            self._start = [keras.ops.copy(x) for x in model.trainable_variables]
        self._checkpoints, newest = None, b""
        if self._is_chief:
            self._checkpoints = Checkpoints(settings, versions())
            newest = self._checkpoints.newest()
        saved = from_chief(self._strategy, newest)
        self._resumed = State.decode(saved)[0] if saved else None
        self._done = self._resumed.updates if self._resumed else 0
        if self._resumed:
            with self._strategy.scope():
                self._resumed.restore(
                    model, "model", "optimizer", "moments", "progress"
                )
            of = "at most " * self._plan.is_auto + f"{self._plan.updates:,}"
            self._tell(f"resumed after update {self._done:,} of {of}")

    def _prepare_reports(self):
        """Makes the callbacks that write tables, events and checkpoints."""
        plan, settings = self._plan, self._plan.settings
        self._logs, self._reporters = [], []
        if self._is_chief:
            logs = {}
            if settings.weight_distance:
                distance = WeightDistance(self._run_dir, self._start)
                logs["weight_distance"] = distance, "total"
            if settings.noise_scale:
                model = self._model
                noise = NoiseScaleLog(
                    self._run_dir, model.gradient_moments, model.regime_progress
                )
                logs["noise_scale"] = noise, "noise_scale"
            self._reporters = [
                TensorBoardLog(self._run_dir / "tensorboard", plan, logs, self._done)
            ]
            self._logs = [
                UpdateLog(self._run_dir / METRICS, plan, self._done),
                *(log for log, _ in logs.values()),
                *self._reporters,
            ]
        self._checkpointing = Checkpointing(
            self._checkpoints,
            self._resumed,
            plan.updates_per_epoch,
            settings.checkpoint_every,
            self._signals,
            self._reporters,
        )
        self._validation = {
            "x": distribute(self._strategy, self._data.validation_batches),
            "steps": self._data.validation_steps(self._strategy.num_replicas_in_sync),
        }

    def _fit(self, callbacks, verbose):
        plan, done = self._plan, self._done
        if done >= plan.updates or self._is_done():
            return None
        end = [EndOfRegime(plan.small_batch_updates)] if plan.is_auto else []
        batches = functools.partial(training_batches, self._data, plan.settings, done)
        return self._model.fit(
            distribute(self._strategy, batches),
            initial_epoch=done // plan.updates_per_epoch,
            epochs=plan.epochs,
            steps_per_epoch=plan.updates_per_epoch,
            validation_data=self._validation["x"],
            validation_steps=self._validation["steps"],
            validation_freq=plan.evaluation_epochs,
            shuffle=False,  # The batches are shuffled already; Keras would warn.
            callbacks=[
                StopAfter(plan.updates - done),
                *end,
                StopIfNotFinite(plan, done),
                *callbacks,
                *self._logs,
                self._checkpointing,
            ],
            verbose=verbose if self._is_chief else 0,
        )

    def _is_done(self):
        """Whether the small batch's updates are done, with `--stretch=auto`."""
        if not self._plan.is_auto:
            return False
        done = keras.ops.convert_to_numpy(self._model.regime_progress.done)
        return done >= self._plan.small_batch_updates

    def _scores(self, history):
        """Loss and accuracy after the last update."""
        if history and history.epoch[-1] + 1 in self._plan.evaluation_epochs:
            values = history.history
            scores = {name: values[f"val_{name}"][-1] for name in ("accuracy", "loss")}
        else:
            scores = self._model.evaluate(
                **self._validation,
                callbacks=self._reporters,
                verbose=0,
                return_dict=True,
            )
        if not math.isfinite(scores["loss"]):  # Because of the last update.
            what = f"the validation loss after it is {scores['loss']:g}"
            raise NotFinite(self._checkpointing.updates, what)
        return scores

    def _report(self, scores):
        """Writes the model and the result; returns the result on the chief."""
        plan, model = self._plan, self._model
        updates = int(model.optimizer.iterations.numpy())
        tried = self._checkpointing.updates
        result = {
            "accuracy": scores["accuracy"],
            "loss": scores["loss"],
            "updates": updates,
            "skipped_updates": tried - updates,
            "samples": tried * plan.settings.batch_size,
            "wall_seconds": round(self._checkpointing.seconds, 2),
            **self._circumstances,
        }
        with self._strategy.scope():  # All machines create variables together.
            compile_model(model.model, plan, model.optimizer)
        if self._is_chief:
            result |= lengths(plan, model, self._run_dir)
            with (
                whole_file(self._run_dir / MODEL_FILE) as draft,
                saveable(model.optimizer, plan),
            ):
                model.model.save(draft)
            write_result(self._run_dir, result)
            result = read_result(self._run_dir)
        if updates < tried:
            self._tell(
                f"{tried - updates} updates were skipped, because their "
                "gradients overflowed float16 at the loss scale used"
            )
        wait_for_all(self._strategy)
        return result if self._is_chief else None

    @contextlib.contextmanager
    def _recorded(self):
        """Records the divergence if the training diverges."""
        try:
            yield
        except NotFinite as error:
            record = {
                "diverged": error.update,
                "reason": error.in_short,
                "updates": error.update,
                "samples": error.update * self._plan.settings.batch_size,
                "wall_seconds": round(self._checkpointing.seconds, 2),
                **self._circumstances,
            }
            write_divergence(self._run_dir, record)
            raise

    def _tell(self, text):
        if self._is_chief:
            print(text, flush=True)


def training_batches(data, settings, start_update, shares=WHOLE_BATCH):
    """The batches from an update on, with weights if there is gradient noise."""
    batches = data.training_batches(
        settings.batch_size, settings.seed, start_update, shares
    )
    if not settings.gradient_noise:
        return batches
    noise = GradientNoise(
        settings.batch_size,
        settings.small_batch_size,
        settings.gradient_noise,
        settings.seed,
    )
    return noise(batches, start_update, shares)

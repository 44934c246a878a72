"""`train()` and `evaluate()`: data, plan, model, fit, report."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import platform

import keras
import tensorflow as tf

from gbn_keras.analysis.noise_scale import NoiseScaleLog, noise_scale_advice
from gbn_keras.analysis.weight_distance import WeightDistance
from gbn_keras.gradient_noise import GradientNoise
from gbn_keras.large_batch.large_batch_model import (
    LargeBatchModel,
    smallest_micro_batch,
)
from gbn_keras.training import distribution, models
from gbn_keras.training.data import datasets
from gbn_keras.training.errors import NotFinite, UsageError, first_line
from gbn_keras.training.not_finite import StopIfNotFinite
from gbn_keras.training.plan import make_plan, model_name
from gbn_keras.training.run.checkpoint import Checkpointing, Checkpoints, State
from gbn_keras.training.run.run_directory import (
    PLAN,
    open_run_directory,
    read_result,
    with_run_dir,
    write_divergence,
    write_result,
    write_whole,
)
from gbn_keras.training.run.signals import Signals
from gbn_keras.training.run.tensorboard import TensorBoardLog
from gbn_keras.training.run.update_log import UpdateLog
from gbn_keras.training.settings import Settings
from gbn_keras.version import __version__
from gbn_keras.whole_file import whole_file

MODEL_FILE = "model.keras"

# More examples than a validation batch has: it is taken at once.
_EVALUATED = 1024


def train(
    settings: Settings,
    data: datasets.ImageData | None = None,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    verbose: str | int = "auto",
) -> dict | None:
    """Trains as the settings say and leaves a run directory.

    A run that its directory holds as finished is not run again, one that was
    interrupted goes on from its last checkpoint.

    Args:
        settings: What the user asked for.
        data: The data set, if it is loaded already.
        callbacks: Called besides the run's own.
        verbose: How Keras shows progress: `"auto"`, 0, 1 or 2.

    Returns:
        What `result.json` holds: accuracy and loss on the validation examples, updates,
        samples seen, wall time, seed, settings, versions and hardware. Of a cluster's
        machines only the first one writes and returns it.

    Raises:
        UsageError: If the settings do not fit each other, the data or the directory, or
            a file of the data is damaged or gone.
        Stopped: If it cannot go on, or a signal asks it to stop.
    """
    # Who computes. TensorFlow must have computed nothing before.
    strategy = distribution.strategy_of(settings)

    # Data.
    if data is None:
        data = load_data(settings)

    with (
        distribution.one_line_if_a_worker_is_lost(),
        datasets.one_line_if_damaged(data),
    ):
        return _train(settings, strategy, data, callbacks, verbose)


def _train(settings, strategy, data, callbacks, verbose):
    replicas = strategy.num_replicas_in_sync
    is_chief = distribution.is_chief(strategy)  # It writes and talks.

    # Plan.
    plan = make_plan(settings, data.examples, replicas)
    plan = dataclasses.replace(
        plan, settings=with_run_dir(plan.settings), data=data.choice
    )
    with contextlib.ExitStack() as stack:
        finished = None
        if is_chief:
            run_dir = stack.enter_context(open_run_directory(plan.settings))
            finished = read_result(run_dir)
        if distribution.agree(strategy, finished is not None):
            if is_chief:
                print(plan.describe())
                print(f"finished before: {run_dir} (delete it to run it again)")
            return finished
        signals = stack.enter_context(Signals())
        return _run(plan, strategy, data, callbacks, verbose, signals)


def _run(plan, strategy, data, callbacks, verbose, signals):
    replicas = strategy.num_replicas_in_sync
    is_chief = distribution.is_chief(strategy)
    settings = plan.settings
    run_dir = pathlib.Path(settings.run_dir)

    # Model.
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
        model, plan = models.build_model(plan, data)
    if is_chief:
        print(plan.describe(), flush=True)
        write_whole(run_dir / PLAN, plan.describe() + "\n")

    # What an interrupted run has done.
    start = None
    if settings.weight_distance:
        start = [keras.ops.copy(weight) for weight in model.trainable_variables]
    checkpoints = Checkpoints(settings, _versions()) if is_chief else None
    saved = distribution.from_chief(strategy, checkpoints.newest() if is_chief else b"")
    resumed = State.decode(saved)[0] if saved else None
    done = 0
    if resumed:
        done = resumed.updates
        with strategy.scope():
            resumed.restore(model, "model", "optimizer", "moments")
        if is_chief:
            print(f"resumed after update {done:,} of {plan.updates:,}", flush=True)

    # Fit.
    validation = distribution.distribute(strategy, data.validation_batches)
    validation_steps = data.validation_steps(replicas)
    callbacks = [
        StopAfter(plan.updates - done),
        StopIfNotFinite(plan, done),
        *callbacks,
    ]
    reporters = []
    if is_chief:
        logs = {}
        if settings.weight_distance:
            logs["weight_distance"] = WeightDistance(run_dir, start), "total"
        if settings.noise_scale:
            noise_log = NoiseScaleLog(run_dir, model.gradient_moments)
            logs["noise_scale"] = noise_log, "noise_scale"
        reporters = [TensorBoardLog(run_dir / "tensorboard", plan, logs)]
        callbacks += [
            UpdateLog(run_dir / "metrics.csv", plan, done),
            *(log for log, _ in logs.values()),
            *reporters,
        ]
    checkpointing = Checkpointing(
        checkpoints,
        resumed,
        plan.updates_per_epoch,
        settings.checkpoint_every,
        signals,
        reporters,
    )
    with contextlib.ExitStack() as files:
        for reporter in reporters:
            files.callback(reporter.close)
        if is_chief:
            files.enter_context(_recorded(run_dir, plan, checkpointing))
        if done < plan.updates:
            model.fit(
                distribution.distribute(
                    strategy, functools.partial(_training_batches, data, settings, done)
                ),
                initial_epoch=done // plan.updates_per_epoch,
                epochs=plan.epochs,
                steps_per_epoch=plan.updates_per_epoch,
                validation_data=validation,
                validation_steps=validation_steps,
                validation_freq=plan.evaluation_epochs,
                shuffle=False,  # The batches are shuffled, and Keras would warn of it.
                callbacks=[*callbacks, checkpointing],
                verbose=verbose if is_chief else 0,
            )
        scores = model.evaluate(
            validation,
            steps=validation_steps,
            callbacks=reporters,
            verbose=0,
            return_dict=True,
        )
        if not math.isfinite(scores["loss"]):  # The last update made it so.
            what = f"the validation loss after it is {scores['loss']:g}"
            raise NotFinite(plan.updates, what)

    # Report.
    updates = int(model.optimizer.iterations.numpy())
    result = {
        "accuracy": scores["accuracy"],
        "loss": scores["loss"],
        "updates": updates,
        "skipped_updates": plan.updates - updates,
        "samples": plan.updates * settings.batch_size,
        "high_rate_updates": plan.high_rate_updates,
        "wall_seconds": round(checkpointing.seconds, 2),
        **_circumstances(plan),
    }
    if settings.noise_scale:
        result["noise_scale"] = _noise_scale(model.gradient_moments, plan, updates)
    with strategy.scope():  # On all machines, which make variables together.
        models.compile_model(model.model, plan, model.optimizer)
    if is_chief:
        with whole_file(run_dir / MODEL_FILE) as draft:
            model.model.save(draft)
        write_result(run_dir, result)
        result = read_result(run_dir)
        if updates < plan.updates:
            print(
                f"{plan.updates - updates} updates were skipped: their gradients "
                "overflowed float16 at the loss scale of that time"
            )
    distribution.wait_for_all(strategy)
    return result if is_chief else None


def load_data(settings: Settings):
    """The data set that the settings name, as the network wants it.

    Raises:
        UsageError: If the data is not there or not fit, or the network unknown or not
            for such images.
    """
    # First the network, so that a wrong name is not told after minutes of loading.
    model = model_name(settings)
    data = datasets.load(
        settings.dataset,
        settings.data_dir,
        settings.download,
        train_split=settings.train_split,
        validation_split=settings.validation_split,
        train_examples=settings.train_examples,
        image_key=settings.image_key,
        label_key=settings.label_key,
        image_size=settings.image_size,
        # The recipe that AlexNet's figures are from.
        fixed_scale=model == "alexnet",
    )
    # And before anything is written.
    models.check_image_shape(model, data)
    return data


def _training_batches(data, settings, start_update, replicas=1, shares=range(1)):
    """The batches from an update on, with the weights of the gradient noise."""
    batches = data.training_batches(
        settings.batch_size, settings.seed, start_update, replicas, shares
    )
    if not settings.gradient_noise:
        return batches
    noise = GradientNoise(
        settings.batch_size,
        settings.small_batch_size,
        settings.gradient_noise,
        settings.seed,
    )
    return noise(batches, start_update, replicas, shares)


def evaluate(settings: Settings) -> dict | None:
    """Evaluates the model of a run directory on the data set's validation examples.

    Returns:
        `accuracy` and `loss`; of a cluster's machines only the first one does.

    Raises:
        UsageError: If the directory holds no model, or one for other images.
    """
    file = pathlib.Path(settings.run_dir or "") / MODEL_FILE
    if not settings.run_dir or not os.path.exists(file):
        raise UsageError(
            f"--run_dir: got {settings.run_dir!r}, wanted a folder that holds "
            f"{MODEL_FILE}. Name the folder of a finished training."
        )
    strategy = distribution.strategy_of(settings)
    data = load_data(settings)
    with strategy.scope():
        network = load_network(settings, data)
    replicas = strategy.num_replicas_in_sync
    with (
        distribution.one_line_if_a_worker_is_lost(),
        datasets.one_line_if_damaged(data),
        strategy.scope(),
    ):
        size = settings.micro_batch_size or _EVALUATED * smallest_micro_batch(network)
        try:
            model = LargeBatchModel(network, size)
        except ValueError as error:  # A micro-batch that would cut ghosts.
            raise UsageError(f"--{error}") from error
        model.compile(**models.loss_and_metrics(), jit_compile=False)
        is_chief = distribution.is_chief(strategy)
        scores = model.evaluate(
            distribution.distribute(strategy, data.validation_batches),
            steps=data.validation_steps(replicas),
            verbose="auto" if is_chief else 0,
            return_dict=True,
        )
    return scores if is_chief else None


def load_network(settings: Settings, data) -> keras.Model:
    """The trained network of a run directory.

    Raises:
        UsageError: If it cannot be read, or is for other images than those of the data.
    """
    file = pathlib.Path(settings.run_dir) / MODEL_FILE
    try:
        network = keras.models.load_model(file)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"--run_dir: {file} is not a model that can be read "
            f"({first_line(error)}). Train it again."
        ) from error
    wanted = (*network.input_shape[1:], network.output_shape[-1])
    received = (*data.image_shape, data.classes)
    if wanted != received:
        raise UsageError(
            f"--dataset: {data.name} has images of {received[:-1]} in {received[-1]} "
            f"classes, the model in {settings.run_dir} wants {wanted[:-1]} in "
            f"{wanted[-1]}. Name the data set that it was trained on."
        )
    return network


class StopAfter(keras.callbacks.Callback):
    """Stops the training after so many updates."""

    def __init__(self, updates: int):
        super().__init__()
        self._left = updates

    def on_train_batch_end(self, batch, logs=None):
        """Counts the update."""
        self._left -= 1
        if self._left <= 0:
            self.model.stop_training = True


def _noise_scale(moments, plan, updates):
    """The last estimate of the gradient noise scale, and what follows from it."""
    estimate, settings = moments.estimate(), plan.settings
    advice = noise_scale_advice(
        *(estimate, settings.batch_size, settings.small_batch_size),
        *(updates, settings.stretch),
    )
    known = dataclasses.asdict(estimate) if estimate else {}
    return {**known, "advice": advice}


@contextlib.contextmanager
def _recorded(run_dir, plan, checkpointing):
    """Leaves a record of a training that diverges."""
    try:
        yield
    except NotFinite as error:
        record = {
            "diverged": error.update,
            "reason": error.in_short,
            "updates": error.update,
            "samples": error.update * plan.settings.batch_size,
            "wall_seconds": round(checkpointing.seconds, 2),
            **_circumstances(plan),
        }
        write_divergence(run_dir, record)
        raise


def _circumstances(plan):
    """With what, and where, a training was made."""
    return {
        "seed": plan.settings.seed,
        "settings": dataclasses.asdict(plan.settings),
        "versions": _versions(),
        "hardware": {**_hardware(), "replicas": plan.replicas},
    }


def _versions():
    return {
        "gbn_keras": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _hardware():
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "devices": [
            tf.config.experimental.get_device_details(device).get(
                "device_name", device.device_type
            )
            for device in tf.config.list_physical_devices()
        ],
    }

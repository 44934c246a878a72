"""`train()` and `evaluate()`: data, plan, model, fit, report."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import platform
import shutil
import time

import keras
import tensorflow as tf

from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.networks import NETWORKS
from gbn_keras.training import datasets
from gbn_keras.training.plan import Plan, make_plan
from gbn_keras.training.run_directory import (
    default_run_dir,
    open_run_directory,
    read_result,
    write_result,
)
from gbn_keras.training.settings import Settings, UsageError
from gbn_keras.training.sgd import L2SGD
from gbn_keras.version import __version__

MODEL_FILE = "model.keras"

# The published networks' (PyTorch's defaults). Keras's momentum of 0.99 would leave the
# running statistics of a large batch, which has few updates, near their start.
_NORMALIZATION = {"momentum": 0.9, "epsilon": 1e-5}


def train(
    settings: Settings,
    data: datasets.ImageData | None = None,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    verbose: str | int = "auto",
) -> dict:
    """Trains as the settings say and leaves a run directory.

    A run that its directory holds as finished is not run again.

    Args:
        settings: What the user asked for.
        data: The data set, if it is loaded already.
        callbacks: Called besides the run's own.
        verbose: How Keras shows progress: `"auto"`, 0, 1 or 2.

    Returns:
        What `result.json` holds: accuracy and loss on the validation examples, updates,
        samples seen, wall time, seed, settings, versions and hardware.

    Raises:
        UsageError: If the settings do not fit each other, the data or the directory.
    """
    # Data.
    if data is None:
        data = datasets.load(settings.dataset, settings.data_dir, settings.download)

    # Plan.
    plan = make_plan(settings, len(data.train_labels))
    settings = plan.settings
    if not settings.run_dir:
        settings = dataclasses.replace(settings, run_dir=default_run_dir(settings))
    run_dir = open_run_directory(settings)
    print(plan.describe(), flush=True)
    finished = read_result(run_dir)
    if finished:
        print(f"finished before: {run_dir} (delete it to run it again)")
        return finished

    # Model.
    keras.backend.clear_session()
    keras.utils.set_random_seed(settings.seed)
    with _dtype_policy(settings.precision):
        model = build_model(plan, data)

    # Fit. What an interrupted run left begins anew.
    shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
    started = time.perf_counter()
    model.fit(
        data.training_batches(settings.batch_size, settings.seed),
        epochs=plan.epochs,
        steps_per_epoch=plan.updates_per_epoch,
        validation_data=data.validation_batches(),
        validation_freq=plan.evaluation_epochs,
        shuffle=False,  # The batches are shuffled already, and Keras would warn of it.
        callbacks=[
            UpdateLog(str(run_dir / "metrics.csv"), plan),
            keras.callbacks.TensorBoard(
                str(run_dir / "tensorboard"), write_graph=False
            ),
            *callbacks,
        ],
        verbose=verbose,
    )
    wall_seconds = time.perf_counter() - started

    # Report.
    model.save(run_dir / MODEL_FILE)
    scores = model.evaluate(data.validation_batches(), verbose=0, return_dict=True)
    updates = int(model.optimizer.iterations)
    result = {
        "accuracy": scores["accuracy"],
        "loss": scores["loss"],
        "updates": updates,
        "samples": updates * settings.batch_size,
        "wall_seconds": round(wall_seconds, 2),
        "seed": settings.seed,
        "settings": dataclasses.asdict(settings),
        "versions": _versions(),
        "hardware": _hardware(),
    }
    write_result(run_dir, result)
    return result


def evaluate(settings: Settings) -> dict:
    """Evaluates the model of a run directory on the data set's validation examples.

    Returns:
        `accuracy` and `loss`.

    Raises:
        UsageError: If the directory holds no model, or one for other images.
    """
    file = pathlib.Path(settings.run_dir or "") / MODEL_FILE
    if not settings.run_dir or not file.exists():
        raise UsageError(
            f"--run_dir: got {settings.run_dir!r}, wanted a folder that holds "
            f"{MODEL_FILE}. Name the folder of a finished training."
        )
    data = datasets.load(settings.dataset, settings.data_dir, settings.download)
    try:
        model = keras.models.load_model(file)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"--run_dir: {file} is not a model that can be read "
            f"({str(error).splitlines()[0]}). Train it again."
        ) from error
    wanted = (*model.input_shape[1:], model.output_shape[-1])
    received = (*data.image_shape, data.classes)
    if wanted != received:
        raise UsageError(
            f"--dataset: {data.name} has images of {received[:-1]} in {received[-1]} "
            f"classes, the model in {settings.run_dir} wants {wanted[:-1]} in "
            f"{wanted[-1]}. Name the data set that it was trained on."
        )
    return model.evaluate(data.validation_batches(), return_dict=True)


def build_model(plan: Plan, data: datasets.ImageData) -> keras.Model:
    """The plan's network, compiled for training."""
    settings = plan.settings
    if settings.virtual_batch_size:
        normalization = functools.partial(
            GhostBatchNormalization, settings.virtual_batch_size, **_NORMALIZATION
        )
    else:
        normalization = functools.partial(
            keras.layers.BatchNormalization, **_NORMALIZATION
        )
    model = NETWORKS[settings.model](data.image_shape, data.classes, normalization)
    model.compile(
        optimizer=L2SGD(
            plan.learning_rate,
            l2=plan.l2,
            momentum=plan.regime.momentum,
            global_clipnorm=settings.clipnorm or None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=_use_xla(settings.jit),
    )
    # A metric by its name, or an optimizer unbuilt, would create its variables in the
    # first update, which would then be traced a second time.
    model.optimizer.build(model.trainable_variables)
    return model


class UpdateLog(keras.callbacks.CSVLogger):
    """Keras's CSV log with updates, samples and rate; stops at the last update."""

    def __init__(self, filename: str, plan: Plan):
        super().__init__(filename)
        self.plan = plan
        self.updates = 0

    def on_train_batch_end(self, batch, logs=None):
        """Counts the update."""
        self.updates += 1
        if self.updates >= self.plan.updates:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        """Writes the row."""
        # Not into `logs` itself, from which the progress bar shows everything.
        more = {
            "updates": self.updates,
            "samples": self.updates * self.plan.settings.batch_size,
            # Of the epoch's last update.
            "learning_rate": float(self.plan.learning_rate(self.updates - 1)),
        }
        super().on_epoch_end(epoch, {**logs, **more})


def _use_xla(jit):
    """Whether to compile with XLA, whose convolutions are slow on CPU."""
    accelerators = tf.config.list_logical_devices("GPU") + (
        tf.config.list_logical_devices("TPU")
    )
    return {"on": True, "off": False, "auto": bool(accelerators)}[jit]


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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

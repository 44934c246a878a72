"""`train()`: one training of the program, from its settings to its result."""

import contextlib

import keras

from gbn_keras.resume.signals import Signals
from gbn_keras.training.data import datasets
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.driver import Driver
from gbn_keras.training.model.build_model import check_image_shape
from gbn_keras.training.model.traced_models import TracedModels
from gbn_keras.training.planner import Planner, model_name
from gbn_keras.training.run.run_directory import open_run_directory, read_result
from gbn_keras.training.settings import Settings
from gbn_keras.training.strategy import (
    chief_says,
    is_chief,
    one_line_if_a_worker_is_lost,
    strategy_of,
)


def train(
    settings: Settings,
    data: LabelledImages | None = None,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    verbose: str | int = "auto",
    models: TracedModels | None = None,
) -> dict | None:
    """Runs one training in its run directory; returns the result.

    If the run directory holds a finished run, the run is not repeated. An interrupted
    run resumes from its last checkpoint.

    Args:
        settings: The user's settings.
        data: The data set. Default: the one that the settings name.
        callbacks: More callbacks, besides the run's own.
        verbose: How Keras shows progress: `"auto"`, 0, 1 or 2.
        models: Models of earlier trainings with this data set, to train again.
            Default: none.

    Returns:
        The content of `result.json`: accuracy and loss on the validation examples,
        updates, samples seen, wall time, seed, settings, commit, versions and hardware.
        On a cluster, only the chief writes and returns it; the others return `None`.

    Raises:
        UsageError: If the settings contradict each other, the data or the directory, or
            a file of the data is damaged or missing.
        Stopped: If the training cannot continue, or a signal asks it to stop.
    """
    # Devices. They cannot be divided once TensorFlow has computed anything.
    strategy = strategy_of(settings)

    # Data.
    if data is None:
        data = load_data(settings)
    models = models or TracedModels(strategy, data)

    with (
        one_line_if_a_worker_is_lost(),
        datasets.one_line_if_damaged(data),
    ):
        return _train(settings, strategy, data, callbacks, verbose, models)


def _train(settings, strategy, data, callbacks, verbose, models):
    # Plan.
    plan = Planner.of(data, strategy).plan(settings)

    with contextlib.ExitStack() as stack:
        finished = None
        if is_chief(strategy):  # Only the chief writes files and prints.
            run_dir = stack.enter_context(open_run_directory(plan.settings))
            finished = read_result(run_dir)
        if chief_says(strategy, finished is not None):
            if is_chief(strategy):
                print(plan.describe())
                print(f"already finished: {run_dir} (delete it to run it again)")
            return finished
        signals = stack.enter_context(Signals())
        driver = Driver(plan, strategy, data, models, signals)
        return driver.train(callbacks, verbose)


def load_data(settings: Settings):
    """The data set that the settings name, in the form that the network needs.

    Raises:
        UsageError: If the data set is missing or unsuitable, or if the network is
            unknown or cannot take its images.
    """
    # The network first: loading takes minutes, and its name may be wrong.
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
        # AlexNet's published results come from this recipe.
        fixed_scale=model == "alexnet",
    )
    # Before anything is written.
    check_image_shape(model, data)
    return data

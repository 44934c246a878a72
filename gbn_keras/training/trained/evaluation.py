"""`evaluate()`: evaluates the model of a run directory."""

import os
import pathlib

import keras

from gbn_keras.large_batch.ghost_sizes import smallest_micro_batch
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.training.data import datasets
from gbn_keras.training.errors import UsageError, first_line
from gbn_keras.training.model.network import loss_and_metrics
from gbn_keras.training.run.run_directory import MODEL_FILE
from gbn_keras.training.settings import Settings
from gbn_keras.training.strategy import (
    distribute,
    is_chief,
    one_line_if_a_worker_is_lost,
    strategy_of,
)
from gbn_keras.training.trainer import load_data

# More examples than a validation batch has, so that it is one micro-batch.
_EVALUATED = 1024


def evaluate(settings: Settings) -> dict | None:
    """The scores of a run directory's model on the data set's validation examples.

    Returns:
        `accuracy` and `loss`. On a cluster, only the chief returns them; the others
        return `None`.

    Raises:
        UsageError: If the directory holds no model, or a model for other images.
    """
    file = pathlib.Path(settings.run_dir or "") / MODEL_FILE
    if not settings.run_dir or not os.path.exists(file):
        raise UsageError(
            f"--run_dir: got {settings.run_dir!r}, wanted a folder that holds "
            f"{MODEL_FILE}. Name the folder of a finished training."
        )
    strategy = strategy_of(settings)
    data = load_data(settings)
    with strategy.scope():
        network = load_network(settings, data)
    replicas = strategy.num_replicas_in_sync
    with (
        one_line_if_a_worker_is_lost(),
        datasets.one_line_if_damaged(data),
        strategy.scope(),
    ):
        size = settings.micro_batch_size or _EVALUATED * smallest_micro_batch(network)
        try:
            model = LargeBatchModel(network, size)
        except ValueError as error:  # The micro-batch would cut a ghost.
            raise UsageError(f"--{error}") from error
        model.compile(**loss_and_metrics(), jit_compile=False)
        scores = model.evaluate(
            distribute(strategy, data.validation_batches),
            steps=data.validation_steps(replicas),
            verbose="auto" if is_chief(strategy) else 0,
            return_dict=True,
        )
    return scores if is_chief(strategy) else None


def load_network(settings: Settings, data) -> keras.Model:
    """The trained network of a run directory.

    Raises:
        UsageError: If it cannot be read, or does not fit the images and classes.
    """
    file = pathlib.Path(settings.run_dir) / MODEL_FILE
    try:
        network = keras.models.load_model(file)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"--run_dir: got {file}, wanted a model that Keras can read "
            f"({first_line(error)}). Train it again."
        ) from error
    wanted = (*network.input_shape[1:], network.output_shape[-1])
    received = (*data.image_shape, data.classes)
    if wanted != received:
        raise UsageError(
            f"--dataset: got {data.name} with images of {received[:-1]} in "
            f"{received[-1]} classes, wanted {wanted[:-1]} in {wanted[-1]}, as for "
            f"the model in {settings.run_dir}. Name the data set of its training."
        )
    return network

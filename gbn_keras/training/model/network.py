"""The plan's network with its loss and metrics, for any way to train it."""

import functools

import keras

from gbn_keras.accuracy_of_examples import AccuracyOfExamples
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.networks import find_network
from gbn_keras.training.plan import Plan

# The published networks use these, PyTorch's defaults. A large batch makes few updates,
# so with Keras's momentum of 0.99 the running statistics would hardly leave their
# initial values.
_NORMALIZATION = {"momentum": 0.9, "epsilon": 1e-5}


def make_network(
    plan: Plan, image_shape: tuple[int, int, int], classes: int
) -> keras.Model:
    """The network that the plan names, with the plan's batch normalization.

    Args:
        plan: The plan.
        image_shape: `(height, width, channels)`.
        classes: Number of classes.
    """
    settings = plan.settings
    if settings.virtual_batch_size:
        normalization = functools.partial(
            GhostBatchNormalization, settings.virtual_batch_size, **_NORMALIZATION
        )
    else:
        # Any number of replicas must give the same statistics.
        synchronized = plan.replicas > 1
        normalization = functools.partial(
            keras.layers.BatchNormalization, synchronized=synchronized, **_NORMALIZATION
        )
    build, _ = find_network(settings.model)
    return build(image_shape, classes, normalization)


def loss_and_metrics() -> dict:
    """Arguments of `compile`: the mean loss and the accuracy over the examples.

    Examples with weight 0 only fill up a validation batch. Other weights scale the
    loss; in training they are the gradient noise.
    """
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "weighted_metrics": [AccuracyOfExamples(name="accuracy")],
    }

"""A small training whose result must not depend on which devices compute it."""

import dataclasses
import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf
from small_models import build

from gbn_keras import (
    GhostBatchNormalization,
    RegimeAdaptation,
    ShardingInvariantDropout,
)
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.networks import f1
from gbn_keras.optimizers.l2_sgd import L2SGD
from gbn_keras.training.data import datasets
from gbn_keras.training.data.augmentation import ShiftAndFlip
from gbn_keras.training.strategy import distribute, is_chief, wait_for_all

BATCH, GHOST, UPDATES = 512, 32, 20
# What the design allows: relative, float32, after twenty updates. In float64 anything
# but rounding would show.
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}


def convolutional(input_shape, classes, normalization):
    """A network with dropout after a convolution (whole channels) and a dense layer."""
    layers = keras.layers
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = layers.ReLU()(normalization()(x))
    x = ShardingInvariantDropout(0.2, noise_shape=(None, 1, 1, 8), seed=7)(x)
    x = layers.Dense(30, use_bias=False)(layers.Flatten()(x))
    x = layers.ReLU()(normalization()(x))
    x = ShardingInvariantDropout(0.5, seed=8)(x)
    return keras.Model(inputs, layers.Dense(classes)(x))


def in_dtype(model, dtype):
    """The model, freshly initialized, all in one dtype. In float32 it has no kinks.

    If the input of a ReLU is almost 0, a rounding error decides whether a gradient
    flows. In twenty updates, this happens to one or two of millions of inputs. Then
    weights rightly differ by 1e-4 in float32.
    """

    def clone(layer):
        if isinstance(layer, keras.layers.ReLU) and dtype == "float32":
            return keras.layers.Activation("gelu", name=layer.name)
        config = {**layer.get_config(), "dtype": dtype}
        if config.get("activation") == "relu" and dtype == "float32":
            config["activation"] = "gelu"
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


# Two layers: it is tracing that takes long, layer by layer.
NETWORKS = {
    "f1": functools.partial(f1, width=128, depth=2),
    "convolutional": convolutional,
}


def trained(
    network,
    dtype,
    strategy=None,
    micro_batches=1,
    jit=False,
    wrapped=True,
    ghost=GHOST,
):
    """Weights, running statistics, optimizer state and figures after twenty updates.

    The figures are the logs of each update, then the scores of the evaluation.
    """
    one_device = tf.distribute.get_strategy()
    strategy = strategy or one_device
    replicas = strategy.num_replicas_in_sync
    data = datasets.load("digits")
    if network == "convolutional":
        data = dataclasses.replace(data, augmentation=ShiftAndFlip(1))
    keras.utils.set_random_seed(3)
    with strategy.scope():
        normalization = functools.partial(GhostBatchNormalization, ghost, momentum=0.9)
        inner = NETWORKS[network](data.image_shape, data.classes, normalization)
        model = inner = in_dtype(inner, dtype)
        if wrapped:
            model = LargeBatchModel(inner, BATCH // replicas // micro_batches)
        rate = RegimeAdaptation(0.03, small_batch_size=32, batch_size=BATCH)
        model.compile(
            L2SGD(rate, l2=5e-4, momentum=0.9, global_clipnorm=1.0),
            keras.losses.SparseCategoricalCrossentropy(
                True, reduction="mean_with_sample_weight"
            ),
            weighted_metrics=["accuracy"],
            jit_compile=jit,
        )
    if strategy is one_device:
        build(model, np.zeros((1, *data.image_shape), "float32"), np.zeros(1, "int32"))
    batches = functools.partial(data.training_batches, BATCH, seed=5)
    figures = []

    def keep(batch, logs):
        figures.extend(float(logs[name]) for name in ("loss", "accuracy"))

    model.fit(
        distribute(strategy, batches),
        steps_per_epoch=UPDATES // 2,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=keep)],
    )
    scores = model.evaluate(
        distribute(strategy, data.validation_batches),
        steps=data.validation_steps(replicas),
        verbose=0,
        return_dict=True,
    )
    variables = [*inner.variables, *model.optimizer.variables]
    # These are float32 for any model.
    figures = np.float32([*figures, *scores.values()])
    return [*(v.numpy() for v in variables), figures]


def distance(one, other):
    """The largest difference, relative to the largest value of each array.

    In float64, it only counts arrays of float64.
    """
    assert len(one) == len(other)
    dtype = one[0].dtype
    return max(
        np.abs(np.subtract(a, b, dtype="float64")).max() / (np.abs(b).max() or 1)
        for a, b in zip(one, other, strict=True)
        if a.dtype in (dtype, "int64")
    )


def train_on_machines(strategy, trainings, folder):
    """Trains as one of a cluster's workers; the chief writes each result to the folder.

    Each training is a network, a ghost, and the number of a worker's micro-batches.
    """
    for number, (network, ghost, micro_batches) in enumerate(trainings):
        result = trained(network, "float32", strategy, micro_batches, ghost=ghost)
        if is_chief(strategy):
            np.savez(pathlib.Path(folder, f"{number}.npz"), *result)
    wait_for_all(strategy)

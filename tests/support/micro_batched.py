"""Trainings in micro-batches that give the same on all backends: `every_backend.py`."""

import keras
import numpy as np
from small_models import digits

from gbn_keras import (
    L2SGD,
    BatchSizeInvariantAdam,
    GhostBatchNormalization,
    LargeBatchModel,
    RegimeAdaptation,
)

BATCH, UPDATES = 256, 6
# By optimizer: the number of micro-batches.
MICRO_BATCHES = {"sgd": 4, "adam": 2, "auto": 4}


def network():
    """A convolution and a dense layer, with the same weights on every backend."""
    layers = keras.layers
    ghosts = [GhostBatchNormalization(32, momentum=0.9) for _ in range(2)]
    inputs = keras.Input((64,))
    x = layers.Reshape((8, 8, 1))(inputs)
    # Without kinks: a rounding error does not decide whether a gradient flows.
    x = layers.Activation("gelu")(ghosts[0](layers.Conv2D(4, 3, use_bias=False)(x)))
    regularizer = keras.regularizers.L2(1e-3)
    dense = layers.Dense(16, use_bias=False, activity_regularizer=regularizer)
    x = layers.Activation("gelu")(ghosts[1](dense(layers.Flatten()(x))))
    model = keras.Model(inputs, layers.Dense(10)(x))
    random = np.random.default_rng(0)
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(random.normal(0, 0.2, weight.shape).astype("float32"))
    return model


def optimizers():
    """By name: an optimizer that looks at the whole batch's gradient, and its state."""
    rate = RegimeAdaptation(0.03, small_batch_size=32, batch_size=BATCH)
    auto = RegimeAdaptation(0.03, small_batch_size=32, batch_size=BATCH, stretch="auto")
    adam = {"small_batch_size": 32, "clipnorm": 0.5, "epsilon": 1e-3}
    return {
        "sgd": L2SGD(rate, l2=5e-4, momentum=0.9, global_clipnorm=1.0),
        "adam": BatchSizeInvariantAdam(0.01, **adam),
        "auto": keras.optimizers.SGD(auto, momentum=0.9),
    }


def trained(optimizer, micro_batches):
    """Weights, statistics, state and figures after some updates."""
    model = LargeBatchModel(network(), BATCH // micro_batches)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile(optimizer, loss, weighted_metrics=["accuracy"])
    x, y = digits(BATCH * UPDATES)
    weights = np.random.default_rng(1).random(len(y)).astype("float32")
    history = model.fit(
        *(x, y, BATCH), sample_weight=weights, shuffle=False, verbose=0
    ).history
    # Of no multiple of the micro-batches.
    some = {"x": x[:500], "y": y[:500], "sample_weight": weights[:500]}
    scores = model.evaluate(**some, batch_size=BATCH, verbose=0)
    figures = [float(model.gradient_norm), *scores, *np.ravel([*history.values()])]
    state = [*model.model.variables, *model.optimizer.variables]
    return [*(variable.numpy() for variable in state), np.array(figures)]


def write(folder):
    """Trains in each way; a file for each. TensorFlow also takes a whole batch."""
    backend = keras.backend.backend()
    whole = [("sgd", 1)] if backend == "tensorflow" else []
    for name, number in (*whole, *MICRO_BATCHES.items()):
        arrays = trained(optimizers()[name], number)
        np.savez(folder / f"{backend}_{name}_{number}.npz", *arrays)


def write_shared(folder, devices):
    """Trains once more, with each micro-batch shared among JAX's devices."""
    assert len(keras.distribution.list_devices()) == devices
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    np.savez(folder / "shared_auto_4.npz", *trained(optimizers()["auto"], 4))

"""A small `fit` that a test kills and repeats, with all that has a state of its own."""

import keras
import numpy as np
from kills import KillAfter

from gbn_keras import ExactResume, GhostBatchNormalization

EXAMPLES, BATCH, EPOCHS = 23, 8, 2
UPDATES = EPOCHS * 3  # The last batch of an epoch is smaller.

# Features, hidden units and classes, so that there is one shape of kernels and one of
# vectors: JAX compiles each operation for each shape.
WIDTH = 6

_GENERATOR = np.random.RandomState(0)
X = _GENERATOR.rand(EXAMPLES, WIDTH).astype("float32")
Y = _GENERATOR.randint(0, WIDTH, EXAMPLES)


def arrays(resume):
    """The usual data of a training."""
    return resume.batches(X, Y, batch_size=BATCH, seed=3)


def build(width=WIDTH, rate=0.01, **options):
    """A compiled model that has seeds, running statistics and a schedule."""
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(width),
            GhostBatchNormalization(4),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(WIDTH),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    options = {"run_eagerly": True, "metrics": ["accuracy"], **options}
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, **options)
    return model


def train(folder, data=arrays, model=None, kill_in=0, more=(), every=1, **options):
    """Trains a fresh model, or kills it in an update; returns all that it has.

    Returns:
        The values of all variables, and the `History`'s epochs and logs.
    """
    model = model or build()
    resume = ExactResume(folder, every=every)
    kill = [KillAfter(kill_in - 1)] if kill_in else []
    options = {"epochs": EPOCHS, "verbose": 0, **options}
    history = model.fit(data(resume), callbacks=[*more, resume, *kill], **options)
    variables = [*model.variables, *model.optimizer.variables]
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    return values, (history.epoch, history.history)


def assert_same(one, other):
    """The same bits of variables, and the same logs."""
    for a, b in zip(one[0], other[0], strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    assert one[1] == other[1]

"""Small networks, digits as their input rows, and `build`."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from gbn_keras import GhostBatchNormalization


def sequential():
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(
                12, use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-3)
            ),
            GhostBatchNormalization(32),
            keras.layers.ReLU(),
            keras.layers.Dense(10),
        ]
    )


def functional():
    inputs = keras.Input((64,))
    hidden = keras.layers.Reshape((8, 8, 1))(inputs)
    hidden = keras.layers.Conv2D(4, 3, use_bias=False)(hidden)
    hidden = keras.layers.ReLU()(GhostBatchNormalization(16)(hidden))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(hidden))
    return keras.Model(inputs, outputs)


def build(model, x, y):
    """Makes all variables that a compiled model needs for updates.

    A training makes them, too, but TensorFlow traces an update twice if the first trace
    makes variables.
    """
    predictions = model(x)
    model.compute_loss(x, y, predictions)
    model.compute_metrics(x, y, predictions)
    model.reset_metrics()
    model.optimizer.build(model.trainable_variables)


def digits(count):
    x, y = load_digits(return_X_y=True)
    return (x[:count] / 16).astype("float32"), y[:count].astype("int32")


class Batches(keras.utils.PyDataset):
    """Consecutive batches of these sizes."""

    def __init__(self, sizes, *arrays):
        super().__init__()
        starts = np.cumsum(sizes)[:-1]
        parts = [np.split(array, starts) for array in arrays]
        self.batches = [*zip(*parts, strict=True)]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]

"""A small network, and digits as its input rows."""

import keras
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


def digits(count):
    x, y = load_digits(return_X_y=True)
    return (x[:count] / 16).astype("float32"), y[:count].astype("int32")

"""The networks on small examples, and what their tests look for in a model."""

import functools
import math
from unittest import mock

import keras
import numpy as np
from keras import ops

from gbn_keras.networks import (
    alexnet,
    c1,
    c3,
    f1,
    f1_digits,
    resnet,
    resnet18,
    resnet50,
    vgg,
    wresnet,
)

# By name: the network, the smallest example that it takes here, and how many layers are
# normalized, counted on the paper's drawings.
SMALL = {
    "f1": (f1, (5,), 5),
    "f1_digits": (f1_digits, (8, 8, 1), 4),
    "c1": (c1, (8, 8, 1), 4),
    "c3": (c3, (7, 7, 3), 4),
    "resnet8": (functools.partial(resnet, depth=8), (8, 8, 1), 1 + 3 * 2 + 2),
    "wresnet10_2": (
        functools.partial(wresnet, depth=10, width=2),
        (8, 8, 3),
        1 + 3 * 2 + 2,
    ),
    "vgg11": (functools.partial(vgg, depth=11), (28, 28, 1), 8),
    "alexnet": (alexnet, (63, 63, 3), 5 + 2),
    "resnet18": (resnet18, (32, 32, 3), 1 + 8 * 2 + 3),
    "resnet50": (resnet50, (32, 32, 3), 1 + 16 * 3 + 4),
}


def weights_of_zeros():
    """For models that compute nothing: JAX compiles a draw for each weight's shape."""

    def zeros(_, shape, dtype=None):
        return ops.convert_to_tensor(np.zeros(shape, dtype))

    return mock.patch.object(keras.initializers.VarianceScaling, "__call__", zeros)


def total(weights):
    return sum(math.prod(weight.shape) for weight in weights)


def layers_of(model, *kinds):
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def normalizations(model):
    return layers_of(model, keras.layers.BatchNormalization)

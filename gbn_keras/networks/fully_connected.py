"""F1, the paper's network for MNIST, and a smaller one."""

import keras
from keras import layers

from gbn_keras.networks.normalized import Normalization, classifier, dense


def f1(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Normalization,
    *,
    width: int = 512,
    depth: int = 5,
) -> keras.Model:
    """F1, the paper's fully connected network for MNIST.

    It has `depth` hidden layers (dense, normalization, ReLU) and a dense output layer.

    Args:
        input_shape: Shape of one example, of any rank. It is flattened.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.
        width: Number of units per hidden layer.
        depth: Number of hidden layers.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 6,
        arXiv 1705.08741.
    """
    return _fully_connected(input_shape, classes, normalization, width, depth, "f1")


def f1_digits(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """A small F1 for 8x8 digits: four hidden layers of 128 units, otherwise as `f1`."""
    return _fully_connected(input_shape, classes, normalization, 128, 4, "f1_digits")


def _fully_connected(input_shape, classes, normalization, width, depth, name):
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    for _ in range(depth):
        x = layers.ReLU()(dense(x, width, normalization))
    return classifier(inputs, x, classes, name)

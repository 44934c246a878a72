"""C1 and C3, the paper's shallow convolutional network for CIFAR-10 and CIFAR-100."""

import keras
from keras import layers

from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    classifier,
    convolution,
    dense,
)
from gbn_keras.sharding_invariant_dropout import ShardingInvariantDropout


def c1(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """C1, the paper's shallow network for CIFAR-10.

    It has two times: 5x5 convolution with 64 channels, 3x3 max pooling with stride 2,
    normalization, ReLU. Dense layers of 384 and 192 units follow, each with
    normalization, ReLU and a dropout of 0.5. The pooling uses no padding, so 32x32
    pixels become 15x15, then 7x7.

    Args:
        input_shape: Image shape `(height, width, channels)`, at least 7 x 7.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.

    Raises:
        ValueError: If `input_shape` is not as described above.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 6 and
        published code, arXiv 1705.08741.
    """
    return _shallow(input_shape, classes, normalization, "c1")


def c3(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """C3, the paper's shallow network for CIFAR-100. It is `c1` with another name."""
    return _shallow(input_shape, classes, normalization, "c3")


def _shallow(input_shape, classes, normalization, name):
    check_image_shape(input_shape, at_least=7)
    x = inputs = keras.Input(input_shape)
    for _ in range(2):
        pooling = layers.MaxPooling2D(3, 2)
        x = layers.ReLU()(convolution(x, 64, 5, normalization, pooling=pooling))
    x = layers.Flatten()(x)
    for units in (384, 192):
        x = layers.ReLU()(dense(x, units, normalization))
        x = ShardingInvariantDropout(0.5)(x)
    return classifier(inputs, x, classes, name)

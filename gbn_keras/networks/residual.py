"""Basic and bottleneck residual blocks, and stages made of them."""

from collections.abc import Callable

import keras
from keras import layers

from gbn_keras.networks.normalized import Normalization, convolution


def stage(
    x: keras.KerasTensor,
    block: Callable[..., keras.KerasTensor],
    filters: int,
    blocks: int,
    strides: int,
    normalization: Normalization,
) -> keras.KerasTensor:
    """`blocks` residual blocks; the first one has `strides`."""
    for index in range(blocks):
        x = block(x, filters, strides if index == 0 else 1, normalization)
    return x


def basic_block(
    x: keras.KerasTensor, filters: int, strides: int, normalization: Normalization
) -> keras.KerasTensor:
    """Two 3x3 convolutions, addition of the block's input, then ReLU."""
    shortcut = _shortcut(x, filters, strides, normalization)
    x = layers.ReLU()(convolution(x, filters, 3, normalization, strides=strides))
    x = convolution(x, filters, 3, normalization)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def bottleneck_block(
    x: keras.KerasTensor, filters: int, strides: int, normalization: Normalization
) -> keras.KerasTensor:
    """1x1, 3x3 (with the stride) and 1x1 convolutions, then addition and ReLU.

    The last convolution has `4 * filters` channels, the others `filters`.
    """
    shortcut = _shortcut(x, 4 * filters, strides, normalization)
    x = layers.ReLU()(convolution(x, filters, 1, normalization))
    x = layers.ReLU()(convolution(x, filters, 3, normalization, strides=strides))
    x = convolution(x, 4 * filters, 1, normalization)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _shortcut(x, filters, strides, normalization):
    """The block's input, through a 1x1 convolution where the shape changes."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    return convolution(x, filters, 1, normalization, strides=strides)

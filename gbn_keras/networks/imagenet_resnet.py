"""Residual networks for ImageNet, with 18 and 50 layers."""

import keras
from keras import layers

from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    classifier,
    convolution,
)
from gbn_keras.networks.residual import basic_block, bottleneck_block, stage


def resnet18(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """He et al.'s residual network for ImageNet with 18 layers.

    A 7x7 convolution with 64 channels and 3x3 max pooling come first, and each halves
    the resolution. Four stages of two basic blocks follow, with 64, 128, 256 and 512
    channels. In the later stages, the first block halves the resolution. Where the
    shape changes, the shortcut is a 1x1 convolution with normalization.

    Args:
        input_shape: Image shape `(height, width, channels)`, at least 32 x 32.
            224 x 224 pixels become 7 x 7 before they are averaged.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.

    Raises:
        ValueError: If `input_shape` is not as described above.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", table 1,
        arXiv 1512.03385.
    """
    return _residual(
        input_shape, classes, normalization, basic_block, (2, 2, 2, 2), "resnet18"
    )


def resnet50(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """He et al.'s residual network for ImageNet with 50 layers.

    It is `resnet18` with stages of 3, 4, 6 and 3 bottleneck blocks, whose output has
    four times the channels. To halve the resolution, a block has stride 2 in its 3x3
    convolution (known as v1.5), as in the paper's published code and the usual recipes.
    He et al. have the stride in the 1x1 convolution before, which then skips three
    quarters of its input.

    Args:
        input_shape: Image shape `(height, width, channels)`, at least 32 x 32.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.

    Raises:
        ValueError: If `input_shape` is not as described above.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", table 1,
        arXiv 1512.03385. Goyal et al., "Accurate, Large Minibatch SGD", section 5.1,
        arXiv 1706.02677.
    """
    return _residual(
        input_shape, classes, normalization, bottleneck_block, (3, 4, 6, 3), "resnet50"
    )


def _residual(input_shape, classes, normalization, block, blocks, name):
    check_image_shape(input_shape, at_least=32)
    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolution(inputs, 64, 7, normalization, strides=2))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for index, count in enumerate(blocks):
        strides = 1 if index == 0 else 2
        x = stage(x, block, 64 * 2**index, count, strides, normalization)
    x = layers.GlobalAveragePooling2D()(x)
    return classifier(inputs, x, classes, name)

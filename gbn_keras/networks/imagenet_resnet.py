"""Residual networks for ImageNet, of 18 and 50 layers."""

import keras
from keras import layers

from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    convolution,
    logits,
)
from gbn_keras.networks.residual import basic_block, bottleneck_block, stage


def resnet18(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """He et al.'s residual network of 18 layers for ImageNet: four stages of two.

    A 7x7 convolution of 64 channels and max pooling of 3x3, each at half the
    resolution, then stages of basic blocks with 64, 128, 256 and 512 channels, the
    first block of the later stages at half the resolution. Where the shape changes, the
    shortcut is a 1x1 convolution with normalization.

    Args:
        input_shape: `(height, width, channels)`, at least 32 x 32. 224 x 224 pixels
            come down to 7 x 7 before they are averaged.
        classes: Number of outputs.
        normalization: Makes a normalization layer; `None` for a network without.

    Raises:
        ValueError: If `input_shape` is not as said above.

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
    """He et al.'s residual network of 50 layers for ImageNet: 3, 4, 6, 3 bottlenecks.

    As `resnet18`, but of bottleneck blocks, whose output has four times the channels.
    Where a block halves the resolution, its 3x3 convolution does (known as v1.5), as in
    the paper's published code and the usual recipes; He et al. have the stride in the
    1x1 before, which then skips three quarters of its input.

    Args:
        input_shape: `(height, width, channels)`, at least 32 x 32.
        classes: Number of outputs.
        normalization: Makes a normalization layer; `None` for a network without.

    Raises:
        ValueError: If `input_shape` is not as said above.

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
    return keras.Model(inputs, logits(x, classes), name=name)

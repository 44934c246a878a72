"""AlexNet for ImageNet, with normalization."""

import keras
from keras import layers

from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    convolution,
    dense,
    logits,
)
from gbn_keras.sharding_invariant_dropout import ShardingInvariantDropout


def alexnet(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """AlexNet in one tower, with normalization after each of its layers.

    Five convolutions of 64, 192, 384, 256 and 256 channels, the first, second and last
    with max pooling of 3x3 at every second pixel, each with normalization and ReLU; two
    dense layers of 4096 with normalization, ReLU and a dropout of a half, as in the
    first author's published AlexNet with batch normalization. There the second to
    the last convolution have the ReLU before the normalization; here all layers have
    it after, as the first does there.

    Args:
        input_shape: `(height, width, channels)`, at least 63 x 63. 224 x 224 pixels
            come down to 6 x 6 before the dense layers.
        classes: Number of outputs.
        normalization: Makes a normalization layer; `None` for a network without.

    Raises:
        ValueError: If `input_shape` is not as said above.

    Reference:
        Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
        footnote 1, arXiv 1404.5997.
    """
    check_image_shape(input_shape, at_least=63)
    inputs = keras.Input(input_shape)
    x = layers.ZeroPadding2D(2)(inputs)
    x = convolution(
        x, 64, 11, normalization, strides=4, padding="valid", pooling=_pooling()
    )
    x = layers.ReLU()(x)
    x = layers.ReLU()(convolution(x, 192, 5, normalization, pooling=_pooling()))
    x = layers.ReLU()(convolution(x, 384, 3, normalization))
    x = layers.ReLU()(convolution(x, 256, 3, normalization))
    x = layers.ReLU()(convolution(x, 256, 3, normalization, pooling=_pooling()))
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.ReLU()(dense(x, 4096, normalization))
        x = ShardingInvariantDropout(0.5)(x)
    return keras.Model(inputs, logits(x, classes), name="alexnet")


def _pooling():
    return layers.MaxPooling2D(3, 2)

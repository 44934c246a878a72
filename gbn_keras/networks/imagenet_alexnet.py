"""AlexNet for ImageNet, with normalization."""

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


def alexnet(
    input_shape: tuple[int, ...], classes: int, normalization: Normalization
) -> keras.Model:
    """AlexNet in one tower, with normalization after each of its layers.

    | layers | channels or units | followed by |
    |---|---|---|
    | convolutions 1, 2 | 64, 192 | 3x3 max pooling with stride 2, normalization, ReLU |
    | convolutions 3, 4 | 384, 256 | normalization, ReLU |
    | convolution 5 | 256 | 3x3 max pooling with stride 2, normalization, ReLU |
    | dense 1, 2 | 4096, 4096 | normalization, ReLU, dropout of 0.5 |

    These are the layers of the first author's published AlexNet with batch
    normalization, with one difference: there, convolutions 2 to 5 have the ReLU before
    the normalization. Here, the ReLU comes after it in all layers.

    Args:
        input_shape: Image shape `(height, width, channels)`, at least 63 x 63.
            224 x 224 pixels become 6 x 6 before the dense layers.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.

    Raises:
        ValueError: If `input_shape` is not as described above.

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
    return classifier(inputs, x, classes, "alexnet")


def _pooling():
    return layers.MaxPooling2D(3, 2)

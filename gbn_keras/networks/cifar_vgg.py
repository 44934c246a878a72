"""VGG for CIFAR, with normalization."""

import keras
from keras import layers

from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    convolution,
    logits,
)

# Channels of the five stages, and by depth how many convolutions each has: columns A,
# B, D and E of the reference's table 1. (Depth counts three dense layers, as there.)
_CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Normalization,
    *,
    depth: int = 16,
) -> keras.Model:
    """The VGG network for CIFAR: 3x3 convolutions in five stages, one dense layer.

    Each convolution is followed by normalization and ReLU, each stage by max pooling of
    2x2, which brings 32x32 pixels down to one. What is left is flattened into a single
    dense layer to the classes, in place of the three for ImageNet, and without
    dropout, as is usual for CIFAR. An odd size is rounded up by the pooling, so 28x28
    pixels also come down to one; larger images leave more to flatten.

    The paper does not say which VGG it trained, and its published code has none. The
    default is the most used one, of 16 layers.

    Args:
        input_shape: `(height, width, channels)`, at least 17 x 17: each pooling then
            has something to pool.
        classes: Number of outputs.
        normalization: Makes a normalization layer; `None` for a network without.
        depth: 11, 13, 16 or 19, by the names of the networks for ImageNet, which have
            two dense layers more.

    Raises:
        ValueError: If `input_shape` or `depth` is not as said above.

    Reference:
        Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
        Recognition", section 2, arXiv 1409.1556.
    """
    if depth not in CONVOLUTIONS:
        wanted = ", ".join(map(str, CONVOLUTIONS))
        raise ValueError(f"depth must be one of {wanted}. Received: depth={depth!r}.")
    check_image_shape(input_shape, at_least=17)
    x = inputs = keras.Input(input_shape)
    for filters, convolutions in zip(_CHANNELS, CONVOLUTIONS[depth], strict=True):
        for _ in range(convolutions):
            x = layers.ReLU()(convolution(x, filters, 3, normalization))
        x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, logits(x, classes), name=f"vgg{depth}")

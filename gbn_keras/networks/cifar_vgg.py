"""VGG for CIFAR, with normalization."""

import keras
from keras import layers

from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    classifier,
    convolution,
)

# Channels of the five stages, and the number of convolutions in each, by depth: columns
# A, B, D and E of the reference's table 1. As there, depth counts three dense layers.
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

    Normalization and ReLU follow each convolution. 2x2 max pooling follows each stage
    and reduces 32x32 pixels to one. One dense layer then computes the logits, without
    dropout, as is usual for CIFAR; the network for ImageNet has three dense layers.
    Pooling rounds odd sizes up, so 28x28 pixels become one too. Larger images leave
    more values for the dense layer.

    The paper does not say which VGG it trained, and its published code has none. The
    default is VGG-16, the most used one.

    Args:
        input_shape: Image shape `(height, width, channels)`, at least 17 x 17, so that
            each pooling has something to pool.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.
        depth: 11, 13, 16 or 19, as in the names of the networks for ImageNet, which
            have two more dense layers.

    Raises:
        ValueError: If `input_shape` or `depth` is not as described above.

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
    return classifier(inputs, x, classes, f"vgg{depth}")

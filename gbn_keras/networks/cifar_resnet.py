"""Residual networks for CIFAR of any depth, and wide ones."""

import keras
from keras import layers

from gbn_keras.arguments import integer
from gbn_keras.networks.normalized import (
    Normalization,
    check_image_shape,
    classifier,
    convolution,
)
from gbn_keras.networks.residual import basic_block, stage


def resnet(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Normalization,
    *,
    depth: int = 44,
) -> keras.Model:
    """He et al.'s residual network for CIFAR: three stages of 16, 32, 64 channels.

    A stage has `(depth - 2) / 6` basic blocks. In the later stages, the first block
    halves the resolution. Where the shape changes, the shortcut is a 1x1 convolution
    with normalization, as in the paper's published code.

    Args:
        input_shape: Image shape `(height, width, channels)`.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.
        depth: Number of layers, `6 n + 2`.

    Raises:
        ValueError: If `input_shape` or `depth` is not as described above.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", section 4.2,
        arXiv 1512.03385.
    """
    if not is_resnet_depth(integer("depth", depth, 1)):
        raise ValueError(
            f"depth must be 6 n + 2, such as 20, 32, 44, 56. Received: depth={depth}."
        )
    blocks = (depth - 2) // 6
    name = f"resnet{depth}"
    return _residual(input_shape, classes, normalization, blocks, 1, name)


def wresnet(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Normalization,
    *,
    depth: int = 16,
    width: int = 4,
) -> keras.Model:
    """The paper's wide residual network: `resnet` with `width` times the channels.

    This is the network of the paper's published code. It differs from Zagoruyko and
    Komodakis' WRN-depth-width, which counts layers the same way:

    | | here, as in `resnet` | Zagoruyko and Komodakis |
    |---|---|---|
    | order in a block | convolution, normalization, ReLU | normalization, ReLU, conv |
    | ReLU after the addition | yes | no |
    | first convolution | as wide as the first stage | 16 channels |
    | shortcuts | with normalization | without normalization |

    Args:
        input_shape: Image shape `(height, width, channels)`.
        classes: Number of classes, with one output each.
        normalization: Function that makes a normalization layer, or `None` for none.
        depth: Number of layers, `6 n + 4` for `n` blocks per stage. It includes two
            shortcuts with a convolution.
        width: Factor of the stages' 16, 32 and 64 channels.

    Raises:
        ValueError: If an argument is not as described above.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 6 and
        published code, arXiv 1705.08741. Zagoruyko, Komodakis, "Wide Residual
        Networks", section 2.3, arXiv 1605.07146.
    """
    if not is_wresnet_depth(integer("depth", depth, 1)):
        raise ValueError(
            f"depth must be 6 n + 4, such as 16, 22, 28, 40. Received: depth={depth}."
        )
    blocks = (depth - 4) // 6
    name = f"wresnet{depth}_{integer('width', width, 1)}"
    return _residual(input_shape, classes, normalization, blocks, width, name)


def is_resnet_depth(depth: int) -> bool:
    """Whether a depth is `6 n + 2` with at least one block per stage."""
    return depth >= 8 and depth % 6 == 2


def is_wresnet_depth(depth: int) -> bool:
    """Whether a depth is `6 n + 4` with at least one block per stage."""
    return depth >= 10 and depth % 6 == 4


def _residual(input_shape, classes, normalization, blocks, width, name):
    check_image_shape(input_shape)
    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolution(inputs, 16 * width, 3, normalization))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        x = stage(x, basic_block, filters * width, blocks, strides, normalization)
    x = layers.GlobalAveragePooling2D()(x)
    return classifier(inputs, x, classes, name)

"""The layers with normalization that all networks are made of."""

from collections.abc import Callable

import keras
from keras import layers

from gbn_keras.convert.fold import fold_relu

# Makes one normalization layer. None is for a network without normalization.
Normalization = Callable[[], keras.layers.Layer] | None


def convolution(
    x: keras.KerasTensor,
    filters: int,
    size: int,
    normalization: Normalization,
    *,
    strides: int = 1,
    padding: str = "same",
    pooling: keras.layers.Layer | None = None,
) -> keras.KerasTensor:
    """A square convolution, then pooling if given, then normalization."""
    x = layers.Conv2D(
        filters,
        size,
        strides,
        padding=padding,
        use_bias=_wants_bias(normalization),
        kernel_initializer=he_normal_fan_out(),
    )(x)
    return _normalize(pooling(x) if pooling else x, normalization)


def dense(
    x: keras.KerasTensor, units: int, normalization: Normalization
) -> keras.KerasTensor:
    """A dense layer, then normalization."""
    x = layers.Dense(units, use_bias=_wants_bias(normalization))(x)
    return _normalize(x, normalization)


def classifier(
    inputs: keras.KerasTensor, x: keras.KerasTensor, classes: int, name: str
) -> keras.Model:
    """The network that ends with a dense layer after `x`, with an output per class.

    The outputs are float32 whatever comes before. Ghost layers compute the ReLU that
    follows them, as they do after `to_ghost_batch_norm(with_relu=True)`. So networks
    with any normalization have the same graph, and the same weights in the same order.
    """
    outputs = layers.Dense(classes, dtype="float32")(x)
    model = keras.Model(inputs, outputs, name=name)
    fold_relu(model)
    return model


def he_normal_fan_out() -> keras.initializers.Initializer:
    """A new initializer: normal weights of variance `2 / (height * width * filters)`.

    It counts a filter's outputs, not its inputs, as the paper's published code does. So
    gradients keep their size in the backward pass.

    Reference:
        He et al., "Delving Deep into Rectifiers", section 2.2, arXiv 1502.01852.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def check_image_shape(input_shape: tuple[int, ...], at_least: int = 1) -> None:
    """Raises a ValueError unless `input_shape` fits a network's images.

    Args:
        input_shape: Image shape, which must be `(height, width, channels)`.
        at_least: Smallest height and width.
    """
    sizes = tuple(input_shape)
    known = all(isinstance(size, int) and size > 0 for size in sizes)
    if len(sizes) != 3 or not known or min(sizes[:2]) < at_least:
        smallest = f", at least {at_least} x {at_least}" if at_least > 1 else ""
        raise ValueError(
            f"input_shape must be (height, width, channels){smallest}. "
            f"Received: input_shape={sizes}."
        )


def _wants_bias(normalization):
    """Whether to use a bias: normalization subtracts it, and beta replaces it."""
    return normalization is None


def _normalize(x, normalization):
    return x if normalization is None else normalization()(x)

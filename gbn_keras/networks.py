"""The paper's networks; how they normalize is an argument.

Each network is a function of the input shape, the number of classes and
`normalization`, a callable that makes one normalization layer. So one function builds
every arm of a study:

```python
f1((28, 28, 1), 10, functools.partial(GhostBatchNormalization, 128))
f1((28, 28, 1), 10, keras.layers.BatchNormalization)
```

All return logits in float32, whatever the precision of the layers before.
"""

from collections.abc import Callable

import keras
from keras import layers


def f1(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Callable[[], keras.layers.Layer],
    *,
    width: int = 512,
    depth: int = 5,
) -> keras.Model:
    """F1, the paper's fully connected network for MNIST.

    `depth` times dense, normalization, ReLU, then a dense layer to the classes. The
    hidden layers have no bias, which the normalization's mean would take out again.

    Args:
        input_shape: Shape of one example, of any rank; it is flattened.
        classes: Number of outputs.
        normalization: Makes a normalization layer.
        width: Units of a hidden layer.
        depth: Number of hidden layers.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", section 6,
        arXiv 1705.08741.
    """
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    for _ in range(depth):
        x = layers.Dense(width, use_bias=False)(x)
        x = normalization()(x)
        x = layers.ReLU()(x)
    outputs = layers.Dense(classes, dtype="float32")(x)
    return keras.Model(inputs, outputs, name="f1")


def f1_digits(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Callable[[], keras.layers.Layer],
) -> keras.Model:
    """A small F1 for 8x8 digits: four hidden layers of 128; otherwise as `f1`."""
    return f1(input_shape, classes, normalization, width=128, depth=4)


def resnet(
    input_shape: tuple[int, ...],
    classes: int,
    normalization: Callable[[], keras.layers.Layer] | None,
    *,
    depth: int = 44,
) -> keras.Model:
    """He et al.'s residual network for CIFAR: three stages of 16, 32, 64 channels.

    A stage has `(depth - 2) / 6` basic blocks, the first of the later stages at half
    the resolution. Where the shape changes, the shortcut is a 1x1 convolution with
    normalization, as in the paper's published code.

    Args:
        input_shape: `(height, width, channels)`.
        classes: Number of outputs.
        normalization: Makes a normalization layer; `None` for a network without.
        depth: `6 n + 2`.

    Raises:
        ValueError: If `depth` is not `6 n + 2`.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", section 4.2,
        arXiv 1512.03385.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            f"depth must be 6 n + 2, as 20, 32, 44, 56. Received: depth={depth}."
        )

    def convolution(x, filters, size, strides):
        x = layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            use_bias=False,
            # By the number of a filter's outputs rather than its inputs.
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            ),
        )(x)
        return normalization()(x) if normalization else x

    inputs = keras.Input(input_shape)
    x = layers.ReLU()(convolution(inputs, 16, 3, 1))
    for filters in (16, 32, 64):
        for block in range((depth - 2) // 6):
            strides = 2 if filters > 16 and block == 0 else 1
            shortcut = x if strides == 1 else convolution(x, filters, 1, strides)
            x = layers.ReLU()(convolution(x, filters, 3, strides))
            x = convolution(x, filters, 3, 1)
            x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(classes, dtype="float32")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


# By the name that `REGIMES` and `--model` use.
NETWORKS = {"f1": f1, "f1_digits": f1_digits, "resnet44": resnet}

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


# By the name that `REGIMES` and `--model` use.
NETWORKS = {"f1": f1, "f1_digits": f1_digits}

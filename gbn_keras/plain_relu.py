"""`is_plain_relu()`: which activations are ReLU and nothing else."""

import keras


def is_plain_relu(activation) -> bool:
    """Whether an activation, a function or a layer, is `max(x, 0)` and nothing else.

    That is `keras.activations.relu`, and a layer with it or `keras.layers.ReLU` with
    its defaults. A layer of a derived class may do anything.
    """
    if type(activation) is keras.layers.ReLU:
        others = (activation.max_value is None, activation.negative_slope == 0)
        return all(others) and activation.threshold == 0
    if type(activation) is keras.layers.Activation:
        activation = activation.activation
    return activation is keras.activations.relu

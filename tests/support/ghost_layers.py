"""Ghost layers with random variables, and functions that compute with them."""

import keras
import numpy as np
from backend import WAYS, gradient_function
from keras import ops

from gbn_keras import GhostBatchNormalization


def build_pair(shape, virtual_batch_size, **arguments):
    """A ghost layer and a plain one with the same random variables."""
    pair = (
        GhostBatchNormalization(virtual_batch_size, **arguments),
        keras.layers.BatchNormalization(**arguments),
    )
    random = np.random.default_rng(7)
    for layer in pair:
        layer.build(shape)
    weights = [random.uniform(0.5, 1.5, w.shape) for w in pair[0].weights]
    for layer in pair:
        layer.set_weights(weights)
    return pair


def predict(model, inputs, **how):
    return ops.convert_to_numpy(model(inputs, **how))


def update_function(layer, x, upstream=None, mask=None, way=WAYS[0]):
    """The layer's training step, compiled once for all arguments like these.

    It gives the outputs, the gradients by the inputs and the weights, and the running
    statistics. The loss is the sum of `y * upstream`, or of `y**2`.
    """
    number = len(layer.trainable_variables)

    def values(x, *given):
        variables = (*layer.trainable_variables, *layer.non_trainable_variables)
        return [x, *(variable.value for variable in variables), *given]

    def loss_and_results(x, *tensors):
        weights, moving = tensors[:number], tensors[number : number + 2]
        given = list(tensors[number + 2 :])
        how = {} if mask is None else {"mask": given.pop()}
        y, moved = layer.stateless_call(weights, moving, x, training=True, **how)
        return ops.sum(y * (given.pop() if given else y)), (y, moved)

    given = [array for array in (upstream, mask) if array is not None]
    run = gradient_function(loss_and_results, values(x, *given), 1 + number, way)

    def update(x, *given):
        (y, moved), gradients = run(*values(x, *given))
        return y, gradients, moved

    return update

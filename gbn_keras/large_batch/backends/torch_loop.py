"""The loop over micro-batches and the gradients, on PyTorch."""

import keras
import torch


def reduce_in_loop(function, state, data, size, whole):
    """Applies `function(state, start, micro_batch)` to whole micro-batches in order.

    Args:
        function: Gives the next state.
        state: The first state.
        data: Nested tensors of examples.
        size: Number of examples per micro-batch.
        whole: Number of micro-batches.
    """
    for start in range(0, whole * size, size):
        micro_batch = keras.tree.map_structure(
            lambda values, start=start: (
                None if values is None else part_of(values, start, size)
            ),
            data,
        )
        state = function(state, start, micro_batch)
    return state


def part_of(values, start, size):
    """The `size` examples from place `start` on."""
    return values.narrow(0, start, size)


def gradients_of(function, weights):
    """`(gradients, found)` of `function(weights) -> (loss, found)`.

    A gradient is `None` if the loss does not depend on the weight. Nothing of what is
    returned keeps the values that the micro-batch computed.
    """
    weights = [weight.detach().requires_grad_() for weight in weights]
    with torch.enable_grad():
        loss, found = function(weights)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return list(gradients), keras.tree.map_structure(torch.Tensor.detach, found)


def squares_of(tensors):
    """The sum of the squares of all entries of float32 tensors."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.stack([torch.dot(values, values) for values in flat]).sum()

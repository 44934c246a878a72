"""Squares of the micro-batches' gradients: of their norms, and of their entries.

Their sum makes the update. Their squares tell how noisy they are: `moments_of` those of
the norms, for `GradientMoments`, and `Squares` those of the entries, for an optimizer
with a method `with_squares`, as `BatchSizeInvariantAdam` has.
"""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from gbn_keras.large_batch.gradient_norm import squared_norm
from gbn_keras.large_batch.inner_optimizer import inner_optimizer
from gbn_keras.large_batch.micro_batches import number_of_examples
from gbn_keras.large_batch.sums import precise
from gbn_keras.replicas import this_replica

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


class Squares(NamedTuple):
    """Sums over micro-batches, each with the weight of its gradient in the batch's.

    With these weights, the mean of the squares is never below the square of the mean.

    Attributes:
        of_gradients: The micro-batches' mean gradients, squared, in float32 at least.
            They have the square of the loss scale.
        inverse_sizes: 1 / the number of examples.
        weights: The weights themselves.
        number: 1 for each micro-batch, without a weight.
    """

    of_gradients: list
    inverse_sizes: Any
    weights: Any
    number: Any


def has_two_sizes(step) -> bool:
    """Whether gradients of micro-batches differ from that of the whole batch.

    If the number of micro-batches is unknown while tracing, they may differ.
    """
    return step.training and (step.found.equal_parts != 1 or this_replica()[1] > 1)


def moments_of(step, gradients, loss_scale, x, totals):
    """What one micro-batch adds to `Sums.moments`."""
    if not step.measures_noise():
        return ops.zeros((3,), "float32")
    square = squared_norm(gradients, loss_scale)
    examples = ops.cast(number_of_examples(x), "float32")
    if totals is not None:  # The gradient is a part of the whole batch's.
        square *= (totals[-1] / examples) ** 2
    return ops.stack([square, 1 / examples, ops.ones_like(square)])


def no_squares(step, weights):
    """The sums before the first micro-batch; `()` if the optimizer wants none."""
    if not (has_two_sizes(step) and _takes_squares(step.model)):
        return ()
    zeros = [ops.zeros(weight.shape, precise(weight)) for weight in weights]
    return Squares(zeros, *(ops.zeros((), "float32") for _ in Squares._fields[1:]))


def add_squares(sums, gradients, x, weight, totals):
    """The sums with one more micro-batch.

    Args:
        sums: The sums so far. `()` stays as it is.
        gradients: The micro-batch's gradients; `None` where a variable has none.
        x: Its inputs.
        weight: What its gradients are multiplied by; `None` for 1.
        totals: If given, the gradients are parts of the whole batch's. Then the weight
            is the number of examples.
    """
    if not sums:
        return sums
    examples, factor = ops.cast(number_of_examples(x), "float32"), 1.0
    weight = ops.ones((), "float32") if weight is None else weight
    if totals is not None:
        weight = examples / totals[-1]
        factor = 1 / weight

    def added(total, gradient):
        if gradient is None:
            return total
        gradient = ops.cast(gradient, total.dtype)
        square = ops.square(gradient * ops.cast(factor, total.dtype))
        return total + square * ops.cast(weight, total.dtype)

    return Squares(
        [*map(added, sums.of_gradients, gradients)],
        sums.inverse_sizes + weight / examples,
        sums.weights + weight,
        sums.number + 1.0,
    )


def with_squares(step, gradients, squares, examples, batch):
    """The whole batch's gradients as the optimizer takes them.

    Args:
        step: The `ReplicaStep` that made the sums.
        gradients: Gradients of the mean loss over the whole batch.
        squares: Sums over all micro-batches of all replicas, or `()`.
        examples: Number of examples in the share, a tensor if it is not static.
        batch: Number of examples in the whole batch, a tensor.
    """
    if not step.training or not _takes_squares(step.model):
        return gradients
    optimizer = inner_optimizer(step.model.optimizer)
    small = optimizer.small_batch_size
    if not squares:
        if small is not None and small != examples:
            raise ValueError(_one_micro_batch(step, small))
        return gradients
    if small is not None and not isinstance(examples, int):
        tf.debugging.Assert(
            (squares.number > 1) | (batch == small), [_one_micro_batch(step, small)]
        )
    weights = ops.divide_no_nan(1.0, squares.weights)
    means = [x * ops.cast(weights, x.dtype) for x in squares.of_gradients]
    inverse = squares.inverse_sizes * weights
    return optimizer.with_squares(gradients, means, inverse, 1 / batch)


def bytes_of_squares(model) -> int:
    """The memory that the sums need, beside that of the gradients."""
    if not _takes_squares(model):
        return 0
    return 4 * sum(math.prod(weight.shape) for weight in model.trainable_weights)


def _takes_squares(model):
    return hasattr(inner_optimizer(model.optimizer), "with_squares")


def _one_micro_batch(step, small):
    return (
        f"small_batch_size={small} needs the gradients of at least two micro-batches "
        "or replicas. Received: a batch of one. Lower micro_batch_size="
        f"{step.micro_batch_size}, and leave out the remainder of the data: "
        "dataset.batch(batch_size, drop_remainder=True)."
    )

"""`LossParts`: each loss of a micro-batch, and what it is a mean over.

The mean over a batch is the weighted mean of its micro-batches' means. The weight of a
micro-batch is what Keras divided by: the number of its examples, the sum of their
sample weights, or what a mask leaves of them. Only the call of a loss shows which of
these applies.
"""

import threading

import keras
from keras import ops

from gbn_keras._keras_internals import (
    losses_of_outputs,
    mask_of,
    replace_losses_of_outputs,
)
from gbn_keras.replicas import this_replica

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")

# The kind of a loss that is a mean over examples, which most losses are.
BY_EXAMPLES = ("examples",)

_entered = threading.local()  # Each replica on a machine has its own thread.


class LossParts:
    """Records the results of a model's losses, as a context around their call.

    Args:
        examples: Number of examples in the micro-batch.
        totals: The `counts` of the whole batch. With them, a loss returns the
            micro-batch's contribution to the loss of the whole batch. Without them, it
            returns its own mean.

    Attributes:
        means: Each loss of the micro-batch, without its weight in the total.
        counts: What each loss is a mean over: a number of examples, or a sum of sample
            weights.
        kinds: What the counts consist of. Losses of the same kind always have equal
            counts. The first word names what counts.
    """

    def __init__(self, examples, totals=None):
        self._examples, self._totals = ops.cast(examples, "float32"), totals
        self.means, self.counts, self.kinds = [], [], []

    def __enter__(self):
        _entered.parts = self
        return self

    def __exit__(self, *exception):
        _entered.parts = None

    def take(self, mean, count=None, kind=BY_EXAMPLES):
        """Records one loss; returns it, or its contribution to the whole batch's loss.

        Args:
            mean: The loss.
            count: What it is a mean over. The default is the number of examples.
            kind: An entry of `kinds`.
        """
        count = self._examples if count is None else count
        place = len(self.means)
        self.means.append(ops.cast(mean, "float32"))
        self.counts.append(count)
        self.kinds.append(kind)
        if self._totals is None:
            return mean
        part = ops.divide_no_nan(count, self._totals[place])
        return mean * ops.cast(part, mean.dtype)

    def take_none(self):
        """Records that there is no such loss."""
        self.means.append(ops.zeros((), "float32"))
        self.counts.append(self._examples)

    def take_keras_loss(self, loss, y_true, y_pred, sample_weight):
        """Calls one of Keras's losses and records it."""
        count, kind = self._count(loss, y_true, y_pred, sample_weight)
        mean = loss(y_true, y_pred, sample_weight)
        # Keras has divided the loss by the number of replicas.
        _, replicas = this_replica()
        return self.take(mean * ops.cast(replicas, mean.dtype), count, kind)

    def _count(self, loss, y_true, y_pred, sample_weight):
        # A second call, because the first shows neither a mask nor the shape. A graph
        # needs at most the mask of it.
        values = loss.call(_in_dtype(loss, y_true), _in_dtype(loss, y_pred))
        masks = [mask_of(y) for y in (y_pred, values)]
        masks = [mask for mask in masks if mask is not None]
        factors = [*masks] if sample_weight is None else [*masks, sample_weight]
        for factor in factors:
            _refuse_mixed_examples(loss, factor, values)
        same = tuple(map(id, factors))
        if loss.reduction == "mean_with_sample_weight" and factors:
            what = "masked weights" if masks else "weights"
            return ops.sum(_product(factors)), (what, *same)
        if masks:
            return self._examples * ops.mean(_product(masks)), ("masked", *same)
        return None, BY_EXAMPLES


class CountedLoss:
    """One of a compiled model's losses, which `LossParts` records.

    Args:
        loss: The `keras.losses.Loss`.

    Raises:
        ValueError: If the loss has its own reduction or compares examples; in the call,
            if it does not give a value for each example.
    """

    def __init__(self, loss):
        if type(loss).__call__ is not keras.losses.Loss.__call__:
            raise ValueError(
                "loss must leave its reduction to keras.losses.Loss, so that it works "
                f"in micro-batches. Received: {loss.name}, which has its own "
                "__call__. Override `call` instead, and return a value for each "
                "example."
            )
        pairwise = (keras.losses.Circle, keras.losses.circle)
        if isinstance(loss, pairwise[0]) or getattr(loss, "fn", None) is pairwise[1]:
            raise ValueError(
                "loss must be a mean over examples that do not depend on each other. "
                f"Received: {loss.name}, which compares all examples of a batch. "
                "Train without micro-batches, or choose another loss."
            )
        self.loss = loss
        self._is_by_example = False

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Calls the loss; within a `LossParts`, records it."""
        parts = getattr(_entered, "parts", None)
        if parts is None:
            return self.loss(y_true, y_pred, sample_weight)
        if not self._is_by_example:
            _refuse_values_of_batch(self.loss, y_true, y_pred)
            self._is_by_example = True
        return parts.take_keras_loss(self.loss, y_true, y_pred, sample_weight)


def counted_losses(compile_loss) -> list:
    """The losses of a compiled, built model, each replaced by a `CountedLoss` in place.

    Args:
        compile_loss: Result of `compile_loss_of` for a model. `None` gives no losses.
    """
    if compile_loss is None:
        return []
    losses = [
        one
        if isinstance(one.loss, CountedLoss)
        else one._replace(loss=CountedLoss(one.loss))
        for one in losses_of_outputs(compile_loss)
    ]
    replace_losses_of_outputs(compile_loss, losses)
    return losses


def refuse_reductions(losses) -> None:
    """Raises if a loss is not a mean."""
    reductions = {getattr(one, "reduction", "mean") for one in losses}
    if not reductions <= set(_MEANS):
        raise ValueError(
            "loss must be a mean over the examples, by their number or by their "
            "sample weights. Received: the reductions "
            f"{', '.join(sorted(map(str, reductions)))}. Remove the `reduction` "
            "argument."
        )


def _refuse_values_of_batch(loss, y_true, y_pred):
    """Raises if a loss does not give at least one value for each example."""

    def batch_of_any_size(y):
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor((None, *x.shape[1:]), loss.dtype), y
        )

    specs = map(batch_of_any_size, (y_true, y_pred))
    values = _ShapeOf(loss.call).compute_output_spec(*specs)
    if not values.shape or values.shape[0] is not None:
        raise ValueError(
            "loss must give a value for each example, of which Keras takes the mean. "
            f"Received: {loss.name}, which gives the shape {tuple(values.shape)} for "
            f"predictions of shape {_shape(y_pred)}. Keep the first axis (Dice and "
            "Tversky: axis=(1, 2, 3))."
        )


class _ShapeOf(keras.Operation):
    """A function as an operation, of which Keras tells the shape of the result."""

    def __init__(self, function):
        super().__init__()
        self.call = function


def _refuse_mixed_examples(loss, factor, values):
    """Raises if Keras would multiply one example's value by another one's factor.

    Keras aligns the last axes. Ranks may differ by one last axis of size 1.
    """
    lower, higher = sorted((factor.shape, values.shape), key=len)
    is_expanded = len(lower) + 1 == len(higher) and higher[-1] == 1
    if len(lower) != len(higher) and not is_expanded:
        raise ValueError(
            "sample_weight, and any mask, must have the shape of the loss's values, "
            f"with size 1 allowed in any axis. Received: shape {tuple(factor.shape)} "
            f"for values of shape {tuple(values.shape)} of {loss.name}. Add the "
            "missing axes (sample_weight[:, None])."
        )


def _product(factors):
    """Product in float32. Ranks may differ by one last axis of size 1."""
    rank = max(len(factor.shape) for factor in factors)
    product = 1.0
    for factor in factors:
        factor = ops.cast(factor, "float32")
        product *= factor if len(factor.shape) == rank else factor[..., None]
    return product


def _in_dtype(loss, y):
    return keras.tree.map_structure(
        lambda x: ops.convert_to_tensor(x, dtype=loss.dtype), y
    )


def _shape(y):
    return keras.tree.map_structure(lambda x: tuple(x.shape), y)

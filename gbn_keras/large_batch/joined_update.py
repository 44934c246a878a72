"""`joined_update`: the update of the whole batch, from the sums of each replica."""

import keras
from keras import ops

from gbn_keras.large_batch.gradient_norm import squared_norm
from gbn_keras.large_batch.squares import with_squares
from gbn_keras.large_batch.sums import Sums, Values
from gbn_keras.replicas import (
    in_order,
    refuse_uneven_shares,
    row_of,
    step_of,
    sum_over_replicas,
    this_replica,
    weigh_for_join,
)


def joined_update(
    step, sums: Sums, before: Values, examples, loss_scale, totals=None
) -> tuple[list, Values, list]:
    """The result of one update, which all replicas agree on in one all-reduce.

    Keras sums the metrics' variables over the replicas, so the first replica keeps all
    of their values. The sum then does not depend on how the replicas got there, which a
    resumed training could not know.

    Args:
        step: The `ReplicaStep` that made the sums.
        sums: Sums of this replica's share.
        before: Values of the variables before the update.
        examples: Number of examples in the share.
        loss_scale: Factor that the gradients have.
        totals: Result of `ReplicaStep.count`, summed over the replicas.

    Returns:
        `(gradients, after, metrics)`: the gradients of the mean loss over the whole
        batch, as the optimizer takes them; the values to assign; the metrics' values
        over all replicas.
    """
    found, model = step.found, step.model
    used = [
        gradient
        for index, gradient in enumerate(sums.gradients)
        if index not in found.without_gradient
    ]
    moved = {
        index: _addend(step, index, sums, before)
        for index in sorted(found.moved)
        if keras.backend.is_float_dtype(sums.statistics[index].dtype)
    }
    kept = {number: row_of(sums.kept[number]) for number in found.skipping}
    share = ops.cast(examples, "float32")
    addends = (
        *(used, list(moved.values()), kept, sums.metrics),
        *(sums.losses, sums.counts, share, sums.moments, sums.squares),
    )
    used, joined, kept, metrics, losses, counts, total, moments, squares = (
        sum_over_replicas(addends)
    )
    if step.training:
        refuse_uneven_shares(share, total)

    gradients = _means(step, sums, used, counts, totals)

    statistics = list(sums.statistics)
    for index, value in zip(moved, joined, strict=True):
        number = step.ghost_layer_of(index)
        if number in kept:
            value = in_order(before.statistics[index], kept[number], value)
        statistics[index] = value

    losses = ops.divide_no_nan(losses, counts)
    # If batches are filled up, their sizes mean nothing.
    size = counts[0] if found.counts_by_weight else total
    metrics = step.trackers.updated(metrics, losses, size)
    is_first = ops.equal(this_replica()[0], 0)
    held = [ops.where(is_first, value, ops.zeros_like(value)) for value in metrics]

    if step.training:
        model.gradient_norm.update(gradients, loss_scale)
    if step.measures_noise():
        small_square, small_inverse, number = ops.unstack(moments)
        model.gradient_moments.update(
            small_square / number,
            small_inverse / number,
            squared_norm(gradients, loss_scale),
            1 / total,
        )
    if step.training and model.regime_progress:
        _advance(model)
    gradients = with_squares(step, gradients, squares, examples, total)
    return gradients, Values([], statistics, sums.seeds, held), metrics


def _advance(model):
    progress = model.regime_progress
    gain = model.gradient_moments.gain(progress.batch_size, progress.small_batch_size)
    # An update whose gradient overflowed float16 is not made.
    progress.advance(ops.where(model.gradient_norm.is_finite(), gain, 0.0))


def _means(step, sums, used, counts, totals):
    """The gradients of the mean loss, `None` where a weight has none."""
    found = step.found
    if totals is not None:
        weight = 1
    elif found.equal_parts:
        weight = found.equal_parts * this_replica()[1]
    else:
        weight = counts[0] / step.micro_batch_size
    used = iter(used)
    return [
        None if index in found.without_gradient else _divide(next(used), weight)
        for index in range(len(sums.gradients))
    ]


def _divide(gradient, weight):
    if isinstance(weight, int) and weight == 1:
        return gradient
    return gradient / ops.cast(weight, gradient.dtype)


def _addend(step, index, sums, before):
    """What this replica adds to a joined running statistic."""
    value, old = sums.statistics[index], before.statistics[index]
    number = step.ghost_layer_of(index)
    if number is None:
        _, replicas = this_replica()
        return value / replicas
    if number in step.found.skipping:
        return row_of(step_of(value, old, sums.kept[number]))
    return weigh_for_join(value, old, sums.kept[number])

"""The replicas of a batch: which one this is, and what they sum.

Each replica of a `tf.distribute` strategy takes an equal, contiguous share of the
batch, in replica order. Running statistics take one step for each ghost of the whole
batch, so the replicas join their steps here.
"""

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

_REMEDY = (
    "Leave out the remainder of the data: "
    "dataset.batch(batch_size, drop_remainder=True)."
)


def this_replica() -> tuple:
    """`(index, count)` of the current `tf.distribute` replica, or `(0, 1)`.

    The index may be a tensor.
    """
    if keras.backend.backend() != "tensorflow":
        return 0, 1
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, 1
    index = tf.cast(context.replica_id_in_sync_group, tf.int32)
    return index, context.num_replicas_in_sync


def replicas_in_scope() -> int:
    """The number of replicas of the `tf.distribute` strategy in whose scope this is."""
    if keras.backend.backend() != "tensorflow":
        return 1
    return tf.distribute.get_strategy().num_replicas_in_sync


def joined(values, before, kept, examples):
    """Running statistics after the steps of all replicas, the same on each.

    Args:
        values: New running statistics on this replica, each `(channels,)`.
        before: Running statistics before.
        kept: Fraction of `before` that `values` contain, a number or `(channels,)`.
        examples: Number of examples of this replica: none, or as many as others have.
    """
    _, count = this_replica()
    if count == 1:
        return values
    dtype = values[0].dtype
    examples = ops.cast(examples, dtype)
    # `cast` would take a number through float32.
    kept = ops.convert_to_tensor(kept, dtype)
    steps = [
        step_of(value, old, kept) for value, old in zip(values, before, strict=True)
    ]
    examples, kept, *steps = sum_over_replicas(
        [row_of(x) for x in (examples, kept, *steps)]
    )
    tf.debugging.assert_equal(
        tf.where(examples == 0, tf.reduce_max(examples), examples),
        tf.reduce_max(examples),
        _uneven(count),
    )
    return [in_order(old, kept, rows) for old, rows in zip(before, steps, strict=True)]


def step_of(value, before, kept):
    """The `step` in `value = kept * before + step`."""
    kept = ops.cast(kept, value.dtype)
    return value - kept * ops.cast(before, value.dtype)


def row_of(value):
    """`(replicas, ...)`: the value in this replica's row, zeros in the others."""
    replica, count = this_replica()
    value = ops.convert_to_tensor(value)
    row = ops.reshape(ops.one_hot(replica, count), (count, *[1] * len(value.shape)))
    return ops.cast(row, value.dtype) * value


def in_order(before, kept, steps):
    """A running statistic after the steps of all replicas, in replica order.

    This is `weigh_for_join` for replicas that keep different fractions.

    Args:
        before: Running statistic before, `(channels,)`.
        kept: Fraction that each replica keeps, `(replicas,)` or `(replicas, channels)`.
        steps: Step of each replica, `(replicas, channels)`.
    """
    kept = ops.cast(kept, steps.dtype)
    kept = ops.reshape(kept, (steps.shape[0], -1))
    by_later = tf.math.cumprod(kept, axis=0, exclusive=True, reverse=True)
    past = ops.cast(before, steps.dtype) * ops.prod(kept, axis=0)
    return past + ops.sum(by_later * steps, axis=0)


def weigh_for_join(value, before, kept):
    """What a replica adds to a joined running statistic, if all keep the same fraction.

    Running statistics take one step per ghost, in the order of the batch. The replicas
    hold its shares in that order. A step is linear: a replica with the step `s` goes
    from `before` to `value = kept * before + s`. The joined statistic is a sum over the
    replicas, of the first one's `value` and the others' `s`. Each is multiplied by
    `kept` to the power of the number of later replicas.
    """
    replica, count = this_replica()
    if count == 1:
        return value
    later, dtype = count - 1 - replica, kept.dtype
    own = ops.cast(value, dtype)
    own = own - ops.cast(replica > 0, dtype) * kept * ops.cast(before, dtype)
    return ops.cast(own * ops.power(kept, ops.cast(later, dtype)), value.dtype)


def sum_over_replicas(values):
    """The sum of each of the nested tensors over the replicas, on all of them."""
    _, count = this_replica()
    if count == 1:
        return values
    context = tf.distribute.get_replica_context()
    # The output of a loop has no device, and an all-reduce needs one.
    values = tf.nest.map_structure(tf.identity, values)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def refuse_uneven_shares(examples, total):
    """Raises unless each replica has `examples` of the `total` examples."""
    _, count = this_replica()
    if count > 1:
        tf.debugging.assert_equal(
            tf.cast(examples * count, total.dtype),
            total,
            _uneven(count),
        )


def _uneven(count):
    return f"The {count} replicas must have shares of equal size. {_REMEDY}"

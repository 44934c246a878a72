"""Which part of an update's batch goes through a layer, and what layers do about it.

A large batch goes through the network in parts: every replica takes its share, and each
share may be cut into micro-batches. What a layer computes must not depend on that. Two
things would: running statistics, of which every part knows its own ghosts only, and
random masks, which would repeat in every part.
"""

import threading

import keras
from keras import ops

from gbn_keras.arguments import nearest_multiples

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

_REMEDY = (
    "Leave out what remains of the data: "
    "dataset.batch(batch_size, drop_remainder=True)."
)

_entered = threading.local()  # A thread each for the replicas of one machine.


class Shard:
    """One part of the batch, as a context around the model's call on it.

    Whoever calls a model on a batch in parts enters one for each part, and joins what
    the parts give: gradients, and running statistics by `weigh_for_join`.

    Attributes:
        first_example: The place in the batch of the part's first example.
        kept: For each layer with running statistics that was called, by its `id`, the
            share of the old statistics that the new ones still hold.
        called_again: The names of layers that were called more than once.
    """

    def __init__(self, first_example):
        self.first_example = first_example
        self.kept, self.called_again = {}, set()

    def __enter__(self):
        self._outer = Shard.current()
        _entered.shard = self
        return self

    def __exit__(self, *exception):
        _entered.shard = self._outer

    @staticmethod
    def current() -> "Shard | None":
        """The shard that this thread has entered last."""
        return getattr(_entered, "shard", None)

    def keep(self, layer, share):
        """Tells that `layer` moved its statistics, keeping a share of the old."""
        if id(layer) in self.kept:
            self.called_again.add(layer.name)
        self.kept[id(layer)] = self.kept.get(id(layer), 1.0) * share


def first_example(examples):
    """The place in the batch of the first of the `examples` that a layer is given."""
    shard = Shard.current()
    if shard:
        return shard.first_example
    replica, _ = this_replica()
    return replica * examples


def this_replica() -> tuple:
    """`(index, count)` of the `tf.distribute` replica that computes; else `(0, 1)`.

    The index may be a tensor.
    """
    if keras.backend.backend() != "tensorflow":
        return 0, 1
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0, 1
    index = tf.cast(context.replica_id_in_sync_group, tf.int32)
    return index, context.num_replicas_in_sync


def joined(values, before, kept, ghosts):
    """Running statistics after the steps of all replicas, the same on each.

    Args:
        values: What the running statistics are on this replica, each `(channels,)`.
        before: What they were.
        kept: Which share of that they hold, a number or `(channels,)`.
        ghosts: How many this replica has: none, or as many as the others have.
    """
    _, count = this_replica()
    if count == 1:
        return values
    steps = [
        step_of(value, old, kept) for value, old in zip(values, before, strict=True)
    ]
    ghosts, kept, *steps = sum_over_replicas(
        [row_of(x) for x in (ghosts, kept, *steps)]
    )
    tf.debugging.assert_equal(
        tf.where(ghosts == 0, tf.reduce_max(ghosts), ghosts),
        tf.reduce_max(ghosts),
        _uneven(count),
    )
    return [in_order(old, kept, rows) for old, rows in zip(before, steps, strict=True)]


def step_of(value, before, kept):
    """The step that led from `before` to `value = kept * before + step`."""
    kept = ops.cast(kept, value.dtype)
    return value - kept * ops.cast(before, value.dtype)


def row_of(value):
    """`(replicas, ...)`: the value in this replica's row, and zeros."""
    replica, count = this_replica()
    value = ops.convert_to_tensor(value)
    row = ops.reshape(ops.one_hot(replica, count), (count, *[1] * len(value.shape)))
    return ops.cast(row, value.dtype) * value


def in_order(before, kept, steps):
    """A running statistic after the steps of all replicas, in their order.

    As `weigh_for_join` tells, but whatever each replica keeps.

    Args:
        before: `(channels,)`.
        kept: `(replicas,)` or `(replicas, channels)`.
        steps: `(replicas, channels)`.
    """
    kept = ops.cast(kept, steps.dtype)
    kept = ops.reshape(kept, (steps.shape[0], -1))
    by_later = tf.math.cumprod(kept, axis=0, exclusive=True, reverse=True)
    past = ops.cast(before, steps.dtype) * ops.prod(kept, axis=0)
    return past + ops.sum(by_later * steps, axis=0)


def weigh_for_join(value, before, kept):
    """What a replica adds to a running statistic of all, which all keep alike.

    Running statistics take one step per ghost, in the order of the batch, whose shares
    the replicas hold in their order. A step is linear: from `before` a replica with
    the step `s` gets `value = kept * before + s`. With all steps, in order, the first
    replica's `value` and the others' `s` count, each times `kept` to the power of how
    many replicas come after.
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
    # What a loop gives has no device, and cannot be reduced without.
    values = tf.nest.map_structure(tf.identity, values)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def refuse_cut_ghosts(examples, virtual_batch_size: int):
    """Raises if the replicas' shares of `examples` each are not whole ghosts."""
    _, count = this_replica()
    if count == 1:
        return
    if isinstance(examples, int):
        if examples % virtual_batch_size:
            raise ValueError(cut_ghosts(examples * count, count, virtual_batch_size))
        return
    tf.debugging.assert_equal(
        examples % virtual_batch_size,
        0,
        f"A replica's share must be a multiple of {virtual_batch_size}, so that no "
        f"ghost lies on two of the {count} replicas. {_REMEDY}",
    )


def cut_ghosts(batch_size: int, replicas: int, virtual_batch_size: int) -> str:
    """Why replicas cannot share a batch in whole ghosts, and which they can."""
    multiple = replicas * virtual_batch_size
    ghosts = f"ghosts of {virtual_batch_size}" if virtual_batch_size > 1 else "shares"
    return (
        f"batch {batch_size} on {replicas} replicas: {ghosts} need a multiple of "
        f"{multiple}: {nearest_multiples(batch_size, multiple)}"
    )


def refuse_uneven_shares(examples, total):
    """Raises if the replicas, with `total` examples, do not have `examples` each."""
    _, count = this_replica()
    if count > 1:
        tf.debugging.assert_equal(
            tf.cast(examples * count, total.dtype),
            total,
            _uneven(count),
        )


def _uneven(count):
    return f"The {count} replicas must have shares of one size. {_REMEDY}"

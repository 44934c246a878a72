"""`normalize_share()`: a replica's share of a batch, where replicas cut ghosts."""

import keras
import numpy as np
from keras import ops

from gbn_keras.cut_ghosts.cuts import Cuts
from gbn_keras.cut_ghosts.pieces import Pieces
from gbn_keras.kernels.prepared import prepared
from gbn_keras.replicas import this_replica

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from gbn_keras._tensorflow_internals import is_compiled_by_xla
    from gbn_keras.cut_ghosts.joined_pieces import normalize_pieces


def normalize_share(
    of_whole_ghosts, inputs, gamma, beta, cuts: Cuts, *, axis: int, epsilon, mask=None
):
    """Normalizes each ghost by its own statistics, wherever its examples are.

    The whole ghosts of the share are computed as on one device. The pieces in front of
    them and behind need the other replicas, which must all call this at the same place:
    it communicates once here and once in the gradient. So no loop and no condition of
    TensorFlow's may contain it.

    Args:
        of_whole_ghosts: Function of inputs and mask that does the same for a batch of
            whole ghosts. The batch may be empty if its size is not known.
        inputs: This replica's share of the batch, as in `ghost_normalize`.
        gamma: Factor of each channel, or `None` for 1.
        beta: Addend of each channel, or `None` for 0.
        cuts: Where the replicas cut the ghosts.
        axis: Channel axis, any but 0.
        epsilon: Number added to the variance before the square root.
        mask: Mask as in `ghost_normalize`, or `None`.

    Returns:
        `(outputs, mean, variance, valid)`. The statistics, `(ghosts, channels)`, are of
        the ghost in front and of all whole ghosts. `valid`, a boolean tensor of their
        shape, says for which of them the running statistics take a step on this
        replica. For a ghost that was cut, they do where it ends.

    Raises:
        ValueError: If `mask` does not have one dimension less than `inputs`; if XLA
            compiles the call, and the pieces differ between the replicas in size.
    """
    axis, of_examples = axis % len(inputs.shape), mask
    inputs, gamma, beta, mask = prepared(inputs, gamma, beta, axis, mask)
    replica = _known_index()
    front, back, ends = (
        _entry(values, replica) for values in (cuts.front, cuts.back, cuts.ends)
    )
    behind = ops.shape(inputs)[0] - back
    is_known = isinstance(front, int) and isinstance(behind, int)
    if not is_known and is_compiled_by_xla():
        raise ValueError(_uneven_pieces(inputs))
    # The gradient of a split joins the parts. Those of slices would all be as large as
    # the inputs.
    sizes = [front, behind - front, back][: 1 + cuts.pieces]
    first, whole, *last = tf.split(inputs, sizes)
    masks = None
    if mask is not None:
        masks = tf.split(mask, sizes)
        del masks[1]
    outputs, mean, variance, has_values = normalize_pieces(
        Pieces(axis, epsilon), [first, *last], masks, gamma, beta, cuts
    )
    # Not the ghost at the back: it ends on another replica.
    mean, variance = mean[:1], variance[:1]
    valid = ops.broadcast_to(has_values[:1] & ends, ops.shape(mean))
    if is_known and front == behind:
        return ops.concatenate(outputs), mean, variance, valid
    results = of_whole_ghosts(
        whole, None if of_examples is None else of_examples[front:behind]
    )
    outputs.insert(1, results[0])
    steps = True if results[3] is None else results[3]
    steps = ops.broadcast_to(steps, ops.shape(results[1]))
    joined = zip((mean, variance, valid), (*results[1:3], steps), strict=True)
    return ops.concatenate(outputs), *map(ops.concatenate, joined)


def _known_index():
    """The index of this replica, as a number if it is known while tracing."""
    replica, _ = this_replica()
    known = tf.get_static_value(replica)
    return replica if known is None else int(known)


def _entry(values, replica):
    """The replica's entry of a vector, as a number if it is known while tracing."""
    if isinstance(values, np.ndarray):
        if (values == values[0]).all():
            return values[0].item()
        if isinstance(replica, int):
            return values[replica].item()
        values = ops.convert_to_tensor(values)
    return values[replica]


def _uneven_pieces(inputs):
    return (
        "virtual_batch_size must divide a replica's share of the batch, or be a "
        "multiple of it, where XLA compiles a whole update. Received: shares of "
        f"{inputs.shape[0]} examples with ghosts that replicas cut in pieces of "
        "several sizes. Choose another virtual_batch_size or batch size."
    )

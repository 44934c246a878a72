"""Ghosts that replicas of `tf.distribute` cut: two small all-reduces for a layer.

The forward pass sends each piece's statistics, the backward pass two sums for each
ghost. Both are tables with a row per replica, so they do not depend on the batch size.
"""

import dataclasses
import math

import tensorflow as tf
from keras import backend

from gbn_keras.cut_ghosts.cuts import Cuts
from gbn_keras.cut_ghosts.pieces import Pieces, combined
from gbn_keras.kernels.tensorflow_gradients import with_gradient
from gbn_keras.replicas import row_of, sum_over_replicas, this_replica


def normalize_pieces(form: Pieces, pieces, masks, gamma, beta, cuts: Cuts):
    """Normalizes this replica's pieces by the statistics of their whole ghosts.

    All replicas must call it at the same place.

    Args:
        form: How a piece is computed.
        pieces: The `cuts.pieces` pieces of this replica's inputs, from the front.
        masks: A mask for each piece, or `None`.
        gamma: Tensor `(channels,)`.
        beta: Tensor `(channels,)`.
        cuts: Where the replicas cut the ghosts.

    Returns:
        `(outputs, mean, variance, has_values)`: a list with the outputs of each piece,
        and its ghost's statistics, `(pieces, channels)`. Gradients flow through the
        outputs.
    """
    replica, _ = this_replica()
    valid = [None] * len(pieces) if masks is None else masks
    known = [
        form.statistics(tf.stop_gradient(piece), mask)
        for piece, mask in zip(pieces, valid, strict=True)
    ]
    example = [s for a, s in enumerate(pieces[0].shape) if a not in (0, form.axis)]
    knows_counts = masks is None and None not in example
    sent = tf.stack([tf.stack(values[: 3 - knows_counts]) for values in known])
    received = sum_over_replicas(row_of(sent))
    received = tf.reshape(received, (-1, *received.shape[2:]))
    if knows_counts:
        count = tf.reshape(cuts.sizes(), (-1, 1)) * math.prod(example)
        count = tf.cast(count, received.dtype)
    else:
        count = received[:, 2]
    ghosts = tf.constant(cuts.ghosts(), tf.int32) if cuts.are_known else cuts.ghosts()
    own = ghosts[replica]
    mean, variance, divisor, has_values = combined(
        received[:, 0],
        received[:, 1],
        count,
        tf.equal(own[:, None], tf.reshape(ghosts, (1, -1))),
        # As BatchNormalization has it with a mask.
        0.0 if masks is None else backend.epsilon(),
    )
    outputs = [
        form.normalize(piece, gamma, beta, mean[place], variance[place])
        for place, piece in enumerate(pieces)
    ]
    outputs = with_gradient(
        _Gradient(form, len(pieces)),
        tf.concat(outputs, axis=0),
        (*pieces, gamma, beta),
        (mean, variance, divisor, own, *(masks or ())),
    )
    return _split(outputs, pieces), mean, variance, has_values


@dataclasses.dataclass(frozen=True)
class _Gradient:
    """The gradient by this replica's pieces, gamma and beta."""

    form: Pieces
    number: int

    def __call__(self, upstream, *tensors):
        pieces, tensors = tensors[: self.number], tensors[self.number :]
        gamma, _, mean, variance, divisor, ghosts, *masks = tensors
        upstreams = _split(upstream, pieces)
        masks = masks or [None] * self.number
        sums = tf.stack(
            [
                self.form.sums(dy, piece, mean[place])
                for place, (dy, piece) in enumerate(zip(upstreams, pieces, strict=True))
            ]
        )
        of_ghosts = self._over_ghosts(sums, ghosts)
        by_pieces = [
            self.form.by_inputs(
                *(dy, piece, gamma, mean[place], variance[place], divisor[place]),
                *(of_ghosts[place], mask),
            )
            for place, (dy, piece, mask) in enumerate(
                zip(upstreams, pieces, masks, strict=True)
            )
        ]
        # As all gradients of weights, these are of this replica's examples.
        by_beta, scaled = tf.unstack(sums, axis=1)
        by_gamma = scaled * tf.math.rsqrt(variance + self.form.epsilon)
        return (
            *by_pieces,
            *(tf.reduce_sum(by, axis=0) for by in (by_gamma, by_beta)),
        )

    def _over_ghosts(self, sums, ghosts):
        """The sums of this replica's pieces, over all pieces of their ghosts."""
        _, count = this_replica()
        rows = tf.one_hot(ghosts, count, dtype=sums.dtype)[:, :, None, None]
        table = tf.reduce_sum(rows * sums[:, None], axis=0)
        return tf.gather(sum_over_replicas(table), ghosts)


def _split(values, pieces):
    """What belongs to each piece of values that are joined along the first axis."""
    first = tf.shape(pieces[0])[0]
    if pieces[0].shape[0] is not None:
        first = pieces[0].shape[0]
    return [values] if len(pieces) == 1 else [values[:first], values[first:]]

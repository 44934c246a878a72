"""Ghosts that replicas of `tf.distribute` cut: two small all-reduces for a layer.

The forward pass sends each piece's statistics, the backward pass two sums for each
ghost. Both are tables with a row per replica, so they do not depend on the batch size.

Between the all-reduces, each replica computes four functions of tensors, which XLA
compiles to one operation each where `tensorflow_kernels` would compile ghosts.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf
from keras import backend

from gbn_keras.cut_ghosts.cuts import Cuts
from gbn_keras.cut_ghosts.pieces import Pieces, combined
from gbn_keras.kernels.tensorflow_compiled import Compiled
from gbn_keras.kernels.tensorflow_gradients import with_gradient
from gbn_keras.kernels.tensorflow_kernels import fastest_kernel
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
    kernel = fastest_kernel(pieces[0], 1, form.axis, masks)
    run = Compiled if kernel == "compiled" else _as_it_is
    number, masks = len(pieces), masks or []
    _, replicas = this_replica()
    sizes = [s for a, s in enumerate(pieces[0].shape) if a not in (0, form.axis)]
    # An example's number of values, if all have the same; else the replicas tell.
    values = 0 if masks or None in sizes else math.prod(sizes)
    still = [tf.stop_gradient(piece) for piece in pieces]
    rows = run(_Statistics(form, number, not values))(*still, *masks)
    ghosts = tf.cast(cuts.ghosts(), tf.int32)
    own = tf.reshape(ghosts, (replicas, number))[this_replica()[0]]
    outputs, mean, variance, divisor, has_values = run(
        _Outputs(form, number, values, backend.epsilon() if masks else 0.0)
    )(
        *(sum_over_replicas(row_of(rows[0])), tf.cast(cuts.sizes(), tf.int32)),
        *(ghosts, own, gamma, beta, *pieces),
    )
    mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
    outputs = with_gradient(
        _Gradient(form, number, replicas, run),
        outputs,
        (*pieces, gamma, beta),
        (mean, variance, divisor, own, *masks),
    )
    return _split(outputs, pieces), mean, variance, has_values


def _as_it_is(function):
    return function


@dataclasses.dataclass(frozen=True)
class _Statistics:
    """What this replica sends of its pieces, `(pieces, 2 or 3, channels)`."""

    form: Pieces
    number: int
    with_counts: bool

    def __call__(self, *tensors):
        pieces, masks = tensors[: self.number], tensors[self.number :]
        masks = masks or [None] * self.number
        known = [*map(self.form.statistics, pieces, masks)]
        if not self.with_counts:
            known = [statistics[:2] for statistics in known]
        return (tf.stack([tf.stack(statistics) for statistics in known]),)


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """The outputs of this replica's pieces, and the statistics of their ghosts."""

    form: Pieces
    number: int
    values_of_example: int
    slack: float

    def __call__(self, received, sizes, ghosts, own, gamma, beta, *pieces):
        received = tf.reshape(received, (-1, *received.shape[2:]))
        if self.values_of_example:
            count = tf.reshape(sizes, (-1, 1)) * self.values_of_example
            count = tf.cast(count, received.dtype)
        else:
            count = received[:, 2]
        together = tf.equal(own[:, None], tf.reshape(ghosts, (1, -1)))
        mean, variance, *rest = combined(
            received[:, 0], received[:, 1], count, together, self.slack
        )
        outputs = [
            self.form.normalize(piece, gamma, beta, mean[place], variance[place])
            for place, piece in enumerate(pieces)
        ]
        return tf.concat(outputs, axis=0), mean, variance, *rest


@dataclasses.dataclass(frozen=True)
class _Gradient:
    """The gradient by this replica's pieces, gamma and beta."""

    form: Pieces
    number: int
    replicas: int
    run: Callable

    def __call__(self, upstream, *tensors):
        pieces, tensors = tensors[: self.number], tensors[self.number :]
        gamma, _, mean, variance, divisor, own, *masks = tensors
        sums = self.run(_Sums(self.form, self.number))(upstream, mean, *pieces)[0]
        places = tf.one_hot(own, self.replicas, dtype=sums.dtype)[:, :, None, None]
        table = tf.reduce_sum(places * sums[:, None], axis=0)
        of_ghosts = tf.gather(sum_over_replicas(table), own)
        return self.run(_ByInputs(self.form, self.number))(
            *(upstream, sums, of_ghosts, gamma, mean, variance, divisor),
            *(*pieces, *masks),
        )


@dataclasses.dataclass(frozen=True)
class _Sums:
    """What the gradient sums over ghosts, for each piece: `(pieces, 2, channels)`."""

    form: Pieces
    number: int

    def __call__(self, upstream, mean, *pieces):
        upstreams = _split(upstream, pieces)
        sums = map(self.form.sums, upstreams, pieces, tf.unstack(mean, self.number))
        return (tf.stack([*sums]),)


@dataclasses.dataclass(frozen=True)
class _ByInputs:
    """The gradients, from the sums of the pieces and those of their ghosts."""

    form: Pieces
    number: int

    def __call__(self, upstream, sums, of_ghosts, gamma, mean, variance, *rest):
        divisor, *rest = rest
        pieces, masks = rest[: self.number], rest[self.number :]
        upstreams, masks = _split(upstream, pieces), masks or [None] * self.number
        by_pieces = [
            self.form.by_inputs(
                *(upstreams[place], piece, gamma, mean[place], variance[place]),
                *(divisor[place], of_ghosts[place], masks[place]),
            )
            for place, piece in enumerate(pieces)
        ]
        # As all gradients of weights, these are of this replica's examples.
        by_beta, scaled = tf.unstack(sums, 2, axis=1)
        by_gamma = scaled * tf.math.rsqrt(variance + self.form.epsilon)
        by_weights = (tf.reduce_sum(by, axis=0) for by in (by_gamma, by_beta))
        return *by_pieces, *by_weights


def _split(values, pieces):
    """What belongs to each piece of values that are joined along the first axis."""
    if len(pieces) == 1:
        return [values]
    sizes = [piece.shape[0] for piece in pieces]
    if None in sizes:
        sizes = [tf.shape(piece)[0] for piece in pieces]
    return tf.split(values, sizes)

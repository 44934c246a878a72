"""The mathematics of a ghost in several pieces, on any Keras backend.

No device holds all of a ghost that replicas cut. Each computes what the others need to
know of its piece: a few numbers per channel.
"""

import dataclasses
import math

from keras import backend, ops

from gbn_keras.kernels.closed_form import where_valid


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a device computes from its piece of a ghost.

    A piece has the shape of the inputs, and any number of examples, even none. Its
    mask is a boolean tensor of the same shape, or `None`. Statistics are `(channels,)`,
    in float32 or wider.

    Args:
        axis: Channel axis, counted from the front.
        epsilon: Number added to the variance.
    """

    axis: int
    epsilon: float

    def statistics(self, piece, mask=None):
        """`(mean, squares, count)`: `squares` are a sum, of deviations from `mean`."""
        values = self._precise(piece)
        if mask is None:
            count = ops.broadcast_to(self._size(values), (values.shape[self.axis],))
        else:
            count = self._sum(ops.cast(mask, values.dtype))
        mean = self._sum(where_valid(mask, values)) / ops.maximum(count, 1)
        squares = ops.square(values - self._per_channel(piece, mean))
        return mean, self._sum(where_valid(mask, squares)), count

    def normalize(self, piece, gamma, beta, mean, variance):
        """The outputs, with the statistics of the piece's ghost."""
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        mean, scale, beta = (self._per_channel(piece, x) for x in (mean, scale, beta))
        return ops.cast((self._precise(piece) - mean) * scale + beta, piece.dtype)

    def sums(self, upstream, piece, mean):
        """What the gradient sums over the ghost, `(2, channels)`.

        These are the sums of `dy` and of `dy (x - mean)`. The gradients of beta and
        gamma need them, too.
        """
        centered = self._precise(piece) - self._per_channel(piece, mean)
        dy = ops.cast(upstream, centered.dtype)
        return ops.stack([self._sum(dy), self._sum(dy * centered)])

    def by_inputs(
        self, upstream, piece, gamma, mean, variance, divisor, sums, mask=None
    ):
        """The gradient by the piece, as in `ClosedForm`.

        `sums` and `divisor` are those of the whole ghost.
        """
        inverse = ops.rsqrt(variance + self.epsilon)
        parameters = mean, gamma * inverse, sums[0] / divisor
        parameters = (*parameters, ops.square(inverse) * sums[1] / divisor)
        mean, scale, by_mean, by_variance = (
            self._per_channel(piece, x) for x in parameters
        )
        by_statistics = by_mean + (self._precise(piece) - mean) * by_variance
        dy = ops.cast(upstream, by_statistics.dtype)
        dx = scale * (dy - where_valid(mask, by_statistics))
        return ops.cast(dx, piece.dtype)

    def _precise(self, piece):
        return ops.cast(piece, backend.result_type(piece.dtype, "float32"))

    def _sum(self, values):
        axes = [a for a in range(len(values.shape)) if a != self.axis]
        return ops.sum(values, axis=axes)

    def _per_channel(self, piece, statistic):
        shape = [1] * len(piece.shape)
        shape[self.axis] = -1
        return ops.reshape(statistic, shape)

    def _size(self, values):
        sizes = [s for a, s in enumerate(ops.shape(values)) if a != self.axis]
        return math.prod(ops.cast(size, values.dtype) for size in sizes)


def combined(mean, squares, count, together, slack: float = 0.0):
    """The statistics of ghosts from those of their pieces.

    The squares of a piece are about its own mean, and its mean's are about the ghost's.
    So a mean that is large beside the deviation costs no precision.

    Args:
        mean: Mean of each piece, `(pieces, channels)`.
        squares: Sum of squared deviations from it, `(pieces, channels)`.
        count: Number of values of each piece, `(pieces, channels)` or `(pieces, 1)`.
        together: Which pieces make each ghost, boolean `(ghosts, pieces)`.
        slack: Added to the number of a ghost's values.

    Returns:
        `(mean, variance, divisor, has_values)`, each with a row per ghost. The variance
        is biased. The sums were divided by `divisor`: the number of values plus slack,
        and at least 1.

    Reference:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The
        American Statistician 37(3), 1983.
    """
    together = ops.expand_dims(together, -1)
    # Not products, which would spread a NaN of any ghost to all.
    mean, squares, count = (
        ops.where(together, x, ops.zeros_like(x)) for x in (mean, squares, count)
    )
    total = ops.sum(count, axis=1)
    divisor = total + slack if slack else ops.maximum(total, 1)
    of_ghost = ops.sum(count * mean, axis=1) / divisor
    apart = ops.square(mean - ops.expand_dims(of_ghost, 1))
    variance = ops.sum(squares + count * apart, axis=1) / divisor
    return of_ghost, variance, divisor, total > 0

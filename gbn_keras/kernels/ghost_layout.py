"""How ghosts lie in memory, and how to sum over each of them."""

import functools
import math
import operator

from keras import backend, ops

from gbn_keras.kernels.paired_sums import paired_sums

# Rows that the first stage of a sum adds: the best number, and fewer than what would
# still be fast. Near the best, the second stage has little to do, and the processor
# still keeps a loop over so many rows unrolled.
_BEST_SLICES, _FEWEST_SLICES, _MOST_SLICES = 16, 7, 28

# Of a sum over one row, XLA makes no product, and fuses it with what comes next.
_FEWEST_ROWS = 2

# The mean of one row in so many is near enough to the mean of all.
_SAMPLE = 16


class GhostLayout:
    """How ghosts of one size lie in memory, and how to sum over each.

    In one stage, the layout is `(ghosts, examples, ...)`, with one sum over all axes
    but ghosts and channels. That is best where a compiler for GPUs or TPUs arranges the
    sum.

    In two stages, the layout is `(ghosts, rows, slices, channels, columns)`. XLA's
    compilers for CPUs make slow code for a sum over values that are computed on the fly
    (squares, products): they read it column by column. So the first stage adds a few
    neighboring rows, the slices. XLA fuses that with the computation of the values, and
    it runs at memory speed. The second stage sums what is left, about a sixteenth of
    the input, as a product with ones, which XLA does not fuse with anything.
    """

    def __init__(self, ghosts, size, example_shape, axis, in_two_stages):
        channels = example_shape[axis - 1]
        self._shape_by_example = (ghosts * size, *example_shape)
        self._sizes = (size, *example_shape[: axis - 1], *example_shape[axis:])
        self._statistics_shape = (-1, channels)
        slices = 1
        if in_two_stages and all(isinstance(s, int) for s in (*self._sizes, channels)):
            before = example_shape[: axis - 1]
            rows = size * math.prod(before)
            slices = _number_of_slices(rows, before[-1] if before else 1)
        self.in_two_stages = slices > 1
        if self.in_two_stages:
            columns = math.prod(example_shape[axis:])
            self._shape = (ghosts, rows // slices, slices, channels, columns)
            self._axis = 3
        else:
            self._shape = (ghosts, size, *example_shape)
            self._axis = axis + 1
        rank = len(self._shape)
        self._summed = [a for a in range(1, rank) if a != self._axis]
        self._per_channel = [channels if a == self._axis else 1 for a in range(rank)]
        self._per_channel[0] = -1

    def view(self, values):
        """A piece of a batch in this layout."""
        return ops.reshape(values, self._shape)

    def by_example(self, values):
        """The inverse of `view`."""
        return ops.reshape(values, self._shape_by_example)

    def per_channel(self, parameters):
        """`(channels,)` or `(ghosts, channels)`, to broadcast over this layout."""
        return ops.reshape(parameters, self._per_channel)

    def by_ghost(self, sums):
        """The result of `sum` as `(ghosts, channels)`."""
        return ops.reshape(sums, self._statistics_shape)

    def sum(self, values):
        """The sum for each ghost and channel."""
        if not self.in_two_stages:
            return ops.sum(values, axis=self._summed, keepdims=True)
        slices = (values[:, :, i] for i in range(self._shape[2]))
        return self._second_stage(functools.reduce(operator.add, slices))

    def sums(self, first, second):
        """The sums of both, in one pass over memory if in two stages."""
        if not self.in_two_stages:
            return self.sum(first), self.sum(second)
        sums = paired_sums(first, second, axis=2)
        return tuple(map(self._second_stage, sums))

    def mean_of_sample(self, values, dtype):
        """The mean of each ghost's first rows, one in `_SAMPLE` or more, in a dtype."""
        _, rows, slices, _, columns = self._shape
        sampled = max(_FEWEST_ROWS, math.ceil(rows / _SAMPLE))
        sample = ops.cast(values[:, :sampled], dtype)
        if backend.standardize_dtype(values.dtype) == dtype:
            total = self.sum(sample)
        else:  # To add slices, XLA would write all values to memory in that dtype.
            total, _ = self.sums(sample, sample)
        return total / (sampled * slices * columns)

    def _second_stage(self, values):
        """The sum over `(ghosts, rows, channels, columns)`."""
        rows, channels, columns = values.shape[1:]
        values = ops.reshape(values, (-1, rows, channels * columns))
        ones = ops.ones((ops.shape(values)[0], 1, rows), values.dtype)
        values = ops.matmul(ones, values)
        if columns > 1:
            values = ops.sum(ops.reshape(values, (-1, channels, columns)), axis=-1)
        return self.per_channel(values)

    def count(self, valid, dtype):
        """The number of values in such a sum, at least 1."""
        if valid is not None:
            # BatchNormalization adds the same epsilon. With it, a ghost that the mask
            # covers has mean and variance 0.
            return self.sum(ops.cast(valid, dtype)) + backend.epsilon()
        if all(isinstance(size, int) for size in self._sizes):
            return max(math.prod(self._sizes), 1)
        sizes = (ops.cast(size, dtype) for size in self._sizes)
        return ops.maximum(math.prod(sizes), 1)


@functools.cache
def _number_of_slices(rows, inner):
    """How many neighboring rows to add in a first stage; 1 if there is no such number.

    Args:
        rows: Number of rows.
        inner: Size of the last axis that the rows are made of. Where no slice crosses
            its borders, XLA need not compute for each value where it is in memory.
    """

    def cost(slices):
        is_small = slices < _FEWEST_SLICES
        crosses = slices % inner != 0 and inner % slices != 0
        return is_small, crosses, abs(math.log(slices / _BEST_SLICES))

    most = min(_MOST_SLICES, rows // _FEWEST_ROWS)
    possible = [s for s in range(2, most + 1) if rows % s == 0]
    return min(possible, key=cost, default=1)

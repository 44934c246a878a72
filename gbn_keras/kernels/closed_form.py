"""Ghost batches with the gradient in closed form, on any Keras backend."""

import dataclasses

from keras import backend, ops

from gbn_keras.kernels.ghost_layout import GhostLayout


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """Forward and backward pass, with as many operations for many ghosts as for few.

    The gradient is that of batch normalization, by ghost. With `d = x - mean`,
    `s = 1 / sqrt(variance + epsilon)` and sums over the ghost's `n` values,
    `dx = gamma s (dy - (sum(dy) + d s^2 sum(dy d)) / n)`. It needs only the input and
    the statistics of the ghosts. Autodiff would save and read several tensors of the
    input's size.

    With `relu`, the outputs are `max(y, 0)`. The gradient computes again which `y` were
    positive, where it reads the input anyway. So no tensor is kept or read for that.

    Args:
        virtual_batch_size: Number of examples per ghost. The remainder of a batch joins
            the last ghost.
        axis: Channel axis, counted from the front.
        epsilon: Number added to the variance.
        relu: Whether ReLU follows.
        in_two_stages: Whether to sum in the way that suits XLA's compiler for CPUs, see
            `GhostLayout`.
    """

    virtual_batch_size: int
    axis: int
    epsilon: float
    relu: bool = False
    in_two_stages: bool = False

    def statistics(self, inputs, mask=None):
        """Each ghost's mean and biased variance, `(ghosts, channels)`.

        `mask` has the shape of `inputs`. Values where it is false do not count.
        """
        # Squares overflow in float16, and sums in bfloat16 stall at 256 terms.
        dtype = backend.result_type(inputs.dtype, "float32")
        means, variances = [], []
        for layout, ghosts, valid in self._pieces(inputs, mask):
            values = ops.cast(ghosts, dtype)
            count = layout.count(valid, dtype)
            if layout.in_two_stages and valid is None:
                near = layout.mean_of_sample(ghosts, dtype)
                mean, variance = _in_one_pass(layout, values, near, count)
            else:
                mean = layout.sum(where_valid(valid, values)) / count
                squares = ops.square(values - mean)
                variance = layout.sum(where_valid(valid, squares)) / count
            means.append(layout.by_ghost(mean))
            variances.append(layout.by_ghost(variance))
        return _concatenate(means), _concatenate(variances)

    def normalize(self, inputs, gamma, beta, mean, variance):
        """The outputs, in the shape and dtype of `inputs`."""
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        outputs = []
        for (layout, ghosts), parameters in zip(
            self._pieces(inputs), self._by_piece(inputs, mean, scale), strict=True
        ):
            mean, scale = map(layout.per_channel, parameters)
            # Subtract first: `x * scale - mean * scale` loses precision for a large
            # mean.
            centered = ops.cast(ghosts, mean.dtype) - mean
            values = centered * scale + layout.per_channel(beta)
            values = ops.relu(values) if self.relu else values
            outputs.append(layout.by_example(ops.cast(values, inputs.dtype)))
        return _concatenate(outputs)

    def gradients(self, upstream, inputs, gamma, beta, mean, variance, mask=None):
        """Gradients by inputs, gamma and beta, from the gradient by the outputs."""
        dtype = mean.dtype
        inverse = ops.rsqrt(variance + self.epsilon)
        parameters = self._by_piece(inputs, mean, inverse, gamma * inverse)
        by_inputs, by_gamma, by_beta = [], [], []
        for (layout, ghosts, dy, valid), piece_parameters in zip(
            self._pieces(inputs, upstream, mask), parameters, strict=True
        ):
            mean, inverse, scale = map(layout.per_channel, piece_parameters)
            centered = ops.cast(ghosts, dtype) - mean
            dy = ops.cast(dy, dtype)
            # `where_valid(positive, dy)` in all places would be right, too. But XLA
            # writes it to memory if several loops share it, as it reads two tensors. So
            # the sums have a form of their own, and so has `dx`.
            positive = None
            if self.relu:
                positive = centered * scale + layout.per_channel(beta) > 0
            sum_dy, sum_products = layout.sums(
                where_valid(positive, dy), where_valid(positive, dy * centered)
            )
            sum_scaled = inverse * sum_products
            by_statistics = sum_dy + centered * (inverse * sum_scaled)
            by_statistics = by_statistics / layout.count(valid, dtype)
            by_statistics = where_valid(valid, by_statistics)
            dx = dy - by_statistics
            if self.relu:
                dx = ops.where(positive, dx, -by_statistics)
            dx = scale * dx
            by_inputs.append(layout.by_example(ops.cast(dx, inputs.dtype)))
            by_gamma.append(layout.by_ghost(sum_scaled))
            by_beta.append(layout.by_ghost(sum_dy))
        return (
            _concatenate(by_inputs),
            ops.sum(_concatenate(by_gamma), axis=0),
            ops.sum(_concatenate(by_beta), axis=0),
        )

    def number_valid(self, valid):
        """Number of valid values of each ghost, `(ghosts, channels)`."""
        return _concatenate(
            [
                layout.by_ghost(layout.sum(ops.cast(piece, "float32")))
                for layout, piece in self._pieces(valid)
            ]
        )

    def _pieces(self, *tensors):
        """The batch in one or two pieces: a layout, and each tensor in that layout.

        There is one piece if all ghosts are known to have the same size. Otherwise the
        first piece has all ghosts but the last, and the second has the last ghost with
        the remainder. An empty batch has no ghosts.
        """
        for examples, ghosts, size in self.cuts(ops.shape(tensors[0])[0]):
            example_shape = ops.shape(tensors[0])[1:]
            layout = GhostLayout(
                ghosts, size, example_shape, self.axis, self.in_two_stages
            )
            views = (t if t is None else layout.view(t[examples]) for t in tensors)
            yield layout, *views

    def _by_piece(self, inputs, *statistics):
        """The rows of the statistics, `(ghosts, channels)`, of each piece."""
        if len(self.cuts(ops.shape(inputs)[0])) == 1:
            return [statistics]
        return [[s[:-1] for s in statistics], [s[-1:] for s in statistics]]

    def cuts(self, batch):
        """For each piece: its examples, the number of its ghosts, and their size.

        `batch` is the number of examples, see `_pieces`.
        """
        size = self.virtual_batch_size
        if isinstance(batch, int):
            if batch % size == 0:
                return [(slice(None), batch // size, size)]
            if batch < 2 * size:
                return [(slice(None), 1, batch)]
            before, last, remaining = batch // size - 1, 1, batch % size + size
        else:
            before = ops.maximum(batch // size - 1, 0)
            last = ops.minimum(batch, 1)
            remaining = ops.maximum(batch - before * size, 1)
        return [
            (slice(None, before * size), before, size),
            (slice(before * size, None), last, remaining),
        ]


def _in_one_pass(layout, values, near, count):
    """Mean and biased variance of each ghost, from the sums of `d` and `d^2`.

    `d` is the distance from a value near the mean: that of a sample of the ghost. From
    the mean of a fraction `f`, the mean is never further than `sqrt((1 - f) / f)`
    standard deviations away, whatever the values are. So the difference of squares
    cancels one digit at most, and none at all in a shuffled ghost.
    """
    # But for rounding, the results do not depend on the sample.
    near = ops.stop_gradient(near)
    distance = values - near
    sum_distance, sum_squares = layout.sums(distance, ops.square(distance))
    offset = sum_distance / count
    # Rounding may take equal values below 0.
    variance = ops.maximum(sum_squares / count - ops.square(offset), 0)
    return near + offset, variance


def where_valid(valid, values):
    """Zero where not valid. A product would fail for masked values of inf or NaN."""
    return values if valid is None else ops.where(valid, values, 0)


def _concatenate(pieces):
    return pieces[0] if len(pieces) == 1 else ops.concatenate(pieces, axis=0)

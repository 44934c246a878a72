"""`BatchSizeInvariantAdam`: Adam with the second moment of small batches."""

import keras
from keras import ops

from gbn_keras._keras_internals import (
    OwnClipping,
    adam_moments_of,
    variables_to_train,
)
from gbn_keras.arguments import integer


@keras.saving.register_keras_serializable(package="gbn_keras")
class BatchSizeInvariantAdam(OwnClipping, keras.optimizers.Adam):
    """Adam whose second moment is that of small batches, whatever the batch.

    The mean gradient of `b` examples has, in each entry, the expected square
    `g^2 + variance / b`. So Adam's second moment, the mean of these squares, falls with
    the batch size, and Adam's step grows with it. This optimizer takes the squares of
    small batches instead. `LargeBatchModel` gives them to it: it sees the gradient of
    each micro-batch anyway. With them, a batch of any size trains as the small batch
    does per sample seen, if the rate grows linearly with the batch (see `scale_adam`).

    With `small_batch_size=None`, the second moment is the mean of the micro-batches'
    squares, as in the paper, so it depends on the size of the micro-batches. With a
    number `b`, it is an estimate for batches of `b` examples, from the squares `S_m` of
    the micro-batches of about `m` examples and the square `S_B` of the whole batch's
    gradient:

    `S_b = S_B + (S_m - S_B) * (1 / b - 1 / B) / (1 / m - 1 / B)`

    Its expected value does not depend on the micro-batches. Its noise is smaller, the
    more of them there are. It needs at least two micro-batches or replicas. If a batch
    is one micro-batch on one replica, or without `LargeBatchModel`, this is
    `keras.optimizers.Adam`, bit for bit (on PyTorch up to rounding).

    Clipping scales the squares of a variable with its gradient.

    Example:
    ```python
    model = LargeBatchModel(your_model, micro_batch_size=128)
    adam = BatchSizeInvariantAdam(0.001, small_batch_size=32)  # Tuned for 32.
    model.compile(scale_adam(adam, batch_ratio=512 / 32), "mse")
    ```

    Args:
        learning_rate: A number or a schedule.
        small_batch_size: Number of examples of the batches whose second moment this is,
            at most the batch size. `None`: that of the micro-batches.
        **kwargs: The arguments of `keras.optimizers.Adam`. With `weight_decay`, this is
            AdamW.

    Raises:
        ValueError: If `small_batch_size` is not a positive integer; in training with
            `LargeBatchModel`, if a batch of another size is one micro-batch on one
            replica. If the size is not known while tracing, this is TensorFlow's
            InvalidArgumentError.

    Reference:
        Wang, Aitchison, "Batch size invariant Adam", arXiv 2402.18824.
    """

    def __init__(
        self, learning_rate=0.001, small_batch_size: int | None = None, **kwargs
    ):
        super().__init__(learning_rate, **kwargs)
        if small_batch_size is not None:
            small_batch_size = integer("small_batch_size", small_batch_size, 1)
        self.small_batch_size = small_batch_size
        self._has_squares = False

    def with_squares(self, gradients, squares, small_inverse, large_inverse) -> list:
        """The gradients and the small batches' second moments, for `apply`.

        Each pair is one tensor, because a gradient is all that loss scaling and
        `tf.distribute` hand on. It holds the roots of the squares: like the gradients,
        they may have the scale of the loss.

        Args:
            gradients: Gradients of the whole batch; `None` where a variable has none.
            squares: Means of the squared gradients over the micro-batches.
            small_inverse: Mean of 1 / the size of a micro-batch, with the same weights.
            large_inverse: 1 / the size of the batch.
        """
        # With a single micro-batch, the squares tell nothing new. Rounding must not
        # change them then. Two micro-batches have at least 1.5 here.
        known = small_inverse > 1.25 * large_inverse
        factor = 1.0
        if self.small_batch_size is not None:
            difference = ops.where(known, small_inverse - large_inverse, 1.0)
            factor = (1 / self.small_batch_size - large_inverse) / difference
            # The rest of the data may be smaller than a small batch.
            factor = ops.maximum(factor, 0.0)

        def pair(gradient, small_square):
            large_square = ops.square(ops.cast(gradient, small_square.dtype))
            # Rounding may make a mean of squares smaller than the square of the mean.
            more = factor * ops.maximum(small_square - large_square, 0.0)
            root = ops.cast(ops.sqrt(large_square + more), gradient.dtype)
            root = ops.where(known, root, ops.absolute(gradient))
            return ops.stack([gradient, root])

        return [
            None if gradient is None else pair(gradient, square)
            for gradient, square in zip(gradients, squares, strict=True)
        ]

    def apply(self, grads, trainable_variables=None):
        """Makes an update from gradients, or from what `with_squares` returned."""
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        # All of the gradients are pairs, or none is.
        self._has_squares = any(
            map(_is_pair, grads, trainable_variables or variables_to_train(self))
        )
        super().apply(grads, trainable_variables)

    def clipped(self, gradients, clip):
        """The gradients after Keras's `clip`, and the squares that belong to them."""
        if not self._has_squares:
            return clip(gradients)
        before, roots = zip(*(ops.unstack(pair, 2) for pair in gradients), strict=True)
        before = list(before)
        after = clip(before)
        if after is before:  # Nothing is to be clipped.
            return gradients
        return [
            ops.stack([new, _clipped_root(root, old, new)])
            for root, old, new in zip(roots, before, after, strict=True)
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable, in the order of Keras's own arithmetic."""
        if not _is_pair(gradient, variable):
            super().update_step(gradient, variable, learning_rate)
            return
        dtype = variable.dtype
        gradient, root = ops.unstack(ops.cast(gradient, dtype), 2)
        rate = ops.cast(learning_rate, dtype)
        step = ops.cast(self.iterations + 1, dtype)
        first_power = ops.power(ops.cast(self.beta_1, dtype), step)
        second_power = ops.power(ops.cast(self.beta_2, dtype), step)
        alpha = rate * ops.sqrt(1 - second_power) / (1 - first_power)
        first, second, largest = adam_moments_of(self, variable)
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(root) - second) * (1 - self.beta_2))
        if largest is not None:
            self.assign(largest, ops.maximum(largest, second))
            second = largest
        self.assign_sub(variable, first * alpha / (ops.sqrt(second) + self.epsilon))

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "small_batch_size": self.small_batch_size}


def _is_pair(gradient, variable):
    """Whether this is a gradient with a root, and not a gradient alone."""
    shape = getattr(gradient, "shape", None)
    if isinstance(shape, tuple):
        return len(shape) == len(variable.shape) + 1
    # TensorFlow's shapes: that of a sparse gradient may have an unknown rank.
    return getattr(shape, "rank", None) == len(variable.shape) + 1


def _clipped_root(root, before, after):
    """The root of a square, made smaller as much as the variable's gradient was."""
    length, new_length = (
        ops.sqrt(ops.sum(ops.square(gradient))) for gradient in (before, after)
    )
    is_zero = length == 0
    factor = ops.where(is_zero, 1.0, new_length / ops.where(is_zero, 1.0, length))
    smaller = root * ops.cast(factor, root.dtype)
    # With a single micro-batch, both stay equal, bit for bit.
    return ops.where(root == ops.absolute(before), ops.absolute(after), smaller)

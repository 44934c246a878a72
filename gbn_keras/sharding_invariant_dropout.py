"""`ShardingInvariantDropout`, whose masks do not depend on how the batch is split."""

import keras
from keras import ops

from gbn_keras.batch_part import first_example
from gbn_keras.bits_by_place import bits_by_place


@keras.saving.register_keras_serializable("gbn_keras")
class ShardingInvariantDropout(keras.layers.Dropout):
    """Dropout that draws the same masks however the batch is split.

    The mask of an example depends on the seed, on the number of earlier calls of the
    layer and on the example's place in the update's batch. `keras.layers.Dropout`
    repeats its mask on every replica of a `tf.distribute` strategy. This layer draws
    the masks that one device with the whole batch would draw, also if `LargeBatchModel`
    cuts the batch into micro-batches. Each backend draws masks of its own (see
    `bits_by_place`).

    Otherwise the layer behaves as its parent class.

    Args:
        rate: Fraction of the inputs to drop, 0 to 1. The others are scaled up by
            `1 / (1 - rate)`.
        noise_shape: Shape of the mask, broadcast to the inputs. Its first size must be
            `None` (one mask per example).
        seed: Seed of the masks.
        **kwargs: `name`, `dtype`.

    Input shape: any, batch first.

    Output shape: the input shape.

    Raises:
        ValueError: If `rate` is not from 0 to 1, or if the first size of `noise_shape`
            is not `None`.
    """

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if self.noise_shape and self.noise_shape[0] is not None:
            raise ValueError(
                "noise_shape must start with None, for one mask per example. "
                f"Received: noise_shape={self.noise_shape}."
            )

    def call(self, inputs, training=False):
        """Drops inputs in training; otherwise returns them unchanged."""
        if not (training and 0 < self.rate < 1):
            return super().call(inputs, training=training)
        shape = self._mask_shape(inputs)
        seed = self.seed_generator.next()
        bits = bits_by_place(shape, first_example(shape[0]), seed)
        # Integers compare the same whatever the layer's floating dtype.
        kept = bits >= ops.cast(int(self.rate * 2**32), bits.dtype)
        return ops.where(kept, inputs / (1 - self.rate), ops.zeros_like(inputs))

    def _mask_shape(self, inputs):
        asked = self.noise_shape or (None,) * len(inputs.shape)
        return [
            size if wanted is None else wanted
            for wanted, size in zip(asked, ops.shape(inputs), strict=True)
        ]

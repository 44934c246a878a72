"""`ShardingInvariantDropout`, whose masks do not depend on how the batch is split."""

import keras
from keras import ops

from gbn_keras.batch_part import first_example

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

# The number of Philox in `tf.random.Algorithm`. Philox gives the same bits on every
# device, also under XLA.
_PHILOX = 1

# How many 32-bit numbers Philox makes per count.
_WORDS = 4


@keras.saving.register_keras_serializable("gbn_keras")
class ShardingInvariantDropout(keras.layers.Dropout):
    """Dropout that draws the same masks however the batch is split.

    The mask of an example depends on the seed, on the number of earlier calls of the
    layer and on the example's place in the update's batch. `keras.layers.Dropout`
    repeats its mask on every replica of a `tf.distribute` strategy. This layer draws
    the masks that one device with the whole batch would draw, also if `LargeBatchModel`
    cuts the batch into micro-batches. The random numbers come from the counter-based
    generator Philox, started at each example's own count.

    Otherwise the layer behaves as its parent class. On backends other than TensorFlow,
    it always does.

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

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
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
        draws = training and 0 < self.rate < 1
        if not draws or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training)
        shape = self._mask_shape(inputs)
        bits = _bits(shape, first_example(shape[0]), self.seed_generator.next())
        # Integers compare the same whatever the layer's floating dtype.
        kept = bits >= tf.constant(int(self.rate * 2**32), tf.uint32)
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def _mask_shape(self, inputs):
        asked = self.noise_shape or (None,) * len(inputs.shape)
        return [
            size if wanted is None else wanted
            for wanted, size in zip(asked, ops.shape(inputs), strict=True)
        ]


def _bits(shape, first, seed):
    """A uniform 32-bit number for each entry of a mask whose first example is `first`.

    Example `i` starts at count `i * c`, where `c` is the number of counts per example.
    So each part of a batch can be drawn on its own.
    """
    examples, entries = shape[0], 1
    for size in shape[1:]:
        entries = entries * size
    counts = -(-entries // _WORDS)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    start = tf.cast(first, tf.uint64) * tf.cast(counts, tf.uint64)
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[examples, counts * _WORDS],
        key=key,
        counter=counter + tf.stack([start, tf.zeros_like(start)]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    return tf.reshape(bits[:, :entries], shape)

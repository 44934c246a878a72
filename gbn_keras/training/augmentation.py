"""Augmentation of a batch by random numbers that each example brings along.

The numbers belong to the example and the epoch, not to the batch or the replica that
the example is in, and are drawn where the epoch's order is: so the same example looks
the same for any batch size, on any replica and after any resume.
"""

import dataclasses

import tensorflow as tf

# How many numbers an example needs: two shifts and whether to flip.
_NUMBERS = 3


@dataclasses.dataclass(frozen=True)
class ShiftAndFlip:
    """Pads by zeros, crops at random to the size before, and flips every second image.

    The standard augmentation for CIFAR (He et al., arXiv 1512.03385, section 4.2), on
    standardized images: the padding is the mean color.

    Attributes:
        padding: Pixels on each side.
    """

    padding: int = 4

    def draw(self, examples: int, seed: int, epoch):
        """The random numbers of an epoch, by example: int32, `(examples, 3)`."""
        numbers = tf.random.stateless_uniform(
            [examples, _NUMBERS],
            # Not those of the epoch's order.
            seed=tf.stack([tf.constant(~seed, tf.int64), epoch]),
            minval=None,
            maxval=None,
            dtype=tf.int32,
            alg="philox",
        )
        shifts = 2 * self.padding + 1
        return tf.math.floormod(numbers, [shifts, shifts, 2])

    def __call__(self, images, numbers):
        """Augments images `(batch, height, width, channels)` by their numbers."""
        for axis in (1, 2):
            images = self._shift(images, numbers[:, axis - 1], axis)
        flip = tf.cast(numbers[:, 2], tf.bool)[:, None, None, None]
        return tf.where(flip, images[:, :, ::-1], images)

    def _shift(self, images, first, axis):
        """Each image's window of the padded axis, which begins at `first`."""
        size = images.shape[axis]
        padding = [[0, 0]] * len(images.shape)
        padding[axis] = [self.padding] * 2
        places = first[:, None] + tf.range(size)
        return tf.gather(tf.pad(images, padding), places, axis=axis, batch_dims=1)

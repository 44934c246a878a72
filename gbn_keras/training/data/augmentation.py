"""Augmentation of a batch by random numbers that each example brings along.

The numbers belong to the example and the epoch, not to the batch or the replica that
the example is in, and are drawn where the epoch's order is: so the same example looks
the same for any batch size, on any replica and after any resume.
"""

import dataclasses

import tensorflow as tf


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
        """Two shifts and whether to flip, by example: int32, `(examples, 3)`."""
        numbers = draw_numbers(examples, 3, seed, epoch)
        shifts = 2 * self.padding + 1
        return tf.math.floormod(numbers, [shifts, shifts, 2])

    def __call__(self, images, numbers):
        """Augments images `(batch, height, width, channels)` by their numbers."""
        height, width, channels = images.shape[1:]
        around = [self.padding] * 2
        padded = tf.pad(images, [[0, 0], around, around, [0, 0]])
        down, right, flip = tf.unstack(numbers, axis=1)
        columns = tf.range(width)
        columns = tf.where(flip[:, None] == 1, columns[::-1], columns)
        # One gather of pixels, five times as fast as one an axis.
        image = tf.range(tf.shape(images)[0])
        rows = (image * padded.shape[1] + down)[:, None] + tf.range(height)
        columns += right[:, None]
        places = (rows * padded.shape[2])[:, :, None] + columns[:, None]
        return tf.gather(tf.reshape(padded, [-1, channels]), places)


def draw_numbers(examples: int, count: int, seed: int, epoch):
    """Random numbers of an epoch, by example: any int32, `(examples, count)`."""
    return tf.random.stateless_uniform(
        [examples, count],
        # Not those of the epoch's order.
        seed=tf.stack([tf.constant(~seed, tf.int64), epoch]),
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )

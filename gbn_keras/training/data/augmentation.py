"""Augmentation of a batch, by random numbers that come with each example.

The numbers depend on the example and the epoch, not on the batch or the replica. They
are drawn together with the epoch's order. So an example looks the same for any batch
size, on any replica and after any resume.
"""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ShiftAndFlip:
    """Pads with zeros, crops at random to the original size, and flips half the images.

    This is the standard augmentation for CIFAR (He et al., arXiv 1512.03385, section
    4.2). The images are standardized, so zeros are the mean color.

    Attributes:
        padding: Pixels of padding on each side.
    """

    padding: int = 4

    def draw(self, examples: int, seed: int, epoch):
        """Two shifts and a flip (0 or 1) per example: int32, `(examples, 3)`."""
        numbers = draw_numbers(examples, 3, seed, epoch)
        shifts = 2 * self.padding + 1
        return tf.math.floormod(numbers, [shifts, shifts, 2])

    def __call__(self, images, numbers):
        """Augments images `(batch, height, width, channels)` according to `numbers`."""
        height, width, channels = images.shape[1:]
        around = [self.padding] * 2
        padded = tf.pad(images, [[0, 0], around, around, [0, 0]])
        down, right, flip = tf.unstack(numbers, axis=1)
        columns = tf.range(width)
        columns = tf.where(flip[:, None] == 1, columns[::-1], columns)
        # A single gather of pixels is five times as fast as one gather per axis.
        image = tf.range(tf.shape(images)[0])
        rows = (image * padded.shape[1] + down)[:, None] + tf.range(height)
        columns += right[:, None]
        places = (rows * padded.shape[2])[:, :, None] + columns[:, None]
        return tf.gather(tf.reshape(padded, [-1, channels]), places)


def draw_numbers(examples: int, count: int, seed: int, epoch):
    """Random numbers for an epoch's examples: any int32, `(examples, count)`."""
    return tf.random.stateless_uniform(
        [examples, count],
        # `~seed` gives other numbers than the epoch's order, which uses `seed`.
        seed=tf.stack([tf.constant(~seed, tf.int64), epoch]),
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )

"""Crops of a JPEG. They decode only the part that they need.

As in `augmentation`, all randomness comes from numbers that come with the example.
"""

import dataclasses

import tensorflow as tf

from gbn_keras.training.data.augmentation import draw_numbers

# Scaled length of the shorter side, per pixel of the crop: 256 for a crop of 224.
_SHORTER_SIDE = 256 / 224


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the picture, of random shape, resized and flipped at random.

    This is the standard augmentation for ImageNet (Szegedy et al., arXiv 1409.4842,
    section 6), in TensorFlow's version: it draws the aspect ratio and then the height
    uniformly from those that fit. If none fits, because the picture is too long, it
    takes the whole picture.

    Attributes:
        size: Height and width of the result.
        area: Smallest and largest part of the picture.
        aspect_ratio: Smallest and largest width / height.
    """

    size: int = 224
    area: tuple[float, float] = (0.08, 1.0)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, examples: int, seed: int, epoch):
        """Random numbers for an epoch's examples: int32, `(examples, 3)`."""
        return draw_numbers(examples, 3, seed, epoch)

    def __call__(self, jpeg, numbers):
        """The crop of a JPEG's bytes: float32 `(size, size, 3)` from 0 to 255."""
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(jpeg),
            tf.zeros([0, 0, 4]),
            seed=numbers[:2],
            min_object_covered=0.0,
            aspect_ratio_range=self.aspect_ratio,
            area_range=self.area,
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        image = _decode(jpeg, begin[:2], size[:2])
        image = tf.image.resize(image, [self.size] * 2)
        return _flip(image, numbers[2])


@dataclasses.dataclass(frozen=True)
class FixedScaleCrop:
    """A square of the picture, whose shorter side is first scaled to 8/7 of the square.

    For a square of 224 pixels, the shorter side is scaled to 256. Random places and
    flips are the augmentation of AlexNet (Krizhevsky et al., NIPS 2012, section 4.1).
    The center is the usual crop for evaluation. The scaling is linear and averages the
    pixels that become one: the result is a part of what
    `tf.image.resize(..., antialias=True)` gives.

    Attributes:
        size: Height and width of the result.
    """

    size: int = 224

    def draw(self, examples: int, seed: int, epoch):
        """Random numbers for an epoch's examples: int32, `(examples, 3)`."""
        return draw_numbers(examples, 3, seed, epoch)

    def __call__(self, jpeg, numbers):
        """The crop of a random place, maybe flipped: like `center`, but random."""
        shape, scaled = self._shapes(jpeg)
        begin = tf.math.floormod(numbers[:2], scaled - self.size + 1)
        return _flip(self._crop(jpeg, shape, scaled, begin), numbers[2])

    def center(self, jpeg):
        """The crop of the center: float32 `(size, size, 3)` from 0 to 255."""
        shape, scaled = self._shapes(jpeg)
        return self._crop(jpeg, shape, scaled, (scaled - self.size) // 2)

    def _shapes(self, jpeg):
        """Height and width of the picture, before and after scaling."""
        shape = tf.image.extract_jpeg_shape(jpeg)[:2]
        shorter = tf.reduce_min(shape)
        return shape, shape * round(self.size * _SHORTER_SIDE) // shorter

    def _crop(self, jpeg, shape, scaled, begin):
        """The square of the scaled picture that begins at `begin`."""
        scale = tf.cast(scaled / shape, tf.float32)
        first, last = (tf.cast(begin + n, tf.float32) for n in (0, self.size))
        # Pixels of the picture that the scaling needs on each side.
        margin = tf.maximum(1.0, 1 / scale) + 1
        first_needed = tf.cast(tf.floor(first / scale - margin), tf.int32)
        last_needed = tf.cast(tf.math.ceil(last / scale + margin), tf.int32)
        first_needed = tf.maximum(first_needed, 0)
        last_needed = tf.minimum(last_needed, shape)
        image = _decode(jpeg, first_needed, last_needed - first_needed)
        image = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=[self.size] * 2,
            scale=scale,
            translation=tf.cast(first_needed, tf.float32) * scale - first,
            kernel_type="triangle",
            antialias=True,
        )
        return tf.ensure_shape(image[0], [self.size, self.size, 3])


def _decode(jpeg, begin, size):
    return tf.image.decode_and_crop_jpeg(
        jpeg,
        tf.concat([begin, size], 0),
        channels=3,
        # TensorFlow's default rounds more coarsely, and is no faster.
        dct_method="INTEGER_ACCURATE",
    )


def _flip(image, number):
    # Computing both and selecting one takes as long as decoding.
    return tf.cond(
        tf.math.floormod(number, 2) == 1,
        lambda: tf.reverse(image, [1]),
        lambda: image,
    )

"""Labelled JPEGs on disk, as batches whose order any update can reach."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from gbn_keras.shares import WHOLE_BATCH, Shares
from gbn_keras.training.data import order
from gbn_keras.training.data.array_records import ArrayRecords
from gbn_keras.training.data.jpeg_crops import FixedScaleCrop, RandomResizedCrop
from gbn_keras.training.data.record_index import RecordIndex

# ImageNet's mean and deviation of each channel, from 0 to 255, which are the usual ones
# for photographs.
_MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
_DEVIATION = tuple(255 * deviation for deviation in (0.229, 0.224, 0.225))

# Images evaluated at once: 150 MB of 224 x 224 pixels.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class JpegImages:
    """Labelled JPEGs of any sizes on disk, decoded anew whenever they are needed.

    Read from tensorflow-datasets' files at random places: only the examples of the
    batch, and of them the replica's own. The batches hold float32 images, standardized
    by ImageNet's mean and deviation of each channel, and in training augmented.

    Attributes:
        name: Of the data set.
        classes: Number of classes.
        training: Where the training examples are.
        validation: Where the validation examples are.
        parse: From a record's bytes to `(jpeg, label)`, bytes and int32.
        image_size: Pixels on each side of what the network sees.
        fixed_scale: Whether training crops all pictures at the scale of validation,
            as AlexNet's did, instead of parts of all sizes.
        choice: Which examples and features were taken, where there was a choice.
        validation_split: From which split the validation examples are.
    """

    name: str
    classes: int
    training: RecordIndex | ArrayRecords
    validation: RecordIndex | ArrayRecords
    parse: Callable
    image_size: int = 224
    fixed_scale: bool = False
    choice: str = ""
    validation_split: str = ""

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self.training)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.image_size, self.image_size, 3

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        start_update: int = 0,
        shares: Shares = WHOLE_BATCH,
    ) -> tf.data.Dataset:
        """The endless stream of batches `(images, labels)` from an update on.

        The order and the arguments are those of `order.training_shares`.
        """
        crop = (FixedScaleCrop if self.fixed_scale else RandomResizedCrop)(
            self.image_size
        )
        read = self.training.reader()

        def example(index, numbers):
            jpeg, label = self.parse(read(index))
            return _standardized(crop(jpeg, numbers)), label

        return _batches_of(
            example,
            order.training_shares(
                self.examples,
                batch_size,
                seed,
                start_update,
                shares,
                draw=crop.draw,
            ),
        )

    def validation_batches(self, shares: Shares = WHOLE_BATCH) -> tf.data.Dataset:
        """All validation batches `(images, labels, weights)`.

        Order, weights and arguments are those of `order.validation_shares`.
        """
        crop = FixedScaleCrop(self.image_size)
        read = self.validation.reader()

        def example(index, weight):
            jpeg, label = self.parse(read(index))
            return _standardized(crop.center(jpeg)), label, weight

        return _batches_of(
            example,
            order.validation_shares(len(self.validation), _CHUNK, shares),
        )

    def validation_steps(self, replicas: int = 1) -> int:
        """Number of validation batches."""
        return order.validation_steps(len(self.validation), _CHUNK, replicas)


def _batches_of(example, shares):
    """Makes the examples of the shares one by one, in parallel, and joins them."""
    (size,) = shares.element_spec[0].shape
    return (
        shares.unbatch()
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(size, drop_remainder=True)
        # One, and not as many as AUTOTUNE likes: 4,096 images have 2.5 GB.
        .prefetch(1)
    )


def _standardized(pixels):
    return (pixels - _MEAN) / _DEVIATION

"""`JpegImages`: labelled JPEGs on disk."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from gbn_keras.training.data.array_records import ArrayRecords
from gbn_keras.training.data.jpeg_crops import FixedScaleCrop, RandomResizedCrop
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.data.record_index import RecordIndex

# Mean and deviation of each channel of ImageNet, from 0 to 255. They are the usual ones
# for photographs.
_MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
_DEVIATION = tuple(255 * deviation for deviation in (0.229, 0.224, 0.225))

# Number of images that are evaluated at once: 150 MB of 224 x 224 pixels.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class JpegImages(LabelledImages):
    """Labelled JPEGs of any size on disk, decoded each time they are needed.

    A replica reads only the examples of its own share, at random places in the files of
    tensorflow-datasets. The batches hold float32 images. They are standardized by
    ImageNet's mean and deviation of each channel, and cropped at random in training.

    Attributes:
        training: Places of the training examples in their files.
        validation: Places of the validation examples in their files.
        parse: Function from the bytes of a record to `(jpeg, label)`, bytes and int32.
        image_size: Height and width of the crops that the network sees.
        fixed_scale: Whether training crops all images at the scale of validation, as
            AlexNet's training did, instead of crops of all sizes.
    """

    training: RecordIndex | ArrayRecords
    validation: RecordIndex | ArrayRecords
    parse: Callable
    image_size: int = 224
    fixed_scale: bool = False

    largest_validation_batch = _CHUNK

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self.training)

    @property
    def validation_examples(self) -> int:
        """Number of validation examples."""
        return len(self.validation)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.image_size, self.image_size, 3

    @property
    def files(self) -> tuple:
        """The indices of the files that are read during a training."""
        return self.training, self.validation

    @property
    def _crop(self):
        kind = FixedScaleCrop if self.fixed_scale else RandomResizedCrop
        return kind(self.image_size)

    @property
    def _draw(self):
        return self._crop.draw

    def _training(self, indices):
        crop, read = self._crop, self.training.reader()

        def example(index, numbers):
            jpeg, label = self.parse(read(index))
            return _standardized(crop(jpeg, numbers)), label

        return _batches_of(example, indices)

    def _validation(self, indices):
        crop, read = FixedScaleCrop(self.image_size), self.validation.reader()

        def example(index, weight):
            jpeg, label = self.parse(read(index))
            return _standardized(crop.center(jpeg)), label, weight

        return _batches_of(example, indices)


def _batches_of(example, indices):
    """Makes the examples of each batch one by one, in parallel, and joins them."""
    (size,) = indices.element_spec[0].shape
    return (
        indices.unbatch()
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(size, drop_remainder=True)
        # AUTOTUNE would prefetch many batches, and 4,096 images take 2.5 GB.
        .prefetch(1)
    )


def _standardized(pixels):
    return (pixels - _MEAN) / _DEVIATION

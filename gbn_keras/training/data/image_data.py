"""`ImageData`: labelled images in memory."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from gbn_keras.shares import WHOLE_BATCH, Shares
from gbn_keras.training.data.augmentation import ShiftAndFlip
from gbn_keras.training.data.labelled_images import LabelledImages

# Number of images that are standardized or evaluated at once.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ImageData(LabelledImages):
    """Labelled images in memory, decoded once.

    The batches hold float32 images. They are standardized by the mean and deviation of
    each channel of the training images, and augmented in training.

    Attributes:
        train_images: Images as stored, `(examples, height, width, channels)`.
        train_labels: Labels, counted from 0, `(examples,)`.
        validation_images: Images like `train_images`.
        validation_labels: Labels like `train_labels`.
        augmentation: Augmentation of the training images, or `None`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    augmentation: ShiftAndFlip | None = None

    largest_validation_batch = _CHUNK

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self.train_labels)

    @property
    def validation_examples(self) -> int:
        """Number of validation examples."""
        return len(self.validation_labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.train_images.shape[1:]

    @functools.cached_property
    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel of the training images, float32."""
        sums = np.zeros((2, self.image_shape[-1]))
        for start in range(0, self.examples, _CHUNK):
            pixels = self.train_images[start : start + _CHUNK].astype(np.float64)
            sums += [(pixels**power).sum(axis=(0, 1, 2)) for power in (1, 2)]
        mean, square = sums / np.prod(self.train_images.shape[:-1])
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        deviation[deviation == 0] = 1  # A constant channel would be divided by 0.
        return mean.astype(np.float32), deviation.astype(np.float32)

    def validation_batches(self, shares: Shares = WHOLE_BATCH) -> tf.data.Dataset:
        """As the base class gives them: `(images, labels, weights)`."""
        if shares == WHOLE_BATCH and self.validation_steps() == 1:
            return self._one_validation_batch
        return super().validation_batches(shares)

    @functools.cached_property
    def _one_validation_batch(self):
        """The validation batch, if there is only one, made once.

        Starting its pipeline takes longer than evaluating a small network on it, and
        each evaluation would start it twice.
        """
        (batch,) = super().validation_batches()
        return tf.data.Dataset.from_tensors(batch)

    @property
    def _draw(self):
        return self.augmentation and self.augmentation.draw

    def _training(self, indices):
        batch = self._gather(self.train_images, self.train_labels)

        def augmented(indices, *numbers):
            images, labels = batch(indices)
            return (self.augmentation(images, *numbers) if numbers else images), labels

        return _in_parallel(indices, augmented)

    def _validation(self, indices):
        batch = self._gather(self.validation_images, self.validation_labels)
        return _in_parallel(
            indices, lambda indices, weights: (*batch(indices), weights)
        )

    def _gather(self, images, labels):
        """A function from a vector of indices to their batch, gathered at once."""
        images, labels = tf.constant(images), tf.constant(labels)
        mean, deviation = self.mean_and_deviation

        def batch(indices):
            pixels = tf.cast(tf.gather(images, indices), tf.float32)
            return (pixels - mean) / deviation, tf.gather(labels, indices)

        return batch


def _in_parallel(indices, function):
    return indices.map(
        function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    ).prefetch(tf.data.AUTOTUNE)

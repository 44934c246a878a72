"""Labelled images in memory, as batches whose order any update can reach."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from gbn_keras.shares import WHOLE_BATCH, Shares
from gbn_keras.training.data import order
from gbn_keras.training.data.augmentation import ShiftAndFlip

# Images standardized or evaluated at once.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Labelled images in memory, decoded once.

    Images are `(examples, height, width, channels)` as stored, labels `(examples,)`
    from 0. The batches hold float32 images, standardized by the training images'
    mean and deviation of each channel, and in training augmented. `choice` says which
    examples and features were taken, where there was a choice, and `validation_split`
    from which of tensorflow-datasets' splits the validation examples are.
    """

    name: str
    classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    augmentation: ShiftAndFlip | None = None
    choice: str = ""
    validation_split: str = ""

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self.train_labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.train_images.shape[1:]

    @functools.cached_property
    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the training images, by channel, float32."""
        sums = np.zeros((2, self.image_shape[-1]))
        for start in range(0, self.examples, _CHUNK):
            pixels = self.train_images[start : start + _CHUNK].astype(np.float64)
            sums += [(pixels**power).sum(axis=(0, 1, 2)) for power in (1, 2)]
        mean, square = sums / np.prod(self.train_images.shape[:-1])
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        deviation[deviation == 0] = 1  # A channel that never changes.
        return mean.astype(np.float32), deviation.astype(np.float32)

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
        batch = self._gather(self.train_images, self.train_labels)

        def augmented(indices, *numbers):
            images, labels = batch(indices)
            return (self.augmentation(images, *numbers) if numbers else images), labels

        return (
            order.training_shares(
                self.examples,
                batch_size,
                seed,
                start_update,
                shares,
                draw=self.augmentation and self.augmentation.draw,
            )
            .map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    def validation_batches(self, shares: Shares = WHOLE_BATCH) -> tf.data.Dataset:
        """All validation batches `(images, labels, weights)`.

        Order, weights and arguments are those of `order.validation_shares`.
        """
        batch = self._gather(self.validation_images, self.validation_labels)
        return (
            order.validation_shares(len(self.validation_labels), _CHUNK, shares)
            .map(
                lambda indices, weights: (*batch(indices), weights),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            .prefetch(tf.data.AUTOTUNE)
        )

    def validation_steps(self, replicas: int = 1) -> int:
        """Number of validation batches."""
        return order.validation_steps(len(self.validation_labels), _CHUNK, replicas)

    def _gather(self, images, labels):
        """A function from a vector of indices to their batch, assembled in bulk."""
        images, labels = tf.constant(images), tf.constant(labels)
        mean, deviation = self.mean_and_deviation

        def batch(indices):
            pixels = tf.cast(tf.gather(images, indices), tf.float32)
            return (pixels - mean) / deviation, tf.gather(labels, indices)

        return batch

"""`LabelledImages`: the interface of all data sets, in memory or on disk."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import tensorflow as tf

from gbn_keras.shares import WHOLE_BATCH, Shares
from gbn_keras.training.data import order


@dataclasses.dataclass(frozen=True)
class LabelledImages(abc.ABC):
    """Labelled images in batches. The batches can start at any update.

    Attributes:
        name: Name of the data set.
        classes: Number of classes.
        choice: The chosen examples and features, in words; empty if there was no
            choice.
        validation_split: Split of tensorflow-datasets that holds the validation
            examples.
    """

    name: str
    classes: int
    choice: str = dataclasses.field(default="", kw_only=True)
    validation_split: str = dataclasses.field(default="", kw_only=True)

    # The largest number of images in a validation batch.
    largest_validation_batch: ClassVar[int]

    @property
    @abc.abstractmethod
    def examples(self) -> int:
        """Number of training examples."""

    @property
    @abc.abstractmethod
    def validation_examples(self) -> int:
        """Number of validation examples."""

    @property
    @abc.abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of the images that the network sees."""

    @property
    def files(self) -> tuple:
        """The indices of the files that a training reads."""
        return ()

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        start_update: int = 0,
        shares: Shares = WHOLE_BATCH,
    ) -> tf.data.Dataset:
        """The endless stream of batches `(images, labels)`, starting at any update.

        For the order and the arguments, see `order.training_shares`.
        """
        indices = order.training_shares(
            self.examples, batch_size, seed, start_update, shares, draw=self._draw
        )
        return self._training(indices)

    def validation_batches(self, shares: Shares = WHOLE_BATCH) -> tf.data.Dataset:
        """All validation batches `(images, labels, weights)`.

        For the order, the weights and the arguments, see `order.validation_shares`.
        """
        largest = self.largest_validation_batch
        return self._validation(
            order.validation_shares(self.validation_examples, largest, shares)
        )

    def validation_steps(self, replicas: int = 1) -> int:
        """Number of validation batches."""
        return order.validation_steps(
            self.validation_examples, self.largest_validation_batch, replicas
        )

    @property
    @abc.abstractmethod
    def _draw(self) -> Callable | None:
        """A function that draws random numbers for the augmentation: see `order`."""

    @abc.abstractmethod
    def _training(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Turns the elements of `order.training_shares` into batches."""

    @abc.abstractmethod
    def _validation(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Turns the elements of `order.validation_shares` into batches."""

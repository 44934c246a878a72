"""An example's augmentation depends on the example and the epoch alone."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from marks import slow

from gbn_keras.shares import Shares
from gbn_keras.training.data import datasets
from gbn_keras.training.data.augmentation import ShiftAndFlip

IMAGES = np.random.default_rng(0).normal(size=(60, 9, 7, 3)).astype("float32")


def test_an_image_is_padded_cropped_and_flipped():
    numbers = ShiftAndFlip(2).draw(60, seed=1, epoch=tf.constant(0, tf.int64)).numpy()
    outputs = ShiftAndFlip(2)(tf.constant(IMAGES), numbers).numpy()
    padded = np.pad(IMAGES, [(0, 0), (2, 2), (2, 2), (0, 0)])
    for image, (down, right, flip), output in zip(
        padded, numbers, outputs, strict=True
    ):
        expected = image[down : down + 9, right : right + 7]
        np.testing.assert_array_equal(output, expected[:, :: -1 if flip else 1])


def test_all_shifts_and_flips_come_alike():
    numbers = ShiftAndFlip(4).draw(90_000, 7, tf.constant(3, tf.int64)).numpy()
    for column, sizes in zip(numbers.T, (9, 9, 2), strict=True):
        shares = np.bincount(column, minlength=sizes) / len(column)
        np.testing.assert_allclose(shares, 1 / sizes, rtol=0.05)
    assert abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.02


def test_every_epoch_and_every_seed_draws_anew():
    def drawn(seed, epoch):
        return ShiftAndFlip().draw(50, seed, tf.constant(epoch, tf.int64)).numpy()

    np.testing.assert_array_equal(drawn(1, 2), drawn(1, 2))
    assert (drawn(1, 2) != drawn(1, 3)).any() and (drawn(1, 2) != drawn(2, 2)).any()


@pytest.mark.parametrize("replicas", [slow(2), 4])
def test_an_example_looks_the_same_on_any_replica_and_after_a_resume(replicas):
    data = dataclasses.replace(datasets.load("digits"), augmentation=ShiftAndFlip(1))
    assert data.image_shape == (8, 8, 1)
    whole = [image.numpy() for image, _ in data.training_batches(64, 3, 20).take(8)]
    plain = dataclasses.replace(data, augmentation=None)
    (first, _), *_ = plain.training_batches(64, 3, 20).take(1)
    assert (whole[0] != first.numpy()).any()
    for replica in range(replicas):
        shares = data.training_batches(64, 3, 20, Shares(replicas, replica))
        size = 64 // replicas
        for batch, (share, _) in zip(whole, shares, strict=False):
            np.testing.assert_array_equal(batch[replica * size :][:size], share)


def test_cifar_is_augmented_and_digits_are_not():
    assert datasets._AUGMENTATION["cifar10"] == ShiftAndFlip(4)
    assert datasets.load("digits").augmentation is None

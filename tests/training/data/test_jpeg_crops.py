"""Crops of JPEGs are those of the whole picture, and reach every place of it."""

import numpy as np
import pytest
import tensorflow as tf
from jpegs import SIZES, jpeg, picture, slopes

from gbn_keras.training.data.jpeg_crops import FixedScaleCrop, RandomResizedCrop

SIZE = 64


@pytest.mark.parametrize("height_width", [*SIZES, (64, 64), (73, 80), (2000, 1500)])
def test_a_fixed_scale_crop_is_a_part_of_the_resized_picture(height_width):
    crop, shape = FixedScaleCrop(SIZE), np.array(height_width)
    content = jpeg(picture(*shape))
    whole = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")
    scaled_shape = shape * 73 // shape.min()
    scaled = tf.image.resize(whole, scaled_shape, antialias=True).numpy()
    last = scaled_shape - SIZE
    for down, right, flip in [
        (0, 0, 0),
        (*last, 1),
        (*(last // 2), 0),
        (*(last // 3), 1),
    ]:
        found = crop(content, tf.constant([down, right, flip])).numpy()
        expected = scaled[down : down + SIZE, right : right + SIZE]
        np.testing.assert_allclose(found, expected[:, :: -1 if flip else 1], atol=0.5)
    np.testing.assert_array_equal(
        crop.center(content), crop(content, tf.constant([*(last // 2), 0]))
    )


def crops_of(pixels, crop, seed):
    """300 random crops of a picture."""
    numbers = crop.draw(300, seed=seed, epoch=tf.constant(0, tf.int64))
    dataset = tf.data.Dataset.from_tensor_slices(numbers)
    content = jpeg(pixels)
    (images,) = dataset.map(lambda n: crop(content, n)).batch(300).as_numpy_iterator()
    return images


def test_a_fixed_scale_crop_reaches_every_place():
    images = crops_of(slopes(64, 128), FixedScaleCrop(56), seed=2)
    left, top = images[..., 0].min(axis=(1, 2)), images[..., 1].min(axis=(1, 2))
    # From the first to the last of 73 places to the right and of 9 downwards.
    assert left.min() < 6 and left.max() > 255 * 70 / 128
    assert top.min() < 6 and top.max() > 255 * 7 / 64


@pytest.fixture(scope="module")
def windows():
    """What 300 random crops show of a picture: its share in height and in width."""
    images = crops_of(slopes(150, 200), RandomResizedCrop(32), seed=1)
    assert images.shape == (300, 32, 32, 3) and images.dtype == np.float32
    across = images[:, :, :, 0].mean(axis=1)
    down = images[:, :, :, 1].mean(axis=2)
    # From the middle of the first of 32 pixels to that of the last.
    extent = [(side[:, -1] - side[:, 0]) * 32 / 31 / 255 for side in (down, across)]
    return (*extent, across, down)


def test_random_crops_have_areas_and_shapes_of_the_range(windows):
    height, width, *_ = windows
    area, ratio = abs(height * width), abs(width * 200 / (height * 150))
    assert 0.07 < area.min() < 0.12 and 0.8 < area.max() < 1.02
    assert 0.7 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.41


def test_random_crops_lie_anywhere_and_half_of_them_are_flipped(windows):
    height, width, across, down = windows
    assert (height > 0).all()
    assert 0.4 < (width < 0).mean() < 0.6
    # Every edge of the picture is reached.
    assert across.min() < 10 and across.max() > 245
    assert down.min() < 10 and down.max() > 245
    # Both are spread alike: no crop sticks to a corner.
    np.testing.assert_allclose([across.mean(), down.mean()], 127.5, atol=8)


def test_of_a_picture_too_long_for_any_crop_the_whole_is_taken():
    crop, content = RandomResizedCrop(32), jpeg(slopes(16, 600))
    image = crop(content, tf.constant([1, 2, 0])).numpy()
    assert image[..., 0].min() < 12 and image[..., 0].max() > 243


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_four_color_pictures_become_three_channels(mode):
    gray = np.full((50, 70, 3), 90, np.uint8)
    for image in (
        RandomResizedCrop(32)(jpeg(gray, mode), tf.constant([1, 2, 0])),
        FixedScaleCrop(32).center(jpeg(gray, mode)),
    ):
        np.testing.assert_allclose(image, np.full((32, 32, 3), 90), atol=2)

"""Pictures of many sizes, and their JPEGs."""

import io

import numpy as np
import PIL.Image

# Height and width of ImageNet's usual pictures, a small one and a very wide one.
SIZES = [(375, 500), (500, 375), (333, 500), (480, 640), (90, 120), (100, 900)]


def picture(height, width, kind=0):
    """Waves and a slope: a smooth picture, as photographs mostly are."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.sin(x / (17 + kind)) * np.cos(y / (23 - kind % 7))
    slope = x / width - y / height
    channels = [128 + 60 * waves, 128 + 60 * slope, 128 + 40 * waves * slope + kind]
    return np.stack(channels, -1).astype(np.uint8)


def jpeg(pixels, mode="RGB"):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=92)
    return file.getvalue()


def slopes(height, width):
    """Red tells the column, green the row, both from 0 to 255."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * (x + 0.5) / width, 255 * (y + 0.5) / height
    return np.stack([red, green, 0 * x + 128], -1).astype(np.uint8)

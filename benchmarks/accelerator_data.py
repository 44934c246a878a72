"""CIFAR-10 or MNIST as one small file, which a machine without TensorFlow can read.

`pack` writes the file from what tensorflow-datasets has prepared, and `load` reads it
with numpy alone. The pixels are those that the program trains with, bit for bit. There
are two forms:

- `jpeg`: the JPEG files as they are. Only if all decode to the same bits.
- `differences`: each pixel's difference from what its neighbours and, in a photo, its
  green channel foretell. That is for images that were never JPEGs.
"""

import dataclasses
import hashlib
import pathlib

import numpy as np
from accelerator_jpeg import decode

from gbn_keras.whole_file import whole_file

SPLITS = ("train", "test")
_PHOTO = 3  # Channels.


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        train_images: uint8, `(examples, height, width, channels)`.
        train_labels: int32, `(examples,)`.
        test_images: As `train_images`.
        test_labels: As `train_labels`.
        name: What they are.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    name: str

    def first(self, examples: int) -> "Images":
        """The same with only the first training examples; 0: with all."""
        if not examples:
            return self
        return dataclasses.replace(
            self,
            train_images=self.train_images[:examples],
            train_labels=self.train_labels[:examples],
        )

    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel of the training images, float32."""
        sums = np.zeros((2, self.train_images.shape[-1]))
        for part in np.array_split(self.train_images, 50):
            pixels = part.astype(np.float64)
            sums += [(pixels**power).sum(axis=(0, 1, 2)) for power in (1, 2)]
        mean, square = sums / np.prod(self.train_images.shape[:-1])
        deviation = np.sqrt(square - mean**2)
        return mean.astype(np.float32), deviation.astype(np.float32)


def random_images(train: int, test: int, side: int) -> Images:
    """Images of noise whose mean tells the label, to try things out."""
    random = np.random.default_rng(0)
    found = []
    for examples in (train, test):
        labels = random.integers(0, 10, examples).astype(np.int32)
        noise = random.integers(0, 60, (examples, side, side, 3))
        images = noise + 15 * labels[:, None, None, None]
        found += [images.astype(np.uint8), labels]
    return Images(*found, name="noise")


def pack(data_dir: str | None, output: pathlib.Path, name: str = "cifar10") -> str:
    """Writes the file, reads it again, and returns its form.

    Args:
        data_dir: Folder of tensorflow-datasets.
        output: The file, `.npz`.
        name: Name of the data set.

    Raises:
        ValueError: If the file does not give back all pixels and labels.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    skip = {"image": tfds.decode.SkipDecoding()}
    arrays, files = {}, {}
    for split in SPLITS:
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        arrays[split] = np.stack([example["image"] for example in examples])
        labels = [example["label"] for example in examples]
        arrays[f"{split}_labels"] = np.array(labels, np.int32)
        stored = tfds.as_numpy(builder.as_dataset(split=split, decoders=skip))
        files[split] = [example["image"] for example in stored]
    form = "jpeg" if all(_decodes(files[s], arrays[s]) for s in SPLITS) else ""
    content = {"form": form or "differences"}
    for split in SPLITS:
        images = arrays[split]
        content[f"{split}_labels"] = arrays[f"{split}_labels"].astype(np.uint8)
        content[f"{split}_checksum"] = _checksum(images)
        if form:
            content[f"{split}_bytes"] = np.frombuffer(b"".join(files[split]), np.uint8)
            content[f"{split}_lengths"] = np.array(list(map(len, files[split])))
        else:
            content[f"{split}_differences"] = _differences(images)
    with whole_file(output) as draft:
        np.savez_compressed(draft, **content)
    found = load(output)
    for split in SPLITS:
        same = np.array_equal(getattr(found, f"{split}_images"), arrays[split])
        labels = getattr(found, f"{split}_labels")
        if not same or not np.array_equal(labels, arrays[f"{split}_labels"]):
            raise ValueError(f"{output} does not give back the {split} examples")
    return content["form"]


def load(file: pathlib.Path) -> Images:
    """Reads a file of `pack`.

    Raises:
        ValueError: If the pixels are not those that were packed.
    """
    found = []
    with np.load(file) as content:
        for split in SPLITS:
            if content["form"] == "jpeg":
                ends = np.cumsum(content[f"{split}_lengths"])
                joined = content[f"{split}_bytes"].tobytes()
                starts = [0, *ends[:-1]]
                images = decode(
                    [joined[a:b] for a, b in zip(starts, ends, strict=True)]
                )
            else:
                images = _sums(content[f"{split}_differences"])
            if _checksum(images) != content[f"{split}_checksum"]:
                raise ValueError(f"{file}: the {split} images are damaged; pack again")
            found += [images, content[f"{split}_labels"].astype(np.int32)]
    return Images(*found, name=pathlib.Path(file).name)


def _decodes(files, images):
    """Whether our decoder finds exactly these images."""
    try:
        return np.array_equal(decode(files), images)
    except (ValueError, KeyError, IndexError):
        return False  # Another form, or no JPEG at all.


def _checksum(images):
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


# All is modulo 256. A pixel is foretold as left + above - (left and above), and red and
# blue from green's error. Equal channels beside each other compress best.


def _differences(images):
    values = np.moveaxis(images, -1, 0).copy()
    for axis in (2, 3):
        values = np.diff(values, axis=axis, prepend=np.uint8(0))
    if len(values) == _PHOTO:
        values[[0, 2]] -= values[1]
    return values


def _sums(differences):
    values = differences.copy()
    if len(values) == _PHOTO:
        values[[0, 2]] += values[1]
    for axis in (2, 3):
        values = np.cumsum(values, axis=axis, dtype=np.uint8)
    return np.ascontiguousarray(np.moveaxis(values, 0, -1))

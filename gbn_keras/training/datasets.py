"""Loads a named data set of labelled images, in memory or on disk."""

import contextlib
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from gbn_keras.training.augmentation import ShiftAndFlip
from gbn_keras.training.image_data import ImageData
from gbn_keras.training.jpeg_images import JpegImages
from gbn_keras.training.record_index import index_records
from gbn_keras.training.settings import UsageError, first_line

# Images read at once.
_CHUNK = 1024

# How a JPEG's bytes begin.
_JPEG = b"\xff\xd8\xff"

# What TensorFlow raises, among other things, where a file does not hold what it should.
_MAY_BE_DAMAGE = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
)

# The others are not augmented (MNIST: its published augmentation was a mistake).
_AUGMENTATION = {"cifar10": ShiftAndFlip(), "cifar100": ShiftAndFlip()}

# Of the 1,797 digits these many are for validation. It leaves 1,536 = 3 x 512 = 2 x 768
# for training, so that large batches drop none of them.
_DIGITS_FOR_VALIDATION = 261


def load(
    name: str,
    data_dir: str | None = None,
    download: bool = False,
    *,
    train_examples: int = 0,
    image_size: int = 224,
    fixed_scale: bool = False,
) -> ImageData | JpegImages:
    """Loads a data set by its name.

    JPEGs of many sizes, as ImageNet's, stay on disk; everything else is decoded into
    memory.

    Args:
        name: `digits` (scikit-learn's, embedded), or any name that
            tensorflow-datasets knows or finds in `data_dir`.
        data_dir: Where tensorflow-datasets' prepared data lies; by default in
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        download: Whether data that is not there may be downloaded and prepared.
        train_examples: Only so many of the training examples, the first in the order of
            the files; 0: all.
        image_size: JPEGs of many sizes: pixels on each side of what the network sees.
        fixed_scale: JPEGs of many sizes: whether training crops them all at the same
            scale, as AlexNet's did.

    Raises:
        UsageError: If the data is not there, is damaged, is not labelled images of one
            size (or JPEGs), or has fewer training examples.
    """
    if name == "digits":
        return _load_digits(train_examples)
    builder = _prepared_builder(name, data_dir, download)
    splits = _training_and_validation(name, builder.info.splits, train_examples)
    keys = _image_and_label(name, builder.info.features)
    with _one_line_if_damaged(name, lambda: _indices(name, builder, splits)):
        if _are_jpegs_of_any_size(builder, splits[0], keys[0]):
            return _open_jpegs(name, builder, splits, keys, image_size, fixed_scale)
        return _load_images(name, builder, splits, keys)


def _load_digits(train_examples):
    # scikit-learn takes a second to import, which the other data sets need not pay.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_images, validation_images, train_labels, validation_labels = train_test_split(
        digits.images[..., None].astype(np.uint8),
        digits.target.astype(np.int32),
        test_size=_DIGITS_FOR_VALIDATION,
        stratify=digits.target,
        random_state=0,
    )
    _check_enough("digits", len(train_labels), train_examples)
    return ImageData(
        name="digits",
        classes=10,
        train_images=train_images[: train_examples or None],
        train_labels=train_labels[: train_examples or None],
        validation_images=validation_images,
        validation_labels=validation_labels,
    )


def _load_images(name, builder, splits, keys):
    """Decodes everything."""
    images, labels = zip(*(_read(name, builder, s, keys) for s in splits), strict=True)
    return ImageData(
        name=name,
        classes=builder.info.features[keys[1]].num_classes,
        train_images=images[0],
        train_labels=labels[0],
        validation_images=images[1],
        validation_labels=labels[1],
        # By the name alone: the user's may have a version.
        augmentation=_AUGMENTATION.get(builder.name),
    )


def _open_jpegs(name, builder, splits, keys, image_size, fixed_scale):
    """Finds where the examples are; decodes none."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UsageError(
            f"--dataset: {name} is stored as {builder.info.file_format.value}, wanted "
            "tfrecord for JPEGs of many sizes. Prepare it in that format."
        )
    parse = _jpeg_and_label(builder.info.features, *keys)
    indices = _indices(name, builder, splits)
    for split, index in zip(splits, indices, strict=True):
        # All labels would mean all files; who has none has none from the beginning.
        starts = np.unique(index.file, return_index=True)[1]
        first_of_files = (
            tf.data.Dataset.from_tensor_slices(starts)
            .map(index.reader(), num_parallel_calls=tf.data.AUTOTUNE)
            .map(lambda record: parse(record)[1])
        )
        _check_labels(name, split, min(first_of_files.as_numpy_iterator()))
    return JpegImages(
        name=name,
        classes=builder.info.features[keys[1]].num_classes,
        training=indices[0],
        validation=indices[1],
        parse=parse,
        image_size=image_size,
        fixed_scale=fixed_scale,
    )


def _prepared_builder(name, data_dir, download):
    where = data_dir or tfds.core.constants.DATA_DIR
    remedies = (
        "name the folder that holds it with --data_dir, or let it be downloaded and "
        "prepared there with --download"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--dataset: got {name!r}, wanted digits or the name of a data set that "
            f"tensorflow-datasets knows or finds in {where} ({first_line(error)}). "
            f"Check the name; if it is a data set of yours, {remedies}."
        ) from error
    if builder.is_prepared():
        return builder
    if not download:
        raise UsageError(f"--dataset: {name} is not prepared in {where}: {remedies}.")
    # By default it tries a dead network for minutes, ten times, ever more slowly.
    downloader.MAX_RETRIES = 3
    try:
        builder.download_and_prepare()
    except Exception as error:  # Whatever a data set's own code or the network raises.
        raise UsageError(
            f"--download: {name} could not be prepared in {where} "
            f"({type(error).__name__}: {first_line(error)}). Check the network, or "
            "name the folder that holds the prepared data with --data_dir."
        ) from error
    return builder


def _image_and_label(name, features):
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    for found, key in ((images, "image"), (labels, "label")):
        # Of several, the one with the usual name.
        found.sort(key=lambda k, key=key: k != key)
        if not found:
            raise UsageError(
                f"--dataset: {name} has no {key} feature; it has "
                f"{', '.join(features)}. Wanted images with class labels: choose "
                "another data set."
            )
    return images[0], labels[0]


def _training_and_validation(name, splits, train_examples):
    """tensorflow-datasets' names of both parts."""
    validation = next((s for s in ("validation", "test") if s in splits), None)
    if "train" not in splits or validation is None:
        raise UsageError(
            f"--dataset: {name} has the splits {', '.join(splits) or 'none'}; wanted "
            "train, and validation or test. Choose another data set."
        )
    for split in ("train", validation):
        if splits[split].num_examples == 0:
            raise UsageError(
                f"--dataset: the {split} split of {name} has 0 examples, wanted at "
                "least 1. Prepare it again, or choose another data set."
            )
    _check_enough(name, splits["train"].num_examples, train_examples)
    train = f"train[:{train_examples}]" if train_examples else "train"
    return train, validation


def _check_enough(name, examples, train_examples):
    if not 0 <= train_examples <= examples:
        raise UsageError(
            f"--train_examples: got {train_examples}, wanted at most {examples}, which "
            f"{name} has for training, or 0 for all. Take fewer."
        )


def _indices(name, builder, splits):
    """Where the records of the splits are."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        return []
    return [
        index_records(name, builder.info.splits[split].file_instructions)
        for split in splits
    ]


def one_line_if_damaged(data: ImageData | JpegImages):
    """A context in which files that cannot be read any more are a `UsageError`.

    To be used around all that reads a data set: JPEGs stay on disk until they are
    needed, and in hours of training a file may vanish.
    """
    if isinstance(data, ImageData):
        return contextlib.nullcontext()
    return _one_line_if_damaged(data.name, lambda: [data.training, data.validation])


@contextlib.contextmanager
def _one_line_if_damaged(name, indices):
    """Turns what TensorFlow says about files into a line that names the file."""
    try:
        yield
    except _MAY_BE_DAMAGE as error:
        for index in indices():
            index.refuse_damage(name, error)
        if isinstance(error, tf.errors.DataLossError):
            problem = f"is damaged ({first_line(error)})"
        elif re.search("JPEG|PNG", error.message):
            problem = "holds an image that cannot be decoded"
        else:
            raise
        raise UsageError(
            f"--dataset: {name} {problem}. Copy its files anew, or prepare it again."
        ) from error


def _are_jpegs_of_any_size(builder, split, image_key):
    """Whether the first image is one; the features do not always tell the encoding."""
    if builder.info.features[image_key].shape != (None, None, 3):
        return False
    first = _as_dataset(
        builder, split, decoders={image_key: tfds.decode.SkipDecoding()}
    ).take(1)
    (example,) = first.as_numpy_iterator()
    return example[image_key].startswith(_JPEG)


def _jpeg_and_label(features, image_key, label_key):
    """A function from a record to the undecoded image and the label."""
    # The others need not be parsed.
    features = tfds.features.FeaturesDict(
        {key: features[key] for key in (image_key, label_key)}
    )
    undecoded = {image_key: tfds.decode.SkipDecoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=undecoded)
        return example[image_key], tf.cast(example[label_key], tf.int32)

    return parse


def _read(name, builder, split, keys):
    """One split as arrays of images and labels, in the order of its files."""
    dataset = _as_dataset(builder, split).map(lambda e: tuple(e[key] for key in keys))
    if None in builder.info.features[keys[0]].shape:
        images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
        _check_one_size(name, images)
        images, labels = np.stack(images), np.stack(labels)
    else:
        chunks = zip(*dataset.batch(_CHUNK).as_numpy_iterator(), strict=True)
        images, labels = (np.concatenate(chunk) for chunk in chunks)
    _check_labels(name, split, labels.min())
    _check_finite(name, split, images)
    return images, labels.astype(np.int32)


def _as_dataset(builder, split, decoders=None):
    """One split in the order of its files."""
    return builder.as_dataset(
        split=split,
        decoders=decoders,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
    )


def _check_labels(name, split, smallest):
    if smallest < 0:
        raise UsageError(
            f"--dataset: the {split} split of {name} has the label {smallest}, which "
            "stands for none. Choose a data set with labels."
        )


def _check_finite(name, split, images):
    if not np.issubdtype(images.dtype, np.floating):
        return
    for start in range(0, len(images), _CHUNK):
        axes = tuple(range(1, images.ndim))
        is_finite = np.isfinite(images[start : start + _CHUNK]).all(axis=axes)
        if not is_finite.all():
            place = start + int(is_finite.argmin())
            raise UsageError(
                f"--dataset: example {place:,} of the {split} split of {name} has a "
                "pixel that is not finite, from which the loss could not be either. "
                "Mend the data, and prepare it again."
            )


def _check_one_size(name, images):
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        raise UsageError(
            f"--dataset: {name} has images of {len(sizes)} sizes, {sizes[0]} and "
            f"{sizes[-1]} among them; the network needs one. Choose another data set, "
            "or resize the images when you prepare it."
        )

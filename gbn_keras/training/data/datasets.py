"""Loads a named data set of labelled images, in memory or on disk."""

import contextlib
import dataclasses
import re

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from gbn_keras.training.data import examples
from gbn_keras.training.data.array_records import ArrayRecords
from gbn_keras.training.data.augmentation import ShiftAndFlip
from gbn_keras.training.data.digits import load_digits
from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.data.image_features import image_and_label
from gbn_keras.training.data.jpeg_images import JpegImages
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.data.record_index import index_records
from gbn_keras.training.data.splits import training_and_validation
from gbn_keras.training.errors import UsageError, first_line

# Errors that TensorFlow raises for damaged files, but also for other reasons.
_MAY_BE_DAMAGE = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
)

# For each file format, what finds the records, so that any can be read directly.
_RECORDS = {
    tfds.core.FileFormat.TFRECORD: index_records,
    tfds.core.FileFormat.ARRAY_RECORD: ArrayRecords,
}

# Other data sets are not augmented. MNIST's published augmentation was a mistake.
_AUGMENTATION = {"cifar10": ShiftAndFlip(), "cifar100": ShiftAndFlip()}


def load(
    name: str,
    data_dir: str | None = None,
    download: bool = False,
    *,
    train_split: str | None = None,
    validation_split: str | None = None,
    train_examples: int = 0,
    image_key: str | None = None,
    label_key: str | None = None,
    image_size: int = 224,
    fixed_scale: bool = False,
) -> LabelledImages:
    """Loads a data set by its name.

    JPEGs of many sizes, such as ImageNet's, stay on disk. JPEGs of one size stay on
    disk too, if the data set does not state their size and they have more than 4 GiB of
    pixels. Everything else is decoded into memory.

    Args:
        name: Name of the data set: `digits` (included with scikit-learn), or one that
            tensorflow-datasets knows or finds in `data_dir`.
        data_dir: Folder with the data sets that tensorflow-datasets has prepared.
            Default: `TFDS_DATA_DIR`, or else `~/tensorflow_datasets`.
        download: Whether to download and prepare the data set if it is missing.
        train_split: Training examples, in tensorflow-datasets' split language. Default:
            `train`.
        validation_split: Validation examples. Default: `validation`, or else `test`.
        train_examples: Number of training examples to use, from the first on in the
            order of the files. 0: all.
        image_key: Name of the image feature. Default: see `image_features`.
        label_key: Name of the label feature. Default: see `image_features`.
        image_size: Height and width of the crops from JPEGs of many sizes.
        fixed_scale: Whether training crops JPEGs of many sizes at one scale, as
            AlexNet's training did.

    Raises:
        UsageError: If the data set is missing or damaged, does not hold labelled images
            of one size (or JPEGs), or has fewer training examples. Also if the
            arguments leave open which examples and features to use.
    """
    if name == "digits":
        return load_digits(
            train_examples,
            train_split=train_split,
            validation_split=validation_split,
            image_key=image_key,
            label_key=label_key,
        )
    builder = _prepared_builder(name, data_dir, download)
    splits = training_and_validation(
        name, builder.info.splits, train_split, validation_split, train_examples
    )
    keys = image_and_label(name, builder.info, image_key, label_key)
    training, validation = (split.name for split in splits)
    chosen = [keys.choice] if keys.choice else []
    if train_split or validation_split:
        chosen.insert(0, f"training {training}, validation {validation}")
    with _one_line_if_damaged(name, lambda: _indices(name, builder, splits)):
        if examples.are_jpegs_of_many_sizes(name, builder, splits, keys.image):
            data = _open_jpegs(name, builder, splits, keys, image_size, fixed_scale)
        else:
            data = _load_images(name, builder, splits, keys)
    return dataclasses.replace(
        data, choice="; ".join(chosen), validation_split=validation
    )


def _load_images(name, builder, splits, keys):
    """Decodes all images into memory."""
    images, labels = zip(
        *(examples.read(name, builder, s, keys) for s in splits), strict=True
    )
    return ImageData(
        name=name,
        classes=examples.number_of_classes(name, builder, keys.label, labels),
        train_images=images[0],
        train_labels=labels[0],
        validation_images=images[1],
        validation_labels=labels[1],
        # Not `name`, which may include a version.
        augmentation=_AUGMENTATION.get(builder.name),
    )


def _open_jpegs(name, builder, splits, keys, image_size, fixed_scale):
    """Finds where the examples are, but does not decode them."""
    if builder.info.file_format not in _RECORDS:
        raise UsageError(
            f"--dataset: got {name}, which is stored as "
            f"{builder.info.file_format.value}, wanted tfrecord or array_record for "
            "JPEGs of many sizes. Prepare it in one of these formats."
        )
    parse = examples.jpeg_and_label(builder.info.features, keys.image, keys.label)
    indices = _indices(name, builder, splits)
    if examples.told_number_of_classes(builder, keys.label):
        labels = [examples.first_labels(index, parse) for index in indices]
    else:
        labels = [
            examples.all_labels(name, builder, split, keys.label) for split in splits
        ]
    for split, of_split in zip(splits, labels, strict=True):
        examples.check_labels(name, split.name, of_split.min())
    return JpegImages(
        name=name,
        classes=examples.number_of_classes(name, builder, keys.label, labels),
        training=indices[0],
        validation=indices[1],
        parse=parse,
        image_size=image_size,
        fixed_scale=fixed_scale,
    )


def _prepared_builder(name, data_dir, download):
    where = data_dir or tfds.core.constants.DATA_DIR
    remedies = (
        "name the folder that holds it with --data_dir, or download and prepare it "
        "with --download"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--dataset: got {name!r}, wanted digits or the name of a data set that "
            f"tensorflow-datasets knows or finds in {where} ({first_line(error)}). "
            f"Check the name. If the data set is your own, {remedies}."
        ) from error
    if builder.is_prepared():
        return builder
    if not download:
        raise UsageError(
            f"--dataset: got {name}, wanted a data set that is prepared in {where}. To "
            f"use this one, {remedies}."
        )
    try:
        with _few_retries():
            builder.download_and_prepare()
    # The data set's own code and the network raise errors of any type.
    except Exception as error:
        raise UsageError(
            f"--download: {name} could not be prepared in {where} "
            f"({type(error).__name__}: {first_line(error)}). Check the network, or "
            "name the folder that holds the prepared data with --data_dir."
        ) from error
    return builder


@contextlib.contextmanager
def _few_retries():
    """Makes tensorflow-datasets give up soon if the network is down.

    By default it tries ten times, which takes minutes, because it waits longer each
    time. It has no option for this.
    """
    before = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = 3
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def _indices(name, builder, splits):
    """For each split, where its records are."""
    records_of = _RECORDS.get(builder.info.file_format)
    return [records_of(name, split.parts) for split in splits] if records_of else []


def one_line_if_damaged(data: LabelledImages):
    """A context that turns errors about unreadable files into a `UsageError`.

    Use it around all code that reads a data set. JPEGs stay on disk until they are
    needed, and a file may vanish during hours of training.
    """
    if not data.files:
        return contextlib.nullcontext()
    return _one_line_if_damaged(data.name, lambda: data.files)


@contextlib.contextmanager
def _one_line_if_damaged(name, indices):
    """Turns TensorFlow's errors about files into one line that names the file."""
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
            f"--dataset: {name} {problem}. Copy its files again, or prepare it again."
        ) from error

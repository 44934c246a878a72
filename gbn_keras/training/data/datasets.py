"""Loads a named data set of labelled images, in memory or on disk."""

import contextlib
import dataclasses
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from gbn_keras.training.data.augmentation import ShiftAndFlip
from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.data.image_features import image_and_label
from gbn_keras.training.data.jpeg_images import JpegImages
from gbn_keras.training.data.record_index import index_records
from gbn_keras.training.data.splits import check_enough, training_and_validation
from gbn_keras.training.errors import UsageError, first_line

# Images read at once.
_CHUNK = 1024

# JPEGs of one size stay on disk if they have more bytes of pixels.
_MOST_PIXELS = 2**32

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
    train_split: str | None = None,
    validation_split: str | None = None,
    train_examples: int = 0,
    image_key: str | None = None,
    label_key: str | None = None,
    image_size: int = 224,
    fixed_scale: bool = False,
) -> ImageData | JpegImages:
    """Loads a data set by its name.

    JPEGs of many sizes, as ImageNet's, stay on disk; everything else is decoded into
    memory. JPEGs of one size that the data set does not tell stay on disk too if they
    have more than 4 GiB of pixels.

    Args:
        name: `digits` (scikit-learn's, embedded), or any name that
            tensorflow-datasets knows or finds in `data_dir`.
        data_dir: Where tensorflow-datasets' prepared data lies; by default in
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        download: Whether data that is not there may be downloaded and prepared.
        train_split: Training examples, in tensorflow-datasets' language; by default
            `train`.
        validation_split: Validation examples; by default `validation`, else `test`.
        train_examples: Only so many of the training examples, the first in the order of
            the files; 0: all.
        image_key: The feature that is the image, see `image_features`.
        label_key: The feature that is the label.
        image_size: JPEGs of many sizes: pixels on each side of what the network sees.
        fixed_scale: JPEGs of many sizes: whether training crops them all at the same
            scale, as AlexNet's did.

    Raises:
        UsageError: If the data is not there, is damaged, is not labelled images of one
            size (or JPEGs), has fewer training examples, or leaves open which of its
            examples and features are meant.
    """
    if name == "digits":
        return _load_digits(
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
    chosen = [f"training {training}, validation {validation}"]
    if not (train_split or validation_split):
        chosen = []
    if keys.choice:
        chosen.append(keys.choice)
    with _one_line_if_damaged(name, lambda: _indices(name, builder, splits)):
        if _are_jpegs_of_many_sizes(builder, splits, keys.image):
            data = _open_jpegs(name, builder, splits, keys, image_size, fixed_scale)
        else:
            data = _load_images(name, builder, splits, keys)
    return dataclasses.replace(
        data, choice="; ".join(chosen), validation_split=validation
    )


def _load_digits(train_examples, **choices):
    for flag, value in choices.items():
        if value:
            raise UsageError(
                f"--{flag}: got {value!r}, wanted none with digits, which have one "
                "image, one label and one division. Leave it out."
            )
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
    check_enough("digits", len(train_labels), train_examples)
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
        classes=_classes(name, builder, keys.label, labels),
        train_images=images[0],
        train_labels=labels[0],
        validation_images=images[1],
        validation_labels=labels[1],
        # By the name alone: the user's may have a version.
        augmentation=_AUGMENTATION.get(builder.name),
    )


def _classes(name, builder, label_key, labels):
    """How many: as the data set says, else one more than the largest of all labels."""
    told = getattr(builder.info.features[label_key], "num_classes", None)
    if told:
        return told
    found = int(max(of_split.max() for of_split in labels)) + 1
    examples = sum(map(len, labels))
    if found > examples:
        raise UsageError(
            f"--label_key: {label_key} of {name} goes up to {found - 1:,} in "
            f"{examples:,} examples, wanted classes counted from 0. Name another "
            "feature, or choose another data set."
        )
    return found


def _open_jpegs(name, builder, splits, keys, image_size, fixed_scale):
    """Finds where the examples are; decodes none."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UsageError(
            f"--dataset: {name} is stored as {builder.info.file_format.value}, wanted "
            "tfrecord for JPEGs of many sizes. Prepare it in that format."
        )
    parse = _jpeg_and_label(builder.info.features, keys.image, keys.label)
    indices = _indices(name, builder, splits)
    if getattr(builder.info.features[keys.label], "num_classes", None):
        labels = [_first_labels(index, parse) for index in indices]
    else:
        labels = [_all_labels(builder, split, keys.label) for split in splits]
    for split, of_split in zip(splits, labels, strict=True):
        _check_labels(name, split.name, of_split.min())
    return JpegImages(
        name=name,
        classes=_classes(name, builder, keys.label, labels),
        training=indices[0],
        validation=indices[1],
        parse=parse,
        image_size=image_size,
        fixed_scale=fixed_scale,
    )


def _first_labels(index, parse):
    """Of each file: all would mean to read all files; who has none begins with none."""
    starts = np.unique(index.file, return_index=True)[1]
    return np.stack(
        list(
            tf.data.Dataset.from_tensor_slices(starts)
            .map(index.reader(), num_parallel_calls=tf.data.AUTOTUNE)
            .map(lambda record: parse(record)[1])
            .as_numpy_iterator()
        )
    )


def _all_labels(builder, split, label_key):
    """Without which nobody knows how many classes there are."""
    only = tfds.decode.PartialDecoding({label_key: True})
    labels = _as_dataset(builder, split, decoders=only).map(lambda e: e[label_key])
    return np.concatenate(list(labels.batch(_CHUNK).as_numpy_iterator()))


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


def _indices(name, builder, splits):
    """Where the records of the splits are."""
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        return []
    return [index_records(name, split.parts) for split in splits]


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


def _are_jpegs_of_many_sizes(builder, splits, image_key):
    """Whether the images are JPEGs to be left on disk.

    The features do not always tell the encoding, nor the size where there is one. Of
    JPEGs of one size all are looked at, of others few.
    """
    if builder.info.features[image_key].shape != (None, None, 3):
        return False
    undecoded = tfds.decode.PartialDecoding(
        {image_key: True}, decoders={image_key: tfds.decode.SkipDecoding()}
    )
    shapes, pixels = set(), 0
    for split in splits:
        images = _as_dataset(builder, split, decoders=undecoded)
        for shape in images.map(
            lambda example: _jpeg_shape(example[image_key]),
            num_parallel_calls=tf.data.AUTOTUNE,
        ).as_numpy_iterator():
            shapes.add(tuple(shape))
            pixels += 3 * int(np.prod(shape))
            if not pixels:  # No JPEG, the first one.
                return False
            if len(shapes) > 1 or pixels > _MOST_PIXELS:
                return True
    return False


def _jpeg_shape(content):
    """Height and width; zeros of what is no JPEG."""
    return tf.cond(
        tf.strings.substr(content, 0, len(_JPEG)) == _JPEG,
        lambda: tf.image.extract_jpeg_shape(content)[:2],
        lambda: tf.zeros([2], tf.int32),
    )


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
    dataset = _as_dataset(builder, split).map(lambda e: (e[keys.image], e[keys.label]))
    if None in builder.info.features[keys.image].shape:
        images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
        _check_one_size(name, images)
        images, labels = np.stack(images), np.stack(labels)
    else:
        chunks = zip(*dataset.batch(_CHUNK).as_numpy_iterator(), strict=True)
        images, labels = (np.concatenate(chunk) for chunk in chunks)
    _check_labels(name, split.name, labels.min())
    _check_finite(name, split.name, images)
    return images, labels.astype(np.int32)


def _as_dataset(builder, split, decoders=None):
    """One split in the order of its files."""
    return builder.as_dataset(
        split=split.name,
        decoders=decoders,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
    ).take(len(split))


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

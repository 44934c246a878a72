"""Reads the examples of a split, and examines them."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gbn_keras.training.data.array_records import ArrayRecords
from gbn_keras.training.errors import UsageError

# Number of images that are read at once.
_CHUNK = 1024

# JPEGs of one size stay on disk if their pixels have more bytes than this.
_MOST_PIXELS = 2**32

# The first bytes of every JPEG.
_JPEG = b"\xff\xd8\xff"


def are_jpegs_of_many_sizes(name, builder, splits, image_key):
    """Whether the images are JPEGs that should stay on disk.

    The features do not always state the encoding, or the size if there is only one. So
    this examines the images: all of them if they have one size, else only a few.
    """
    if builder.info.features[image_key].shape != (None, None, 3):
        return False
    undecoded = {image_key: tfds.decode.SkipDecoding()}
    shapes, pixels = set(), 0
    for split in splits:
        images = _as_dataset(name, builder, split, [image_key], undecoded)
        for shape in images.map(
            lambda example: _jpeg_shape(example[image_key]),
            num_parallel_calls=tf.data.AUTOTUNE,
        ).as_numpy_iterator():
            shapes.add(tuple(shape))
            pixels += 3 * int(np.prod(shape))
            if not pixels:  # The first image is not a JPEG.
                return False
            if len(shapes) > 1 or pixels > _MOST_PIXELS:
                return True
    return False


def read(name, builder, split, keys):
    """The images and labels of one split as arrays, in the order of its files."""
    dataset = _as_dataset(name, builder, split).map(
        lambda e: (e[keys.image], e[keys.label])
    )
    if None in builder.info.features[keys.image].shape:
        images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
        _check_one_size(name, images)
        images, labels = np.stack(images), np.stack(labels)
    else:
        chunks = zip(*dataset.batch(_CHUNK).as_numpy_iterator(), strict=True)
        images, labels = (np.concatenate(chunk) for chunk in chunks)
    check_labels(name, split.name, labels.min())
    _check_finite(name, split.name, images)
    return images, labels.astype(np.int32)


def jpeg_and_label(features, image_key, label_key):
    """A function from a record to its undecoded image and its label."""
    features = _only(features, (image_key, label_key))
    undecoded = {image_key: tfds.decode.SkipDecoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=undecoded)
        return example[image_key], tf.cast(example[label_key], tf.int32)

    return parse


def first_labels(index, parse):
    """The first label of each file, to find splits that have no labels.

    To read all labels, all files would have to be read. A split without labels already
    shows it in its first records.
    """
    return np.stack(
        list(
            tf.data.Dataset.from_tensor_slices(index.starts)
            .map(index.reader(), num_parallel_calls=tf.data.AUTOTUNE)
            .map(lambda record: parse(record)[1])
            .as_numpy_iterator()
        )
    )


def all_labels(name, builder, split, label_key):
    """All labels of a split, for a data set that does not state its classes."""
    labels = _as_dataset(name, builder, split, [label_key]).map(lambda e: e[label_key])
    return np.concatenate(list(labels.batch(_CHUNK).as_numpy_iterator()))


def told_number_of_classes(builder, label_key):
    """Number of classes that the data set states; `None` if labels are integers."""
    return getattr(builder.info.features[label_key], "num_classes", None)


def number_of_classes(name, builder, label_key, labels):
    """Number of classes that the data set states, or else the largest label plus 1."""
    if told := told_number_of_classes(builder, label_key):
        return told
    found = int(max(of_split.max() for of_split in labels)) + 1
    examples = sum(map(len, labels))
    if found > examples:
        raise UsageError(
            f"--label_key: {label_key} of {name} goes up to {found - 1:,} in "
            f"{examples:,} examples, wanted classes counted from 0. Name another "
            "feature, or use another data set."
        )
    return found


def check_labels(name, split, smallest):
    """Raises a UsageError if an example has no label, which is stored as -1."""
    if smallest < 0:
        raise UsageError(
            f"--dataset: got the label {smallest} in the {split} split of {name}, "
            "which means no label, wanted labels from 0. Use a data set with labels."
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
                f"--dataset: got a pixel that is not finite in example {place:,} of "
                f"the {split} split of {name}, wanted finite pixels for a finite loss. "
                "Repair the data and prepare it again."
            )


def _check_one_size(name, images):
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        raise UsageError(
            f"--dataset: got {name} with images of {len(sizes)} sizes, such as "
            f"{sizes[0]} and {sizes[-1]}, wanted one size. Use another data set, or "
            "resize the images when you prepare it."
        )


def _jpeg_shape(content):
    """Height and width of a JPEG; zeros for anything else."""
    return tf.cond(
        tf.strings.substr(content, 0, len(_JPEG)) == _JPEG,
        lambda: tf.image.extract_jpeg_shape(content)[:2],
        lambda: tf.zeros([2], tf.int32),
    )


def _as_dataset(name, builder, split, keys=(), decoders=None):
    """One split in the order of its files, with the features in `keys` or all."""
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        records, features = ArrayRecords(name, split.parts), builder.info.features
        features = _only(features, keys) if keys else features
        return (
            tf.data.Dataset.range(len(records))
            .map(records.reader(), num_parallel_calls=tf.data.AUTOTUNE)
            .map(
                lambda record: features.deserialize_example(record, decoders=decoders),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        )
    if keys:
        decoders = tfds.decode.PartialDecoding(dict.fromkeys(keys, True), decoders)
    return builder.as_dataset(
        split=split.name,
        decoders=decoders,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
    ).take(len(split))


def _only(features, keys):
    """The features in `keys`, so that the others are not parsed."""
    return tfds.features.FeaturesDict({key: features[key] for key in keys})

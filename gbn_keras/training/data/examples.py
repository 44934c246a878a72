"""Reads the examples of a split, and looks at what they are."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gbn_keras.training.data.array_records import ArrayRecords
from gbn_keras.training.errors import UsageError

# Images read at once.
_CHUNK = 1024

# JPEGs of one size stay on disk if they have more bytes of pixels.
_MOST_PIXELS = 2**32

# How a JPEG's bytes begin.
_JPEG = b"\xff\xd8\xff"


def are_jpegs_of_many_sizes(name, builder, splits, image_key):
    """Whether the images are JPEGs to be left on disk.

    The features do not always tell the encoding, nor the size where there is one. Of
    JPEGs of one size all are looked at, of others few.
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
            if not pixels:  # No JPEG, the first one.
                return False
            if len(shapes) > 1 or pixels > _MOST_PIXELS:
                return True
    return False


def read(name, builder, split, keys):
    """One split as arrays of images and labels, in the order of its files."""
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
    """A function from a record to the undecoded image and the label."""
    features = _only(features, (image_key, label_key))
    undecoded = {image_key: tfds.decode.SkipDecoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=undecoded)
        return example[image_key], tf.cast(example[label_key], tf.int32)

    return parse


def first_labels(index, parse):
    """Of each file: all would mean to read all files; who has none begins with none."""
    return np.stack(
        list(
            tf.data.Dataset.from_tensor_slices(index.starts)
            .map(index.reader(), num_parallel_calls=tf.data.AUTOTUNE)
            .map(lambda record: parse(record)[1])
            .as_numpy_iterator()
        )
    )


def all_labels(name, builder, split, label_key):
    """Without which nobody knows how many classes there are."""
    labels = _as_dataset(name, builder, split, [label_key]).map(lambda e: e[label_key])
    return np.concatenate(list(labels.batch(_CHUNK).as_numpy_iterator()))


def told_number_of_classes(builder, label_key):
    """How many the data set says that there are; `None` of single integers."""
    return getattr(builder.info.features[label_key], "num_classes", None)


def number_of_classes(name, builder, label_key, labels):
    """How many: as the data set says, else one more than the largest of all labels."""
    if told := told_number_of_classes(builder, label_key):
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


def check_labels(name, split, smallest):
    """A UsageError if an example has no label, which is written as -1."""
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


def _jpeg_shape(content):
    """Height and width; zeros of what is no JPEG."""
    return tf.cond(
        tf.strings.substr(content, 0, len(_JPEG)) == _JPEG,
        lambda: tf.image.extract_jpeg_shape(content)[:2],
        lambda: tf.zeros([2], tf.int32),
    )


def _as_dataset(name, builder, split, keys=(), decoders=None):
    """One split in the order of its files, with some features or with all of them."""
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
    """Some features: the others need not be parsed."""
    return tfds.features.FeaturesDict({key: features[key] for key in keys})

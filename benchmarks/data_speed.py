"""Compares the speed of data pipelines with tensorflow-datasets' own reader.

    python benchmarks/data_speed.py [--data_dir=DIR] [--json=FILE]

All readers run in turn in one process, and the figures are medians. `ratio` compares a
reader with the bare reader in the same round: `tfds.load(...).batch(n)`, as the guide
of tensorflow-datasets shows it. The bare reader decodes images in the order of shuffled
files, and neither augments nor standardizes them.

For JPEGs there are two more readers. One decodes whole images and then crops them. The
other is the best that people usually write by hand: `SkipDecoding`, a fused decode and
crop, and a shuffle buffer.

Without --data_dir, MNIST and CIFAR-10 are random pixels in a temporary folder. The
JPEGs are always painted. Data sets that are held in memory are loaded before the
measurement; `load s` is the time it took.
"""

import argparse
import functools
import io
import os
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from side_by_side import median_ratio, time_in_turn, write_json

from gbn_keras.training.data import datasets

BARE = "bare reader"
OURS = "gbn_keras"

# Heights and widths of the JPEGs, as in ImageNet, and the side of the crops in pixels.
_SIZES = [(375, 500), (500, 375), (333, 500), (480, 640)]
_SIZE = 224

# Images of the painted MNIST and CIFAR-10. More would take longer and show the same.
_SMALL_IMAGES = 20_000


def main():
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", help="folder that holds MNIST and CIFAR-10")
    parser.add_argument("--jpegs", type=int, default=600, help="how many to paint")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--jpeg_batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    rows = []
    print(f"{'data':16}{'reader':28}{'load s':>8}{'images/s':>10}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as painted:
        rows += measure("digits", None, arguments.batch_size, arguments.rounds)
        for name, shape in (("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))):
            if not arguments.data_dir:
                paint_small(painted, name, shape)
            data_dir = arguments.data_dir or painted
            rows += measure(name, data_dir, arguments.batch_size, arguments.rounds)
        paint_jpegs(painted, arguments.jpegs)
        rows += measure(
            "photos", painted, arguments.jpeg_batch_size, arguments.rounds, jpegs=True
        )
    write_json(arguments.json, rows)


def measure(name, data_dir, batch_size, rounds, jpegs=False):
    """Times an epoch of each reader in turn; prints and returns the rows."""
    started = time.perf_counter()
    data = datasets.load(name, data_dir)
    load_seconds = {OURS: time.perf_counter() - started}
    updates = data.examples // batch_size
    images = updates * batch_size
    readers = {OURS: data.training_batches(batch_size, seed=1).take(updates)}
    if jpegs:
        fixed = datasets.load(name, data_dir, fixed_scale=True)
        fixed = fixed.training_batches(batch_size, seed=1)
        readers[f"{OURS}, fixed scale"] = fixed.take(updates)
    if data_dir:
        readers |= others(name, data_dir, batch_size, jpegs)
    epochs = {
        reader: functools.partial(exhaust, batches)
        for reader, batches in readers.items()
    }
    times = time_in_turn(epochs, rounds, seconds=0.5)
    rows = []
    for reader in readers:
        row = {
            "data": name,
            "reader": reader,
            "batch_size": batch_size,
            "load_seconds": load_seconds.get(reader),
            "images_per_second": images / statistics.median(times[reader]),
            "ratio": median_ratio(times[BARE], times[reader]) if data_dir else None,
        }
        rows.append(row)
        print(
            f"{name:16}{reader:28}{row['load_seconds'] or 0:8.2f}"
            f"{row['images_per_second']:10,.0f}{row['ratio'] or 0:7.2f}",
            flush=True,
        )
    return rows


def exhaust(batches):
    """Reads one epoch, and ends it, so that nothing is prefetched while others run."""
    for _ in batches:
        pass


def others(name, data_dir, batch_size, jpegs):
    """The readers that a user of tensorflow-datasets would write, for one epoch."""
    load = functools.partial(
        tfds.load, name, split="train", data_dir=data_dir, shuffle_files=True
    )
    whole = load().map(lambda e: (e["image"], e["label"]))
    if not jpegs:
        return {BARE: whole.batch(batch_size, drop_remainder=True)}
    undecoded = load(decoders={"image": tfds.decode.SkipDecoding()})
    parallel = functools.partial(
        tf.data.Dataset.map, num_parallel_calls=tf.data.AUTOTUNE
    )

    def joined(examples):
        return examples.batch(batch_size, drop_remainder=True).prefetch(2)

    return {
        BARE: whole,  # Images of different sizes cannot be batched.
        "decoded whole, then cropped": joined(parallel(whole.shuffle(256), crop_whole)),
        "decode and crop by hand": joined(
            parallel(undecoded.shuffle(256), decode_and_crop)
        ),
    }


def crop_whole(image, label):
    """A random resized crop of a decoded image, flipped and standardized."""
    top, left, height, width = tf.unstack(random_window(tf.shape(image)))
    crop = tf.image.crop_to_bounding_box(image, top, left, height, width)
    return finished(crop), label


def decode_and_crop(example):
    """The same crop from a JPEG, of which only the crop is decoded."""
    shape = tf.image.extract_jpeg_shape(example["image"])
    crop = tf.image.decode_and_crop_jpeg(
        example["image"], random_window(shape), channels=3
    )
    return finished(crop), example["label"]


def random_window(shape):
    """The top, left, height and width of a random crop."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        tf.zeros([0, 0, 4]),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def finished(crop):
    """The crop, resized, randomly flipped and standardized."""
    image = tf.image.random_flip_left_right(tf.image.resize(crop, [_SIZE] * 2))
    return (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)


def paint_small(folder, name, shape):
    """Writes random pixels as the files of a known data set."""
    random = np.random.default_rng(0)
    builder = tfds.builder(name, data_dir=folder)
    images = random.integers(0, 256, (_SMALL_IMAGES, *shape), np.uint8)
    examples = [{"image": x, "label": i % 10} for i, x in enumerate(images)]
    if "id" in builder.info.features:
        examples = [{**e, "id": f"{i:06}"} for i, e in enumerate(examples)]
    store(folder, name, builder.version, builder.info.features, examples)


def paint_jpegs(folder, count):
    """Writes a data set of JPEGs of ImageNet's sizes, about 110 KB each."""
    random = np.random.default_rng(0)
    examples = [
        {"image": io.BytesIO(painted(*_SIZES[i % len(_SIZES)], random)), "label": i}
        for i in range(count)
    ]
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=count),
    }
    store(folder, "photos", "1.0.0", tfds.features.FeaturesDict(features), examples)


def painted(height, width, random):
    """A JPEG that shows large and small blobs."""
    image = 128.0
    for pixels, deviation in ((100, 60), (8, 40), (2, 8)):
        small = random.normal(size=(height // pixels + 2, width // pixels + 2, 3))
        image += tf.image.resize(deviation * small, (height, width), "bicubic")
    image = tf.saturate_cast(image, tf.uint8)
    return tf.io.encode_jpeg(image, quality=95).numpy()


def store(folder, name, version, features, examples):
    """Writes the examples to four files, and the first of them again as validation."""
    few = [dict(example) for example in examples[:128]]
    for example in few:
        if isinstance(example["image"], io.BytesIO):
            example["image"] = io.BytesIO(example["image"].getvalue())
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        config=None,
        data_dir=folder,
        features=features,
        split_datasets={
            "train": list(enumerate(examples)),
            "test": list(enumerate(few)),
        },
        download_config=tfds.download.DownloadConfig(num_shards=4),
    )


if __name__ == "__main__":
    main()

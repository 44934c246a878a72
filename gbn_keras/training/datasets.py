"""A named data set of labelled images, as batches whose order any update can reach."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from gbn_keras.training.augmentation import ShiftAndFlip
from gbn_keras.training.settings import UsageError, first_line

# Images read, standardized or evaluated at once.
_CHUNK = 1024

# The others are not augmented (MNIST: its published augmentation was a mistake).
_AUGMENTATION = {"cifar10": ShiftAndFlip(), "cifar100": ShiftAndFlip()}

# Of the 1,797 digits these many are for validation. It leaves 1,536 = 3 x 512 = 2 x 768
# for training, so that large batches drop none of them.
_DIGITS_FOR_VALIDATION = 261


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Labelled images in memory, decoded once.

    Images are `(examples, height, width, channels)` as stored, labels `(examples,)`
    from 0. The batches hold float32 images, standardized by the training images'
    mean and deviation of each channel, and in training augmented.
    """

    name: str
    classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    augmentation: ShiftAndFlip | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.train_images.shape[1:]

    @functools.cached_property
    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the training images, by channel, float32."""
        sums = np.zeros((2, self.image_shape[-1]))
        for start in range(0, len(self.train_images), _CHUNK):
            pixels = self.train_images[start : start + _CHUNK].astype(np.float64)
            sums += [(pixels**power).sum(axis=(0, 1, 2)) for power in (1, 2)]
        mean, square = sums / np.prod(self.train_images.shape[:-1])
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        deviation[deviation == 0] = 1  # A channel that never changes.
        return mean.astype(np.float32), deviation.astype(np.float32)

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        start_update: int = 0,
        replicas: int = 1,
        shares: range = range(1),
    ) -> tf.data.Dataset:
        """The endless stream of training batches from update `start_update` on.

        Every epoch has its own order, which depends on `(seed, epoch)` alone, so any
        update can be reached without the ones before it. The examples that do not
        fill an epoch's last batch are left out of that epoch.

        Args:
            batch_size: Number of examples of an update.
            seed: Of the order and the augmentation.
            start_update: The update to start with.
            replicas: Into how many contiguous shares a batch is cut.
            shares: Which of them to give, one after the other, of each batch.
        """
        examples = len(self.train_images)
        updates_per_epoch = examples // batch_size
        sizes = [updates_per_epoch, replicas, batch_size // replicas]

        def shares_of_epoch(epoch):
            keys = tf.random.stateless_uniform(
                [examples],
                seed=tf.stack([tf.constant(seed, tf.int64), epoch]),
                dtype=tf.int32,
                minval=None,
                maxval=None,
                alg="philox",  # Elsewhere the default is another: the same order there.
            )
            order = tf.argsort(keys, stable=True)
            order = _shares(order[: updates_per_epoch * batch_size], sizes, shares)
            if self.augmentation is None:
                return tf.data.Dataset.from_tensor_slices((order,))
            numbers = self.augmentation.draw(examples, seed, epoch)
            numbers = tf.gather(numbers, order)
            return tf.data.Dataset.from_tensor_slices((order, numbers))

        def augmented(images, labels, *numbers):
            return (self.augmentation(images, *numbers) if numbers else images), labels

        batch = self._gather(self.train_images, self.train_labels)
        first_epoch, done_in_it = divmod(start_update, updates_per_epoch)
        return (
            tf.data.Dataset.range(first_epoch, tf.int64.max)
            .flat_map(shares_of_epoch)
            .skip(done_in_it * len(shares))
            .map(
                lambda indices, *numbers: augmented(*batch(indices), *numbers),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            .prefetch(tf.data.AUTOTUNE)
        )

    def validation_batches(
        self, replicas: int = 1, shares: range = range(1)
    ) -> tf.data.Dataset:
        """The validation examples, in order, with weights.

        All batches are of one size, as accelerators want them: the last is filled up
        with examples of weight 0. All others have weight 1.

        Args:
            replicas: Into how many contiguous shares a batch is cut.
            shares: Which of them to give, one after the other, of each batch.
        """
        examples = len(self.validation_images)
        size = self._validation_share(replicas)
        sizes = [self.validation_steps(replicas), replicas, size]
        batch = self._gather(self.validation_images, self.validation_labels)

        def weighted(places):
            images, labels = batch(tf.minimum(places, examples - 1))
            return images, labels, tf.cast(places < examples, tf.float32)

        return (
            tf.data.Dataset.from_tensor_slices(
                _shares(tf.range(np.prod(sizes)), sizes, shares)
            )
            .map(weighted, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    def validation_steps(self, replicas: int = 1) -> int:
        """Number of validation batches."""
        size = replicas * self._validation_share(replicas)
        return -(-len(self.validation_images) // size)

    def _validation_share(self, replicas):
        return -(-min(_CHUNK, len(self.validation_images)) // replicas)

    def _gather(self, images, labels):
        """A function from a vector of indices to their batch, assembled in bulk."""
        images, labels = tf.constant(images), tf.constant(labels)
        mean, deviation = self.mean_and_deviation

        def batch(indices):
            pixels = tf.cast(tf.gather(images, indices), tf.float32)
            return (pixels - mean) / deviation, tf.gather(labels, indices)

        return batch


def load(name: str, data_dir: str | None = None, download: bool = False) -> ImageData:
    """Loads a data set by its name.

    Args:
        name: `digits` (scikit-learn's, embedded), or any name that
            tensorflow-datasets knows or finds in `data_dir`.
        data_dir: Where tensorflow-datasets' prepared data lies; by default in
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        download: Whether data that is not there may be downloaded and prepared.

    Raises:
        UsageError: If the data is not there, or is not labelled images of one size.
    """
    if name == "digits":
        return _load_digits()
    builder = _prepared_builder(name, data_dir, download)
    splits = builder.info.splits
    validation = next((s for s in ("validation", "test") if s in splits), None)
    if "train" not in splits or validation is None:
        raise UsageError(
            f"--dataset: {name} has the splits {', '.join(splits) or 'none'}; wanted "
            "train, and validation or test. Choose another data set."
        )
    image_key, label_key = _image_and_label(name, builder.info.features)
    arrays = {}
    for part, split in (("train", "train"), ("validation", validation)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _read(
            builder, split, image_key, label_key
        )
    classes = builder.info.features[label_key].num_classes
    return ImageData(
        name=name, classes=classes, augmentation=_AUGMENTATION.get(name), **arrays
    )


def _load_digits():
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
    return ImageData(
        name="digits",
        classes=10,
        train_images=train_images,
        train_labels=train_labels,
        validation_images=validation_images,
        validation_labels=validation_labels,
    )


def _shares(places, sizes, shares):
    """Cuts places by `sizes`: batches, replicas, examples; gives some replicas'."""
    cut = tf.reshape(places, sizes)[:, shares.start : shares.stop]
    return tf.reshape(cut, [-1, sizes[-1]])


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


def _read(builder, split, image_key, label_key):
    """One split as arrays of images and labels, in the order of its files."""
    name = builder.info.name
    if builder.info.splits[split].num_examples == 0:
        raise UsageError(
            f"--dataset: the {split} split of {name} has 0 examples, wanted at least "
            "1. Prepare it again, or choose another data set."
        )
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False),
    ).map(lambda example: (example[image_key], example[label_key]))
    if None in builder.info.features[image_key].shape:
        images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
        _check_one_size(name, images)
        images, labels = np.stack(images), np.stack(labels)
    else:
        chunks = zip(*dataset.batch(_CHUNK).as_numpy_iterator(), strict=True)
        images, labels = (np.concatenate(chunk) for chunk in chunks)
    if labels.min() < 0:
        raise UsageError(
            f"--dataset: the {split} split of {name} has the label {labels.min()}, "
            "which stands for none. Choose a data set with labels."
        )
    return images, labels.astype(np.int32)


def _check_one_size(name, images):
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        raise UsageError(
            f"--dataset: {name} has images of {len(sizes)} sizes, {sizes[0]} and "
            f"{sizes[-1]} among them; the network needs one. Choose another data set, "
            "or resize the images when you prepare it."
        )

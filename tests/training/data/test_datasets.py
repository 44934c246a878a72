"""A data set is read whole, in the order of the seed, and a damaged one is refused."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from marks import slow
from tensorflow_datasets.core.download import downloader

from gbn_keras.shares import Shares
from gbn_keras.training.data import datasets
from gbn_keras.training.data.augmentation import ShiftAndFlip
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def features(shape=(6, 5, 3), label=True):
    image = {"image": tfds.features.Image(shape=shape)}
    labels = {"label": tfds.features.ClassLabel(num_classes=4)} if label else {}
    return tfds.features.FeaturesDict({**image, **labels})


def examples(count, shape=(6, 5, 3), seed=0, label=None):
    random = np.random.default_rng(seed)
    for i in range(count):
        image = random.integers(0, 256, shape, np.uint8)
        yield {"image": image, "label": i % 4 if label is None else label}


def labels_of(batches, count):
    return [labels.numpy().tolist() for _, labels in batches.take(count)]


def indices_of(data, batches, count):
    """Which training examples the batches hold, found by their pixels."""
    mean, deviation = data.mean_and_deviation
    pixels = data.train_images.reshape(len(data.train_images), -1)
    place = {row.tobytes(): i for i, row in enumerate(pixels)}
    found = []
    for images, _ in batches.take(count):
        stored = np.rint(images.numpy() * deviation + mean).astype(np.uint8)
        found += [place[row.tobytes()] for row in stored.reshape(len(stored), -1)]
    return found


def test_the_digits_are_the_embedded_ones(digits):
    assert digits.train_images.shape == (1536, 8, 8, 1)
    assert digits.validation_images.shape == (261, 8, 8, 1)
    assert digits.classes == 10 and digits.examples == 1536
    assert set(digits.train_labels) == set(digits.validation_labels) == set(range(10))


def test_batches_are_standardized(digits):
    images = np.concatenate([x for x, _ in digits.training_batches(512, 0).take(3)])
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.mean(), 0, atol=1e-4)
    np.testing.assert_allclose(images.std(), 1, rtol=1e-4)


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own(digits):
    # Some digits look the same in these few pixels; count only those that do not.
    batches = digits.training_batches(512, seed=3)
    found = indices_of(digits, batches, 6)
    first, second = found[:1536], found[1536:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) > 1500
    assert first != second


def test_the_order_is_decided_by_the_seed(digits):
    def first_labels(seed):
        return labels_of(digits.training_batches(64, seed), 30)

    assert first_labels(1) == first_labels(1)
    assert first_labels(1) != first_labels(2)


@pytest.mark.parametrize("start_update", [slow(1), 4, 5, slow(6), slow(11), 52])
def test_any_update_can_be_reached_directly(digits, start_update):
    # 1,536 examples in batches of 300: five updates an epoch and a remainder.
    batches = digits.training_batches(300, seed=5)
    expected = labels_of(batches.skip(start_update), 7)
    assert labels_of(digits.training_batches(300, 5, start_update), 7) == expected


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_validation_takes_every_example_once(digits, replicas):
    # 1,536 examples: more than one batch; the last is filled up.
    larger = dataclasses.replace(
        digits,
        validation_images=digits.train_images,
        validation_labels=digits.train_labels,
    )
    for data in (larger, digits):
        batches = data.validation_batches(Shares(replicas, 0, replicas))
        assert len({images.shape for images, _, _ in batches}) == 1
        assert len(batches) == replicas * data.validation_steps(replicas)
        labels = np.concatenate([labels for _, labels, _ in batches])
        weights = np.concatenate([weights for _, _, weights in batches])
        np.testing.assert_array_equal(labels[weights > 0], data.validation_labels)
        assert (weights[: len(data.validation_labels)] > 0).all()


def test_an_only_validation_batch_is_that_of_the_pipeline_made_once(digits):
    batches = digits.validation_batches()
    assert batches is digits.validation_batches()
    pipeline = LabelledImages.validation_batches(digits)
    assert batches.element_spec == pipeline.element_spec
    (found,), (expected,) = batches, pipeline
    for ours, made in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, made)


@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_a_mean_over_all_places_is_the_mean_over_the_examples(digits, replicas):
    larger = dataclasses.replace(
        digits,
        validation_images=digits.train_images,
        validation_labels=digits.train_labels,
    )
    batches = larger.validation_batches(Shares(replicas, 0, replicas))
    weighted = np.stack([y.numpy() * weight for _, y, weight in batches])
    assert weighted.size == 2048
    np.testing.assert_allclose(weighted.mean(), digits.train_labels.mean(), rtol=1e-6)


@pytest.mark.parametrize("replicas", [slow(2), 4])
def test_replicas_get_contiguous_shares(digits, replicas):
    expected = labels_of(digits.training_batches(512, 5, 4), 7)
    middle = replicas // 2
    for first, number in ((0, replicas), (0, middle), (middle, replicas - middle)):
        parts = digits.training_batches(512, 5, 4, Shares(replicas, first, number))
        found = np.reshape(labels_of(parts, 7 * number), (7, number, -1))
        whole = np.reshape(expected, (7, replicas, -1))
        np.testing.assert_array_equal(found, whole[:, first : first + number])


def test_a_prepared_data_set_is_read(write_dataset):
    data_dir = write_dataset(
        features=features(), train=list(examples(50)), test=list(examples(9, seed=1))
    )
    data = datasets.load("tiny", data_dir)
    assert data.classes == 4
    assert data.image_shape == (6, 5, 3)
    assert len(data.train_labels) == 50 and len(data.validation_labels) == 9
    stored = {e["image"].tobytes(): e["label"] for e in examples(50)}
    read = zip(data.train_images, data.train_labels, strict=True)
    assert {image.tobytes(): label for image, label in read} == stored


def test_the_validation_split_comes_before_the_test_split(write_dataset):
    data_dir = write_dataset(
        features=features(),
        train=list(examples(8)),
        validation=list(examples(5)),
        test=list(examples(6)),
    )
    assert len(datasets.load("tiny", data_dir).validation_labels) == 5


def test_only_the_first_training_examples_are_taken(write_dataset, digits):
    data_dir = write_dataset(
        features=features(), train=list(examples(50)), test=list(examples(9, seed=1))
    )
    for all_of_them, few in (
        (
            datasets.load("tiny", data_dir),
            datasets.load("tiny", data_dir, train_examples=30),
        ),
        (digits, datasets.load("digits", train_examples=30)),
    ):
        assert few.examples == len(few.train_images) == 30
        np.testing.assert_array_equal(few.train_images, all_of_them.train_images[:30])
        np.testing.assert_array_equal(few.train_labels, all_of_them.train_labels[:30])
        for part in ("validation_images", "validation_labels"):
            np.testing.assert_array_equal(
                getattr(few, part), getattr(all_of_them, part)
            )


@pytest.mark.parametrize("name, most", [("digits", 1536), ("tiny", 7)])
def test_more_training_examples_than_there_are_are_refused(name, most, write_dataset):
    data_dir = write_dataset(
        features=features(), train=list(examples(7)), test=list(examples(4))
    )
    assert datasets.load(name, data_dir, train_examples=most).examples == most
    for wrong in (most + 1, -1):
        with pytest.raises(UsageError, match="^--train_examples: ") as error:
            datasets.load(name, data_dir, train_examples=wrong)
        assert f"got {wrong}, wanted at most {most}" in str(error.value)


def test_cifar100_is_its_hundred_fine_classes_augmented(tmp_path):
    def split(count):
        random = np.random.default_rng(count)
        for i in range(count):
            image = random.integers(0, 256, (32, 32, 3), np.uint8)
            labels = {"coarse_label": i % 20, "label": i % 100}
            yield {"id": f"{i:06}", "image": image, **labels}

    builder = tfds.builder("cifar100", data_dir=tmp_path)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar100",
        version=builder.version,
        config=None,
        data_dir=tmp_path,
        features=builder.info.features,
        split_datasets={
            k: list(enumerate(split(n))) for k, n in (("train", 100), ("test", 3))
        },
    )
    for name in ("cifar100", f"cifar100:{builder.version}"):
        data = datasets.load(name, str(tmp_path))
        assert data.classes == 100 and data.image_shape == (32, 32, 3)
        assert sorted(data.train_labels) == list(range(100))
        assert data.augmentation == ShiftAndFlip(4)


def test_images_of_unknown_but_equal_size_are_read(write_dataset):
    data_dir = write_dataset(
        features=features((None, None, 3)),
        train=list(examples(8)),
        test=list(examples(5)),
    )
    assert datasets.load("tiny", data_dir).image_shape == (6, 5, 3)


def test_a_constant_channel_is_not_divided_by_zero(write_dataset):
    black = [{"image": np.zeros((6, 5, 3), np.uint8), "label": 1}] * 4
    data_dir = write_dataset(features=features(), train=black, test=black)
    images, _ = next(iter(datasets.load("tiny", data_dir).training_batches(4, 0)))
    np.testing.assert_array_equal(images, np.zeros((4, 6, 5, 3)))


def refused(received, *load_arguments):
    with pytest.raises(UsageError) as error:
        datasets.load(*load_arguments)
    assert str(received) in str(error.value)
    assert str(error.value).startswith("--dataset: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_data_that_is_not_there_names_both_remedies(tmp_path):
    message = refused(tmp_path, "cifar100", str(tmp_path))
    assert "cifar100" in message
    assert "--data_dir" in message and "--download" in message


@pytest.mark.parametrize("name", ["no_such_set", "../mnist", "", "mnist:9.9.9"])
def test_a_name_that_no_data_set_has_is_refused(name, tmp_path):
    refused(repr(name), name, str(tmp_path))


def test_a_data_set_without_labels_is_refused(write_dataset):
    unlabelled = [{"image": e["image"]} for e in examples(4)]
    data_dir = write_dataset(
        features=features(label=False), train=unlabelled, test=unlabelled
    )
    refused("tiny has no label feature", "tiny", data_dir)


def test_labels_that_stand_for_none_are_refused(write_dataset):
    data_dir = write_dataset(
        features=features(),
        train=list(examples(4)),
        test=list(examples(4, label=-1)),
    )
    refused("label -1", "tiny", data_dir)


def test_a_pixel_that_is_not_finite_is_found_before_the_training(write_dataset):
    floats = tfds.features.Image(shape=(6, 5, 1), dtype=np.float32)
    label = tfds.features.ClassLabel(num_classes=4)
    good = [{"image": np.zeros((6, 5, 1), np.float32), "label": 1}] * 4
    bad = {"image": np.full((6, 5, 1), np.nan, np.float32), "label": 1}
    data_dir = write_dataset(
        features=tfds.features.FeaturesDict({"image": floats, "label": label}),
        train=[*good, bad],
        test=good,
    )
    message = refused("of the train split of tiny", "tiny", data_dir)
    assert "a pixel that is not finite" in message


def test_images_of_unequal_size_are_refused(write_dataset):
    mixed = [*examples(2, (6, 5, 3)), *examples(2, (7, 4, 3))]
    data_dir = write_dataset(
        features=features((None, None, 3)), train=mixed, test=mixed
    )
    message = refused("(6, 5, 3)", "tiny", data_dir)
    assert "(7, 4, 3)" in message


def test_an_empty_split_is_refused(write_dataset):
    data_dir = write_dataset(
        features=features(), train=list(examples(4)), test=list(examples(4))
    )
    # tensorflow-datasets itself does not write one, but a conversion may.
    folder = pathlib.Path(data_dir, "tiny", "1.0.0")
    (folder / "tiny-train.tfrecord-00000-of-00001").write_bytes(b"")
    info = json.loads((folder / "dataset_info.json").read_text())
    next(s for s in info["splits"] if s["name"] == "train")["shardLengths"] = ["0"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    refused("0 examples", "tiny", data_dir)


@pytest.mark.parametrize("damage", ["missing", "cut off", "too short", "flipped"])
def test_a_damaged_file_ends_in_one_line(damage, write_dataset):
    data_dir = write_dataset(
        features=features(), train=list(examples(9)), test=list(examples(4))
    )
    file = pathlib.Path(data_dir, "tiny/1.0.0/tiny-train.tfrecord-00000-of-00001")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(content[:-3])
    elif damage == "too short":  # By whole records, which TensorFlow does not mind.
        size = int.from_bytes(content[:8], "little") + 16
        file.write_bytes(content[:size])
    else:
        file.write_bytes(content[:500] + bytes([content[500] ^ 255]) + content[501:])
    refused(file, "tiny", data_dir)


def test_a_data_set_without_validation_is_refused(write_dataset):
    data_dir = write_dataset(features=features(), train=list(examples(4)))
    refused("splits train", "tiny", data_dir)


def test_a_download_without_a_network_ends_in_one_line(tmp_path, monkeypatch):
    retries = downloader.MAX_RETRIES

    def unreachable(builder, **_):
        assert downloader.MAX_RETRIES < retries
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    with pytest.raises(UsageError, match="ConnectionError: no route to host") as error:
        datasets.load("cifar100", str(tmp_path), download=True)
    assert "\n" not in str(error.value)
    # What the user's own code downloads is tried as often as before.
    assert downloader.MAX_RETRIES == retries


def test_batches_have_static_shapes(digits):
    images, labels = digits.training_batches(64, 0).element_spec
    assert images.shape[1:] == (8, 8, 1) and images.dtype == tf.float32
    assert labels.dtype == tf.int32

"""JPEGs of any size are trained with from the disk, and damaged files are named."""

import dataclasses
import io
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from jpegs import SIZES, jpeg, picture
from marks import slow

from gbn_keras.shares import Shares
from gbn_keras.training import trainer
from gbn_keras.training.data import datasets, jpeg_images
from gbn_keras.training.errors import UsageError
from gbn_keras.training.trained import evaluation

TRAIN, VALIDATION, SIZE = 42, 10, 64


def write(folder, label=None):
    """Writes a data set as imagenet2012 is stored; an example's label is its number."""
    numbers = iter(range(TRAIN + VALIDATION))

    def split(count):
        for number in [next(numbers) for _ in range(count)]:
            mode = {5: "L", 6: "CMYK"}.get(number, "RGB")
            pixels = picture(*SIZES[number % len(SIZES)], kind=number)
            yield {
                "image": io.BytesIO(jpeg(pixels, mode)),
                "label": number if label is None else label,
                "file_name": f"{number}.JPEG",
            }

    tfds.dataset_builders.store_as_tfds_dataset(
        name="photos",
        version="1.0.0",
        config=None,
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=TRAIN + VALIDATION),
                "file_name": tfds.features.Text(),
            }
        ),
        split_datasets={
            "train": list(enumerate(split(TRAIN))),
            "validation": list(enumerate(split(VALIDATION))),
        },
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def photos(data_dir):
    return datasets.load("photos", data_dir, image_size=SIZE)


@pytest.fixture
def shards(data_dir, tmp_path):
    """The training split's files, in a copy of the data that a test may damage."""
    shutil.copytree(data_dir, tmp_path / "tfds")
    return sorted((tmp_path / "tfds").glob("photos/1.0.0/*-train.tfrecord-*"))


def labels_in_files(data_dir, split):
    dataset = tfds.builder("photos", data_dir=data_dir).as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    return [example["label"] for example in dataset.as_numpy_iterator()]


def labels_of(batches, count):
    return np.concatenate([batch[1] for batch in batches.take(count)]).tolist()


def test_jpegs_of_many_sizes_stay_on_disk(photos):
    assert isinstance(photos, jpeg_images.JpegImages)
    assert photos.image_shape == (SIZE, SIZE, 3)
    assert photos.examples == TRAIN and photos.classes == TRAIN + VALIDATION
    assert len(photos.training.files) == 3


def test_every_record_is_found_at_its_place(photos, data_dir):
    records = tf.data.Dataset.range(TRAIN).map(photos.training.reader())
    read = [label for _, label in records.map(photos.parse).as_numpy_iterator()]
    assert read == labels_in_files(data_dir, "train")


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own(photos):
    found = labels_of(photos.training_batches(14, seed=3), 6)
    first, second = found[:TRAIN], found[TRAIN:]
    assert sorted(first) == sorted(second) == list(range(TRAIN))
    assert first != second
    assert labels_of(photos.training_batches(14, seed=4), 3) != first


@pytest.mark.parametrize("fixed_scale", [False, True])
def test_any_update_can_be_reached_directly(photos, fixed_scale):
    # 42 examples in batches of 12: three updates an epoch and a remainder.
    photos = dataclasses.replace(photos, fixed_scale=fixed_scale)
    expected = list(photos.training_batches(12, 5).take(6))
    for start_update in (3, 5):
        batches = photos.training_batches(12, 5, start_update).take(1)
        for images, labels in batches:
            np.testing.assert_array_equal(images, expected[start_update][0])
            np.testing.assert_array_equal(labels, expected[start_update][1])


@pytest.mark.parametrize("replicas", [slow(2), 4])
def test_shares_join_to_the_whole_batch(photos, replicas):
    expected = list(photos.training_batches(12, 5, 2).take(2))
    half, size = replicas // 2, 12 // replicas
    for first, number in ((0, replicas), (0, 1), (half, replicas - half)):
        parts = photos.training_batches(12, 5, 2, Shares(replicas, first, number))
        parts = list(parts.take(2 * number))
        for update, (images, labels) in enumerate(expected):
            of_update = parts[update * number :][:number]
            window = slice(first * size, (first + number) * size)
            for whole, pieces in zip(
                (images, labels), zip(*of_update, strict=True), strict=True
            ):
                np.testing.assert_array_equal(whole[window], np.concatenate(pieces))


def test_an_example_looks_different_in_every_epoch(photos):
    epochs = []
    for batches in (photos.training_batches(TRAIN, 1, u).take(1) for u in (0, 1)):
        ((images, labels),) = batches
        epochs.append(images.numpy()[np.argsort(labels)])
    assert (abs(epochs[0] - epochs[1]).mean(axis=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_validation_is_in_order_and_filled_up(photos, data_dir, replicas, monkeypatch):
    monkeypatch.setattr(jpeg_images.JpegImages, "largest_validation_batch", 6)
    batches = list(photos.validation_batches(Shares(replicas, 0, replicas)))
    assert len({images.shape for images, *_ in batches}) == 1
    assert len(batches) == replicas * photos.validation_steps(replicas) == 2 * replicas
    labels, weights = (np.concatenate([b[k] for b in batches]) for k in (1, 2))
    expected = labels_in_files(data_dir, "validation")
    np.testing.assert_array_equal(labels[:VALIDATION], expected)
    np.testing.assert_allclose(weights[:VALIDATION], 12 / 10)
    np.testing.assert_array_equal(weights[VALIDATION:], [0, 0])


def test_validation_shows_the_standardized_center(photos):
    (images, labels, _), *_ = photos.validation_batches()
    for image, label in zip(images, labels, strict=True):
        height, width = SIZES[label % len(SIZES)]
        shape = np.array([height, width]) * 73 // min(height, width)
        content = jpeg(picture(height, width, kind=label.numpy()))
        whole = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")
        scaled = tf.image.resize(whole, shape, antialias=True).numpy()
        top, left = (shape - SIZE) // 2
        center = scaled[top : top + SIZE, left : left + SIZE]
        expected = center / 255 - [0.485, 0.456, 0.406]
        expected /= [0.229, 0.224, 0.225]
        # Within half a gray level.
        np.testing.assert_allclose(image, expected, atol=0.5 / 255 / 0.229)


def test_batches_have_static_shapes(photos):
    images, labels = photos.training_batches(12, 0, shares=Shares(2)).element_spec
    assert images == tf.TensorSpec([6, SIZE, SIZE, 3], tf.float32)
    assert labels == tf.TensorSpec([6], tf.int32)
    assert photos.validation_batches().element_spec == (
        tf.TensorSpec([VALIDATION, SIZE, SIZE, 3], tf.float32),
        tf.TensorSpec([VALIDATION], tf.int32),
        tf.TensorSpec([VALIDATION], tf.float32),
    )


def test_the_first_examples_alone_can_be_trained_with(data_dir):
    data = datasets.load("photos", data_dir, train_examples=20, image_size=SIZE)
    assert data.examples == 20
    expected = labels_in_files(data_dir, "train")[:20]
    found = labels_of(data.training_batches(10, 0), 2)
    assert sorted(found) == sorted(expected)


def refused(folder, *received):
    with pytest.raises(UsageError) as error:
        datasets.load("photos", str(folder), image_size=SIZE)
    message = str(error.value)
    assert message.startswith("--dataset: ") and "\n" not in message
    for part in received:
        assert str(part) in message


@pytest.mark.parametrize("shard", [0, 2])
def test_a_missing_file_is_named(shards, shard):
    shards[shard].unlink()
    refused(shards[0].parents[2], shards[shard], "No such file")


@pytest.mark.parametrize("cut", [1, 17, 5000])
def test_a_file_that_is_cut_off_is_named(shards, cut):
    content = shards[1].read_bytes()[:-cut]
    shards[1].write_bytes(content)
    refused(shards[0].parents[2], shards[1], f"{len(content):,} bytes")


def test_a_file_with_too_few_records_is_named(shards, photos):
    # Cut where the second file's last record begins.
    of_shard = photos.training.offset[photos.training.file == 1]
    shards[1].write_bytes(shards[1].read_bytes()[: of_shard[-1]])
    wanted = len(of_shard)
    refused(
        shards[0].parents[2], shards[1], f"{wanted - 1} records", f"wanted {wanted}"
    )


@pytest.mark.parametrize("shard", [0, 1])
def test_damaged_bytes_at_the_front_are_found_at_once(shards, shard):
    damage(shards[shard], 1000)
    refused(shards[0].parents[2], shards[shard], "checksum")


def test_damaged_bytes_elsewhere_are_not_trained_with(shards, photos):
    # Only what is asked for is read, so the shares without that record are well.
    ((whole, labels),) = photos.training_batches(TRAIN, 0).take(1)
    place = labels_in_files(str(shards[0].parents[2]), "train").index(labels[-1])
    data = datasets.load("photos", str(shards[0].parents[2]), image_size=SIZE)
    damage(shards[data.training.file[place]], data.training.offset[place] + 1000)
    first, second = (
        data.training_batches(TRAIN, 0, shares=Shares(2, share)) for share in (0, 1)
    )
    np.testing.assert_array_equal(next(iter(first))[0], whole[: TRAIN // 2])
    with pytest.raises(tf.errors.DataLossError):
        next(iter(second))


def damage(file: pathlib.Path, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 255
    file.write_bytes(content)


def test_labels_that_stand_for_none_are_refused(tmp_path):
    refused(write(tmp_path, label=-1), "the label -1 in the train split of photos")


def photo_flags(data_dir, model):
    return (
        *(f"--data_dir={data_dir}", "--dataset=photos", f"--model={model}"),
        *(f"--image_size={SIZE}", "--batch_size=12", "--small_batch_size=6"),
    )


@pytest.mark.parametrize("model", ["c1", "alexnet", slow("resnet18")])
def test_alexnet_has_the_crops_of_its_recipe(data_dir, make_settings, model):
    data = trainer.load_data(make_settings(*photo_flags(data_dir, model)))
    assert data.fixed_scale == (model == "alexnet")


# The networks for such images take half a minute to trace.
@pytest.mark.parametrize(
    "model, fixed_scale",
    [
        ("f1_digits", False),
        slow("c1", False),
        slow("c1", True),
        slow("resnet18", False),
        slow("alexnet", True),
    ],
)
def test_a_network_trains_on_them(data_dir, make_settings, model, fixed_scale):
    flags = (*photo_flags(data_dir, model), "--epochs=1", "--max_updates=2")
    settings = make_settings(*flags)
    data = dataclasses.replace(trainer.load_data(settings), fixed_scale=fixed_scale)
    result = trainer.train(settings, data, verbose=0)
    assert result["updates"] == 2
    # Each of the 10 validation examples counts alike, whatever fills up their batch.
    correct = 10 * result["accuracy"]
    assert correct == pytest.approx(round(correct), abs=1e-4)
    assert evaluation.evaluate(settings)["loss"] == pytest.approx(
        result["loss"], rel=1e-4
    )


def harm(file, how, begin):
    """Does something to a file of which a record begins at `begin`."""
    content = file.read_bytes()
    if how == "vanished":
        file.unlink()
    elif how == "cut off":
        file.write_bytes(content[: begin + 500])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        damage(file, begin + {"flipped data": 1000, "flipped length": 2}[how])


@pytest.fixture(scope="module")
def loaded(data_dir, tmp_path_factory):
    """A copy of the data, its batches, and the file that is harmed, with its bytes."""
    folder = shutil.copytree(data_dir, tmp_path_factory.mktemp("loaded") / "tfds")
    data = datasets.load("photos", str(folder), image_size=SIZE)
    file = pathlib.Path(data.training.files[1])
    return data, data.training_batches(TRAIN, 0), file, file.read_bytes()


@pytest.mark.parametrize(
    "how", ["vanished", "cut off", "empty", "flipped data", "flipped length"]
)
def test_a_file_that_is_harmed_after_loading_is_named(loaded, how):
    data, batches, file, content = loaded
    file.write_bytes(content)
    harm(file, how, data.training.offset[data.training.file == 1][2])
    with pytest.raises(UsageError) as error, datasets.one_line_if_damaged(data):
        next(iter(batches))
    message = str(error.value)
    assert message.startswith(f"--dataset: {file} ") and "\n" not in message
    assert message.endswith("Copy the file again, or prepare photos again.")


def test_what_is_no_damage_keeps_its_error(photos):
    with pytest.raises(tf.errors.InvalidArgumentError, match="something else"):
        with datasets.one_line_if_damaged(photos):
            tf.debugging.assert_equal(1, 2, "something else")


def test_an_image_that_cannot_be_decoded_is_told(photos):
    # Whole for TensorFlow's checksum: it was written so.
    half = dataclasses.replace(
        photos,
        parse=lambda record: (tf.strings.substr(photos.parse(record)[0], 0, 700), 0),
    )
    with pytest.raises(UsageError, match="photos holds an image that cannot be"):
        with datasets.one_line_if_damaged(half):
            next(iter(half.training_batches(TRAIN, 0)))


def test_the_training_tells_of_harmed_files(shards, make_settings, monkeypatch):
    settings = make_settings(
        *photo_flags(shards[0].parents[2], "f1_digits"), "--batch_size=42"
    )
    # As Keras's does, without what the network takes.
    monkeypatch.setattr(keras.Model, "fit", lambda model, x, **_: next(iter(x)))
    data = trainer.load_data(settings)
    shards[0].unlink()
    with pytest.raises(UsageError, match=f"^--dataset: {shards[0]} cannot be read"):
        trainer.train(settings, data, verbose=0)

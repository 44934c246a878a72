"""Data sets prepared as ArrayRecord files hold what the same TFRecord files do."""

import io
import json
import pathlib
import resource
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets import features as F

from gbn_keras.shares import Shares
from gbn_keras.training.data import array_records, datasets
from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.data.jpeg_images import JpegImages
from gbn_keras.training.errors import UsageError

FORMATS = ("tfrecord", "array_record")
IMAGE, LABEL = F.Image(shape=(6, 5, 3)), F.ClassLabel(num_classes=4)
JPEG = F.Image(encoding_format="jpeg")


def pictures(count):
    random = np.random.default_rng(count)
    for number in range(count):
        image = random.integers(0, 256, (6, 5, 3), np.uint8)
        yield {"image": image, "label": number % 4, "id": f"{number}\0"}


def jpegs(count):
    for number in range(count):
        pixels = np.full((20 + number % 3, 25, 3), 5 * number, np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95)
        image = io.BytesIO(file.getvalue())
        yield {"image": image, "label": number % 4, "id": f"{number}\0"}


def write(folder, file_format, examples, **features):
    """A data set of three files a split; returns where it is."""
    splits = {"train": 40, "validation": 10}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        config=None,
        data_dir=folder / file_format,
        features=F.FeaturesDict({**features, "id": F.Text()}),
        split_datasets={k: list(enumerate(examples(n))) for k, n in splits.items()},
        file_format=file_format,
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    return str(folder / file_format)


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    """The folders of one data set in both formats."""
    folder = tmp_path_factory.mktemp("in_memory")
    return [write(folder, f, pictures, image=IMAGE, label=LABEL) for f in FORMATS]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, request):
    """The folders of one data set of JPEGs of many sizes in both formats."""
    folder = tmp_path_factory.mktemp("on_disk")
    return [write(folder, f, jpegs, image=JPEG, label=request.param) for f in FORMATS]


def assert_same(one, other):
    for mine, its in zip(one, other, strict=True):
        for values, expected in zip(mine, its, strict=True):
            np.testing.assert_array_equal(values, expected)


CHOICE = {
    "train_split": "train[5:35]",
    "validation_split": "train[:5]+train[36:]",
    "train_examples": 27,
}


@pytest.mark.parametrize("choice", [{}, CHOICE])
def test_images_in_memory_are_the_same_in_the_same_order(in_memory, choice):
    one, other = (datasets.load("tiny", folder, **choice) for folder in in_memory)
    assert isinstance(other, ImageData)
    assert (one.classes, one.choice) == (other.classes, other.choice)
    for part in ("train_images", "train_labels"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    assert_same(*(data.training_batches(8, 3, 2).take(4) for data in (one, other)))
    assert_same(one.validation_batches(), other.validation_batches())


@pytest.mark.parametrize(
    "on_disk, choice",
    [(LABEL, {}), (LABEL, CHOICE), (F.Scalar(np.int64), CHOICE)],
    indirect=["on_disk"],
)
def test_jpegs_on_disk_make_the_same_batches(on_disk, choice):
    one, other = (
        datasets.load("tiny", folder, image_size=8, **choice) for folder in on_disk
    )
    assert isinstance(other, JpegImages)
    assert (one.classes, one.examples) == (other.classes, other.examples) != (0, 0)
    assert_same(*(data.training_batches(8, 3, 2).take(4) for data in (one, other)))
    second = Shares(replicas=2, first=1)
    assert_same(
        *(data.training_batches(8, 3, 2, second).take(4) for data in (one, other))
    )
    assert_same(one.validation_batches(), other.validation_batches())


def refused(folder, *received):
    with pytest.raises(UsageError) as error:
        datasets.load("tiny", str(folder), image_size=8)
    message = str(error.value)
    assert message.startswith("--dataset: ") and "\n" not in message
    for part in received:
        assert str(part) in message
    return message


@pytest.fixture(params=["in_memory", "on_disk"])
def files(request, tmp_path):
    """The training split's files, in a copy of the data that a test may damage."""
    if request.param == "in_memory":
        folder = request.getfixturevalue("in_memory")[1]
    else:
        folder = write(tmp_path / "first", FORMATS[1], jpegs, image=JPEG, label=LABEL)
    shutil.copytree(folder, tmp_path / "copy")
    return sorted((tmp_path / "copy").glob("tiny/1.0.0/*-train.array_record-*"))


def test_a_missing_file_is_named(files):
    files[1].unlink()
    refused(files[0].parents[2], files[1], "No such file", "Copy the file again")


def test_a_file_that_is_cut_off_is_named(files):
    files[1].write_bytes(files[1].read_bytes()[:-100])
    refused(files[0].parents[2], files[1], "cannot be read")


def test_a_file_with_too_few_records_is_named(files):
    info = json.loads((files[0].parent / "dataset_info.json").read_text())
    split = next(split for split in info["splits"] if split["name"] == "train")
    held = split["shardLengths"][1]
    split["shardLengths"][1] = "99"
    (files[0].parent / "dataset_info.json").write_text(json.dumps(info))
    refused(files[0].parents[2], files[1], f"holds {held} records, wanted 99")


def flip(file):
    """Changes a byte in the middle of the records."""
    content = bytearray(file.read_bytes())
    content[len(content.rstrip(b"\0")) // 2 % 1000 + 200] ^= 255
    file.write_bytes(content)


def test_a_wrong_checksum_is_found_and_the_file_named(files):
    flip(files[2])
    folder = str(files[0].parents[2])
    with pytest.raises(UsageError) as error:
        data = datasets.load("tiny", folder, image_size=8)
        with datasets.one_line_if_damaged(data):
            list(data.training_batches(40, 1).take(1))
    message = str(error.value)
    assert f"{files[2]} is damaged (" in message and "hash mismatch" in message
    assert message.startswith("--dataset: ") and "\n" not in message


def test_without_the_package_one_line_says_what_to_do(in_memory, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    message = refused(in_memory[1], "got tiny, which is stored as array_record")
    assert "pip install array_record" in message and "as tfrecord" in message
    datasets.load("tiny", in_memory[0])


def test_as_many_files_may_be_open_as_the_data_set_has(in_memory, monkeypatch):
    allowed = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2, 4))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: allowed.append(limits))
    datasets.load("tiny", in_memory[1])
    assert set(allowed) == {(4, 4)}


def test_records_are_found_at_their_places(in_memory):
    (folder,) = pathlib.Path(in_memory[1]).glob("tiny/*")
    splits = tfds.builder("tiny", data_dir=in_memory[1]).info.splits
    parts = datasets.training_and_validation("tiny", splits)[0].parts
    records = array_records.ArrayRecords("tiny", parts)
    assert len(records) == 40 and len(records.files) == 3
    assert records.starts.tolist()[0] == 0 and len(records.starts) == 3
    assert {pathlib.Path(file).parent for file in records.files} == {folder}

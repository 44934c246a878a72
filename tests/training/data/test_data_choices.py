"""The flags choose a data set's examples and features; a wrong choice is refused."""

import functools
import io
import json
import pathlib

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from data_sets import store
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_tuner.engine.base_tuner import BaseTuner
from marks import slow

from gbn_keras.training import trainer
from gbn_keras.training.data import datasets, examples
from gbn_keras.training.data.image_data import ImageData
from gbn_keras.training.data.jpeg_images import JpegImages
from gbn_keras.training.data.splits import Part, Split
from gbn_keras.training.errors import UsageError
from gbn_keras.training.search import tuning

F = tfds.features
IN_ORDER = tfds.ReadConfig(interleave_cycle_length=1)
IMAGE, LABEL = F.Image(shape=(4, 3, 1)), F.ClassLabel(num_classes=5)


def pictures(count, first=0):
    """Examples whose pixels are their number, and labels with it."""
    for number in range(first, first + count):
        yield {"image": np.full((4, 3, 1), number, np.uint8), "label": number % 5}


def numbers(images):
    """Of the examples that hold these images."""
    return images[:, 0, 0, 0].tolist()


def write_to(folder, train, test=None, validation=None, supervised=None, **features):
    """Writes examples with these features; returns the folder."""
    splits = {"train": train, "test": test, "validation": validation}
    data_dir = store(
        folder,
        features=F.FeaturesDict(features or {"image": IMAGE, "label": LABEL}),
        **{k: list(v) for k, v in splits.items() if v is not None},
    )
    if supervised:
        info = pathlib.Path(data_dir, "tiny", "1.0.0", "dataset_info.json")
        keys = [{"featureKey": key} for key in supervised]
        content = json.loads(info.read_text())
        content["supervisedKeys"] = {"tuple": {"items": keys}}
        info.write_text(json.dumps(content))
    return data_dir


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_to, tmp_path / "tfds")


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory):
    splits = {"test": pictures(20, 50), "validation": pictures(10, 70)}
    return write_to(tmp_path_factory.mktemp("tfds"), pictures(50), **splits)


def refused(data_dir, **choices):
    with pytest.raises(UsageError) as error:
        datasets.load("tiny", data_dir, **choices)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "train, validation, sizes",
    [
        ("train[:90%]", "train[90%:]", (45, 5)),
        slow("train[10:30]", "train[30:]", (20, 20)),
        ("train+validation", "test", (60, 20)),
        ("train[20%:]+test[:5]", "train[:20%]+test[5:]", (45, 25)),
        slow("test", "train", (20, 50)),
        (None, "test", (50, 20)),
        ("train[:7]", None, (7, 10)),
    ],
)
def test_splits_are_read_exactly(three_splits, train, validation, sizes):
    data = datasets.load(
        "tiny", three_splits, train_split=train, validation_split=validation
    )
    found = numbers(data.train_images), numbers(data.validation_images)
    builder = tfds.builder("tiny", data_dir=three_splits)
    wanted = [train or "train", validation or "validation"]
    for split, there, size in zip(wanted, found, sizes, strict=True):
        in_files = [
            int(example["image"][0, 0, 0])
            for example in tfds.as_numpy(
                builder.as_dataset(split, read_config=IN_ORDER)
            )
        ]
        assert there == in_files and len(there) == size
    assert not set(found[0]) & set(found[1])
    if train or validation:
        told = f"training {wanted[0]}, validation {wanted[1]}"
        assert data.choice == told


def test_the_first_examples_are_those_of_the_split(three_splits):
    def load(**choices):
        return datasets.load("tiny", three_splits, **choices)

    for split in ("train[20:]", "validation+train[5:9]"):
        whole = load(train_split=split, validation_split="test")
        first = load(train_split=split, validation_split="test", train_examples=12)
        assert numbers(first.train_images) == numbers(whole.train_images)[:12]
    # What is left out may be validated with.
    data = load(train_examples=40, validation_split="train[40:]")
    assert sorted(numbers(data.train_images) + numbers(data.validation_images)) == [
        *range(50)
    ]
    message = refused(three_splits, train_split="train[:9]", train_examples=10)
    assert message.startswith("--train_examples: got 10, wanted at most 9")


def test_a_single_split_is_divided_by_the_user(write):
    data_dir = write(pictures(50))
    message = refused(data_dir)
    assert message.startswith("--dataset: got tiny with the splits train,")
    advice = {"train_split": "train[:90%]", "validation_split": "train[90%:]"}
    for flag, value in advice.items():
        assert f"--{flag}={value}" in message
    data = datasets.load("tiny", data_dir, **advice)
    assert (len(data.train_images), len(data.validation_images)) == (45, 5)
    assert refused(data_dir, train_split="train[:90%]").startswith("--dataset: ")


@pytest.mark.parametrize(
    "choices, common",
    [
        ({"validation_split": "train[90%:]"}, 5),
        ({"validation_split": "train"}, 50),
        ({"train_split": "train[:60%]", "validation_split": "train[50%:]"}, 5),
        ({"train_split": "train+validation"}, 10),
        ({"train_examples": 46, "validation_split": "train[45:]"}, 1),
    ],
)
def test_an_overlap_is_refused_by_name(three_splits, choices, common):
    message = refused(three_splits, **choices)
    flag = "validation" if "validation_split" in choices else "train"
    assert message.startswith(f"--{flag}_split: ")
    assert f"{common} examples in common, wanted none" in message
    for split in (choices.get("train_split"), choices.get("validation_split")):
        assert split is None or split in message


@pytest.mark.parametrize("flag", ["train_split", "validation_split"])
@pytest.mark.parametrize(
    "split", ["none", "train[", "train[:120%]", "train[:99]", "train,test", "a+train"]
)
def test_what_is_no_split_is_refused(three_splits, flag, split):
    message = refused(three_splits, **{flag: split})
    assert message.startswith(f"--{flag}: got {split!r}, wanted examples of tiny")
    assert "train, test, validation" in message or "train, validation, test" in message


@pytest.mark.parametrize("split", ["train[:0]", "train[5:2]", "test[:1%]"])
def test_a_split_without_examples_is_refused(three_splits, split):
    message = refused(three_splits, validation_split=split)
    assert message.startswith("--validation_split: ") and "0 examples" in message


@st.composite
def splits(draw):
    parts = []
    for name in "abc":
        skip = draw(st.integers(0, 9))
        parts.append(Part(name, skip, draw(st.integers(0, 10 - skip)), 10))
    return Split("some", tuple(draw(st.permutations(parts))))


def places(split):
    return [(p.filename, n) for p in split.parts for n in range(p.skip, p.stop)]


@given(one=splits(), two=splits(), examples=st.integers(0, 40))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_a_split_is_a_list_of_places(one, two, examples):
    assert len(one) == len(places(one))
    assert one.common(two) == len(set(places(one)) & set(places(two)))
    assert places(one.first(examples)) == places(one)[:examples]


@pytest.mark.parametrize(
    "flag", ["train_split", "validation_split", "image_key", "label_key"]
)
def test_the_digits_leave_no_choice(flag):
    with pytest.raises(UsageError, match=f"^--{flag}: got 'x', wanted none") as error:
        datasets.load("digits", **{flag: "x"})
    assert "\n" not in str(error.value)


def two_of_each(count):
    """Pictures with a mask, fine labels with coarse ones."""
    for number in range(count):
        yield {
            "coarse": number % 2,
            "fine": number % 5,
            "mask": np.full((4, 3, 1), 255 - number, np.uint8),
            "picture": np.full((4, 3, 1), number, np.uint8),
        }


TWO_OF_EACH = {
    "coarse": F.ClassLabel(num_classes=2),
    "fine": F.ClassLabel(num_classes=5),
    "mask": F.Image(shape=(4, 3, 1)),
    "picture": F.Image(shape=(4, 3, 1)),
}


def test_the_data_set_itself_says_what_is_meant(write):
    data_dir = write(
        *(two_of_each(8), two_of_each(4)), supervised=("picture", "fine"), **TWO_OF_EACH
    )
    data = datasets.load("tiny", data_dir)
    assert data.classes == 5 and set(data.train_labels.tolist()) == set(range(5))
    assert max(numbers(data.train_images)) < 8
    assert data.choice == "image picture of mask, picture; label fine of coarse, fine"
    other = datasets.load("tiny", data_dir, image_key="mask", label_key="coarse")
    assert other.classes == 2 and min(numbers(other.train_images)) > 240
    assert other.choice == "image mask of mask, picture; label coarse of coarse, fine"


def test_otherwise_the_usual_names_are_meant(write):
    def examples(count):
        for one in two_of_each(count):
            yield {
                "a_label": one["coarse"],
                "label": one["fine"],
                "an_image": one["mask"],
                "image": one["picture"],
            }

    features = {
        "a_label": TWO_OF_EACH["coarse"],
        "label": TWO_OF_EACH["fine"],
        "an_image": TWO_OF_EACH["mask"],
        "image": TWO_OF_EACH["picture"],
    }
    data = datasets.load("tiny", write(examples(8), examples(4), **features))
    assert data.classes == 5 and max(numbers(data.train_images)) < 8
    assert (
        data.choice == "image image of an_image, image; label label of a_label, label"
    )


def test_otherwise_the_user_is_asked(write):
    data_dir = write(two_of_each(8), two_of_each(4), **TWO_OF_EACH)
    message = refused(data_dir)
    assert message.startswith("--image_key: got none, wanted one of mask, picture")
    message = refused(data_dir, image_key="picture")
    assert message.startswith("--label_key: got none, wanted one of coarse, fine")
    data = datasets.load("tiny", data_dir, image_key="picture", label_key="fine")
    assert data.classes == 5 and max(numbers(data.train_images)) < 8


@pytest.mark.parametrize(
    "choices, wanted",
    [
        ({"image_key": "none"}, "an image"),
        ({"image_key": "label"}, "an image"),
        ({"label_key": "image"}, "a class label"),
    ],
)
def test_a_key_of_something_else_is_refused(three_splits, choices, wanted):
    ((flag, key),) = choices.items()
    message = refused(three_splits, **choices)
    assert message.startswith(f"--{flag}: got {key!r}, wanted {wanted}")
    assert "image (Image), label (ClassLabel)" in message


class Begun(Exception):
    """In place of what takes long."""


def begin(*_, **__):
    raise Begun


def test_the_plan_names_what_was_taken(write, make_settings, capsys, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", begin)
    data_dir = write(two_of_each(60), supervised=("picture", "fine"), **TWO_OF_EACH)
    settings = make_settings(
        *("--dataset=tiny", f"--data_dir={data_dir}", "--model=f1_digits"),
        *("--batch_size=20", "--small_batch_size=10", "--train_split=train[:40]"),
        "--validation_split=train[40:]",
    )
    capsys.readouterr()
    with pytest.raises(Begun):
        trainer.train(settings, verbose=0)
    line = (
        "data: training train[:40], validation train[40:]; image picture of mask, "
        "picture; label fine of coarse, fine"
    )
    plan = pathlib.Path(settings.run_dir, "plan.txt").read_text().splitlines()
    assert plan[0] == line and len(plan) == 4
    assert capsys.readouterr().out.splitlines()[0] == line
    flags = pathlib.Path(settings.run_dir, "flags.cfg").read_text().splitlines()
    assert "--train_split=train[:40]" in flags
    assert not [flag for flag in flags if "_key" in flag]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_search_on_the_test_split_is_told(
    write, make_settings, capsys, held_out, monkeypatch
):
    monkeypatch.setattr(BaseTuner, "search", begin)
    data_dir = write(pictures(60), test=pictures(20, 60))
    flags = ["--train_split=train[:40]", "--validation_split=train[40:]"] * held_out
    settings = make_settings(
        *("--mode=tune", "--tuner=grid", "--search=learning_rate:0.1", "--trials=1"),
        *("--dataset=tiny", f"--data_dir={data_dir}", "--model=f1", "--batch_size=20"),
        *("--small_batch_size=10", "--trial_updates=1", *flags),
    )
    capsys.readouterr()
    with pytest.raises(Begun):
        tuning.tune(settings)
    told = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("compared on the test split")
    ]
    assert len(told) == (not held_out)
    assert all("--validation_split=train[90%:]" in line for line in told)


def test_single_integers_are_labels_of_as_many_classes_as_are_found(write):
    def examples(count, largest):
        for one in pictures(count):
            yield {**one, "label": one["image"][0, 0, 0] % (largest + 1)}

    features = {"image": IMAGE, "label": F.Scalar(np.int64)}
    data_dir = write(examples(20, 6), test=examples(9, 8), **features)
    data = datasets.load("tiny", data_dir)
    assert data.classes == 9 and data.choice == ""
    assert data.train_labels.dtype == np.int32
    assert set(data.train_labels.tolist()) == set(range(7))


def test_a_class_label_comes_before_other_integers(write):
    examples = [{**one, "id": 1000 + number} for number, one in enumerate(pictures(9))]
    features = {"id": F.Scalar(np.int64), "image": IMAGE, "label": LABEL}
    data_dir = write(examples, test=examples, **features)
    assert datasets.load("tiny", data_dir).classes == 5
    message = refused(data_dir, label_key="id")
    assert message.startswith("--label_key: id of tiny goes up to 1,008 in 18 examples")


@pytest.mark.parametrize(
    "dtype, shape",
    [
        (np.float32, (4, 3, 2)),
        (np.int16, (None, None, 2)),
        slow(np.float32, (None, None, 2)),
        slow(np.int16, (4, 3, 2)),
    ],
)
def test_numbers_of_rank_3_are_images_as_they_are(write, dtype, shape):
    random = np.random.default_rng(0)
    images = random.normal(100, 30, (12, 4, 3, 2)).astype(dtype)
    examples = [{"image": one, "label": n % 5} for n, one in enumerate(images)]
    image = F.Tensor(shape=shape, dtype=dtype, encoding="zlib")
    features = {"image": image, "label": LABEL}
    data_dir = write(examples, test=examples[:4], **features)
    data = datasets.load("tiny", data_dir)
    assert data.image_shape == (4, 3, 2)
    stored = {one.tobytes() for one in images}
    assert {one.tobytes() for one in data.train_images} == stored
    (batch, _), *_ = data.training_batches(12, 0).take(1)
    np.testing.assert_allclose(np.mean(batch, (0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(np.std(batch, (0, 1, 2)), 1, rtol=1e-4)


@pytest.mark.parametrize(
    "label, value, kind",
    [
        (F.Text(), "cat", "Text"),
        (F.Sequence(LABEL), [1, 2], "several of ClassLabel"),
        (F.Scalar(np.float32), 1.5, "Scalar"),
    ],
)
def test_what_is_no_label_is_told_without_contradiction(write, label, value, kind):
    examples = [{**one, "label": value} for one in pictures(6)]
    data_dir = write(examples, test=examples, image=IMAGE, label=label)
    message = refused(data_dir)
    assert f"image (Image), label ({kind})" in message
    assert "no label feature that is a class label" in message
    assert kind in refused(data_dir, label_key="label")


def jpegs(count, *sizes):
    for number in range(count):
        pixels = np.full((*sizes[number % len(sizes)], 3), 8 * number % 256, np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95)
        yield {"image": io.BytesIO(file.getvalue()), "label": number % 5}


JPEGS = {"image": F.Image(encoding_format="jpeg"), "label": LABEL}


def test_jpegs_of_one_size_are_taken_as_they_are(write, monkeypatch):
    data_dir = write(jpegs(12, (10, 14)), test=jpegs(4, (10, 14)), **JPEGS)
    data = datasets.load("tiny", data_dir)
    assert isinstance(data, ImageData) and data.image_shape == (10, 14, 3)
    # All pixels of an image are the same, and JPEG keeps them.
    assert sorted(numbers(data.train_images)) == [8 * n for n in range(12)]
    monkeypatch.setattr(examples, "_MOST_PIXELS", 10 * 14 * 3 * 15)
    assert isinstance(datasets.load("tiny", data_dir), JpegImages)


@pytest.mark.parametrize("where", ["train", "test", "between"])
def test_jpegs_of_two_sizes_stay_on_disk(write, where):
    sizes = {"train": [(10, 14)], "test": [(10, 14)]}
    if where == "between":
        sizes["test"] = [(14, 10)]
    else:
        sizes[where].append((11, 14))
    data_dir = write(jpegs(12, *sizes["train"]), test=jpegs(4, *sizes["test"]), **JPEGS)
    data = datasets.load("tiny", data_dir, image_size=8)
    assert isinstance(data, JpegImages) and data.image_shape == (8, 8, 3)


@pytest.mark.parametrize("label", [slow(LABEL), F.Scalar(np.int64)])
def test_splits_and_integers_of_jpegs_on_disk(write, label):
    data_dir = write(jpegs(40, (10, 14), (12, 9)), **{**JPEGS, "label": label})
    data = datasets.load(
        *("tiny", data_dir),
        train_split="train[5:35]",
        validation_split="train[:5]+train[35:]",
        train_examples=20,
        image_size=8,
    )
    assert isinstance(data, JpegImages) and data.classes == 5
    assert (data.examples, len(data.validation)) == (20, 10)
    builder = tfds.builder("tiny", data_dir=data_dir)
    dataset = builder.as_dataset("train", read_config=IN_ORDER)
    in_files = [int(example["label"]) for example in tfds.as_numpy(dataset)]
    labels = np.concatenate([y for _, y, w in data.validation_batches() if w[0]])[:10]
    assert labels.tolist() == in_files[:5] + in_files[35:]
    taken = np.concatenate([y for _, y in data.training_batches(20, 0).take(1)])
    assert sorted(taken.tolist()) == sorted(in_files[5:25])

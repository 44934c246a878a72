"""`benchmarks/accelerator.py` runs where a GPU is, and a cut training is not changed.

The commands run on JAX, in processes of their own, where TensorFlow cannot be imported.
"""

import json
import os
import pathlib
import subprocess
import sys

import accelerator_calls
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from backend import jax_keeps_programs_in, without_tensorflow
from data_sets import store
from jpegs import picture

from gbn_keras.training.data.augmentation import ShiftAndFlip

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
NOT_FINISHED = 75


@pytest.fixture
def accelerator_data(monkeypatch):
    """The module that packs and loads images."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import accelerator_data

    return accelerator_data


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder for compiled programs, so that only the first process compiles them."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def run(tmp_path, compiled):
    """Calls the program in a process; returns the exit codes and the output.

    Each call is a list of words. The process imports JAX once for all calls.
    """

    def run(*calls):
        environment = {k: v for k, v in os.environ.items() if k[:6] != "PYTEST"}
        environment["KERAS_BACKEND"] = "jax"
        path = [without_tensorflow(tmp_path), str(BENCHMARKS.parent)]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        environment.pop("XLA_FLAGS", None)
        environment.update(jax_keeps_programs_in(compiled))
        process = subprocess.run(
            [sys.executable, accelerator_calls.__file__, json.dumps(calls)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        print(process.stdout, process.stderr[-3000:])
        run.errors = process.stderr
        assert process.returncode == 0
        *output, codes = process.stdout.splitlines()
        return json.loads(codes), "\n".join(output)

    return run


def variables(folder):
    """What a training's checkpoint holds, without what it says about itself."""
    (file,) = folder.glob("*/*/*/seed_1/checkpoint.npz")
    with np.load(file) as content:
        return {name: content[name] for name in content.files if name != "about"}


def result(folder):
    (file,) = folder.glob("*/*/*/seed_1/result.json")
    return json.loads(file.read_text())


@pytest.mark.backends
def test_a_training_that_is_cut_twice_ends_with_the_bits_of_one_that_is_not(
    run, tmp_path
):
    # Dropout, ghosts in micro-batches, momentum: all that an update can change.
    words = ["train", "as_published:c1", "--tiny", "--only=^momentum 0.9: .GBN$"]
    words += ["--seeds=1", "--flags=--micro_batch_size=32"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uncut, to_the_end = [*words, f"--folder={whole}"], [*words, f"--folder={cut}"]
    # After as little as a call does; the first calls make 1 and 2 updates.
    for_a_while = [*to_the_end, "--minutes=0"]
    assert run(uncut, for_a_while)[0] == [0, NOT_FINISHED]
    before = variables(cut)
    # Another training does not go on from there.
    other = [*words[:-1], "--flags=--clipnorm=1", f"--folder={cut}"]
    assert run(for_a_while, other, to_the_end)[0] == [NOT_FINISHED, 1, 0]
    assert "holds a run with other flags: --clipnorm=5" in run.errors
    expected, found = variables(whole), variables(cut)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert not all(np.array_equal(before[name], found[name]) for name in found)
    results = result(whole), result(cut)
    for name in ("accuracy", "loss", "updates", "samples", "seed", "micro_batch_size"):
        assert results[0][name] == results[1][name]
    assert (results[0]["updates"], results[0]["samples"]) == (8, 512)


@pytest.mark.backends
def test_a_training_ends_when_the_small_batchs_updates_are_done(run, tmp_path):
    words = ["train", "stretch_curve:mnist", "--tiny", "--only=^(auto|stretch 2)$"]
    words += ["--seeds=1", "--flags=--micro_batch_size=16", f"--folder={tmp_path}"]
    # Gradient noise only the program has.
    refused = [*words[:-2], "--flags=--gradient_noise=1", words[-1]]
    assert run(words, refused)[0] == [0, 1]
    assert "--gradient_noise: got 1, wanted it left out" in run.errors
    folder = tmp_path / "stretch_curve" / "mnist"
    auto, fixed = (
        json.loads((folder / arm / "seed_1" / "result.json").read_text())
        for arm in ("auto", "stretch_2")
    )
    # 2 epochs of 16 small batches; the last update is the one that gets there.
    assert 32 <= auto["small_batch_updates"] < 32 + 4
    assert 8 <= auto["updates"] < 32
    assert auto["stretch"] == auto["updates"] * 4 / 32
    assert fixed["updates"] == 16
    assert 1 <= fixed["noise_scale"]["suitable_stretch"] <= 4


@pytest.mark.slow
@pytest.mark.backends
def test_speed_and_right_go_on_where_they_stopped_and_the_report_shows_them(
    run, tmp_path
):
    folder = f"--folder={tmp_path / 'run'}"
    report = ["report", "--tiny", folder]
    speed = ["speed", "--tiny", folder]
    codes, empty = run(report)
    assert codes == [0]
    assert empty.count("- `speed: ") > 3
    assert empty.count("- `right: ") == 4
    assert run([*speed, "--minutes=0"])[0] == [NOT_FINISHED]
    (first,) = (tmp_path / "run" / "speed").iterdir()
    written = first.stat().st_mtime_ns
    assert run(speed, ["right", "--tiny", folder])[0] == [0, 0]
    assert first.stat().st_mtime_ns == written
    rows = [
        row
        for file in (tmp_path / "run" / "right").glob("*.json")
        for row in json.loads(file.read_text())["rows"]
    ]
    ghosts = [row for row in rows if row.get("kind") == "GhostBatchNormalization"]
    # One unit in the last place is 1.2e-7, or 0.0078 in bfloat16. A mean of 100
    # deviations costs two decimal digits.
    limits = {"float32": 1e-4, "bfloat16": 0.05}
    assert len(ghosts) == 4
    for row in ghosts:
        assert 0 < max(row[x] for x in ("outputs", "dx", "dgamma", "dbeta"))
        for name in ("outputs", "dx", "dgamma", "dbeta", "moving_mean"):
            assert row[name] < limits[row["precision"]], (row, name)
    for row in rows:
        if "same_bits" in row:
            assert row["same_bits"] == row["variables"] > 10
    codes, text = run(report)
    assert codes == [0]
    assert "## Not run" not in text
    assert "| 16x4x4x8 | bfloat16 | 4 |" in text


def test_images_are_shifted_and_flipped_as_by_the_program(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from accelerator_update import shift_and_flip

    random = np.random.default_rng(0)
    images = random.normal(size=(20, 32, 32, 3)).astype("float32")
    numbers = random.integers(0, (9, 9, 2), (20, 3)).astype("int32")
    expected = ShiftAndFlip()(tf.constant(images), tf.constant(numbers))
    np.testing.assert_array_equal(shift_and_flip(images, numbers, 4), expected)


@pytest.mark.parametrize("encoding, form", [("jpeg", "jpeg"), ("png", "differences")])
def test_a_packed_data_set_is_unpacked_bit_for_bit(
    accelerator_data, tmp_path, encoding, form
):
    image = tfds.features.Image(shape=(32, 32, 3), encoding_format=encoding)
    features = {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
    pictures = [
        {"image": picture(32, 32, kind), "label": kind % 10} for kind in range(12)
    ]
    data_dir = store(
        tmp_path / "tfds",
        "small",
        tfds.features.FeaturesDict(features),
        train=pictures[:8],
        test=pictures[8:],
    )
    file = tmp_path / "small.npz"
    assert accelerator_data.pack(data_dir, file, "small") == form
    found = accelerator_data.load(file)
    for split in accelerator_data.SPLITS:
        stored = tfds.load("small", split=split, data_dir=data_dir, batch_size=-1)
        expected = tfds.as_numpy(stored)
        images = getattr(found, f"{split}_images")
        np.testing.assert_array_equal(images, expected["image"])
        labels = getattr(found, f"{split}_labels")
        np.testing.assert_array_equal(labels, expected["label"])


@pytest.mark.parametrize("downsampling", [True, False])
def test_jpegs_decode_to_the_bits_of_tensorflow(
    accelerator_data, tmp_path, downsampling
):
    random = np.random.default_rng(0)
    pictures = [picture(32, 48, kind) for kind in range(5)]
    pictures += [random.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(5)]
    files = [
        tf.io.encode_jpeg(x, quality=90, chroma_downsampling=downsampling).numpy()
        for x in pictures
    ]
    expected = np.stack([tf.io.decode_jpeg(file).numpy() for file in files])
    np.testing.assert_array_equal(accelerator_data.decode(files), expected)


def test_a_file_whose_images_are_damaged_is_refused(accelerator_data, tmp_path):
    file = tmp_path / "damaged.npz"
    images = np.zeros((3, 4, 4, 3), np.uint8)
    content = {"form": "differences"}
    for split in accelerator_data.SPLITS:
        content[f"{split}_labels"] = np.zeros(3, np.uint8)
        content[f"{split}_differences"] = images.transpose(3, 0, 1, 2)
        content[f"{split}_checksum"] = "0" * 64
    np.savez_compressed(file, **content)
    with pytest.raises(ValueError, match="the train images are damaged; pack again"):
        accelerator_data.load(file)

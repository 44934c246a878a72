"""The examples run as they are, and do what they say."""

import math
import pathlib
import re
import runpy
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from gbn_keras import GhostBatchNormalization

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def output_of(name, *arguments):
    """What an example prints, in a process of its own."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, f"exit code {done.returncode}: {done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def percents(text):
    return [float(figure) for figure in re.findall(r"([\d.]+) %", text)]


def test_your_model_learns_and_is_saved_as_plain_keras(tmp_path):
    file = tmp_path / "model.keras"
    output = output_of("your_model.py", file)
    assert "27 layers normalize by ghosts of 32" in output
    ghosts, plain = percents(output)
    assert ghosts == plain > 85
    config = zipfile.ZipFile(file).read("config.json").decode()
    assert config.count('"BatchNormalization"') == 27
    assert "gbn_keras" not in config


def test_the_custom_loop_learns_at_the_adapted_rate():
    output = output_of("custom_loop.py")
    (accuracy,) = percents(output)
    assert accuracy > 96
    found = re.findall(r"update (\d+): loss ([\d.]+), next rate ([\d.]+)", output)
    updates, losses, rates = np.array(found, dtype=float).T
    assert updates.tolist() == [48, 96, 144, 192, 240, 288]
    assert losses[-1] < losses[0] < math.log(10)
    expected = 0.03 * math.sqrt(512 / 32) * (1 + np.cos(np.pi * updates / 288)) / 2
    np.testing.assert_allclose(rates, expected, atol=1e-4)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="its loop is TensorFlow's"
)
def test_the_custom_loops_micro_batches_make_the_update_of_the_whole_batch():
    make_update = runpy.run_path(str(EXAMPLES / "custom_loop.py"))["make_update"]
    random = np.random.default_rng(0)
    images = random.normal(size=(512, 8)).astype("float32")
    labels = random.integers(0, 10, 512)
    losses, weights = [], []
    for micro_batch in (128, 512):
        make_update.__globals__["MICRO_BATCH"] = micro_batch
        keras.utils.set_random_seed(0)
        parts = [layers.Dense(16), GhostBatchNormalization(32), layers.Dense(10)]
        model = keras.Sequential([keras.Input((8,)), *parts])
        update = make_update(model, keras.optimizers.SGD(0.1, momentum=0.9))
        losses.append([float(update(images, labels)) for _ in range(3)])
        weights.append(model.get_weights())
    assert losses[0][0] > losses[0][-1]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for parts, whole in zip(*weights, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def test_tune_compares_trials_of_as_many_updates():
    output = output_of("tune.py", "--trials=3", "--updates=60")
    _, *trials = output.splitlines()
    accuracies = percents(output)
    assert len(trials) == 3
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 85
    for trial in trials:
        _, _, updates, samples, batch_size, *_ = trial.replace(",", "").split()
        assert int(updates) == 60
        assert int(samples) == 60 * int(batch_size)

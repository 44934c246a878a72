"""Each guide runs from top to bottom, warns of nothing, and shows what it says."""

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

GUIDES = pathlib.Path(__file__).parent.parent / "guides"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="two of them are TensorFlow's"
    ),
]


@pytest.fixture
def run_here(monkeypatch, tmp_path, capsys):
    """Runs a guide in this process: what it defines and prints. Warnings are errors."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        names = runpy.run_path(str(GUIDES / name), run_name="__main__")
        return names, capsys.readouterr().out

    return run


def test_the_gap_opens_and_closes(run_here, tmp_path):
    _, output = run_here("close_the_gap.py")
    assert "small batch 32, large batch 768, M = 24" in output
    rows = re.findall(r"^(\S+) +(\d+) updates +([\d.]+) %", output, re.MULTILINE)
    arms, updates, accuracies = zip(*rows, strict=True)
    assert arms == ("SB", "LB", "+LR", "+GBN", "+RA")
    assert updates == ("288", "12", "12", "12", "288")
    small, large, rate, ghosts, adapted = map(float, accuracies)
    assert large + 5 < small
    assert large < rate
    assert large < ghosts < small
    assert adapted >= small - 0.5
    assert (tmp_path / "runs" / "close_the_gap.png").stat().st_size > 10_000


def test_a_model_is_converted_trained_in_parts_and_served_as_plain_keras(run_here):
    names, output = run_here("your_own_model.py")
    assert "2 layers normalize by ghosts of 32" in output
    assert "same predictions: True" in output
    # The square root of 512 / 32; the updates of three epochs of the small batch.
    assert "first rate 0.200, 144 updates" in output
    (accuracy,) = re.findall(r"accuracy ([\d.]+) % after 144 updates", output)
    assert float(accuracy) > 95
    (served,) = re.findall(r"^layers: (.*)$", output, re.MULTILINE)
    assert served.split().count("BatchNormalization") == 2
    assert "Ghost" not in served
    (difference,) = re.findall(r"served prediction (\S+)", output)
    assert float(difference) < 1e-5
    # The file itself says nothing of the package either.
    with zipfile.ZipFile(names["folder"] / "model.keras") as file:
        config = file.read("config.json").decode()
    assert config.count('"BatchNormalization"') == 2 and "gbn_keras" not in config


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """What the guide of the loop prints, and then three updates in two ways.

    It divides the processor, so it has a process of its own.
    """
    code = """
import runpy, sys
names = runpy.run_path(sys.argv[1], run_name="__main__")
import keras, numpy as np
random = np.random.default_rng(0)
images = random.normal(size=(512, 8)).astype("float32")
labels = random.integers(0, 10, 512)
found = {}
for size in (128, 512):
    keras.utils.set_random_seed(0)
    ghosts = names["GhostBatchNormalization"](32)
    parts = [keras.layers.Dense(16), ghosts, keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8,)), *parts])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    update = names["make_update"](model, optimizer, size)
    losses = [float(update(images, labels)) for _ in range(3)]
    weights = [weight.ravel() for weight in model.get_weights()]
    found[f"losses_{size}"], found[f"weights_{size}"] = losses, np.concatenate(weights)
np.savez("found.npz", **found)
"""
    folder = tmp_path_factory.mktemp("loop")
    done = subprocess.run(
        [sys.executable, "-c", code, str(GUIDES / "your_own_loop.py")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, f"exit code {done.returncode}: {done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout, np.load(folder / "found.npz")


def test_the_loop_learns_at_the_adapted_rate(loop):
    output, _ = loop
    (accuracy,) = re.findall(r"validation accuracy ([\d.]+) %", output)
    assert float(accuracy) > 96
    found = re.findall(r"update (\d+): loss ([\d.]+), next rate ([\d.]+)", output)
    updates, losses, rates = np.array(found, dtype=float).T
    assert updates.tolist() == [48, 96, 144, 192, 240, 288]
    assert losses[-1] < losses[0] < math.log(10)
    expected = 0.03 * math.sqrt(512 / 32) * (1 + np.cos(np.pi * updates / 288)) / 2
    np.testing.assert_allclose(rates, expected, atol=1e-4)


def test_the_loops_micro_batches_make_the_update_of_the_whole_batch(loop):
    _, found = loop
    losses = found["losses_512"]
    assert losses[0] > losses[-1]
    np.testing.assert_allclose(found["losses_128"], losses, rtol=1e-5)
    np.testing.assert_allclose(
        found["weights_128"], found["weights_512"], rtol=1e-4, atol=1e-5
    )


def test_the_loop_gives_the_same_weights_in_parts_and_on_two_devices(loop):
    output, _ = loop
    (parts,) = re.findall(r"whole batch differ by (\S+) at most", output)
    (devices,) = re.findall(r"2 devices and one device differ by (\S+) at most", output)
    assert float(parts) < 1e-4
    assert float(devices) < 1e-4

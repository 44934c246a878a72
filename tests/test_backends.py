"""The method gives the same results on every Keras backend, and needs no other one.

Keras takes one backend a process, so each has its own.
"""

import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from backend import TENSORFLOW_ONLY

pytestmark = pytest.mark.backends

TESTS = pathlib.Path(__file__).parent
OTHERS = ("jax", "torch")
BACKENDS = ("tensorflow", *OTHERS)

# Of the method: `gbn_keras` without `training`.
SUITE = [
    f"{name}.py"
    for name in (
        "test_ghost_normalize",
        "test_ghost_batch_normalization",
        "test_ghost_batch_normalization_files",
        "test_convert",
        "test_convert_networks",
        "test_gradient_noise",
        "analysis/test_landscape",
        "networks/test_networks",
        "networks/test_network_sizes",
        "networks/test_network_training",
        "analysis/test_noise_scale",
        "test_regime_adaptation",
        "optimizers/test_scale_adam",
        "resume/test_batches",
        "resume/test_exact_resume",
        "test_sharding_invariant_dropout",
        "analysis/test_weight_distance",
    )
]


def start(backend, folder, *command):
    """A process of Python; what it prints goes to the returned file."""
    environment = {k: v for k, v in os.environ.items() if k[:6] != "PYTEST"}
    environment.update(
        KERAS_BACKEND=backend,
        PYTHONPATH=str(TESTS.parent),
        # Others work beside it: PyTorch's threads would wait for one another.
        OMP_NUM_THREADS="1",
    )
    output = folder / f"{backend}.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=TESTS.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return process, output


def finish(process, output, timeout):
    """Waits for a process, and fails if it did, with what it printed last."""
    try:
        code = process.wait(timeout)
    finally:
        stop(process)
    assert code == 0, output.read_text()[-5000:]


def stop(process):
    """Kills it if it still runs."""
    process.kill()
    process.wait()


def run_everywhere(folder, *command):
    """The same on every backend, at the same time."""
    running = [start(backend, folder, *command) for backend in BACKENDS]
    try:
        for process, output in running:
            finish(process, output, timeout=300)
    finally:
        for process, _ in running:
            stop(process)


def start_suite(backend, folder, *options):
    results = f"--junitxml={folder / backend}.xml"
    files = [TESTS / name for name in SUITE]
    pytest_options = ["-n", "0", "-p", "no:cacheprovider", results, *options]
    return start(backend, folder, "-m", "pytest", *pytest_options, *files)


def passed(backend, folder):
    """How many tests passed; those that are TensorFlow's own were left out."""
    cases = list(ElementTree.parse(folder / f"{backend}.xml").iter("testcase"))
    skips = [skip for case in cases for skip in case.findall("skipped")]
    assert {skip.get("message") for skip in skips} == {TENSORFLOW_ONLY}
    print(f"{backend}: {len(cases) - len(skips)} passed, {len(skips)} TensorFlow's")
    return len(cases) - len(skips)


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    """The processes that run the tests, by backend, at the same time."""
    folder = tmp_path_factory.mktemp("suites")
    running = {backend: start_suite(backend, folder) for backend in OTHERS}
    yield folder, running
    for process, _ in running.values():
        stop(process)


@pytest.mark.parametrize("backend", OTHERS)
def test_the_tests_of_the_method_pass(suites, backend):
    folder, running = suites
    finish(*running[backend], timeout=1800)
    assert passed(backend, folder) > 350


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_the_slow_tests_of_the_method_pass_too(tmp_path, backend):
    # keras-hub imports TensorFlow.
    options = ["-m", "slow or not slow", "-k", "not keras_hub"]
    finish(*start_suite(backend, tmp_path, *options), timeout=3600)
    assert passed(backend, tmp_path) > 380


def test_a_file_of_one_backend_predicts_and_trains_the_same_on_the_others(tmp_path):
    for task in ("write", "read"):
        run_everywhere(tmp_path, TESTS / "support" / "exchange.py", task, tmp_path)
    for writer in BACKENDS:
        expected = np.load(tmp_path / f"{writer}_on_{writer}.npy")
        before, trained = expected
        assert np.abs(trained - before).max() > 0.1
        for reader in BACKENDS:
            found = np.load(tmp_path / f"{writer}_on_{reader}.npy")
            # Logits up to 7, from sums of up to 288 terms in float32, each backend's in
            # its own order: found were differences of 3e-6, some units in last place.
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


WITHOUT_TENSORFLOW = """
import importlib, pkgutil, sys
OF_TENSORFLOW = (
    "training",
    "_tensorflow_internals",
    "tensorflow_compiled",
    "tensorflow_gradients",
    "tensorflow_kernels",
)
sys.modules["tensorflow"] = None  # Its import fails, as where it is not installed.
import gbn_keras, keras, numpy as np
for package in ("", "analysis.", "kernels.", "networks.", "optimizers.", "resume."):
    folder = importlib.import_module(f"gbn_keras.{package}"[:-1]).__path__
    for module in pkgutil.iter_modules(folder, f"gbn_keras.{package}"):
        if module.name.split(".")[-1] not in OF_TENSORFLOW:
            importlib.import_module(module.name)
model = keras.Sequential([keras.Input((3,)), gbn_keras.GhostBatchNormalization(4)])
model.compile("sgd", "mse")
model.fit(np.ones((8, 3)), np.ones((8, 3)), verbose=0)
"""


@pytest.mark.parametrize("backend", OTHERS)
def test_the_method_works_without_tensorflow(tmp_path, backend):
    finish(*start(backend, tmp_path, "-c", WITHOUT_TENSORFLOW), timeout=300)

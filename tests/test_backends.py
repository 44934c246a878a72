"""The method gives the same results on every Keras backend, and needs no other one.

Keras takes one backend a process, so each has its own.
"""

import itertools
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import every_backend
import exchange
import numpy as np
import pytest
from backend import TENSORFLOW_ONLY, jax_keeps_programs_in, without_tensorflow
from every_backend import BACKENDS
from micro_batched import MICRO_BATCHES

pytestmark = pytest.mark.backends

TESTS = pathlib.Path(__file__).parent
OTHERS = ("jax", "torch")

# Of the method: `gbn_keras` without `training`.
SUITE = [
    TESTS / f"{name}.py"
    for name in (
        "test_ghost_normalize",
        "kernels/test_ghost_layout",
        "kernels/test_torch_kernels",
        "test_ghost_batch_normalization",
        "test_ghost_batch_normalization_files",
        "test_activation",
        "convert/test_convert",
        "convert/test_convert_networks",
        "convert/test_fold",
        "test_gradient_noise",
        "analysis/test_landscape",
        "networks/test_networks",
        "networks/test_network_training",
        "analysis/test_noise_scale",
        "test_regime_adaptation",
        "optimizers/test_scale_adam",
        "resume/test_batches",
        "resume/test_exact_resume",
        "test_sharding_invariant_dropout",
        "analysis/test_weight_distance",
        "large_batch/test_end_of_regime",
        "large_batch/test_gradient_norm",
        "large_batch/test_large_batch_model",
        "large_batch/test_loss_parts",
        "large_batch/test_squares",
        "large_batch/test_wrapped_model",
    )
]
# JAX compiles each update for many seconds. Whenever the others are tested, it takes
# micro-batches through `every_backend.py`, and these with the slow tests. So it takes
# the noise, which TensorFlow draws: its import alone takes seconds.
FILES_SLOW_ON_JAX = (
    "test_gradient_noise",
    "test_gradient_norm",
    "test_large_batch_model",
    "test_loss_parts",
    "test_squares",
    "test_wrapped_model",
)


def start(backend, folder, *command, path=()):
    """A process of Python; what it prints goes to the returned file."""
    environment = {k: v for k, v in os.environ.items() if k[:6] != "PYTEST"}
    environment.update(
        KERAS_BACKEND=backend,
        PYTHONPATH=os.pathsep.join([*path, str(TESTS.parent)]),
        # Others work beside it: PyTorch's threads would wait for one another.
        OMP_NUM_THREADS="1",
        **jax_keeps_programs_in(folder.parent / "compiled"),
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


def start_suite(backend, folder, files, *options):
    results = f"--junitxml={folder / backend}.xml"
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
    files = {
        "jax": [file for file in SUITE if file.stem not in FILES_SLOW_ON_JAX],
        "torch": SUITE,
    }
    running = {name: start_suite(name, folder, files[name]) for name in OTHERS}
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
    options = ["-m", "not cluster", "-k", "not keras_hub"]
    finish(*start_suite(backend, tmp_path, SUITE, *options), timeout=3600)
    assert passed(backend, tmp_path) > 380


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """What `every_backend.py` writes on every backend, at the same time: a folder."""
    folder = tmp_path_factory.mktemp("everywhere")
    script = pathlib.Path(every_backend.__file__)
    path = [without_tensorflow(folder)]
    running = [start(name, folder, script, folder, path=path) for name in OTHERS]
    try:
        every_backend.write(folder)
        for process, output in running:
            finish(process, output, timeout=300)
        exchange.read(folder)
    finally:
        for process, _ in running:
            stop(process)
    return folder


@pytest.mark.parametrize("backend", OTHERS)
def test_the_method_works_without_tensorflow(everywhere, backend):
    """All modules of the method, a model's file, and a `LargeBatchModel`."""
    found = re.search(
        r"(\d+) modules of the method", (everywhere / f"{backend}.txt").read_text()
    )
    assert int(found[1]) > 50
    assert (everywhere / f"{backend}_sgd_4.npz").exists()


def test_a_file_of_one_backend_predicts_and_trains_the_same_on_the_others(everywhere):
    for writer in BACKENDS:
        expected = np.load(everywhere / f"{writer}_on_{writer}.npy")
        before, trained = expected
        assert np.abs(trained - before).max() > 0.1
        for reader in BACKENDS:
            found = np.load(everywhere / f"{writer}_on_{reader}.npy")
            # Logits up to 7, from sums of up to 288 terms in float32, each backend's in
            # its own order: found were differences of 3e-6, some units in last place.
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def assert_same_arrays(file, expected_file):
    """That two trainings ended with the same, up to rounding of float32."""
    found, expected = np.load(file), np.load(expected_file)
    assert len(found.files) == len(expected.files) > 20
    for name in expected.files:
        tolerance = 1e-5 * np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance)


def test_micro_batches_give_the_same_weights_on_all_backends(everywhere):
    """The same numbers in, the numbers of TensorFlow's whole batch out."""
    for backend, (optimizer, number) in itertools.product(
        BACKENDS, MICRO_BATCHES.items()
    ):
        # What the others estimate depends on the micro-batches.
        expected = 1 if optimizer == "sgd" else number
        assert_same_arrays(
            everywhere / f"{backend}_{optimizer}_{number}.npz",
            everywhere / f"tensorflow_{optimizer}_{expected}.npz",
        )


def test_devices_that_share_micro_batches_on_jax_change_nothing(everywhere):
    """Also if a device has only a part of a ghost."""
    assert_same_arrays(everywhere / "shared_auto_4.npz", everywhere / "jax_auto_4.npz")

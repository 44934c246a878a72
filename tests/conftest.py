"""Shared by the tests: devices, memory, the program's settings and small data sets."""

import ctypes
import functools
import gc
import os
import pathlib
import sys

# Hides TensorFlow's notices about the instructions that it was built for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN's kernels keep more than 1 GB of buffers in a process. The processes that tests
# start inherit this, so they compute the same bits. `.ci/run` turns oneDNN on for its
# second stage, as the program does.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import pytest
import xdist


def pytest_sessionstart(session):
    """Prepares the backend, in the processes that run tests.

    The process that only hands them out would import it for seconds before they start.
    """
    if not xdist.is_xdist_controller(session):
        # Until all is imported, which makes many objects and few cycles.
        gc.disable()
        prepare_backend()


def prepare_backend():
    """Makes devices for the tests of replicas, and lets JAX compile fast."""
    import keras

    # The tests of the method also run on other backends, without TensorFlow.
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Everything but the tests of replicas runs on the first one.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * 8,
        )
    # JAX compiles each operation for each shape. Keras has JAX loaded by now, which
    # reads this when it first computes.
    elif keras.backend.backend() == "jax":
        from backend import JAX_COMPILES_FAST

        os.environ.setdefault("XLA_FLAGS", JAX_COMPILES_FAST)


# Models and traced functions form reference cycles, and Python seldom looks for cycles
# among so many objects. The C library also keeps the memory that is freed.
LARGE = 200 * 2**20
memory_before = 0


def resident_memory():
    """Bytes of memory that this process uses; 0 if the system is not Linux."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_memory():
    """Frees all memory that nothing refers to any more."""
    global memory_before
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    memory_before = resident_memory()


# The longest first, as of 2026: the file that starts last should not take long. The
# large networks come before all others, while a process is still small. The first one
# only has tests of the second stage of `.ci/run`.
LONG_FILES = (
    "test_backends",
    "test_accelerator",
    "test_networks",
    "test_network_sizes",
    "test_network_training",
    "test_large_batch_model",
    "test_configs",
    "test_strategy",
    "test_guides",
    "test_checkpoint",
    "test_search_cluster",
    "test_trainer",
    "test_fuzz",
    "test_replicas",
    "test_loss_parts",
    "test_sameness",
    "test_study",
    "test_diverged",
    "test_convert",
    "test_tuning",
)


def pytest_collection_modifyitems(items):
    """Puts long files first; the others follow in their order."""
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    """Makes Python ignore the objects of the imports when it looks for cycles."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left_of_a_file():
    """Frees what a file's tests leave, before the next file's tests start."""
    yield
    import keras  # See `pytest_sessionstart`, as for all imports in functions here.

    keras.backend.clear_session(free_memory=False)
    give_back_memory()


@pytest.fixture(autouse=True)
def nothing_large_is_left_of_a_test():
    """Also frees what a test leaves, if it is large."""
    yield
    if resident_memory() > memory_before + LARGE:
        give_back_memory()


def settings_of(*flags):
    """The `Settings` that `train.py` makes from these flags."""
    import gbn_train
    from gbn_keras.training.settings import Settings  # Only TensorFlow has the program.

    return Settings(**gbn_train.parse(["train.py", *flags]))


@pytest.fixture(scope="module")
def shallow():
    """A network of two hidden layers for digits: see `shallow_network`."""
    from trainings import shallow_network  # Only TensorFlow has the program.

    with shallow_network():
        yield


@pytest.fixture(scope="module")
def digits():
    """The digits, as the program loads them."""
    from gbn_keras.training.data import datasets  # Only TensorFlow has the program.

    return datasets.load("digits")


@pytest.fixture
def make_settings(tmp_path):
    """Makes settings from flags, with the test's own run directory."""

    def make(*flags):
        return settings_of(f"--run_dir={tmp_path / 'run'}", *flags)

    return make


@pytest.fixture
def write_dataset(tmp_path):
    """Writes a data set in tensorflow-datasets' format; returns its folder."""
    import data_sets

    return functools.partial(data_sets.store, tmp_path / "tfds")

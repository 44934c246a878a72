"""What one backend does to be compared with the others, all of it in one process.

`KERAS_BACKEND=jax python tests/support/every_backend.py FOLDER`

A process takes seconds to import its backend. TensorFlow's part is in the process of
the tests.
"""

import importlib
import os
import pathlib
import pkgutil
import sys
import time

import exchange
import keras
import micro_batched
from backend import JAX_COMPILES_FAST

import gbn_keras

BACKENDS = ("tensorflow", "jax", "torch")
DEVICES = 4
# Modules that import TensorFlow at once, and packages with such modules.
OF_TENSORFLOW = (
    "training",
    "cut_ghosts",
    "backends",
    "_tensorflow_internals",
    "tensorflow_compiled",
    "tensorflow_gradients",
    "tensorflow_kernels",
    "tensorflow_sums",
)


def import_the_method(package=gbn_keras):
    """Imports each module of the method that is not TensorFlow's; returns how many."""
    count = 0
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name.split(".")[-1] not in OF_TENSORFLOW:
            imported = importlib.import_module(module.name)
            count += 1 + (import_the_method(imported) if module.ispkg else 0)
    return count


def write(folder):
    """What a backend writes without the others."""
    exchange.write(folder)
    micro_batched.write(folder)


def wait_for_the_others(folder, timeout=240):
    """Until all backends have written their models."""
    wanted = {f"{backend}.keras" for backend in BACKENDS}
    deadline = time.monotonic() + timeout
    while missing := wanted - {file.name for file in folder.glob("*.keras")}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {sorted(missing)} after {timeout} s")
        time.sleep(0.1)


def main(folder):
    """What JAX and PyTorch do, without TensorFlow."""
    print(f"{import_the_method()} modules of the method are imported")
    # JAX reads it when it first computes.
    devices = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{devices} {JAX_COMPILES_FAST}"
    write(folder)
    wait_for_the_others(folder)
    exchange.read(folder)
    if keras.backend.backend() == "jax":
        micro_batched.write_shared(folder, DEVICES)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

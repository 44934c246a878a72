"""On JAX, ghosts are the same on any mesh, and devices send no more than they must.

The figures are from `tests/support/jax_mesh.py`, in a process with eight devices.
"""

import os
import pathlib
import subprocess
import sys

import pytest
from backend import JAX_COMPILES_FAST

SCRIPT = pathlib.Path(__file__).parents[1] / "support" / "jax_mesh.py"


@pytest.mark.backends
def test_eight_devices_make_the_update_of_one():
    devices = "--xla_force_host_platform_device_count=8"
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "XLA_FLAGS": f"{devices} {JAX_COMPILES_FAST}",
    }
    process = subprocess.run(
        [sys.executable, SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(process.stdout, process.stderr[-3000:])
    assert process.returncode == 0
    assert process.stdout.count("parallel: ") == 9

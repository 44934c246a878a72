"""Standard error leaves out TensorFlow's start-up noise and nothing else."""

import pathlib
import subprocess
import sys

import pytest

import gbn_quiet_start

ROOT = pathlib.Path(gbn_quiet_start.__file__).parent

NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to "
    "STDERR",
    "I0000 00:00:1.0 7 port.cc:153] oneDNN custom operations are on. You may see",
    "I0000 00:00:1.0 7 cudart_stub.cc:31] Could not find cuda drivers on your machine",
    "E0000 00:00:1.0 7 cuda_platform.cc:52] failed call to cuInit: INTERNAL",
    "E0000 00:00:1.0 7 cuda_dnn.cc:8310] Unable to register cuDNN factory: Attempting",
    "W0000 00:00:1.0 7 placer.cc:177] computation placer already registered",
    "2026-11-25 10:00:00.123456: W tensorflow/compiler/utils/py_utils.cc:38] "
    "TF-TRT Warning: Could not find TensorRT",
    "2026-11-25 10:00:00.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] "
    "This TensorFlow binary is optimized to use available CPU instructions in",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild "
    "TensorFlow with the appropriate compiler flags.",
]
NEWS = [
    "E0000 00:00:1.0 7 executor.cc:1] Out of memory",
    "F0000 00:00:1.0 7 cpu_feature_guard.cc:1] compiled to use AVX instructions, but",
    "Traceback (most recent call last):",
    "without an end",
]


def told(end, lines, times=1):
    """What reaches standard error of lines that native code writes."""
    text = "\n".join(lines)
    code = f"""
import os, sys
from gbn_quiet_start import quiet_start
with quiet_start():
    text = {text!r}.encode() * {times}
    while text:
        text = text[os.write(2, text):]
    {end}
print("after", file=sys.stderr)
"""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    ).stderr


@pytest.mark.skipif(not hasattr(gbn_quiet_start.os, "fork"), reason="takes a fork")
@pytest.mark.skipif(
    bool(gbn_quiet_start.glob.glob("/dev/nvidia*")), reason="devices are told of"
)
def test_noise_is_left_out_and_all_else_told():
    found = told("os.write(2, b'\\n')", [*NOISE, *NEWS, *NOISE])
    assert found == "\n".join([*NEWS, "after\n"])


@pytest.mark.parametrize(
    "end", ["import no_such_module", "os.abort()", "os._exit(1)", "raise SystemExit"]
)
def test_whoever_breaks_down_tells_everything(end):
    found = told(f"os.write(2, b'\\n'); {end}", [*NOISE, *NEWS])
    assert all(found.count(line) >= 1 for line in [*NOISE, *NEWS])


def test_more_than_a_pipe_holds_does_not_block():
    assert told("pass", [*NOISE, *NEWS], times=2000).count(NEWS[0]) == 2000


def test_a_closed_standard_error_is_no_obstacle():
    code = """
import os
os.close(2)
from gbn_quiet_start import quiet_start
with quiet_start():
    print("within")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"within\n")


def test_half_a_line_at_the_end_hides_nothing_and_is_told():
    assert told("pass", [*NOISE, "half a line"]) == "half a lineafter\n"


@pytest.mark.parametrize("end", ["pass", "import no_such_module"])
def test_a_process_that_was_started_meanwhile_may_write_until_its_end(end):
    """And nobody waits for it."""
    child = "import sys; sys.stdin.read(); print('child', file=sys.stderr)"
    code = f"""
import subprocess, sys
from gbn_quiet_start import quiet_start
try:
    with quiet_start():
        command = [sys.executable, "-c", {child!r}]
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
        {end}
except ImportError:
    pass
print("parent", file=sys.stderr, flush=True)
child.stdin.close()  # Before which the child does not end.
sys.exit(child.wait())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "parent\nchild\n")

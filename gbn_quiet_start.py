"""`quiet_start`: what TensorFlow says of devices that are not there is left out.

TensorFlow's native code writes to file descriptor 2 before any setting of Python's can
reach it, on a machine without a GPU an error that is none among them.
"""

import contextlib
import glob
import os
import re
import signal
import sys

# What TensorFlow tells on every machine without a GPU, and no user can act on. All
# else is passed on. Some versions write the date before the level, some a letter.
_NOISE = re.compile(
    rb"""
    WARNING:\ All\ log\ messages\ before\ absl::InitializeLog
    | (?: [IWE]\d{4}\ | \d{4}-\d\d-\d\d\ [\d:.]+:\ [IWE]\ ) .* (?:
        oneDNN\ custom\ operations\ are\ on
        | cuda\ drivers\ on\ your\ machine
        | failed\ call\ to\ cuInit
        | Unable\ to\ register\ cu\w+\ factory
        | computation\ placer\ already\ registered
        | TF-TRT\ Warning
        | optimized\ to\ use\ available\ CPU\ instructions
    )
    | To\ enable\ the\ following\ instructions: .* rebuild\ TensorFlow
    """,
    re.VERBOSE,
)
_DONE = b"gbn-keras: started\n"


@contextlib.contextmanager
def quiet_start():
    """Holds TensorFlow's noise back while it is imported and finds its devices.

    A process of its own reads standard error meanwhile, so that if this one breaks
    down, be it in native code, all is told that was held back. Nothing is held back
    where there is an NVIDIA device, or no such process can be.
    """
    has_device = glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")
    # With TensorFlow come threads, which do not survive a fork.
    if has_device or "tensorflow" in sys.modules or not hasattr(os, "fork"):
        yield
        return
    try:
        stderr = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    source, sink = os.pipe()
    reader = os.fork()
    if not reader:
        os.close(sink)
        _pass_on(source, stderr)
        os._exit(0)
    os.close(source)
    os.dup2(sink, 2)
    os.close(sink)
    try:
        yield
        sys.stderr.flush()
        os.write(2, _DONE)
    finally:
        # Where _DONE is missing, the end of the pipe tells the reader.
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(reader, 0)


def _pass_on(source, stderr):
    """Copies lines until the end; of the noise only if that comes before `_DONE`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever is read from decides.
    held = []
    with open(source, "rb") as lines, open(stderr, "wb", buffering=0) as out:
        for line in lines:
            if line == _DONE:
                return
            if _NOISE.match(line):
                held.append(line)
            else:
                out.write(line)
        out.write(b"".join(held))

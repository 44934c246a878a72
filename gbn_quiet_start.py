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
_FAILED = b"gbn-keras: not started\n"


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
    answer, reader_answers = os.pipe()
    child = os.fork()
    if not child:
        try:
            # A grandchild: nobody has to wait for its end, which comes after that of
            # every process that was started meanwhile.
            if not os.fork():
                os.close(sink)
                _pass_on(source, stderr, reader_answers)
        finally:
            os._exit(0)
    os.close(source)
    os.close(reader_answers)
    os.waitpid(child, 0)
    os.dup2(sink, 2)
    os.close(sink)
    last = _FAILED
    try:
        yield
        last = _DONE
    finally:
        sys.stderr.flush()
        os.write(2, last)
        os.dup2(stderr, 2)
        os.close(stderr)
        os.read(answer, 1)
        os.close(answer)


def _pass_on(source, stderr, answer):
    """Copies lines until the end; of the noise only if `_DONE` is not among them.

    Closes `answer` as soon as all is written that came before `_DONE` or `_FAILED`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever is read from decides.
    held, started = [], False
    with open(source, "rb") as lines, open(stderr, "wb", buffering=0) as out:
        for line in lines:
            end = next((e for e in (_DONE, _FAILED) if line.endswith(e)), b"")
            line = line.removesuffix(end)  # Which may follow half a line.
            if not started and _NOISE.match(line):
                held.append(line)
            else:
                out.write(line)
            if end:
                out.write(b"" if end == _DONE else b"".join(held))
                held, started = [], True
                os.close(answer)
        out.write(b"".join(held))

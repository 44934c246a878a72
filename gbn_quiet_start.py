"""`quiet_start`: hides what TensorFlow writes about missing devices when it starts.

TensorFlow's native code writes to file descriptor 2 before any Python setting can reach
it. On a machine without a GPU, this includes messages that look like errors.
"""

import contextlib
import glob
import os
import re
import signal
import sys

# TensorFlow writes these lines on every machine without a GPU, and users cannot act on
# them. All other lines are passed on. The lines begin with the level's letter or with a
# date, depending on the version.
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
    """Hides TensorFlow's noise while it is imported and finds its devices.

    A second process reads standard error meanwhile. If this process fails, even in
    native code, the second process writes all that was hidden. Nothing is hidden if the
    machine has an NVIDIA device or cannot fork.
    """
    has_device = glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")
    # TensorFlow starts threads, which do not survive a fork.
    if has_device or "tensorflow" in sys.modules or not hasattr(os, "fork"):
        yield
        return
    try:
        stderr = os.dup(2)
    except OSError:  # Standard error is closed.
        yield
        return
    source, sink = os.pipe()
    answer, reader_answers = os.pipe()
    child = os.fork()
    if not child:
        try:
            # Nobody has to wait for a grandchild. It lives until all processes that are
            # started meanwhile have ended.
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
    """Copies lines to the end; copies the noise only if `_DONE` does not arrive.

    Closes `answer` once everything before `_DONE` or `_FAILED` is written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The writers decide when to end.
    held, started = [], False
    with open(source, "rb") as lines, open(stderr, "wb", buffering=0) as out:
        for line in lines:
            end = next((e for e in (_DONE, _FAILED) if line.endswith(e)), b"")
            line = line.removesuffix(end)  # It may follow an unfinished line.
            if not started and _NOISE.match(line):
                held.append(line)
            else:
                out.write(line)
            if end:
                out.write(b"" if end == _DONE else b"".join(held))
                held, started = [], True
                os.close(answer)
        out.write(b"".join(held))

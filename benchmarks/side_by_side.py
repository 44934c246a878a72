"""Functions that the benchmarks share: timing in turn, peak memory, JSON."""

import json
import os
import pathlib
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable

import keras

import gbn_keras
from gbn_keras.training.run.processor import processor
from gbn_keras.training.run.source import commit


def time_in_turn(
    contenders: dict[str, Callable[[], None]], rounds: int, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Seconds per call of each contender, with one measurement per round.

    The contenders run in turn. If something slows the machine for a while, it slows all
    of them alike, so ratios within a round stay correct. Each measurement repeats the
    call for about `seconds`.
    """
    repeats = {}
    for name, call in contenders.items():
        call()
        started = time.perf_counter()
        call()
        once = time.perf_counter() - started
        repeats[name] = max(1, round(seconds / once))
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def median_ratio(times: list[float], peer: list[float]) -> float:
    """The median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(times, peer, strict=True))


def peak_megabytes(call: Callable[[], None]) -> float | None:
    """The memory that a call needs at its peak, in addition to what was in use.

    Asks TensorFlow's allocator if it counts, which it does with oneDNN and on
    accelerators, because the allocator does not return memory to the system. Otherwise
    measures resident memory. `None` if neither is possible.
    """
    try:
        return _allocated_megabytes(call)
    except ValueError:
        pass
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None  # Only Linux can reset the peak.
    before = _status_kilobytes("VmRSS")
    call()
    return (_status_kilobytes("VmHWM") - before) / 1024


def _allocated_megabytes(call):
    if keras.backend.backend() != "tensorflow":
        raise ValueError("TensorFlow's allocator does not serve other backends")
    import tensorflow as tf

    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    tf.config.experimental.reset_memory_stats(device)
    before = tf.config.experimental.get_memory_info(device)["current"]
    call()
    peak = tf.config.experimental.get_memory_info(device)["peak"]
    return (peak - before) / 2**20


def environment() -> dict:
    """The machine and the versions that figures were measured with."""
    backend = keras.backend.backend()
    return {
        **processor(),
        "cores": os.cpu_count(),
        "backend": backend,
        "versions": {
            "gbn_keras": gbn_keras.__version__,
            "python": platform.python_version(),
            "keras": keras.__version__,
            backend: sys.modules[backend].__version__,
        },
        "peak_resident_megabytes": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
    }


def write_json(path: str | None, rows: list[dict]) -> None:
    """Writes the rows, the command, the commit and the environment, if there is a path.

    `results.py keep` takes the file.
    """
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {
            "command": command(sys.argv),
            "commit": commit(),
            "environment": environment(),
            "rows": rows,
        }
        pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n")


def command(words: list[str]) -> str:
    """The command of a benchmark, without the places of its files.

    Args:
        words: The file of the script, and its arguments.
    """
    script, *words = words
    # Each option and its value in one word.
    joined = re.sub(r"(--\w+) (?!--)", r"\1=", " ".join(words)).split()
    kept = [word for word in joined if not word.startswith(("--json", "--picture"))]
    told = [re.sub("^(--data_dir)=.*", r"\1=DIR", word) for word in kept]
    return " ".join(["python", f"benchmarks/{pathlib.Path(script).name}", *told])


def _status_kilobytes(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")

"""Functions that the benchmarks share: timing in turn, peak memory, JSON."""

import json
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable

import keras


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
    processors = pathlib.Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (processors.read_text().splitlines() if processors.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "python": platform.python_version(),
        "peak_resident_megabytes": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
    }


def write_json(path: str | None, rows: list[dict]) -> None:
    """Writes the rows and the environment, if a path is given."""
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {"environment": environment(), "rows": rows}
        pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n")


def _status_kilobytes(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")

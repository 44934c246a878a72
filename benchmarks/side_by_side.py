"""What the benchmarks share: timing in turn, peak memory, a table and its JSON."""

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
    """Seconds a call of each contender, a measurement of each in every round.

    In turn, so that whatever slows the machine for a while slows all alike, and ratios
    within a round stay true. Each measurement repeats a call for about `seconds`.
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
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, peer, strict=True))


def peak_megabytes(call: Callable[[], None]) -> float | None:
    """Memory that a call needs at its peak, beyond what is there before.

    By TensorFlow's allocator if it counts, as it does with oneDNN and on accelerators:
    it keeps what it once had from the system. Otherwise resident memory.
    """
    try:
        return _allocated_megabytes(call)
    except ValueError:
        pass
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None  # Linux alone resets the peak.
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
    """The machine and the versions behind a figure."""
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
    """Writes rows and environment, if there is a path."""
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {"environment": environment(), "rows": rows}
        pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n")


def _status_kilobytes(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")

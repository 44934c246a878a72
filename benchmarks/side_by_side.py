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
    contenders: dict[str, Callable[[], object]], rounds: int, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Seconds per call of each contender, with one measurement per round.

    The contenders run in turn. If something slows the machine for a while, it slows all
    of them alike, so ratios within a round stay correct. Each measurement repeats the
    call for about `seconds`, and then waits for what the last call returned. So a GPU
    is given the next calls while it computes, as in a training.
    """
    repeats = {}
    for name, call in contenders.items():
        wait(call())
        started = time.perf_counter()
        wait(call())
        once = time.perf_counter() - started
        repeats[name] = max(1, round(seconds / once))
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                result = call()
            wait(result)
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def wait(result) -> None:
    """Waits until the device has computed `result` and what was asked for before.

    On TensorFlow it does not wait: there, a contender itself reads what it computed.
    """
    if keras.backend.backend() == "jax":
        sys.modules["jax"].block_until_ready(result)
    elif _on_cuda():
        sys.modules["torch"].cuda.synchronize()


def median_ratio(times: list[float], peer: list[float]) -> float:
    """The median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(times, peer, strict=True))


def peak_megabytes(call: Callable[[], None]) -> float | None:
    """The memory that a call needs at its peak, in addition to what was in use.

    Asks TensorFlow's allocator if it counts, which it does with oneDNN and on
    accelerators, because the allocator does not return memory to the system. On CUDA it
    asks PyTorch's. Otherwise measures resident memory. `None` if none is possible:
    JAX's allocator on a GPU does not forget an earlier peak.
    """
    if _on_cuda():
        return _cuda_megabytes(call)
    if keras.backend.backend() == "jax" and accelerators():
        return None
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


def _cuda_megabytes(call):
    cuda = sys.modules["torch"].cuda
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    call()
    return (cuda.max_memory_allocated() - before) / 2**20


def _on_cuda():
    """Whether Keras computes on a GPU by PyTorch."""
    if keras.backend.backend() != "torch":
        return False
    return keras.ops.convert_to_tensor(0.0).is_cuda


def accelerators() -> list[str]:
    """The models of the GPUs or TPUs that Keras computes on."""
    backend = keras.backend.backend()
    if backend == "jax":
        devices = sys.modules["jax"].devices()
        return [device.device_kind for device in devices if device.platform != "cpu"]
    if backend == "torch":
        return [sys.modules["torch"].cuda.get_device_name()] if _on_cuda() else []
    config = sys.modules["tensorflow"].config
    details = map(
        config.experimental.get_device_details, config.list_physical_devices("GPU")
    )
    return [found.get("device_name", "GPU") for found in details]


def environment() -> dict:
    """The machine and the versions that figures were measured with."""
    backend = keras.backend.backend()
    return {
        **processor(),
        "cores": os.cpu_count(),
        "devices": accelerators(),
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
            "command": command(sys.argv, keras.backend.backend()),
            "commit": commit(),
            "environment": environment(),
            "rows": rows,
        }
        pathlib.Path(path).write_text(json.dumps(content, indent=2) + "\n")


def command(words: list[str], backend: str = "tensorflow") -> str:
    """The command of a benchmark, without the places of its files.

    Args:
        words: The file of the script, and its arguments.
        backend: Keras's backend. The command names any but the usual one.
    """
    script, *words = words
    # Each option and its value in one word.
    joined = re.sub(r"(--\w+) (?!--)", r"\1=", " ".join(words)).split()
    kept = [word for word in joined if not word.startswith(("--json", "--picture"))]
    told = [re.sub("^(--data_dir)=.*", r"\1=DIR", word) for word in kept]
    first = [f"KERAS_BACKEND={backend}"] * (backend != "tensorflow")
    return " ".join(
        [*first, "python", f"benchmarks/{pathlib.Path(script).name}", *told]
    )


def _status_kilobytes(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")

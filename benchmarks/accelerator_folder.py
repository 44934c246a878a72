"""The folder of `accelerator.py`: finished parts as JSON, and what is left to do."""

import collections
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import keras

import gbn_keras
from gbn_keras.training.run import source
from gbn_keras.whole_file import whole_file


class Deadline:
    """When to stop, so that another call goes on.

    Args:
        minutes: Minutes from now.
    """

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes
        self._longest = collections.Counter()

    def took(self, seconds: float, work: str = "") -> None:
        """Tells how long a kind of work took. The next such may take as long."""
        self._longest[work] = max(self._longest[work], seconds)

    def is_over(self, work: str = "") -> bool:
        """Whether more work of this kind might end too late."""
        return time.monotonic() + self._longest[work] > self._end


def run_parts(
    folder: pathlib.Path, parts: dict[str, Callable[[], list]], deadline: Deadline
) -> bool:
    """Runs the parts that are not finished, and says whether all are now.

    Args:
        folder: Where each part's rows go, as `NAME.json`.
        parts: For each name, what makes the rows.
        deadline: No part starts after it, but one part always does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_do = [name for name in parts if not (folder / f"{name}.json").exists()]
    for place, name in enumerate(to_do):
        if place and deadline.is_over():
            return False
        started = time.monotonic()
        write_rows(folder / f"{name}.json", parts[name]())
        deadline.took(time.monotonic() - started)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return True


def write_rows(file: pathlib.Path, rows: list[dict]) -> None:
    """Writes the rows with the machine and the versions that they come from."""
    content = {"environment": environment(), "rows": [_plain(row) for row in rows]}
    with whole_file(file) as draft:
        # Python would write NaN, which is no JSON.
        draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_rows(folder: pathlib.Path) -> list[dict]:
    """All rows of the folder's files, each with its `environment`."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        rows += [
            {**row, "environment": content["environment"]} for row in content["rows"]
        ]
    return rows


def environment() -> dict:
    """The machine, the versions and the commit."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "memory_bytes": memory_limit(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "keras": keras.__version__,
        "gbn_keras": gbn_keras.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit(),
    }


def memory_limit() -> int | None:
    """Bytes that the device gives to this process; `None` where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def commit() -> str:
    """The commit of this checkout. A copy without it can be told by `GBN_COMMIT`."""
    return os.environ.get("GBN_COMMIT") or source.commit()


def _plain(row):
    """The row with `None` for what is no number."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }

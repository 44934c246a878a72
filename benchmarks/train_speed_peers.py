"""An update of the program beside one of PyTorch's own training loop."""

import contextlib
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

from program_updates import random_pixels, update_of
from side_by_side import median_ratio, time_in_turn

_TORCH = pathlib.Path(__file__).with_name("train_speed_torch.py")
# Network, shape of an image, batch size, and updates of one call: short updates are
# called many at once, so that asking the other process takes no time of theirs.
CASES = [
    ("f1", (28, 28, 1), 128, 50),
    ("f1", (28, 28, 1), 4096, 2),
    ("c1", (32, 32, 3), 1024, 1),
    ("resnet44", (32, 32, 3), 512, 1),
]
# Networks that `--jit=auto` compiles on a CPU if the training is long.
_COMPILED = ("f1",)
_PEER = "PyTorch"


def measure_pytorch(arguments) -> list[dict]:
    """Times an update with ghosts, with plain batch normalization, and PyTorch's.

    They take turns, and each has all cores: PyTorch's process waits while ours works.
    An update with ghosts is compiled with XLA, too, where a long training is by
    `--jit=auto`.
    """
    print(f"{'network':10}{'batch':>6}  {'':24}{'ms':>9}{'ratio':>8}")
    rows = []
    for network, shape, batch, updates in CASES:
        with pytorch_updates(network, batch) as (pytorch, facts):
            data = random_pixels("pixels", shape, batch)
            flags = (f"--model={network}", f"--batch_size={batch}", "--stretch=1")
            ghosts = f"--virtual_batch_size={arguments.virtual_batch_size}"
            ways = {"ghosts": (ghosts,), "plain": ("--virtual_batch_size=0",)}
            if network in _COMPILED:
                ways["ghosts, XLA"] = ghosts, "--jit=on"
            contenders = {
                f"gbn_keras, {name}": _repeated(updates, update_of(data, *flags, *own))
                for name, own in ways.items()
            }
            contenders[_PEER] = functools.partial(pytorch, updates)
            times = time_in_turn(contenders, arguments.rounds)
        for name, seconds in times.items():
            row = {
                "network": network,
                "batch_size": batch,
                "training": name,
                "milliseconds": 1e3 * statistics.median(seconds) / updates,
                "ratio": median_ratio(seconds, times[_PEER]),
                "torch": facts["torch"],
            }
            rows.append(row)
            print(
                f"{network:10}{batch:6}  {name:24}{row['milliseconds']:9.1f}"
                f"{row['ratio']:8.2f}",
                flush=True,
            )
    return rows


@contextlib.contextmanager
def pytorch_updates(
    network: str, batch_size: int
) -> Iterator[tuple[Callable[[int], float], dict]]:
    """A function that makes updates in PyTorch's process; and what the process is.

    The function takes the number of updates and returns their seconds. The facts are
    the number of `parameters` and the version of `torch`.

    Raises:
        RuntimeError: If the process cannot start, for example without PyTorch.
    """
    command = [sys.executable, _TORCH, network, str(batch_size), str(os.cpu_count())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if not (first := process.stdout.readline()):
            raise RuntimeError(
                f"{_TORCH.name} has ended without an answer: see above. If it misses "
                "PyTorch, pip install torch."
            )

        def updates(number):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield updates, json.loads(first)
        process.stdin.close()


def _repeated(number, update):
    def several():
        for _ in range(number):
            update()

    return several

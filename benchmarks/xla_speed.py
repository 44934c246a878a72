"""Compares updates of the program with and without XLA, and what compiling costs.

    python benchmarks/xla_speed.py [--rounds=11] [--json=FILE]

`--jit=auto` chooses by these figures. A row shows milliseconds of an update in graph
mode and with XLA, their ratio, the seconds of the first update of each, and after how
many updates XLA has paid for its compilation.
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
import time

# The program is a script in the folder above, and not in the package.
sys.path.append(os.fspath(pathlib.Path(__file__).parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

from program_updates import random_pixels, update_of
from side_by_side import median_ratio, time_in_turn, write_json

# Network, image shape, batch size and micro-batch size (0: the whole batch at once).
UPDATES = [
    ("f1_digits", (8, 8, 1), 32, 0),
    ("f1_digits", (8, 8, 1), 768, 0),
    ("f1", (28, 28, 1), 128, 0),
    ("f1", (28, 28, 1), 4096, 0),
    ("f1", (28, 28, 1), 4096, 512),
    ("c1", (32, 32, 3), 128, 0),
    ("resnet20", (32, 32, 3), 128, 0),
]


def main():
    """Prints a line for each update."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    print(f"{'network':10}{'batch':>6}{'micro':>6}{'graph':>9}{'XLA':>9}", end="")
    print(f"{'ratio':>7}{'first':>7}{'XLA':>6}{'pays after':>12}")
    rows = [measure(*update, arguments.rounds) for update in UPDATES]
    write_json(arguments.json, rows)


def measure(network, shape, batch, micro_batch, rounds):
    """The row of one update."""
    data = random_pixels("pixels", shape, batch)
    flags = [f"--model={network}", f"--batch_size={batch}"]
    flags += [f"--micro_batch_size={micro_batch}"] if micro_batch else []
    updates, first = {}, {}
    for jit in ("off", "on"):
        started = time.perf_counter()
        updates[jit] = update_of(data, *flags, f"--jit={jit}")
        updates[jit]()
        first[jit] = time.perf_counter() - started
    times = time_in_turn(updates, rounds)
    graph, compiled = (1e3 * statistics.median(times[jit]) for jit in updates)
    ratio = median_ratio(times["on"], times["off"])
    saved = graph * (1 - ratio) / 1e3
    pays_after = None
    if saved > 0:
        pays_after = max(0, math.ceil((first["on"] - first["off"]) / saved))
    row = {
        "network": network,
        "batch_size": batch,
        "micro_batch_size": micro_batch or batch,
        "milliseconds": graph,
        "milliseconds_with_xla": compiled,
        "ratio": ratio,
        "first_seconds": first["off"],
        "first_seconds_with_xla": first["on"],
        "pays_after_updates": pays_after,
    }
    print(
        f"{network:10}{batch:6}{micro_batch or batch:6}{graph:9.2f}{compiled:9.2f}"
        f"{ratio:7.2f}{first['off']:7.1f}{first['on']:6.1f}"
        f"{'never' if pays_after is None else pays_after:>12}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()

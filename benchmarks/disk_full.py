"""Fills the disk under a training, at every place where it writes.

    sudo python benchmarks/disk_full.py [--json=FILE]

The run directory lies in a tmpfs of 1 MiB, part of it taken by another file, so that a
training of the digits (a small F1, weight distance, noise scale, a checkpoint every 4
updates) finds it full after so many KiB. Every time it must end in one line and exit
code 75, or 2 if not even its folder could be begun, and what it leaves under final
names must be whole. Then there is room, as a user would make it, and the same command
must end with the weights, optimizer and tables of a training that was not disturbed.
The exit code is 1 otherwise. Linux and root only, for the tmpfs; some minutes.
"""

import argparse
import collections
import contextlib
import io
import pathlib
import re
import subprocess
import sys
import tempfile

# Sets what TensorFlow reads when it is imported.
import gbn_train  # isort: skip
import keras
import pandas as pd
from kill_soak import TABLES, model_arrays, same_arrays
from side_by_side import write_json

from gbn_keras.networks import names
from gbn_keras.networks.fully_connected import f1
from gbn_keras.training.run import checkpoint_file

FLAGS = (
    *("--batch_size=256", "--epochs=2", "--stretch=2", "--checkpoint_every=4"),
    *("--micro_batch_size=64", "--noise_scale", "--weight_distance"),
)

# Finer where the small files come, or grow by a page. With more there is enough.
FREE_KIB = (
    *(*range(0, 16, 4), *range(16, 64, 24), *range(64, 112, 4)),
    *(*range(112, 432, 24), *range(432, 504, 4), *range(504, 660, 24)),
)

# What a line names.
_PLACE = re.compile(r"run/([^:]+): ")


def main():
    """Fills, resumes, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    # With a checkpoint of a fifth of the disk.
    names.NETWORKS["f1_digits"] = lambda *about: f1(*about, width=64, depth=3)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        undisturbed = folder / "undisturbed"
        code, lines = run(undisturbed)
        if code:
            raise RuntimeError(lines)
        for free in FREE_KIB:
            with tmpfs(folder / "disk", "1m") as disk:
                rows.append(fill(disk, free, undisturbed))
    places = collections.Counter(row["place"] for row in rows)
    for place, number in places.most_common():
        print(f"{number:4} times full at {place}")
    right = sum(row["right"] for row in rows)
    print(f"{right} of {len(rows)} ended in a line, left whole files, and went on")
    write_json(arguments.json, rows)
    return int(right < len(rows))


def fill(disk, free, undisturbed):
    """A training that finds so many KiB, then room; prints and returns its row."""
    (disk / "other").write_bytes(bytes(1024 * (1020 - free)))
    run_dir = disk / "run"
    code, lines = run(run_dir)
    torn = [file.name for file in run_dir.rglob("*") if is_torn(file)]
    mount("-o", "remount,size=64m", disk)
    resumed, _ = run(run_dir)
    different = [
        name
        for name in TABLES
        if (run_dir / name).read_bytes() != (undisturbed / name).read_bytes()
    ]
    if not same_arrays(model_arrays(run_dir), model_arrays(undisturbed)):
        different.append("model.keras")
    is_told = len(lines) == 1 and code in (2, 75)
    right = is_told and not torn and not resumed and not different
    print(f"{free:5} KiB: exit code {code}: {' '.join(lines)}")
    if not right:
        print(f"      WRONG: torn {torn}, exit code {resumed}, other {different}")
    place = _PLACE.search(" ".join(lines))
    place = re.sub(r"[._]?\d+", "", place[1]) if place else "the folder"
    return {"free_kib": free, "code": code, "place": place, "right": right}


def run(run_dir):
    """Exit code, and what the program told of an error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = gbn_train.main(["train.py", *FLAGS, f"--run_dir={run_dir}"])
    return code, errors.getvalue().split("\n\n")[-1].strip().splitlines()


def is_torn(file):
    """Whether a file has a final name and a part of its content."""
    if not file.is_file() or ".part" in file.name:
        return False
    try:
        if file.suffix == ".checkpoint":
            checkpoint_file.decode(file.read_bytes())
        elif file.suffix == ".keras":
            keras.models.load_model(file)
        elif file.suffix == ".csv":
            pd.read_csv(file)
        elif file.suffix in (".png", ".npz", ".json", ".cfg"):
            return file.stat().st_size == 0
    except Exception:
        return True
    return False


@contextlib.contextmanager
def tmpfs(folder, size):
    """A disk of its own in memory."""
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def mount(*arguments):
    """Calls the system's `mount`."""
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())

"""Tests trainings whose disk becomes full, at each place where they write.

    sudo python benchmarks/disk_full.py [--json=FILE]

The run directory is in a tmpfs of 1 MiB. Another file takes part of it, so that the
disk is full after a chosen number of KiB. The training is a small F1 on the digits with
weight distance, noise scale and a checkpoint every 4 updates.

Each time, the program must print one line and exit with code 75, or with 2 if it could
not create the run directory. All files with final names must be intact. Then the disk
is enlarged, as a user would do, and the same command must end with the weights,
optimizer and tables of an undisturbed training. Otherwise the exit code is 1.

Needs Linux, and root for the tmpfs. Takes some minutes.
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

# Sets variables that TensorFlow reads on import.
import gbn_train  # isort: skip
import keras
import pandas as pd
from kill_soak import TABLES, model_arrays, same_arrays
from side_by_side import write_json

from gbn_keras.networks import names
from gbn_keras.networks.fully_connected import f1
from gbn_keras.resume import checkpoint_file

FLAGS = (
    *("--batch_size=256", "--epochs=2", "--stretch=2", "--checkpoint_every=4"),
    *("--micro_batch_size=64", "--noise_scale", "--weight_distance"),
)

# Finer where small files are written or grow by a page. More is enough for all files.
FREE_KIB = (
    *(*range(0, 16, 4), *range(16, 64, 24), *range(64, 112, 4)),
    *(*range(112, 432, 24), *range(432, 504, 4), *range(504, 640, 24)),
)

# Finds the file that a message names.
_PLACE = re.compile(r"run/([^:]+): ")


def main():
    """Fills the disk, resumes, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    # A network whose checkpoint takes a fifth of the disk.
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
        print(f"{number:4} times full when writing {place}")
    right = sum(row["right"] for row in rows)
    print(f"{right} of {len(rows)} printed one line, left intact files, and resumed")
    write_json(arguments.json, rows)
    return int(right < len(rows))


def fill(disk, free, undisturbed):
    """Trains with `free` KiB, then with enough; prints and returns the row."""
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
        print(f"      WRONG: torn {torn}, exit code {resumed}, different {different}")
    place = _PLACE.search(" ".join(lines))
    place = re.sub(r"[._]?\d+", "", place[1]) if place else "the folder"
    return {"free_kib": free, "code": code, "place": place, "right": right}


def run(run_dir):
    """The program's exit code, and the lines of its error message."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = gbn_train.main(["train.py", *FLAGS, f"--run_dir={run_dir}"])
    return code, errors.getvalue().split("\n\n")[-1].strip().splitlines()


def is_torn(file):
    """Whether a file has its final name but not all of its content."""
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
    """A context with a disk in memory."""
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

"""Kills trainings at random moments; each must end like an undisturbed one.

    python benchmarks/kill_soak.py [--kills=100] [--runs=20] [--seed=1] [--auto]

A run is the program on the digits: F1 with dropout, gradient noise, weight distance and
noise scale, and a checkpoint every 7 updates (an epoch has 6). Half of the runs use
float32, half mixed_bfloat16. With `--auto`, a run finds its own length
(`--stretch=auto`) and has no gradient noise.

Each run gets SIGKILL about five times at random moments after its plan is printed. It
is killed once more at one of three moments, which the runs take in turn:

- in the middle of writing a checkpoint
- when the checkpoint is written but does not have its final name yet
- when the checkpoint has its name but the oldest one is not deleted yet

Then the same command runs to the end. The run must have the same bits as one that was
not killed: in `model.keras` (weights, running statistics, optimizer), the last
checkpoint (also seeds and metrics), accuracy and loss in `result.json`, the text of the
CSV files, and all points in TensorBoard except those about speed. The exit code is 1 if
anything differs. Takes a quarter of an hour on two cores.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import threading

import keras
import numpy as np
from killed_program import PROVOKED, checkpoints
from side_by_side import write_json

# Registers the classes that the models' files use.
import gbn_keras.training.model.build_model  # noqa: F401
from gbn_keras.resume.checkpoint_file import decode
from gbn_keras.training.run.events import read_events

PROGRAM = pathlib.Path(__file__).with_name("killed_program.py")

FLAGS = (
    *("--batch_size=256", "--micro_batch_size=128", "--checkpoint_every=7"),
    *("--weight_distance", "--noise_scale"),
)
LENGTH = ("--epochs=20", "--stretch=8", "--gradient_noise=full")
AUTO = ("--epochs=60", "--stretch=auto")
TABLES = ("metrics.csv", "weight_distance.csv", "noise_scale.csv")
PRECISIONS = ("float32", "mixed_bfloat16")

RANDOM = "at random"

_TIMEOUT = 300


def main():
    """Kills, resumes, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="number of random kills")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--auto", action="store_true", help="runs of unknown length")
    parser.add_argument("--json", help="file to write all figures to")
    arguments = parser.parse_args()
    flags = (*FLAGS, *(AUTO if arguments.auto else LENGTH))
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(arguments.processes) as pool,
    ):
        folder = pathlib.Path(folder)
        undisturbed = {}
        for precision in PRECISIONS[: arguments.runs]:
            undisturbed[precision] = folder / precision
            run(flags, undisturbed[precision], precision)
        rows = []
        # If some runs end before they can be killed, there are more runs.
        while kills_of(rows) < arguments.kills:
            number = len(rows)
            missing = arguments.kills - kills_of(rows)
            parts = max(1, arguments.runs - number)
            planned = [
                {
                    "run": number + part + 1,
                    "precision": PRECISIONS[(number + part) % len(PRECISIONS)],
                    "moments": moments(number + part, len(range(part, missing, parts))),
                }
                for part in range(parts)
            ]
            killed = [
                pool.submit(
                    *(run_and_kill, flags, folder / f"run_{row['run']}"),
                    *(row, arguments.seed),
                )
                for row in planned
            ]
            for row, ended in zip(planned, killed, strict=True):
                row["kills"] = ended.result()
                row["different"] = differences(
                    undisturbed[row["precision"]], folder / f"run_{row['run']}"
                )
                told = ", ".join(f"{moment} ({left})" for moment, left in row["kills"])
                print(
                    f"run {row['run']:2}, {row['precision']}: {told}: "
                    f"{', '.join(row['different']) or 'the same'}",
                    flush=True,
                )
                rows.append(row)
    same = sum(not row["different"] for row in rows)
    provoked = sum(len(row["kills"]) for row in rows) - kills_of(rows)
    print(f"{kills_of(rows)} random kills, {provoked} while writing a checkpoint")
    print(f"{same} of {len(rows)} runs equal the undisturbed run")
    write_json(arguments.json, rows)
    return int(same < len(rows))


def moments(number, kills):
    """When to kill a run: `kills` times at random, and once while it writes."""
    found = [RANDOM] * kills
    found.insert(number % (kills + 1), PROVOKED[number % len(PROVOKED)])
    return found


def kills_of(rows):
    """The number of random kills."""
    return sum(moment == RANDOM for row in rows for moment, _ in row["kills"])


def run_and_kill(flags, folder, row, seed):
    """Runs the program, kills it at each of the moments, then runs it to the end.

    Returns:
        A list of `(moment, checkpoint)`: each kill, and the newest checkpoint after it.
    """
    generator = random.Random(f"{seed} {row['run']}")
    kills = []
    for moment in row["moments"]:
        if moment == RANDOM:
            is_killed = run(
                *(flags, folder, row["precision"]), after=generator.uniform(0.2, 4)
            )
        else:
            moment_and_write = f"{moment}:{generator.randint(1, 8)}"
            is_killed = run(flags, folder, row["precision"], moment_and_write)
        if not is_killed:
            return kills
        left = checkpoints(folder / "checkpoints")
        kills.append((moment, left[-1].stem if left else "no checkpoint"))
    run(flags, folder, row["precision"])
    return kills


def run(flags, folder, precision, moment="", after=None):
    """Runs the program, and kills it at a moment or `after` seconds of training.

    Returns:
        Whether it was killed before it ended.
    """
    flags = (*flags, f"--precision={precision}", f"--run_dir={folder}")
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), moment, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    alarms = [threading.Timer(_TIMEOUT, process.kill)]
    alarms[0].start()
    output = ""
    for line in process.stdout:
        output += line
        if after is not None and line.startswith("learning rate "):
            # The network is built, and the training begins.
            alarms.append(threading.Timer(after, process.kill))
            alarms[-1].start()
    code = process.wait()
    for alarm in alarms:
        alarm.cancel()
    is_killed = code == -9 and bool(moment or after is not None)
    if code and not is_killed:
        raise RuntimeError(f"exit code {code}: {output[-2000:]}")
    return is_killed


def differences(one, other):
    """The names of what differs between the folders of two finished runs."""
    found = []
    for name in TABLES:
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    for name in ("accuracy", "loss", "updates", "samples"):
        if results[0][name] != results[1][name]:
            found.append(name)
    if not same_arrays(*(model_arrays(run) for run in (one, other))):
        found.append("model.keras")
    if not same_arrays(*(checkpoint_arrays(run) for run in (one, other))):
        found.append("checkpoint")
    if points(one) != points(other):
        found.append("TensorBoard's points")
    return found


def same_arrays(one, other):
    """Whether two dictionaries of arrays have the same bytes."""
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype and array.tobytes() == other[name].tobytes()
        for name, array in one.items()
    )


def model_arrays(run):
    """The variables of the model and its optimizer. Keras does not save seeds."""
    model = keras.models.load_model(run / "model.keras")
    variables = [*model.weights, *model.optimizer.variables]
    return {str(place): v.numpy() for place, v in enumerate(variables)}


def checkpoint_arrays(run):
    """The arrays of the last update's checkpoint, which both runs save."""
    newest = max((run / "checkpoints").iterdir())
    arrays, facts = decode(newest.read_bytes())
    return {**arrays, "updates": np.array(facts["updates"])}


def points(run):
    """TensorBoard's points `(run, update, tag, value)`, sorted, without speeds."""
    return sorted(
        (name, event.step, value.tag, value.tensor.SerializeToString())
        for name in ("train", "validation")
        for event in read_events(run / "tensorboard" / name)
        for value in event.summary.value
        if not value.tag.endswith("_per_second") and value.tag != "waiting_for_data"
    )


if __name__ == "__main__":
    sys.exit(main())

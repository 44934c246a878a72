"""Kills trainings with -9 at random moments; each must end as if it had not been.

    python benchmarks/kill_soak.py [--kills=100] [--runs=20] [--seed=1]

A run is the program itself on the digits: F1 with dropout, gradient noise, weight
distance and noise scale, checkpoints every 7 updates (an epoch has 6), half of the runs
in float32, half in mixed_bfloat16. It is killed about five times at random moments
after its plan is printed, and once more, in turn: in the middle of writing a
checkpoint; with the checkpoint written but not yet under its name; with the checkpoint
under its name but the oldest one not yet deleted. Then the same command runs to the
end.

Compared with a run that was not killed, bit for bit: `model.keras` (weights, running
statistics, optimizer); the last checkpoint (seeds and metrics, too); accuracy and loss
in `result.json`; the CSV files' text; and all of TensorBoard's points but those of
speed. The exit code is 1 if anything differs. Quarter
of an hour on two cores.
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
from side_by_side import write_json

# With the classes that are in the models' files.
import gbn_keras.training.model  # noqa: F401
from gbn_keras.training.run.checkpoint_file import decode
from gbn_keras.training.run.events import read_events

PROGRAM = pathlib.Path(__file__).with_name("killed_program.py")

FLAGS = (
    *("--batch_size=256", "--epochs=20", "--stretch=8", "--gradient_noise=full"),
    *("--micro_batch_size=128", "--checkpoint_every=7"),
    *("--weight_distance", "--noise_scale"),
)
TABLES = ("metrics.csv", "weight_distance.csv", "noise_scale.csv")
PRECISIONS = ("float32", "mixed_bfloat16")

RANDOM = "at random"

# Of writing a checkpoint: as killed_program.py knows them.
PROVOKED = ("half written", "not yet named", "not yet tidied")

_TIMEOUT = 300


def main():
    """Kills, resumes, compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="at random")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--processes", type=int, default=2, help="at once")
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(arguments.processes) as pool,
    ):
        folder = pathlib.Path(folder)
        undisturbed = {}
        for precision in PRECISIONS[: arguments.runs]:
            undisturbed[precision] = folder / precision
            run(undisturbed[precision], precision)
        rows = []
        # More runs than asked for, if some ended before they could be killed.
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
                    run_and_kill, folder / f"run_{row['run']}", row, arguments.seed
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
    print(f"{kills_of(rows)} kills at random, {provoked} in writing")
    print(f"{same} of {len(rows)} runs are the undisturbed one")
    write_json(arguments.json, rows)
    return int(same < len(rows))


def moments(number, kills):
    """When to kill a run: so often at random, and once while it writes."""
    found = [RANDOM] * kills
    found.insert(number % (kills + 1), PROVOKED[number % len(PROVOKED)])
    return found


def kills_of(rows):
    """How many there were at random."""
    return sum(moment == RANDOM for row in rows for moment, _ in row["kills"])


def run_and_kill(folder, row, seed):
    """Runs, kills at each of the moments, and runs to the end.

    Returns:
        `(moment, checkpoint)`, the kills and the newest checkpoint that each left.
    """
    generator = random.Random(f"{seed} {row['run']}")
    kills = []
    for moment in row["moments"]:
        if moment == RANDOM:
            is_killed = run(folder, row["precision"], after=generator.uniform(0.2, 4))
        else:
            moment_and_write = f"{moment}:{generator.randint(1, 8)}"
            is_killed = run(folder, row["precision"], moment_and_write)
        if not is_killed:
            return kills
        left = sorted((folder / "checkpoints").glob("update_??????????.checkpoint"))
        kills.append((moment, left[-1].stem if left else "no checkpoint"))
    run(folder, row["precision"])
    return kills


def run(folder, precision, moment="", after=None):
    """Runs the program, which is killed at the moment or so many seconds after.

    Returns:
        Whether it was killed before it came to its end.
    """
    flags = (*FLAGS, f"--precision={precision}", f"--run_dir={folder}")
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
            # The network is there: what follows is the training.
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
    """What differs between the folders of two finished runs."""
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
    """Whether all bytes are the same."""
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype and array.tobytes() == other[name].tobytes()
        for name, array in one.items()
    )


def model_arrays(run):
    """The variables of the model and its optimizer; Keras does not save seeds."""
    model = keras.models.load_model(run / "model.keras")
    variables = [*model.weights, *model.optimizer.variables]
    return {str(place): v.numpy() for place, v in enumerate(variables)}


def checkpoint_arrays(run):
    """The arrays of the last update's checkpoint; both runs save that one."""
    newest = max((run / "checkpoints").iterdir())
    arrays, facts = decode(newest.read_bytes())
    return {**arrays, "updates": np.array(facts["updates"])}


def points(run):
    """TensorBoard's points `(run, update, tag, value)`, sorted, but those of speed."""
    return sorted(
        (name, event.step, value.tag, value.tensor.SerializeToString())
        for name in ("train", "validation")
        for event in read_events(run / "tensorboard" / name)
        for value in event.summary.value
        if not value.tag.endswith("_per_second") and value.tag != "waiting_for_data"
    )


if __name__ == "__main__":
    sys.exit(main())

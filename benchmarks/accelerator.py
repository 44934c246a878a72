"""All that is to be measured on a GPU or a TPU, in calls of a few minutes each.

    python benchmarks/accelerator.py pack --dataset=cifar10 --data_dir=DIR --data=FOLDER
    python benchmarks/accelerator.py speed --folder=runs/accelerator
    python benchmarks/accelerator.py right --folder=runs/accelerator
    python benchmarks/accelerator.py train table1:c1_200 --data=FOLDER --folder=...
    python benchmarks/accelerator.py report --folder=runs/accelerator [--json=FILE]

The machine needs Keras, JAX, numpy, absl, matplotlib, scipy and this checkout, but
neither TensorFlow nor a network. `pack` alone needs tensorflow-datasets: it makes one
small file of a data set, wherever that is prepared, for you to copy.

A call stops by itself after `--minutes`, and exits with code 75 if there is more to
do. The same call then goes on where it stopped, in the same `--folder`:

    until python benchmarks/accelerator.py train table1:c1_200 --data=... --folder=...
    do [ $? = 75 ] || break; done

`speed` times training steps of single layers and of ResNet-44 and ResNet-50, in float32
and bfloat16: Keras's BatchNormalization, ghosts, ghosts by hand, and, if PyTorch is
installed, its BatchNorm2d in a process of its own. It also tells the share of the
memory's bandwidth that a layer uses.

`right` compares a layer with float64, and two processes with each other.

`train` trains tasks of the experiments (`table1`, `stretch_curve`, `as_published`,
`ghost_size`, `where_it_turns`), with the same flags and the same `LargeBatchModel` as
their own commands, but on JAX. `--only` and `--seeds` choose. All arms of a seed come
before the next seed. Each training has a run directory in FOLDER/EXPERIMENT/TASK, which
`results.py collect` reads. XLA is asked for deterministic kernels, so that a training
that goes on in another process gives the same bits; `--any_kernels` leaves that out.

Each row has the commit. Set `GBN_COMMIT` where the copy has no history.

`report` prints what `speed` and `right` found as Markdown. What is missing is "not
run". `results.py keep` takes the file of its `--json`.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pathlib
import sys

NOT_FINISHED = 75  # As in sysexits.h: try again later.
EXPERIMENTS = ("table1", "stretch_curve", "as_published", "ghost_size")
EXPERIMENTS += ("where_it_turns",)
# Makes XLA choose GPU kernels that give the same bits each time.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def main():
    """Runs one command."""
    arguments = parsed(sys.argv[1:])
    if arguments.command == "pack":
        pack(arguments)
        return
    prepare(arguments)
    commands = {"speed": speed, "right": right, "train": train, "report": report}
    is_finished = commands[arguments.command](arguments)
    if not is_finished:
        print("not finished: the same call goes on", flush=True)
        sys.exit(NOT_FINISHED)


def parsed(words):
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack")
    pack.add_argument("--data_dir", help="folder of tensorflow-datasets")
    pack.add_argument("--dataset", default="cifar10")
    pack.add_argument("--data", type=pathlib.Path, required=True)
    for command in ("speed", "right", "train", "report"):
        one = commands.add_parser(command)
        one.add_argument("--folder", type=pathlib.Path, required=True)
        one.add_argument("--minutes", type=float, default=9)
        one.add_argument("--tiny", action="store_true", help="for a CPU, in seconds")
    train = commands.choices["train"]
    train.add_argument("tasks", nargs="+", metavar="EXPERIMENT:TASK")
    train.add_argument("--data", help="folder of `pack`, or `noise` to try things out")
    train.add_argument("--only", help="regular expression for the names of the arms")
    train.add_argument("--seeds", type=_list_of_numbers, default=[1, 2, 3])
    train.add_argument("--any_kernels", action="store_true")
    train.add_argument("--flags", default="", help="more flags of the program")
    commands.choices["report"].add_argument("--json", help="file to write all to")
    return parser.parse_args(words)


def pack(arguments):
    """Writes the data set's file."""
    from accelerator_data import pack

    arguments.data.mkdir(parents=True, exist_ok=True)
    file = arguments.data / f"{arguments.dataset}.npz"
    form = pack(arguments.data_dir, file, arguments.dataset)
    megabytes = file.stat().st_size / 1e6
    print(f"{file}: {megabytes:.1f} MB, {form}, read again and compared")


def prepare(arguments):
    """Sets what JAX and Keras read when they are imported."""
    if os.environ.setdefault("KERAS_BACKEND", "jax") != "jax":
        sys.exit(f"KERAS_BACKEND: got {os.environ['KERAS_BACKEND']}, wanted jax.")
    # Other processes need some of the device's memory: PyTorch's, and those of `right`.
    if arguments.command in ("speed", "right"):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.command == "train" and not arguments.any_kernels:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    import jax

    if jax.default_backend() != "cpu":
        # A training that goes on uses the same compiled program again.
        compiled = os.fspath(arguments.folder.absolute() / "compiled")
        jax.config.update("jax_compilation_cache_dir", compiled)


def speed(arguments):
    """Times layers and networks."""
    import accelerator_speed
    from accelerator_folder import Deadline, run_parts

    parts = accelerator_speed.parts(arguments.tiny)
    return run_parts(arguments.folder / "speed", parts, Deadline(arguments.minutes))


def right(arguments):
    """Compares a layer with float64, and two processes."""
    import accelerator_right
    from accelerator_folder import Deadline, run_parts

    folder = arguments.folder / "right"
    parts = accelerator_right.parts(arguments.tiny, folder, DETERMINISTIC)
    return run_parts(folder, parts, Deadline(arguments.minutes))


def train(arguments):
    """Trains the tasks' arms, one after the other."""
    from absl import flags
    from accelerator_folder import Deadline
    from accelerator_train import train

    from gbn_keras.training.errors import UsageError

    deadline, data = Deadline(arguments.minutes), {}
    is_finished = True
    try:
        for place, (experiment, arm, settings) in enumerate(trainings(arguments)):
            if place and deadline.is_over("compilation"):
                return False
            name = settings.dataset
            data[name] = data.get(name) or data_of(arguments, name)
            variant = experiment.variant(arm)
            is_finished &= train(settings, data[name], deadline, variant)
    except (flags.Error, UsageError) as error:
        sys.exit(f"error: {error}")
    return is_finished


def trainings(arguments):
    """The experiment, the arm and the settings of each training, in order."""
    from experiment import COMMAND, arm_directory, settings_without_data

    from gbn_keras.training.planner import model_name
    from gbn_keras.training.run.run_directory import write_whole

    chosen = [experiment_of(name) for name in arguments.tasks]
    tiny = ["--epochs=2", "--small_batch_size=16", "--train_examples=0"]
    for seed in arguments.seeds:
        for experiment, task in chosen:
            folder = arguments.folder / experiment.script.removesuffix(".py") / task
            folder.mkdir(parents=True, exist_ok=True)
            # Several processes may train arms of one task.
            if not (folder / COMMAND).exists():
                command = experiment.command_on_jax(task)
                write_whole(folder / COMMAND, f"{command}\n")
            only = experiment.usual if arguments.only is None else arguments.only
            for arm in experiment.chosen(task, only):
                run_dir = arm_directory(folder, arm) / f"seed_{seed}"
                words = [*experiment.flags(task, arm, seed), f"--run_dir={run_dir}"]
                if arguments.tiny:
                    is_small = arm.endswith("SB")
                    words += [*tiny, f"--batch_size={16 if is_small else 64}"]
                words += arguments.flags.split()
                settings = settings_without_data(words)
                settings = dataclasses.replace(settings, model=model_name(settings))
                yield experiment, arm, settings


def experiment_of(name):
    """The experiment and the task that a word of the command line names."""
    script, _, task = name.partition(":")
    if script not in EXPERIMENTS:
        sys.exit(
            f"error: got {name}, wanted one of {', '.join(EXPERIMENTS)} and a task"
        )
    experiment = importlib.import_module(script).EXPERIMENT
    if task not in experiment.tasks:
        known = ", ".join(f"{script}:{task}" for task in experiment.tasks)
        sys.exit(f"error: got {name}, wanted one of {known}.")
    return experiment, task


def data_of(arguments, name):
    """The images of a data set."""
    from accelerator_data import load, random_images

    if arguments.tiny:
        return random_images(256, 100, 8)
    if arguments.data == "noise":
        return random_images(8192, 1000, 32)
    if not arguments.data:
        sys.exit("error: --data: got none, wanted a folder of `pack`, or noise.")
    file = pathlib.Path(arguments.data) / f"{name}.npz"
    if not file.is_file():
        sys.exit(
            f"error: --data: got {arguments.data} without {file.name}, wanted a folder "
            f"with it. Make it: accelerator.py pack --dataset={name}."
        )
    return load(file)


def report(arguments):
    """Prints the tables."""
    import accelerator_report
    import accelerator_right
    import accelerator_speed
    from accelerator_folder import read_rows

    folder = arguments.folder
    parts = {
        "speed": accelerator_speed.parts(arguments.tiny),
        "right": accelerator_right.parts(arguments.tiny, folder),
    }
    missing = [
        f"{stage}: {name}"
        for stage, names in parts.items()
        for name in names
        if not (folder / stage / f"{name}.json").exists()
    ]
    rows = [row for stage in parts for row in read_rows(folder / stage)]
    if arguments.json:
        command = "python benchmarks/accelerator.py report"
        content = {"command": command, "rows": rows, "missing": missing}
        pathlib.Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    print(accelerator_report.report(rows, missing))
    return True


def _list_of_numbers(text):
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()

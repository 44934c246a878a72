"""All that is to be measured on a GPU or a TPU, in calls of a few minutes each.

    python benchmarks/accelerator.py pack --data_dir=DIR --output=cifar10.npz
    python benchmarks/accelerator.py speed --folder=runs/accelerator
    python benchmarks/accelerator.py right --folder=runs/accelerator
    python benchmarks/accelerator.py train --folder=runs/accelerator --data=cifar10.npz
    python benchmarks/accelerator.py report --folder=runs/accelerator

It has not been run on an accelerator yet: its test runs every command on a CPU, with
`--tiny`.

The machine needs Keras, JAX, numpy and this checkout, but neither TensorFlow nor a
network. `pack` alone needs tensorflow-datasets: it makes one small file of CIFAR-10,
wherever that is prepared, for you to copy.

A call stops by itself after `--minutes`, and exits with code 75 if there is more to
do. The same call then goes on where it stopped, in the same `--folder`:

    until python benchmarks/accelerator.py train --folder=... --data=...; do
      [ $? = 75 ] || break
    done

`speed` times training steps of single layers and of ResNet-44 and ResNet-50, in float32
and bfloat16: Keras's BatchNormalization, ghosts, ghosts by hand, and, if PyTorch is
installed, its BatchNorm2d in a process of its own. It also tells the share of the
memory's bandwidth that a layer uses.

`right` compares a layer with float64, and two processes with each other.

`train` trains the paper's arms: SB, LB, +LR, +GBN, +RA, each with the network's full
regime. `--networks`, `--arms` and `--seeds` choose. All arms of a seed come before the
next seed. It asks XLA for deterministic kernels, so that a training that goes on in
another process gives the same bits; `--any_kernels` leaves that out. C1's regime has no
momentum, like the published code; `--momentum=0.9` makes a training of its own.

Each row has the commit. Set `GBN_COMMIT` where the copy has no history.

`report` prints what there is as Markdown. What is missing is "not run".
"""

import argparse
import functools
import os
import pathlib
import sys

NOT_FINISHED = 75  # As in sysexits.h: try again later.
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
    of_pack = commands.add_parser("pack")
    of_pack.add_argument("--data_dir", help="folder of tensorflow-datasets")
    of_pack.add_argument("--dataset", default="cifar10")
    of_pack.add_argument("--output", type=pathlib.Path, required=True)
    for command in ("speed", "right", "train", "report"):
        one = commands.add_parser(command)
        one.add_argument("--folder", type=pathlib.Path, required=True)
        one.add_argument("--minutes", type=float, default=9)
        one.add_argument("--tiny", action="store_true", help="for a CPU, in seconds")
    one = commands.choices["train"]
    one.add_argument("--data", help="file of `pack`, or `noise` to try things out")
    one.add_argument("--networks", type=_list_of(str))
    one.add_argument("--arms", type=_list_of(str), default=[])
    one.add_argument("--seeds", type=_list_of(int), default=[1])
    one.add_argument("--momentum", type=float, help="instead of the regime's")
    one.add_argument("--precision", default="float32", help="Keras's dtype policy")
    one.add_argument("--micro_batch_size", type=int, default=0)
    one.add_argument("--max_updates", type=int, help="stop each training after these")
    one.add_argument("--any_kernels", action="store_true")
    return parser.parse_args(words)


def pack(arguments):
    """Writes the data set's file."""
    from accelerator_data import pack

    form = pack(arguments.data_dir, arguments.output, arguments.dataset)
    megabytes = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {megabytes:.1f} MB, {form}, read again and compared")


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
    """Trains the arms, one after the other."""
    from accelerator_data import load, random_images
    from accelerator_folder import Deadline
    from accelerator_task import ARMS, task_of
    from accelerator_train import train

    unknown = set(arguments.arms) - set(ARMS)
    if unknown:
        sys.exit(f"--arms: got {', '.join(unknown)}, wanted some of {', '.join(ARMS)}.")
    deadline = Deadline(arguments.minutes)
    if arguments.data not in (None, "noise"):
        data = load(pathlib.Path(arguments.data))
    elif arguments.tiny or arguments.data:
        data = random_images(*((256, 100, 8) if arguments.tiny else (8192, 1000, 32)))
    else:
        sys.exit("--data: got none, wanted a file of `pack`, or noise.")
    networks = ["c1", "resnet8"] if arguments.tiny else ["c1", "resnet44"]
    make = functools.partial(
        task_of,
        tiny=arguments.tiny,
        momentum=arguments.momentum,
        precision=arguments.precision,
        micro_batch_size=arguments.micro_batch_size,
    )
    tasks = [
        make(network, arm, seed)
        for seed in arguments.seeds
        for arm in arguments.arms or ARMS
        for network in arguments.networks or networks
    ]
    is_finished = True
    for place, task in enumerate(tasks):
        if place and deadline.is_over("compilation"):
            return False
        folder = arguments.folder / "train" / task.name
        try:
            is_finished &= train(task, data, folder, deadline, arguments.max_updates)
        except ValueError as error:
            sys.exit(str(error))
    return is_finished


def report(arguments):
    """Prints the tables."""
    import accelerator_report

    print(accelerator_report.report(arguments.folder, arguments.tiny))
    return True


def _list_of(kind):
    return lambda text: [kind(word) for word in text.split(",")]


if __name__ == "__main__":
    main()

"""Trains networks with large batches and keeps the accuracy of small ones.

    python train.py --flagfile=configs/quickstart.cfg

The data set and the network decide what you leave out. The program prints its plan
before the first update. An invalid flag prints one line and exits with code 2.
"""

# This file only defines the flags; gbn_keras.training does the work. It is outside that
# package, because importing the package takes seconds and starts TensorFlow before the
# environment variables below are set.

import contextlib
import gc
import io
import os
import re
import sys
import unicodedata
from typing import Any

from absl import flags

from gbn_quiet_start import quiet_start

# Users who set it want to read what TensorFlow writes.
_IS_QUIET = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
# Hides TensorFlow's notices about the instructions that it was built for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow turns oneDNN's kernels on by itself only on the newest processors. On the
# others, convolutions take up to twice as long without them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "study", "sweep", "landscape", "tune", "plan"],
    "train: train one network. evaluate: evaluate the model in --run_dir. study: train "
    "the paper's five arms (SB, LB, +LR, +GBN, +RA) with --seeds seeds and compare "
    "them. sweep: train once with each of --batch_sizes (the paper's Figures 1 to 3). "
    "landscape: measure how the loss changes with the distance from the weights of the "
    "model in --run_dir, or of a new network. tune: search for the best values of the "
    "flags in --search with keras-tuner. plan: forecast updates, samples and hours for "
    "each batch size, from the noise of the training in --run_dir, or of a short one.",
)
flags.DEFINE_string(
    "run_dir",
    None,
    "Folder for the run's flags, metrics, TensorBoard events, checkpoints, model, "
    "result and plots. The same command resumes an interrupted run and does not repeat "
    "a finished one. Default: a folder in runs/, named after the flags.",
)

# What.
flags.DEFINE_string(
    "dataset",
    "digits",
    "digits (included with scikit-learn), or the name of a data set of "
    "tensorflow-datasets.",
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder that holds the data sets that tensorflow-datasets has prepared. Default: "
    "the environment variable TFDS_DATA_DIR, or else ~/tensorflow_datasets.",
)
flags.DEFINE_bool(
    "download", False, "Download and prepare the data set if it is missing."
)
flags.DEFINE_string(
    "train_split",
    None,
    "Training examples in tensorflow-datasets' split language, for example train[:90%] "
    "or train+validation. Default: train.",
)
flags.DEFINE_string(
    "validation_split",
    None,
    "Validation examples, for example train[90%:]. None of them may be a training "
    "example. Default: validation, or else test; do not tune on test.",
)
flags.DEFINE_integer(
    "train_examples",
    0,
    "Number of training examples to use, from the first on. 0: all.",
    lower_bound=0,
)
flags.DEFINE_string(
    "image_key",
    None,
    "Feature that holds the image. Default: the one that the data set names, or else "
    "image.",
)
flags.DEFINE_string(
    "label_key",
    None,
    "Feature that holds the label. Default: the one that the data set names, or else "
    "label.",
)
flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of the crops from JPEG files of many sizes, such as ImageNet's.",
    lower_bound=1,
)
flags.DEFINE_string(
    "model",
    None,
    "The network: f1, f1_digits, c1, c3, resnet44 (any 6n+2), wresnet16_4 (any depth "
    "6n+4 and any width), vgg11 to vgg19, alexnet, resnet18 or resnet50. Default: the "
    "usual one for the data set.",
)

# Regime.
flags.DEFINE_integer(
    "batch_size", None, "Examples per update. Default: --small_batch_size."
)
flags.DEFINE_list(
    "batch_sizes",
    None,
    "sweep, plan: the batch sizes, for example 128,1024,4096. Default of a plan: the "
    "small batch, twice that, and so on.",
)
flags.DEFINE_integer(
    "small_batch_size",
    None,
    "Batch size that the learning rate and the epochs were tuned for. Default: the "
    "network's.",
)
flags.DEFINE_integer(
    "virtual_batch_size",
    None,
    "Examples per ghost batch. 0: plain batch normalization. Default: "
    "--small_batch_size.",
)
flags.DEFINE_string(
    "lr_scaling",
    "sqrt",
    "How the learning rate grows with M = batch_size / small_batch_size: none, sqrt, "
    "linear, or the factor itself as a number. gain: the number of small-batch updates "
    "that each update is worth; with --stretch=auto only.",
)
flags.DEFINE_string(
    "stretch",
    "full",
    "Epochs, as a multiple of the small batch's. 1 keeps the number of epochs; full, "
    "which is M, keeps the number of updates. Other values trade accuracy for time. "
    "auto: train until the updates have done the work of the small batch's updates, as "
    "far as gradients tell. It needs at least two micro-batches or replicas.",
)
flags.DEFINE_integer(
    "warmup_updates", 0, "Updates in which the rate grows linearly to its scaled value."
)
flags.DEFINE_string(
    "gradient_noise",
    "none",
    "Variance of a random weight for each example, which makes the gradient of a large "
    "batch as noisy as that of a small one: none, full (M - 1), or a number.",
)
flags.DEFINE_integer(
    "epochs",
    None,
    "Epochs of the small batch's regime. The epochs at which its rate changes move in "
    "proportion. Default: the network's.",
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "First learning rate of the small batch's regime. Later rates change in "
    "proportion. Default: the network's, or 0.001 with adam and adamw.",
)
flags.DEFINE_float(
    "clipnorm",
    None,
    "Largest global norm of the gradient. 0: no clipping. Default: the network's.",
)
flags.DEFINE_float(
    "l2",
    None,
    "First L2 coefficient of the small batch's regime. Later coefficients change in "
    "proportion. 0: no penalty. Default: the network's, or 0 with adam and adamw.",
)
flags.DEFINE_bool(
    "l2_kernels_only",
    False,
    "Exclude gamma, beta and biases from the L2 penalty. The paper includes them.",
)
flags.DEFINE_enum(
    "optimizer",
    "sgd",
    ["sgd", "adam", "adamw"],
    "sgd: with the regime's momentum and L2 penalty, as the paper. adam, adamw: "
    "without them; the betas follow the batch size and the stretch, unless "
    "--lr_scaling=none.",
)
flags.DEFINE_enum(
    "second_moment",
    "batch",
    ["batch", "small_batch"],
    "adam, adamw: the gradients whose squares divide the update. batch: those of the "
    "whole batch. small_batch: as if of --small_batch_size examples, from the "
    "gradients of at least two micro-batches or replicas; --lr_scaling=linear suits "
    "it at --stretch=1.",
)
flags.DEFINE_float(
    "weight_decay",
    None,
    "adamw: decay of the weights at the small batch, which is multiplied by the rate. "
    "Default: 0.004, as in Keras.",
)

# Devices. These flags do not change the result.
flags.DEFINE_enum(
    "strategy",
    "one",
    ["one", "mirrored", "multi_worker", "tpu"],
    "Devices that share the batch. one: one device. mirrored: the GPUs of one machine. "
    "multi_worker: several machines; run the same command on each. tpu: a TPU.",
)
flags.DEFINE_integer(
    "replicas",
    0,
    "mirrored: number of GPUs, 0 for all. Without a GPU: number of logical CPU "
    "devices. plan: the most replicas to plan for, 0 for one.",
    lower_bound=0,
    upper_bound=1024,
)
flags.DEFINE_enum(
    "cluster",
    "auto",
    ["auto", "slurm", "kubernetes"],
    "multi_worker: where to look up the machines if TF_CONFIG is not set. auto: the "
    "scheduler that this process runs under.",
)
flags.DEFINE_integer(
    "cluster_port",
    8888,
    "multi_worker with slurm or kubernetes: the port to use on each machine.",
    lower_bound=1,
    upper_bound=65535,
)
flags.DEFINE_string(
    "tpu",
    None,
    "tpu: name or address of the TPU; local on a TPU machine. Default: the TPU that "
    "TensorFlow finds.",
)
flags.DEFINE_integer(
    "micro_batch_size",
    0,
    "Examples that each device sends through the network at once, a multiple of "
    "--virtual_batch_size. 0: as many as --memory_budget allows.",
    lower_bound=0,
)
flags.DEFINE_float(
    "memory_budget",
    0,
    "Estimated GiB that an update may use on each device. 0: half of its memory.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Precision of the layers. Variables and statistics stay float32.",
)
flags.DEFINE_enum(
    "jit",
    "auto",
    ["auto", "on", "off"],
    "Compile with XLA. auto: on GPU and TPU; on one CPU, networks without convolutions "
    "that make 1,000 updates or more.",
)

# Run.
flags.DEFINE_integer(
    "seed",
    1,
    "Seed of the initial weights, the order of the examples and all random layers.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_integer(
    "seeds",
    1,
    "study, sweep: number of seeds, counted up from --seed.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_updates",
    0,
    "Stop after this number of updates. 0: at the end of the regime.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "eval_every",
    0,
    "Epochs between evaluations. 0: as many as --stretch.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "checkpoint_every",
    500,
    "Updates between checkpoints, in addition to the checkpoint after each epoch. 0: "
    "only after epochs. The same command resumes from the last checkpoint.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "weight_distance",
    False,
    "Log the distance of the weights from their initial values (the paper's Figure 2).",
)
flags.DEFINE_bool(
    "noise_scale",
    False,
    "Log the gradient noise scale, measured from the gradients of micro-batches or "
    "replicas. At the end, print whether the batch was too large for its number of "
    "updates.",
)
flags.DEFINE_string(
    "profile",
    None,
    "Updates to profile for TensorBoard, for example 100-110.",
)
flags.DEFINE_integer(
    "directions",
    100,
    "landscape: number of random directions.",
    lower_bound=10,
    upper_bound=100_000,
)

# Search.
flags.DEFINE_enum(
    "tuner",
    "random",
    ["random", "bayesian", "hyperband", "grid"],
    "tune: keras-tuner's search algorithm. Hyperband counts the epochs of --epochs.",
)
flags.DEFINE_multi_string(
    "search",
    [],
    "tune: a flag and the values to try, for example learning_rate:0.01..1 or "
    "stretch:1,4,full. Give it once for each flag to search. These flags can be "
    "searched: batch_size, virtual_batch_size, learning_rate, lr_scaling, stretch, "
    "gradient_noise, l2.",
)
flags.DEFINE_integer(
    "trials",
    20,
    "tune: largest number of trials. Hyperband decides its own number.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "trial_updates",
    0,
    "tune: largest number of updates of a trial. A longer regime is shortened as a "
    "whole. 0: no limit.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "trial_samples",
    0,
    "tune: largest number of samples of a trial. A longer regime is shortened as a "
    "whole. 0: no limit.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "lost_after",
    120,
    "tune on several machines: seconds of silence after which the chief or a worker "
    "counts as lost.",
    lower_bound=1,
)


# Plan.
flags.DEFINE_integer(
    "probe_updates",
    None,
    "plan: number of small-batch updates whose work the short training does. Default: "
    "400, or the whole regime if it is shorter.",
    lower_bound=1,
)
flags.DEFINE_float(
    "link_gbytes",
    None,
    "plan: GB per second that a replica sends and receives. Default: 12.5, which is "
    "100 Gbit/s.",
    lower_bound=0.001,
)
flags.DEFINE_float(
    "cost_per_hour",
    None,
    "plan: what an hour of a replica costs, in any currency. Default: unknown.",
    lower_bound=0,
)


def main(argv: list[str] = sys.argv) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = parse(argv)
    except flags.Error as error:
        return _mistake(error)

    if values["strategy"] == "multi_worker" and _IS_QUIET:
        # When a machine is lost, each part of TensorFlow reports it. We print one line.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # The flags are valid. The import takes seconds.
    with quiet_start() if _IS_QUIET else contextlib.nullcontext(), _no_collection():
        import tensorflow as tf

        from gbn_keras.training import program
        from gbn_keras.training.settings import Settings

        if values["strategy"] != "tpu":  # A TPU's devices are found by its address.
            tf.config.list_physical_devices()

    return program.run(Settings(**values))


@contextlib.contextmanager
def _no_collection():
    """Keeps Python from looking for cycles among the many objects of the imports."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse(argv: list[str]) -> dict[str, Any]:
    """The values of all flags.

    To evaluate a run, measure its landscape or plan by it, the run's own `flags.cfg`
    gives the defaults.

    Raises:
        flags.Error: If a flag is unknown or invalid.
    """
    if {"--help", "-h"} & set(argv[1:]):
        print(f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        sys.exit()
    flags.FLAGS.unparse_flags()
    unparsed = _read_flags(argv)
    if unparsed:
        raise flags.Error(
            f"got the argument {unparsed[0]!r}, wanted flags only, as --name=value."
        )
    _refuse_control_characters()
    flagfile = os.path.join(flags.FLAGS.run_dir or "", "flags.cfg")
    if _MODE.value in ("evaluate", "landscape", "plan") and os.path.isfile(flagfile):
        _read_flags([argv[0], f"--flagfile={flagfile}", *argv[1:]])
        _refuse_control_characters()
    own_flags = flags.FLAGS.get_flags_for_module(sys.modules[__name__])
    values: dict[str, Any] = {flag.name: flag.value for flag in own_flags}
    if values["batch_sizes"] is not None:
        values["batch_sizes"] = tuple(values["batch_sizes"])
    values["search"] = tuple(values["search"])
    _look_for_data(**values)
    return values


def _read_flags(argv):
    """Sets the flags from command line and flagfiles; returns other arguments."""
    warnings = io.StringIO()
    try:
        with contextlib.redirect_stderr(warnings):
            lines = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
            # Some editors begin a file with a byte order mark, and the line behind it
            # may name another flagfile.
            while any(line.startswith("\ufeff") for line in lines):
                lines = [line.removeprefix("\ufeff") for line in lines]
                lines = [line for line in lines if not line.startswith(("#", "//"))]
                lines = flags.FLAGS.read_flags_from_files(lines, force_gnu=False)
            unparsed = flags.FLAGS([argv[0], *lines])[1:]
    except UnicodeDecodeError as error:
        raise flags.Error(
            "--flagfile: got a file that is not UTF-8 text "
            f"({error.reason} at byte {error.start}), wanted one flag per line. Name a "
            "flagfile, or save the file as UTF-8."
        ) from error
    if warnings.getvalue():  # A flagfile names itself.
        raise flags.Error(f"--flagfile: {warnings.getvalue()}")
    return unparsed


def _refuse_control_characters():
    """Refuses line breaks and the like, because a flagfile cannot hold them."""
    for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
        texts = flag.value if isinstance(flag.value, list) else [flag.value]
        for text in texts:
            if {unicodedata.category(x) for x in str(text)} & {"Cc", "Cs", "Zl", "Zp"}:
                raise flags.Error(
                    f"--{flag.name}: got {text!r}, wanted no line breaks or other "
                    "control characters. Remove them."
                )


def _look_for_data(dataset, data_dir, download, **_):
    """Reports missing data before TensorFlow's import, which takes seconds."""
    folder = re.split("[:/]", dataset)[0]
    if folder == "digits" or download:
        return
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    # Not pathlib: it raises an error if the name is too long.
    prepared = os.path.join(os.path.expanduser(data_dir), folder)
    if not folder or not os.path.isdir(prepared):
        raise flags.Error(
            f"--dataset: got {dataset!r}, wanted digits or a data set that is prepared "
            f"in {data_dir}. Name the folder that holds it with --data_dir, or prepare "
            "it there with --download."
        )


def _mistake(error):
    # absl already marks some of its messages as errors.
    message = " ".join(str(error).split()).removeprefix("ERROR:: ")
    print(f"error: {message}", file=sys.stderr)
    return 2

"""Trains with ghost batches, a scaled learning rate and an adapted regime.

    python train.py --flagfile=configs/quickstart.cfg

What the flags leave open follows from the data set and the network, and is printed
before the first update. A wrong flag ends in one line and exit code 2.
"""

# This file defines the flags and nothing else: the work is in gbn_keras.training. It is
# not in that package, whose import would take seconds and start TensorFlow before the
# environment variables below are set.

import contextlib
import io
import os
import re
import sys
import unicodedata
from typing import Any

from absl import flags

from gbn_quiet_start import quiet_start

# Whoever sets it wants to read what TensorFlow writes.
_IS_QUIET = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
# TensorFlow's notices of which instructions it was built for.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow turns oneDNN's kernels on by itself on the newest processors only; without
# them convolutions take up to twice as long on the others.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "study", "sweep", "landscape", "tune"],
    "train a network; evaluate the model of --run_dir; study: train the paper's five "
    "arms (SB, LB, +LR, +GBN, +RA) with several seeds and compare them; sweep: train "
    "with each of --batch_sizes (Figures 1 to 3); landscape: how the loss changes with "
    "the distance from a network's weights, those of --run_dir's model if it has one; "
    "tune: find the best values of the flags in --search, with keras-tuner.",
)
flags.DEFINE_string(
    "run_dir",
    None,
    "Folder of the run: flags, metrics, TensorBoard events, checkpoints, model, "
    "result, plots. An interrupted run goes on, a finished one is not run again. "
    "Default: one in runs/ named after the flags.",
)

# What.
flags.DEFINE_string(
    "dataset",
    "digits",
    "digits (scikit-learn's, embedded), or the name of a tensorflow-datasets data set.",
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Where tensorflow-datasets' prepared data lies. Default: the environment's "
    "TFDS_DATA_DIR, else ~/tensorflow_datasets.",
)
flags.DEFINE_bool(
    "download", False, "Download and prepare the data set if it is not there."
)
flags.DEFINE_string(
    "train_split",
    None,
    "Training examples, as tensorflow-datasets writes them: train[:90%], "
    "train+validation. Default: train.",
)
flags.DEFINE_string(
    "validation_split",
    None,
    "Validation examples, as train[90%:], none of them for training. Default: "
    "validation, else test, on which no search should choose.",
)
flags.DEFINE_integer(
    "train_examples",
    0,
    "Train on the first so many of the training examples; 0: on all.",
    lower_bound=0,
)
flags.DEFINE_string(
    "image_key",
    None,
    "Which feature is the image. Default: as the data set says, else image.",
)
flags.DEFINE_string(
    "label_key",
    None,
    "Which feature is the label. Default: as the data set says, else label.",
)
flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of images that are cut out of JPEG files, as ImageNet's are.",
    lower_bound=1,
)
flags.DEFINE_string(
    "model",
    None,
    "The network: f1, f1_digits, c1, c3, resnet44 (any 6n+2), wresnet16_4 (any depth "
    "6n+4 and width), vgg11 to vgg19, alexnet, resnet18, resnet50. Default: the data "
    "set's own.",
)

# Regime.
flags.DEFINE_integer(
    "batch_size", None, "Examples of one update. Default: the small batch."
)
flags.DEFINE_list(
    "batch_sizes", None, "sweep: the batch sizes to train with, as 128,1024,4096."
)
flags.DEFINE_integer(
    "small_batch_size",
    None,
    "The batch size that the regime was tuned for. Default: the network's.",
)
flags.DEFINE_integer(
    "virtual_batch_size",
    None,
    "Examples of a ghost batch; 0: plain batch normalization. Default: the small "
    "batch.",
)
flags.DEFINE_string(
    "lr_scaling",
    "sqrt",
    "How the rate grows with M = batch_size / small_batch_size: none, sqrt, linear, or "
    "the factor itself.",
)
flags.DEFINE_string(
    "stretch",
    "full",
    "How many times more epochs than the small batch: 1 keeps the epochs; full, which "
    "is M, the updates; numbers between trade.",
)
flags.DEFINE_integer(
    "warmup_updates", 0, "Updates over which the rate grows to its scaled value."
)
flags.DEFINE_string(
    "gradient_noise",
    "none",
    "Variance of the random weight of each example, which makes a large batch's "
    "gradient as noisy as a small one's: none; full, which is M - 1; or a number.",
)
flags.DEFINE_integer(
    "epochs",
    None,
    "Epochs of the small batch's regime; its rate boundaries move in proportion. "
    "Default: the network's.",
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "First rate of the small batch's regime; later ones in proportion. Default: the "
    "network's.",
)
flags.DEFINE_float(
    "clipnorm",
    None,
    "Largest global norm of the gradient; 0: no clipping. Default: the network's.",
)
flags.DEFINE_float(
    "l2",
    None,
    "First L2 coefficient of the small batch's regime, later ones in proportion; 0: no "
    "penalty. Default: the network's.",
)
flags.DEFINE_bool(
    "l2_kernels_only",
    False,
    "Leave gamma, beta and biases out of the L2 penalty, which the paper does not.",
)

# Machine. None of these changes the result.
flags.DEFINE_enum(
    "strategy",
    "one",
    ["one", "mirrored", "multi_worker", "tpu"],
    "Who shares the batch: one device; the GPUs of this machine; several machines, on "
    "each of which this command runs; a TPU.",
)
flags.DEFINE_integer(
    "replicas",
    0,
    "mirrored: how many GPUs, 0: all; without a GPU, how many logical CPU devices.",
    lower_bound=0,
    upper_bound=1024,
)
flags.DEFINE_enum(
    "cluster",
    "auto",
    ["auto", "slurm", "kubernetes"],
    "multi_worker: who knows the machines, where TF_CONFIG is not set; auto: whichever "
    "this process runs in.",
)
flags.DEFINE_integer(
    "cluster_port",
    8888,
    "multi_worker: the port on each machine, with slurm or kubernetes.",
    lower_bound=1,
    upper_bound=65535,
)
flags.DEFINE_string(
    "tpu",
    None,
    "tpu: its name or address; local on a TPU machine. Default: TensorFlow's.",
)
flags.DEFINE_integer(
    "micro_batch_size",
    0,
    "Examples that go through the network at once, a multiple of --virtual_batch_size; "
    "0: as many as --memory_budget allows.",
    lower_bound=0,
)
flags.DEFINE_float(
    "memory_budget",
    0,
    "GiB of each device that an update may take, as estimated; 0: half of its memory.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Of the layers; variables and statistics stay float32.",
)
flags.DEFINE_enum(
    "jit", "auto", ["auto", "on", "off"], "XLA; auto: on GPU and TPU, not on CPU."
)

# Run.
flags.DEFINE_integer(
    "seed",
    1,
    "Of the initial weights and the order of the data.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_integer(
    "seeds", 1, "study: how many seeds, the first being --seed.", lower_bound=1
)
flags.DEFINE_integer(
    "max_updates", 0, "Stop after so many updates; 0: at the end.", lower_bound=0
)
flags.DEFINE_integer(
    "eval_every",
    0,
    "Epochs from one evaluation to the next; 0: as many as --stretch.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "checkpoint_every",
    500,
    "Updates from one checkpoint to the next, besides those at the ends of epochs; 0: "
    "only there. The same command goes on from the last one.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "weight_distance",
    False,
    "Log the distance of the weights from where they started (Figure 2).",
)
flags.DEFINE_bool(
    "noise_scale",
    False,
    "Log the gradient noise scale, from gradients of micro-batches or replicas; say "
    "at the end whether the batch was too large for its number of updates.",
)
flags.DEFINE_string(
    "profile",
    None,
    "Profile these updates for TensorBoard, as 100-110.",
)
flags.DEFINE_integer(
    "directions",
    100,
    "landscape: along how many random directions to measure.",
    lower_bound=10,
    upper_bound=100_000,
)

# Search.
flags.DEFINE_enum(
    "tuner",
    "random",
    ["random", "bayesian", "hyperband", "grid"],
    "tune: which of keras-tuner's. Hyperband's epochs are those of --epochs.",
)
flags.DEFINE_multi_string(
    "search",
    [],
    "tune: a flag and the values to try, as learning_rate:0.01..1 or stretch:1,4,full; "
    "once for each of batch_size, virtual_batch_size, learning_rate, lr_scaling, "
    "stretch, gradient_noise, l2.",
)
flags.DEFINE_integer(
    "trials", 20, "tune: at most so many; Hyperband knows itself.", lower_bound=1
)
flags.DEFINE_integer(
    "trial_updates",
    0,
    "tune: no trial makes more updates, a longer regime is shortened; 0: no limit.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "trial_samples",
    0,
    "tune: no trial sees more samples, a longer regime is shortened; 0: no limit.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "lost_after",
    120,
    "tune: seconds without a sign of life after which keras-tuner's chief or a worker "
    "counts as lost.",
    lower_bound=1,
)


def main(argv: list[str] = sys.argv) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = parse(argv)
    except flags.Error as error:
        return _mistake(error)

    if values["strategy"] == "multi_worker" and _IS_QUIET:
        # Of a machine that is lost every part of TensorFlow tells; one line is ours.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # The flags are known to be good, and this import takes seconds.
    with quiet_start() if _IS_QUIET else contextlib.nullcontext():
        import tensorflow as tf

        from gbn_keras.training import program
        from gbn_keras.training.settings import Settings

        if values["strategy"] != "tpu":  # A TPU's devices are found by its address.
            tf.config.list_physical_devices()

    return program.run(Settings(**values))


def parse(argv: list[str]) -> dict[str, Any]:
    """The flags' values; of a run that is there, its own flagfile gives the defaults.

    Raises:
        flags.Error: If the command line is not right.
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
    if _MODE.value in ("evaluate", "landscape") and os.path.isfile(flagfile):
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
    """Sets the flags from the command line and flagfiles; returns what is none."""
    warnings = io.StringIO()
    try:
        with contextlib.redirect_stderr(warnings):
            lines = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
            # Some editors begin a file with a mark that it is in UTF-8, behind which
            # may be another flagfile.
            while any(line.startswith("\ufeff") for line in lines):
                lines = [line.removeprefix("\ufeff") for line in lines]
                lines = [line for line in lines if not line.startswith(("#", "//"))]
                lines = flags.FLAGS.read_flags_from_files(lines, force_gnu=False)
            unparsed = flags.FLAGS([argv[0], *lines])[1:]
    except UnicodeDecodeError as error:
        raise flags.Error(
            "--flagfile: got a file that is no text in UTF-8 "
            f"({error.reason} at byte {error.start}), wanted a flag a line. Name a "
            "flagfile, or save it in UTF-8."
        ) from error
    if warnings.getvalue():  # Of a flagfile that names itself.
        raise flags.Error(f"--flagfile: {warnings.getvalue()}")
    return unparsed


def _refuse_control_characters():
    """Of line breaks and the like, with which a flagfile could not be written."""
    for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
        texts = flag.value if isinstance(flag.value, list) else [flag.value]
        for text in texts:
            if {unicodedata.category(x) for x in str(text)} & {"Cc", "Cs", "Zl", "Zp"}:
                raise flags.Error(
                    f"--{flag.name}: got {text!r}, wanted no line breaks and other "
                    "control characters. Leave them out."
                )


def _look_for_data(dataset, data_dir, download, **_):
    """Answers for data that is not there before TensorFlow's seconds of import."""
    folder = re.split("[:/]", dataset)[0]
    if folder == "digits" or download:
        return
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    # Not pathlib, which raises an error for a name that is too long.
    prepared = os.path.join(os.path.expanduser(data_dir), folder)
    if not folder or not os.path.isdir(prepared):
        raise flags.Error(
            f"--dataset: got {dataset!r}, wanted digits or a data set that is prepared "
            f"in {data_dir}: name the folder that holds it with --data_dir, or let it "
            "be downloaded and prepared there with --download."
        )


def _mistake(error):
    # absl marks some of its messages as errors itself.
    message = " ".join(str(error).split()).removeprefix("ERROR:: ")
    print(f"error: {message}", file=sys.stderr)
    return 2

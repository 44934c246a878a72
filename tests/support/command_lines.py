"""Valid and invalid command lines and flagfiles, as strategies for `hypothesis`.

They name files and folders that `make_world` writes.
"""

import dataclasses
import io
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from hypothesis import strategies as st

# Numbers that no flag expects, or only a few.
_ODD_NUMBERS = (
    *(
        "",
        " ",
        "0",
        "-0",
        "-1",
        "1",
        "+3",
        "1.5",
        "1e3",
        "0x10",
        "1_000",
        "²",
        "٣٢",
    ),
    *("nan", "inf", "-inf", "-1e-3", "1e-320", "1e38", "1e300", "1e999", "9" * 30),
    *("2147483647", "2147483648", "4294967296", "9223372036854775808", "9" * 5000),
    *("many", "None", "true", "1,2", "32\n", "--seed=1", "\x00", "\ud800"),
)
_ODD_TEXTS = (
    *("", " ", "none", "None", "ünïcödé", "🏃", "a b", "a\nb", "a\x00b", "\ud800"),
    *("\u2028", "../..", "/", ".", "..", "~", "~nobody_here/x", "$HOME", "%s", "{0}"),
    *("x" * 300, "a" * 5000, "--seed", "-", "'", '"', "\\", "#", "//", ",", ":", "\t"),
)

# Folders and files of the world, and outside it.
_RUN_DIRS = (
    *("new", "new/deeper", "ünï cödé", "finished", "finished/", "begun", "empty", "."),
    *("a_file", "a_file/below", "binary_flags", "foreign_flags", "folder_of_flags"),
    *("no_result", "odd_result", "torn_model", "folder_of_model", "/dev/null/run"),
    *("/proc/no_such/run", "..", "finished/../new"),
)
_FLAGFILES = (
    *("good.cfg", "comments.cfg", "nested.cfg", "self.cfg", "circle.cfg", "binary.cfg"),
    *("latin1.cfg", "utf16.cfg", "marked.cfg", "empty.cfg", "no_such.cfg", "empty"),
    *("a_file/x.cfg", "finished/flags.cfg", "begun/flags.cfg", "missing_in.cfg"),
)
_DATASETS = (
    *("digits", "digits:1.0.0", "digits/x", "DIGITS", "tiny", "tiny:1.0.0", "tiny:9.9"),
    *("tiny/1.0.0", "tiny/no_config", "tiny:", "tiny:1.*.*", "tiny[train]", "../tfds"),
    *("../tfds/tiny", "./tiny", "tiny/../tiny", "torn", "broken", "hollow", "photos"),
    *("mnist", "no_such_set", "huggingface:x", "tiny:a:b", ":tiny"),
)

# Some values for each flag that are valid on their own.
_GOOD = {
    "run_dir": ("new", "new", "new/deeper", "ünï cödé", "finished", "empty"),
    "dataset": ("digits", "digits", "tiny", "tiny:1.0.0", "photos"),
    "data_dir": ("tfds", "tfds/", "./tfds", "empty"),
    "download": ("true", "false"),
    "train_examples": ("0", "40", "64", "96", "1536"),
    "image_size": ("16", "32", "33", "64"),
    "model": ("f1", "f1_digits", "c1", "resnet8", "wresnet10_1", "resnet18"),
    "batch_size": ("1", "7", "8", "32", "33", "64", "96", "128", "1536"),
    "batch_sizes": ("32", "32,64", "64,32", "32,32", "8,16,96"),
    "small_batch_size": ("1", "8", "16", "32", "64"),
    "virtual_batch_size": ("0", "1", "8", "16", "32", "64"),
    "lr_scaling": ("none", "sqrt", "linear", "2", "0.5"),
    "stretch": ("full", "1", "1.5", "2", "4"),
    "warmup_updates": ("0", "1", "100"),
    "gradient_noise": ("none", "full", "0", "0.5", "3"),
    "epochs": ("1", "2", "6"),
    "learning_rate": ("0.01", "0.1", "1"),
    "clipnorm": ("0", "1", "5"),
    "l2": ("0", "1e-4"),
    "l2_kernels_only": ("true", "false"),
    "optimizer": ("sgd", "adam", "adamw"),
    "second_moment": ("batch", "batch", "small_batch"),
    "weight_decay": ("0", "0.01"),
    "strategy": ("one", "one", "mirrored", "mirrored", "multi_worker", "tpu"),
    "replicas": ("0", "1", "2", "3", "4"),
    "cluster": ("auto", "slurm", "kubernetes"),
    "cluster_port": ("1", "8888", "65535"),
    "tpu": ("local", "grpc://127.0.0.1:9"),
    "micro_batch_size": ("0", "1", "8", "16", "32", "64"),
    "memory_budget": ("0", "0.001", "1"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "jit": ("auto", "on", "off"),
    "seed": ("0", "1", "2147483647"),
    "seeds": ("1", "2"),
    "max_updates": ("0", "1", "2"),
    "eval_every": ("0", "1", "3"),
    "weight_distance": ("true", "false"),
    "noise_scale": ("true", "false"),
    "directions": ("10", "11"),
    "tuner": ("random", "bayesian", "hyperband", "grid"),
    "search": (
        *("batch_size:32,64", "batch_size:8..64", "learning_rate:0.01..1", "l2:0,1e-3"),
        *("stretch:1,full", "lr_scaling:none,sqrt", "virtual_batch_size:8..32"),
        *("gradient_noise:0..2", "stretch:1..2", "gradient_noise:none,full"),
    ),
    "trials": ("1", "2"),
    "trial_updates": ("0", "1", "4"),
    "trial_samples": ("0", "1", "64", "256"),
    "lost_after": ("1", "120"),
}
_ODD = {
    "run_dir": (*_RUN_DIRS, *_RUN_DIRS, *_ODD_TEXTS),
    "dataset": (*_DATASETS, *_DATASETS, *_ODD_TEXTS),
    "data_dir": ("tfds", "a_file", "no_such", "/dev/null", "gs://x", *_ODD_TEXTS),
    "model": (
        *("resnet9", "resnet8_2", "wresnet10", "wresnet10_0", "vgg", "vgg11", "vgg12"),
        *("alexnet", "resnet50", "resnet٨", "RESNET8", "f1 ", *_ODD_TEXTS),
    ),
    "batch_sizes": ("0", "-1", "32,", ",", "²", "32,²", "1e3", "9" * 5000, "32 64"),
    "tpu": ("grpc://127.0.0.1:99999", "grpc://127.0.0.1:x", "grpc://:9", "grpc://[::"),
    "search": (
        *("batch_size", "batch_size:", "batch_size:0", "batch_size:64..32", "seed:1,2"),
        *("batch_size:1..99999999999999999999", "batch_size:32,32", "batch_size:²"),
        *("learning_rate:nan", "learning_rate:0..1", "learning_rate:1..inf", "l2:-1"),
        *("learning_rate:1e300,1", "learning_rate:1e-320..1e-310", "stretch:1..1e9"),
        *("stretch:full,full", "stretch:1..2.00004", "virtual_batch_size:0,7,99999"),
        *("gradient_noise:nan", "lr_scaling:cubic", "lr_scaling:-1", "lr_scaling:0..1"),
        *("learning_rate:0.1..0.100000001", "gradient_noise:0..1e300", *_ODD_TEXTS),
    ),
}
_TEXTS = ("lr_scaling", "stretch", "gradient_noise")
_SWITCHES = ("download", "l2_kernels_only", "weight_distance", "noise_scale")
MODES = ("train", "evaluate", "study", "sweep", "landscape", "tune")

# Arguments that are not a flag, or not a value of one.
_STRAY = (
    *("512", "", " ", "-", "--", "---seed=1", "--=1", "--=", "-seed=2", "--seed", "="),
    *("--no_such_flag", "--bach_size=3", "--nomode", "--noseed", "--nodownload"),
    *("--undefok=x", "--x=1", "--undefok", "--flagfile", "--flagfile=", "--mode"),
    *("--helpfull", "--weight_distance=maybe", "--noweight_distance", "--\x00", "é"),
    *("--mode=fly", "--mode=", "--mode=Train", "--seed 5", "--dataset", "--search"),
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        flags: Arguments.
        flagfile: Content of `generated.cfg`, which the arguments may name.
        is_run_to_the_end: Whether to train if the command is accepted.
    """

    flags: tuple[str, ...]
    flagfile: bytes = b""
    is_run_to_the_end: bool = False


def _values(name, is_odd):
    good = st.sampled_from(_GOOD[name])
    if not is_odd:
        return good
    listed = _ODD.get(name, _ODD_NUMBERS)
    if name in _TEXTS:
        listed += _ODD_TEXTS
    listed = st.sampled_from(listed)
    return listed | listed | listed | st.text(max_size=6) | st.integers().map(str)


@st.composite
def _flag(draw, is_odd=False):
    name = draw(st.sampled_from(sorted(_GOOD)))
    value = draw(_values(name, is_odd))
    if name in _SWITCHES and not is_odd:
        return draw(st.sampled_from((f"--{name}", f"--no{name}", f"--{name}={value}")))
    return f"--{name}={value}"


# Flags that each mode requires, so that other checks are reached.
_NEEDED = {
    "train": (),
    "evaluate": ("--run_dir=finished",),
    "study": ("--batch_size=64",),
    "sweep": ("--batch_sizes=32,64",),
    "landscape": ("--directions=10",),
    "tune": ("--search=batch_size:32,64",),
}
# Flags that keep a training short if it runs to the end.
_SHORT = (
    *("--max_updates=2", "--epochs=1", "--train_examples=96", "--seeds=1"),
    *("--trials=1", "--trial_updates=0", "--directions=10", "--strategy=one"),
)

_ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")
_LINES = ("", "# a comment", "// another", "  ", "\t", "no flag", "--flagfile=good.cfg")


@st.composite
def commands(draw) -> Command:
    """A valid or invalid command line, maybe with a flagfile."""
    mode = draw(st.sampled_from(MODES))
    flags = [f"--mode={mode}", *_NEEDED[mode]] if draw(st.integers(0, 9)) else []
    flags += draw(st.lists(_flag(), max_size=5))
    odd = draw(st.lists(_flag(is_odd=True), max_size=2))
    odd += _one_or_none(draw, _STRAY, 8)
    for one in odd:
        flags.insert(draw(st.integers(0, len(flags))), one)
    flags += [f"--flagfile={name}" for name in _one_or_none(draw, _FLAGFILES, 5)]
    flagfile = b""
    if draw(st.integers(0, 4)) == 4:
        number = draw(st.integers(0, len(flags)))
        lines = flags[:number] + draw(st.lists(st.sampled_from(_LINES), max_size=3))
        end = draw(st.sampled_from(("\n", "\n", "\r\n", "\r")))
        flagfile = end.join(lines).encode(
            draw(st.sampled_from(_ENCODINGS)), "backslashreplace"
        )
        flags = [*flags[number:], "--flagfile=generated.cfg"]
    return Command(tuple(flags), flagfile)


@st.composite
def short_trainings(draw) -> Command:
    """A command line of values that are valid on their own, to run to the end."""
    mode = draw(st.sampled_from(("train", "train", "train", *MODES)))
    flags = draw(st.lists(_flag(), max_size=4))
    flags = [f"--mode={mode}", *_NEEDED[mode], *flags, *_SHORT]
    return Command(tuple(flags), is_run_to_the_end=True)


def _one_or_none(draw, values, one_in):
    wanted = draw(st.integers(1, one_in)) == one_in
    return [draw(st.sampled_from(values))] if wanted else []


def make_world(folder: pathlib.Path) -> None:
    """Writes the files and folders that command lines name.

    Args:
        folder: Folder to write to. It holds `finished`, a training's run directory.
    """
    finished = folder / "finished"
    flags = (finished / "flags.cfg").read_text()
    for name in ("torn_model", "odd_result"):
        shutil.copytree(finished, folder / name)
    model = (finished / "model.keras").read_bytes()
    (folder / "torn_model/model.keras").write_bytes(model[: len(model) // 2])
    (folder / "odd_result/result.json").write_text('{"accuracy": 0.')
    for name, content in {
        "begun": flags,
        "binary_flags": b"\xff\xfe\x00--seed=\x80",
        "foreign_flags": "--colour=blue\n",
        "no_result": "",
    }.items():
        (folder / name).mkdir()
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name / "flags.cfg").write_bytes(content)
    (folder / "empty").mkdir()
    (folder / "folder_of_flags/flags.cfg").mkdir(parents=True)
    (folder / "folder_of_model/model.keras").mkdir(parents=True)
    (folder / "a_file").write_text("not a folder\n")
    for name, content in {
        "good.cfg": "--batch_size=64\n--seed=3\n",
        "comments.cfg": "# one\n// two\n\n   --seed=4   \n",
        "nested.cfg": "--flagfile=good.cfg\n--flagfile=comments.cfg\n",
        "self.cfg": "--seed=5\n--flagfile=self.cfg\n",
        "circle.cfg": "--flagfile=nested.cfg\n--flagfile=circle.cfg\n",
        "binary.cfg": bytes(range(256)),
        "latin1.cfg": "--run_dir=n\xe9w\n".encode("latin-1"),
        "utf16.cfg": "--seed=6\n".encode("utf-16"),
        "marked.cfg": "--seed=7\n".encode("utf-8-sig"),
        "empty.cfg": "",
        "missing_in.cfg": "--flagfile=no_such.cfg\n",
    }.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(content)
    _make_data_sets(folder / "tfds")


def _make_data_sets(folder):
    random = np.random.default_rng(0)

    def images(count):
        for i in range(count):
            yield {
                "image": random.integers(0, 256, (32, 32, 3), np.uint8),
                "label": i % 3,
            }

    def photos(count):
        for i, one in enumerate(images(count)):
            file = io.BytesIO()
            PIL.Image.fromarray(one["image"]).resize((40 + i, 50)).save(file, "JPEG")
            yield {**one, "image": file}

    labels = tfds.features.ClassLabel(num_classes=3)
    for name, split, image in (
        ("tiny", images, tfds.features.Image(shape=(32, 32, 3))),
        ("torn", images, tfds.features.Image(shape=(32, 32, 3))),
        ("broken", images, tfds.features.Image(shape=(32, 32, 3))),
        ("photos", photos, tfds.features.Image(encoding_format="jpeg")),
    ):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            config=None,
            data_dir=folder,
            features=tfds.features.FeaturesDict({"image": image, "label": labels}),
            split_datasets={
                "train": list(enumerate(split(96))),
                "test": list(enumerate(split(10))),
            },
        )
    (shard,) = (folder / "torn/1.0.0").glob("*-train.tfrecord-*")
    shard.write_bytes(shard.read_bytes()[:-7])
    info = folder / "broken/1.0.0/dataset_info.json"
    info.write_text(json.dumps({"name": "broken"})[:-3])
    (folder / "hollow/1.0.0").mkdir(parents=True)

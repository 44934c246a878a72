"""What users have on their disks stays valid: names of runs, flags and classes."""

import hashlib

import keras
import pytest

import gbn_keras
from gbn_keras.training.data import datasets
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner
from gbn_keras.training.run.checkpoint import State
from gbn_keras.training.run.run_directory import digest


@pytest.mark.parametrize(
    "flags, name",
    [
        ([], "acef8210"),
        (["--dataset=mnist", "--download", "--batch_size=4096"], "ca539066"),
        (
            ["--mode=tune", "--search=learning_rate:0.1,1", "--download"],
            "187f17d5",
        ),
    ],
)
def test_a_run_directory_keeps_its_name(flags, name, make_settings):
    assert digest(make_settings(*flags)) == name


def test_a_flagfile_keeps_its_lines(make_settings):
    settings = make_settings("--batch_size=512", "--run_dir=runs/one")
    text = Planner(1536).plan(settings).settings.flagfile()
    assert text.splitlines()[:6] == [
        "--mode=train",
        "--run_dir=runs/one",
        "--dataset=digits",
        "--download=false",
        "--train_examples=0",
        "--image_size=224",
    ]
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found.startswith("bed951433ab293378382b42390658797")


# As they stand in `.keras` files.
REGISTERED = {
    "AccuracyOfExamples",
    "BatchSizeInvariantAdam",
    "GhostBatchNormalization",
    "L2SGD",
    "LargeBatchModel",
    "RegimeAdaptation",
    "ShardingInvariantDropout",
}


def test_classes_keep_the_names_that_files_have_of_them():
    registered = keras.saving.get_custom_objects()
    ours = {name for name in registered if name.startswith("gbn_keras>")}
    assert {f"gbn_keras>{name}" for name in REGISTERED} <= ours
    assert registered["gbn_keras>L2SGD"] is gbn_keras.L2SGD
    # `import gbn_keras` registers all of them. It does not import the program.
    for name in REGISTERED:
        module = registered[f"gbn_keras>{name}"].__module__
        assert not module.startswith("gbn_keras.training")


def test_a_checkpoint_keeps_the_names_and_shapes_of_its_arrays(make_settings):
    settings = make_settings("--batch_size=512", "--noise_scale")
    data = datasets.load("digits")
    model = build_model(Planner(data.examples).plan(settings), data)
    arrays = State.of(model, 0, 0.0).arrays
    text = "\n".join(
        f"{name} {x.dtype} {x.shape}"
        for name, x in arrays.items()
        if not name.startswith("progress")  # Newer than the others.
    )
    assert text.splitlines()[0] == "model_0 float32 (64, 128)"
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found.startswith("20fcd446eeafcae7b288e9c0db3193c6")

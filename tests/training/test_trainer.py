"""A training on the digits leaves what it promises, and repeats it exactly."""

import dataclasses
import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import settings_of
from trainings import SHORT, curves, weights

import gbn_train as program
from gbn_keras import GhostBatchNormalization
from gbn_keras.training import trainer
from gbn_keras.training.errors import UsageError
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner
from gbn_keras.training.report import report
from gbn_keras.training.settings import Settings
from gbn_keras.training.trained import evaluation

pytestmark = pytest.mark.usefixtures("shallow")


class Finished:
    """A short training that has ended, for the tests that only look at it."""

    def __init__(self, folder, digits, *flags):
        self.folder, self._flags = folder, flags
        self.result = trainer.train(self.settings(), digits, verbose=0)

    def settings(self, *flags):
        """Those of the training, with these flags."""
        flags = (*SHORT, *self._flags, f"--run_dir={self.folder}", *flags)
        return settings_of(*flags)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("finished") / "run", digits)


@pytest.fixture(scope="module")
def in_parts(digits, tmp_path_factory):
    """The same training in micro-batches."""
    folder = tmp_path_factory.mktemp("in_parts") / "run"
    return Finished(folder, digits, "--micro_batch_size=64")


@pytest.fixture(scope="module")
def measured(digits, tmp_path_factory):
    """And with all that can be measured."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    flags = ("--micro_batch_size=64", "--noise_scale", "--weight_distance")
    return Finished(folder, digits, *flags)


@pytest.fixture(scope="module")
def noisy(digits, tmp_path_factory):
    """The first epoch of the same training, with gradient noise."""
    folder = tmp_path_factory.mktemp("noisy") / "run"
    return Finished(folder, digits, "--gradient_noise=full", "--max_updates=6")


class Other:
    """A training with another seed, length, validation data and no run directory."""

    def __init__(self, folder, digits):
        # 1,536 examples: a batch of 1,024, and one of 512 that is filled up.
        self.data = dataclasses.replace(
            digits,
            validation_images=digits.train_images,
            validation_labels=digits.train_labels,
        )
        flags = ("--seed=2", "--max_updates=8", "--noise_scale")
        self.settings = settings_of(*SHORT, *flags)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            self.result = trainer.train(self.settings, self.data, verbose=0)
        self.run_dir = self.result["settings"]["run_dir"]
        self.folder = folder / self.run_dir


@pytest.fixture(scope="module")
def other(digits, tmp_path_factory):
    return Other(tmp_path_factory.mktemp("other"), digits)


def assert_equal(folder, other_folder):
    for one, other in zip(weights(folder), weights(other_folder), strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(folder, other_folder):
    for one, other in zip(weights(folder), weights(other_folder), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_run_leaves_its_directory(finished):
    run, result = finished.folder, finished.result
    assert json.loads((run / "result.json").read_text()) == result
    assert result["updates"] == 2 * 6
    assert result["samples"] == 12 * 256
    assert result["seed"] == 1
    assert {"gbn_keras", "keras", "tensorflow", "python"} <= set(result["versions"])
    assert result["hardware"]["cores"] >= 1

    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["updates"].tolist() == [6, 12]
    assert metrics["samples"].tolist() == [6 * 256, 12 * 256]
    np.testing.assert_allclose(
        metrics["learning_rate"], 0.03 * 8**0.5 * np.array([1, 0.01]), rtol=1e-5
    )
    for name in ("accuracy", "loss"):
        assert metrics[f"val_{name}"].iloc[-1] == pytest.approx(result[name], rel=1e-12)
    assert list((run / "tensorboard" / "train").glob("events*"))
    assert list((run / "tensorboard" / "validation").glob("events*"))

    model = keras.models.load_model(run / "model.keras")
    ghosts = [x for x in model.layers if isinstance(x, GhostBatchNormalization)]
    assert len(ghosts) == 2 and {x.virtual_batch_size for x in ghosts} == {32}
    assert report.report_run(run) == run / "plots" / "training.png"
    assert (run / "plots" / "training.png").stat().st_size > 10_000


def test_the_flagfile_of_a_run_runs_it_again(finished, digits, tmp_path):
    flagfile = finished.folder / "flags.cfg"
    again = program.parse(
        ["train.py", f"--flagfile={flagfile}", f"--run_dir={tmp_path / 'again'}"]
    )
    trainer.train(Settings(**again), digits, verbose=0)
    assert_equal(finished.folder, tmp_path / "again")


def test_another_seed_is_another_run(finished, other):
    one, another = (
        pd.read_csv(run.folder / "metrics.csv").iloc[0] for run in (finished, other)
    )
    assert one["updates"] == another["updates"]
    assert one["loss"] != pytest.approx(another["loss"], rel=1e-3)


def test_a_finished_run_is_not_run_again(finished, digits, capsys):
    saved = (finished.folder / "model.keras").stat().st_mtime_ns
    assert trainer.train(finished.settings(), digits, verbose=0) == finished.result
    assert (finished.folder / "model.keras").stat().st_mtime_ns == saved
    assert "already finished" in capsys.readouterr().out


def test_other_flags_are_refused_by_name(finished, digits):
    with pytest.raises(UsageError) as error:
        trainer.train(finished.settings("--learning_rate=0.2"), digits)
    assert "--learning_rate=0.03 there, --learning_rate=0.2 here" in str(error.value)


def test_a_run_directory_that_cannot_be_written_is_refused(
    digits, make_settings, tmp_path
):
    (tmp_path / "file").write_text("not a folder")
    settings = make_settings(*SHORT)
    settings = dataclasses.replace(settings, run_dir=str(tmp_path / "file" / "run"))
    with pytest.raises(UsageError, match="--run_dir: .*file/run cannot be written"):
        trainer.train(settings, digits)


def test_max_updates_stops_early(other):
    assert other.result["updates"] == 8
    evaluated = curves(other.folder / "tensorboard" / "validation")["accuracy"]
    assert list(evaluated) == [6, 8]
    assert evaluated[8] == pytest.approx(other.result["accuracy"])


@pytest.mark.parametrize(
    "epochs, eval_every, evaluations",
    # After epochs 1 to 3; after 1 and 3; after 1 and 2, and at the end, in 3.
    [(3, 1, 3), (3, 3, 2), (4, 2, 3)],
)
def test_the_last_weights_are_evaluated_once(
    epochs, eval_every, evaluations, make_settings, digits, monkeypatch
):
    calls = []

    def noted(model, *args, **kwargs):
        calls.append(model)
        return evaluate(model, *args, **kwargs)

    evaluate = keras.Model.evaluate
    monkeypatch.setattr(keras.Model, "evaluate", noted)
    flags = ("--batch_size=768", "--stretch=1", "--max_updates=6", f"--epochs={epochs}")
    settings = make_settings(*flags, f"--eval_every={eval_every}")
    trainer.train(settings, digits, verbose=0)
    assert len(calls) == evaluations


def test_the_default_run_directory_is_named_after_the_flags(other):
    assert other.run_dir.startswith("runs/digits-f1_digits-train-")
    assert (other.folder / "result.json").exists()

    def run_dir(**changes):
        settings = dataclasses.replace(other.settings, **changes)
        return Planner(1536).plan(settings).settings.run_dir

    assert run_dir() == other.run_dir
    assert run_dir(seed=3) != other.run_dir


WAYS = (
    ("--jit=on",),
    ("--precision=mixed_bfloat16",),
    ("--precision=mixed_float16",),
    ("--virtual_batch_size=0",),
    ("--virtual_batch_size=100",),
    ("--clipnorm=0", "--warmup_updates=5"),
)


@pytest.mark.parametrize(
    "flags",
    [
        # Each way is part of one of three trainings, and has one of its own by hand.
        *(WAYS[one] + WAYS[other] for one, other in ((0, 5), (1, 3), (2, 4))),
        *(pytest.param(flags, marks=pytest.mark.slow) for flags in WAYS),
    ],
    ids=lambda flags: " ".join(flags),
)
def test_every_way_of_training_learns(make_settings, digits, flags):
    flags = ("--batch_size=128", "--stretch=1", "--epochs=3", *flags)
    before = keras.config.dtype_policy()
    result = trainer.train(make_settings(*flags), digits, verbose=0)
    assert result["accuracy"] > 0.8
    assert keras.config.dtype_policy() == before


def test_micro_batches_give_the_same_run(finished, in_parts):
    assert in_parts.result["accuracy"] == finished.result["accuracy"]
    assert in_parts.result["loss"] == pytest.approx(finished.result["loss"], rel=1e-4)
    assert_close(finished.folder, in_parts.folder)


class Begun(Exception):
    """Ends a training before its first update, which takes long to trace."""


class EndBeforeTheFirstUpdate(keras.callbacks.Callback):
    """For tests of what comes before."""

    def on_train_begin(self, logs=None):
        raise Begun


def test_a_micro_batch_that_fits_is_chosen(make_settings, digits, capsys):
    settings = make_settings("--batch_size=512", "--memory_budget=0.0007")
    with pytest.raises(Begun):
        trainer.train(settings, digits, (EndBeforeTheFirstUpdate(),), verbose=0)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line == (
        "batch 512 = 16 ghosts of 32; 1 replica x 2 micro-batches of 256"
    )


def test_machine_flags_may_change_for_a_run(finished, digits):
    flags = ("--micro_batch_size=32", "--memory_budget=1", "--tpu=other")
    result = trainer.train(finished.settings(*flags), digits, verbose=0)
    assert result == finished.result


def test_xla_is_used_where_it_is_faster_unless_the_user_says(make_settings, digits):
    def compiled(*flags):
        plan = Planner(1536).plan(make_settings(*SHORT, *flags))
        return build_model(plan, digits).jit_compile

    on_gpu = bool(tf.config.list_logical_devices("GPU"))
    assert compiled() is on_gpu
    assert compiled("--jit=on") is True
    long = "--epochs=1000"
    assert compiled(long) is True
    assert compiled(long, "--model=resnet8") is on_gpu
    assert compiled(long, "--max_updates=10") is on_gpu
    assert compiled(long, "--jit=off") is False


def test_an_update_is_the_papers(make_settings, digits):
    """Two updates by hand: ghosts, clipping, L2 on all variables, momentum, rate."""
    flags = ("--batch_size=128", "--clipnorm=0.5")
    plan = Planner(1536).plan(make_settings(*flags))
    keras.utils.set_random_seed(0)
    model = build_model(plan, digits)
    keras.utils.set_random_seed(0)
    reference = build_model(plan, digits)
    weights = [w.numpy() for w in reference.trainable_variables]
    velocities = [0.0] * len(weights)
    batches = digits.training_batches(128, seed=1)
    model.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0)

    for images, labels in batches.take(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(
                    labels, reference(images, training=True), from_logits=True
                )
            )
        variables = [w.value for w in reference.trainable_variables]
        gradients = [g.numpy() for g in tape.gradient(loss, variables)]
        clip = min(1, 0.5 / np.sqrt(sum((g**2).sum() for g in gradients)))
        assert clip < 1
        for i, gradient in enumerate(gradients):
            gradient = clip * gradient + 5e-4 * weights[i]
            velocities[i] = 0.9 * velocities[i] - 0.03 * 4**0.5 * gradient
            weights[i] = weights[i] + velocities[i]
            reference.trainable_variables[i].assign(weights[i])
    for variable, expected in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-6)


def test_evaluation_gives_the_accuracy_of_the_run(finished):
    result = finished.result
    scores = evaluation.evaluate(finished.settings())
    assert scores["accuracy"] == pytest.approx(result["accuracy"])
    assert scores["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_validation_weights_a_partial_batch_by_its_examples(other):
    model = keras.models.load_model(other.folder / "model.keras")
    labels = other.data.validation_labels
    batches = other.data.validation_batches()
    logits = np.concatenate([model(images) for images, _, _ in batches])
    logits = logits[: len(labels)]
    log_sum = np.log(np.exp(logits).sum(-1))
    losses = log_sum - logits[np.arange(len(logits)), labels]
    correct = logits.argmax(-1) == labels
    assert other.result["accuracy"] == pytest.approx(correct.mean())
    assert other.result["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def test_evaluation_wants_a_model_for_these_images(
    make_settings, digits, write_dataset, tmp_path
):
    with pytest.raises(UsageError, match="--run_dir: got .*run'"):
        evaluation.evaluate(make_settings(*SHORT))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.keras").write_bytes(b"no model")
    with pytest.raises(UsageError, match="wanted a model that Keras can read"):
        evaluation.evaluate(make_settings(*SHORT))
    keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten()]).save(
        tmp_path / "run" / "model.keras"
    )
    with pytest.raises(
        UsageError, match=r"--dataset: got digits with images of \(8, 8, 1\)"
    ):
        evaluation.evaluate(make_settings(*SHORT))


def test_a_run_logs_the_distance_of_its_weights(measured):
    run = measured.folder
    distances = pd.read_csv(run / "weight_distance.csv")
    assert distances["updates"].tolist() == [*range(1, 11), 12]
    model = keras.models.load_model(run / "model.keras")
    with np.load(run / "initial_weights.npz") as start:
        squares = [
            ((weight.numpy() - start[str(place)]) ** 2).sum()
            for place, weight in enumerate(model.trainable_variables)
        ]
    last = distances["total"].iloc[-1]
    assert last == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
    assert last > 0.1
    report.report_run(run)
    assert (run / "plots" / "weight_distance.png").exists()


def test_gradient_noise_changes_training_and_not_what_is_measured(finished, noisy):
    assert noisy.result["settings"]["gradient_noise"] == 7
    plain = pd.read_csv(finished.folder / "metrics.csv").set_index("updates")
    assert noisy.result["loss"] != pytest.approx(plain.loc[6, "val_loss"], rel=1e-3)
    # Before the first update both have the same weights.
    first = [
        curves(run.folder / "tensorboard" / "train")["accuracy"][1]
        for run in (finished, noisy)
    ]
    assert first[0] == first[1] > 0


def test_gradient_noise_is_the_same_in_micro_batches(noisy, digits, tmp_path):
    in_parts = noisy.settings("--micro_batch_size=64", f"--run_dir={tmp_path / 'run'}")
    trainer.train(in_parts, digits, verbose=0)
    assert_close(noisy.folder, tmp_path / "run")


def test_a_run_says_whether_its_batch_was_too_large(measured, other):
    result = measured.result["noise_scale"]
    assert result["noise"] > 0
    assert "which makes 96: a stretch of" in result["advice"]
    log = pd.read_csv(measured.folder / "noise_scale.csv")
    assert log["noise"].iloc[-1] == pytest.approx(result["noise"])
    # A batch in one piece has nothing to compare.
    result = other.result["noise_scale"]
    assert "is unknown" in result["advice"] and "noise" not in result


def test_measuring_changes_nothing(in_parts, measured):
    assert_equal(in_parts.folder, measured.folder)

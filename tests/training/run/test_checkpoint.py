"""A killed training resumes bit for bit, or is refused."""

import dataclasses
import importlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import settings_of
from kills import AskToStop, KillAfter, Killed
from trainings import weights

import gbn_train
from gbn_keras.networks import f1_digits, names
from gbn_keras.resume import checkpoint_file
from gbn_keras.training import trainer
from gbn_keras.training.errors import Interrupted, UsageError
from gbn_keras.training.run.checkpoint import Checkpoints, State

ROOT = pathlib.Path(gbn_train.__file__).parent

# Four epochs of six updates.
SHORT = ("--batch_size=256", "--stretch=2", "--epochs=2", "--checkpoint_every=4")
TABLES = ("metrics.csv", "weight_distance.csv", "noise_scale.csv")


# Before the first checkpoint and in the second epoch; then at an epoch's end and in the
# last, after so many more updates.
EARLY_KILLS, LATE_KILLS = (2, 9), (5, 7)


pytestmark = pytest.mark.usefixtures("shallow")


class Trainings:
    """Trainings that several tests look at, or copy and resume. Each is made once."""

    def __init__(self, digits, folders):
        self._digits, self._folders = digits, folders
        self._made = {}

    def whole(self, *flags):
        """One that ended as planned: its directory, its result."""
        if flags not in self._made:
            settings = self._settings("whole", flags)
            result = trainer.train(settings, self._digits, verbose=0)
            self._made[flags] = pathlib.Path(settings.run_dir), result
        return self._made[flags]

    def killed(self, *flags, kills=EARLY_KILLS):
        """The directory of one that was killed."""
        if (flags, kills) not in self._made:
            settings = self._settings("killed", flags)
            train_killed(settings, self._digits, *kills)
            self._made[flags, kills] = pathlib.Path(settings.run_dir)
        return self._made[flags, kills]

    def _settings(self, name, flags):
        folder = self._folders.mktemp(name) / "run"
        return settings_of(*SHORT, *flags, f"--run_dir={folder}")


@pytest.fixture(scope="module")
def trainings(digits, tmp_path_factory):
    return Trainings(digits, tmp_path_factory)


def train_killed(settings, data, *updates):
    for number in updates:
        with pytest.raises(Killed):
            trainer.train(settings, data, (KillAfter(number),), verbose=0)


def copy_run(run_dir, to):
    """Copies a run directory, as if the training had been there."""
    shutil.copytree(run_dir, to)
    flags = (to / "flags.cfg").read_text().replace(str(run_dir), str(to))
    (to / "flags.cfg").write_text(flags)


def checkpoints(run_dir):
    return sorted((pathlib.Path(run_dir) / "checkpoints").iterdir())


def assert_same_run(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    for name in TABLES:
        if (one / name).exists():
            assert (one / name).read_text() == (other / name).read_text()


# With all that has a state of its own.
ON_ONE_DEVICE = (
    *("--gradient_noise=full", "--weight_distance", "--precision=mixed_bfloat16"),
    *("--optimizer=adamw", "--second_moment=small_batch"),
    # Evaluated in some epochs only, and stopped in the middle of one.
    *("--eval_every=2", "--max_updates=21"),
)
ON_REPLICAS = (
    *("--strategy=mirrored", "--replicas=2", "--noise_scale", "--weight_distance"),
    "--precision=mixed_float16",
)


@pytest.mark.parametrize(
    "flags, early, late",
    [
        (ON_ONE_DEVICE, EARLY_KILLS, LATE_KILLS),
        pytest.param(ON_REPLICAS, EARLY_KILLS[1:], (), marks=pytest.mark.cluster),
        *(
            pytest.param(flags, EARLY_KILLS, LATE_KILLS, marks=pytest.mark.slow)
            for flags in (
                ("--gradient_noise=full", "--weight_distance"),
                ("--jit=on", "--gradient_noise=full", "--noise_scale"),
                (
                    "--precision=mixed_bfloat16",
                    "--micro_batch_size=64",
                    "--noise_scale",
                ),
                ("--precision=mixed_float16",),
                (*ON_REPLICAS, "--micro_batch_size=64"),
                ("--strategy=mirrored", "--replicas=2", "--weight_distance"),
                ("--eval_every=2", "--max_updates=21"),
            )
        ),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_killed_training_goes_on_bit_for_bit(
    trainings, make_settings, digits, tmp_path, flags, early, late, capsys
):
    run, whole = trainings.whole(*flags)
    copy_run(trainings.killed(*flags, kills=early), tmp_path / "run")
    settings = make_settings(*SHORT, *flags)
    train_killed(settings, digits, *late)
    result = trainer.train(settings, digits, verbose=0)
    assert "resumed after update 8 of" in capsys.readouterr().out
    for name in ("accuracy", "loss", "updates", "samples", "skipped_updates"):
        assert result[name] == whole[name]
    assert_same_run(run, tmp_path / "run")


def test_a_training_that_is_killed_after_its_last_update_only_reports(
    trainings, make_settings, digits, tmp_path
):
    run, whole = trainings.whole(*ON_ONE_DEVICE)
    copy_run(run, tmp_path / "run")
    # What a kill before the report leaves.
    for name in ("result.json", "model.keras"):
        (tmp_path / "run" / name).unlink()
    # No update is made again.
    again = make_settings(*SHORT, *ON_ONE_DEVICE)
    result = trainer.train(again, digits, (KillAfter(0),), verbose=0)
    assert result["loss"] == whole["loss"]
    assert_same_run(run, tmp_path / "run")


@pytest.mark.cluster
def test_a_training_goes_on_with_other_replicas_and_micro_batches(
    make_settings, digits, tmp_path
):
    flags = (*SHORT, "--lr_scaling=none")
    whole = trainer.train(make_settings(*flags), digits, verbose=0)
    killed = make_settings(*flags, f"--run_dir={tmp_path / 'killed'}")
    with pytest.raises(Killed):
        trainer.train(killed, digits, (KillAfter(9),), verbose=0)
    others = ("--strategy=mirrored", "--replicas=2", "--micro_batch_size=64")
    others = (*others, "--checkpoint_every=5", "--eval_every=3")
    killed = make_settings(*flags, f"--run_dir={tmp_path / 'killed'}", *others)
    result = trainer.train(killed, digits, verbose=0)
    assert result["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    for one, other in zip(
        weights(tmp_path / "run"), weights(tmp_path / "killed"), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_last_two_checkpoints_are_kept(trainings):
    files = checkpoints(trainings.whole()[0])
    names = [file.name for file in files]
    assert names == ["update_0000000020.checkpoint", "update_0000000024.checkpoint"]
    arrays, facts = checkpoint_file.decode(files[1].read_bytes())
    assert facts["updates"] == 24 and "--batch_size=256\n" in facts["flags"]
    assert facts["versions"]["keras"] == keras.__version__
    assert not any(array.dtype.hasobject for array in arrays.values())


def test_of_a_damaged_checkpoint_the_one_before_is_used(
    trainings, make_settings, digits, tmp_path, capsys
):
    """And the start of the weights is known without its file."""
    copy_run(trainings.killed(*ON_ONE_DEVICE), tmp_path / "run")
    before, newest = checkpoints(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-1])
    (tmp_path / "run" / "initial_weights.npz").write_bytes(b"damaged")
    trainer.train(make_settings(*SHORT, *ON_ONE_DEVICE), digits, verbose=0)
    output = capsys.readouterr()
    assert f"warning: {newest} is not used: its checksum is wrong" in output.err
    updates = int(before.stem.removeprefix("update_"))
    assert f"resumed after update {updates} of 21" in output.out
    assert_same_run(trainings.whole(*ON_ONE_DEVICE)[0], tmp_path / "run")


def test_without_a_whole_checkpoint_nothing_is_trained(
    trainings, make_settings, digits, tmp_path
):
    copy_run(trainings.killed(*ON_ONE_DEVICE), tmp_path / "run")
    assert len(checkpoints(tmp_path / "run")) == 2
    for file in checkpoints(tmp_path / "run"):
        file.write_bytes(b"")
    before = {
        file: file.read_bytes()
        for file in (tmp_path / "run").rglob("*")
        if file.is_file() and file.name != "lock"
    }
    with pytest.raises(UsageError, match="no checkpoint in .* is intact"):
        trainer.train(make_settings(*SHORT, *ON_ONE_DEVICE), digits, verbose=0)
    assert all(file.read_bytes() == content for file, content in before.items())


def test_no_damage_goes_unnoticed(make_settings, tmp_path, capsys):
    """200 times: a cut, a flipped bit, another run's or update's file, an empty one."""
    settings = make_settings()
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    versions = {"keras": "3"}
    store = Checkpoints(settings, versions)
    other = Checkpoints(dataclasses.replace(settings, seed=2), versions)
    generator = random.Random(0)
    arrays = {"model_0": np.arange(1000, dtype="float32"), "model_1": np.float64(3)}

    def save(to, updates):
        to.save(State(updates, 1.5, arrays))
        return folder / f"update_{updates:010d}.checkpoint"

    for number in range(200):
        for file in folder.parent.glob("checkpoints/*"):
            file.unlink()
        good = save(store, 1).read_bytes()
        assert store.newest() == good
        raw = bytearray(save(store, 2).read_bytes())
        kind = number % 5
        if kind == 0:
            raw = raw[: generator.randrange(1, len(raw))]
        elif kind == 1:
            raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        elif kind == 2:
            raw = save(store, 3).read_bytes()
            (folder / "update_0000000003.checkpoint").unlink()
        elif kind == 3:
            raw = save(other, 2).read_bytes()
        else:
            raw = generator.choice([b"", b"\0" * 4096, good[: len(good) // 2] + good])
        (folder / "update_0000000001.checkpoint").write_bytes(good)
        (folder / "update_0000000002.checkpoint").write_bytes(raw)
        assert store.newest() == good
        assert "update_0000000002.checkpoint is not used" in capsys.readouterr().err


def test_bfloat16_is_kept_bit_for_bit():
    bfloat16 = keras.ops.cast(np.linspace(-3, 3, 7), "bfloat16").numpy()
    arrays = checkpoint_file.decode(checkpoint_file.encode({"x": bfloat16}, {}))[0]
    assert arrays["x"].tobytes() == bfloat16.tobytes()


def test_other_versions_are_told(make_settings, tmp_path, capsys):
    settings = make_settings()
    (tmp_path / "run").mkdir()
    Checkpoints(settings, {"keras": "3.0"}).save(State(1, 0.0, {}))
    assert Checkpoints(settings, {"keras": "3.1"}).newest()
    assert "keras 3.0 there, 3.1 here" in capsys.readouterr().err


CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGINT),
        pytest.param((signal.SIGINT, signal.SIGTERM), marks=pytest.mark.slow),
    ],
    ids=["TERM INT", "INT TERM"],
)
def test_a_signal_stops_after_the_update_and_a_checkpoint(
    trainings, make_settings, digits, tmp_path, numbers
):
    stopped = make_settings(*SHORT)
    # In the middle of an epoch, and in its last update.
    for number, updates, saved in zip(numbers, (9, 3), (9, 12), strict=True):
        before = signal.getsignal(number)
        asks = (AskToStop(number, updates),)
        with pytest.raises(Interrupted, match=f"update {saved} is saved") as error:
            trainer.train(stopped, digits, asks, verbose=0)
        assert error.value.exit_code == CODES[number]
        newest = checkpoints(tmp_path / "run")[-1].name
        assert newest == f"update_{saved:010d}.checkpoint"
        assert signal.getsignal(number) is before
    trainer.train(stopped, digits, verbose=0)
    assert_same_run(trainings.whole()[0], tmp_path / "run")


@pytest.mark.cluster
def test_the_program_stops_at_sigterm_with_code_75_and_goes_on(
    monkeypatch, tmp_path, capsys
):
    # The other process has this network.
    monkeypatch.setitem(names.NETWORKS, "f1_digits", f1_digits)
    flags = ("--epochs=1000", "--max_updates=400", "--checkpoint_every=4")
    flags = (*flags, f"--run_dir={tmp_path}/run")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags],
        # A newcomer's environment.
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(6000):
            if list(tmp_path.glob("run/checkpoints/update*")):
                break
            time.sleep(0.05)
        process.terminate()
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 75
    (line,) = errors.strip().splitlines()
    assert line.startswith("stopped: ")
    assert "(SIGTERM); update" in line and "same command" in line
    # The same command, where TensorFlow has started already.
    assert gbn_train.main(["train.py", *flags]) == 0
    output = capsys.readouterr().out
    assert "resumed after update" in output and "after 400 updates" in output


@pytest.mark.cluster
def test_a_kill_in_the_middle_of_a_write_leaves_no_trace(monkeypatch, tmp_path, capsys):
    """A short form of `benchmarks/kill_soak.py`, which also kills at random moments."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    soak, program = map(importlib.import_module, ("kill_soak", "killed_program"))
    # The runs in this process have dropout, too; after them it is gone.
    monkeypatch.setitem(names.NETWORKS, "f1_digits", names.NETWORKS["f1_digits"])
    program.use_dropout()
    flags = (*soak.FLAGS, "--epochs=1", "--run_dir")
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    done = subprocess.run(
        [sys.executable, program.__file__, "half written:3", *flags, str(killed)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    for run_dir in (killed, undisturbed):
        assert gbn_train.main(["train.py", *flags, str(run_dir)]) == 0
    assert capsys.readouterr().out.count("resumed after update") == 1
    assert not soak.differences(undisturbed, killed)


@pytest.mark.slow
def test_kills_with_9_leave_no_trace():
    """The quick form of `benchmarks/kill_soak.py`."""
    soak = [sys.executable, str(ROOT / "benchmarks" / "kill_soak.py")]
    done = subprocess.run(
        [*soak, "--kills=2", "--runs=1"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 random kills, 1 while writing a checkpoint" in done.stdout

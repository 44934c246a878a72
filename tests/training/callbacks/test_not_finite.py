"""A training that breaks down stops at that update and keeps its last checkpoint."""

import contextlib
import io

import keras
import pytest

import gbn_train
from gbn_keras.resume import checkpoint_file
from gbn_keras.training import trainer

SHORT = ("--batch_size=256", "--stretch=1", "--epochs=3", "--checkpoint_every=1")
BROKEN = (*SHORT, "--learning_rate=1e30", "--clipnorm=0", "--lr_scaling=none")
ON_REPLICAS = ("--strategy=mirrored", "--replicas=2")


pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(
    scope="module",
    params=[(), pytest.param(ON_REPLICAS, marks=pytest.mark.cluster)],
    ids=["one device", "replicas"],
)
def broken(request, tmp_path_factory):
    """A run of the program that broke: its directory, its exit code, its errors."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    command = ["train.py", *BROKEN, *request.param, f"--run_dir={folder}"]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = gbn_train.main(command)
    return folder, code, errors.getvalue()


def test_it_names_update_rate_and_norm_and_keeps_what_was_good(broken):
    run, _, told = broken
    newest = max((run / "checkpoints").iterdir())
    arrays, facts = checkpoint_file.decode(newest.read_bytes())
    # The one before the update that broke.
    assert f"update {facts['updates'] + 1} is not finite" in told
    assert "gradient norm" in told and "learning rate 1e+30" in told
    assert not (run / "result.json").exists()


def test_the_program_ends_with_code_3_and_one_line(broken):
    _, code, told = broken
    assert code == 3
    lines = told.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("stopped: update ")


class LargeLossScale(keras.callbacks.Callback):
    """Begins with a loss scale at which every gradient overflows."""

    def on_train_begin(self, logs=None):
        self.model.optimizer.dynamic_scale.assign(2.0**24)


def test_updates_that_overflow_float16_are_skipped_and_counted(make_settings, capsys):
    settings = make_settings(*SHORT, "--precision=mixed_float16")
    result = trainer.train(settings, callbacks=(LargeLossScale(),), verbose=0)
    assert 0 < result["skipped_updates"] < 18
    assert result["updates"] + result["skipped_updates"] == 18
    assert (
        f"{result['skipped_updates']} updates were skipped" in capsys.readouterr().out
    )

"""A run directory takes one process and one set of flags; a refusal touches nothing."""

import os
import subprocess
import sys

import pytest

import gbn_keras
from gbn_keras.training.errors import UsageError
from gbn_keras.training.run.run_directory import open_run_directory


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_directory_in_use_is_refused_by_the_name_of_the_process(
    make_settings, tmp_path
):
    with open_run_directory(make_settings()) as path:
        before = contents(tmp_path)
        with (
            pytest.raises(
                UsageError, match=f"{path} is in use by process {os.getpid()}"
            ),
            open_run_directory(make_settings()),
        ):
            pass
        assert contents(tmp_path) == before
    with open_run_directory(make_settings()):
        pass


# Without the package's own imports: TensorFlow's takes seconds.
HOLD = """
import sys, time, types
package = sys.modules["gbn_keras"] = types.ModuleType("gbn_keras")
package.__path__ = [sys.argv[2]]
import gbn_train
from gbn_keras.training.run.run_directory import open_run_directory
from gbn_keras.training.settings import Settings
settings = Settings(**gbn_train.parse(["train.py", "--run_dir=" + sys.argv[1]]))
with open_run_directory(settings):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_process_that_died_is_taken_over(make_settings, tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir), *gbn_keras.__path__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        before = contents(run_dir)
        with (
            pytest.raises(UsageError, match=f"in use by process {process.pid} on .*"),
            open_run_directory(make_settings()),
        ):
            pass
        assert contents(run_dir) == before
    finally:
        process.kill()  # By -9: it cleans nothing up.
        process.communicate()
    with open_run_directory(make_settings()):
        told = (run_dir / "lock.holder").read_text()
        assert told.startswith(f"process {os.getpid()} on ")
    assert {file.name for file in contents(run_dir)} == {"flags.cfg", "lock"}


@pytest.mark.parametrize("told", [None, b"", b"\xff"])
def test_a_holder_that_has_not_told_who_it_is_is_refused_too(
    told, make_settings, tmp_path
):
    with open_run_directory(make_settings()) as path:
        (path / "lock.holder").unlink()
        if told is not None:
            (path / "lock.holder").write_bytes(told)
        with (
            pytest.raises(UsageError, match="in use by another process. Wait for it"),
            open_run_directory(make_settings()),
        ):
            pass


def test_a_folder_whose_lock_cannot_be_made_is_refused(make_settings, tmp_path):
    (tmp_path / "run" / "lock").mkdir(parents=True)
    with (
        pytest.raises(UsageError, match="run cannot be written .*Choose a folder"),
        open_run_directory(make_settings()),
    ):
        pass


def test_other_flags_are_refused_and_nothing_is_touched(make_settings, tmp_path):
    with open_run_directory(make_settings("--seed=1")):
        pass
    before = contents(tmp_path)
    with (
        pytest.raises(UsageError, match="--seed=1 there, --seed=2 here"),
        open_run_directory(make_settings("--seed=2")),
    ):
        pass
    assert contents(tmp_path) == before
    # Those that compute the same.
    with open_run_directory(make_settings("--seed=1", "--checkpoint_every=3")):
        pass


def test_of_a_path_that_cannot_be_made_nothing_is_left(make_settings, tmp_path):
    run_dir = tmp_path / "new" / ("x" * 300)
    with (
        pytest.raises(UsageError, match="cannot be written"),
        open_run_directory(make_settings(f"--run_dir={run_dir}")),
    ):
        pass
    assert not (tmp_path / "new").exists()

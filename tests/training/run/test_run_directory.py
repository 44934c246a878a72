"""A run directory takes one process and one set of flags; a refusal touches nothing."""

import os
import subprocess
import sys

import pytest

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


def test_the_lock_of_a_process_that_died_is_taken_over(make_settings, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); "
        "fcntl.flock(file, fcntl.LOCK_EX); file.write('process 1'); file.flush(); "
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(run_dir / "lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match="in use by process 1"),
            open_run_directory(make_settings()),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    with open_run_directory(make_settings()):
        assert f"process {os.getpid()} on " in (run_dir / "lock").read_text()


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

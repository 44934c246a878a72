"""Searches in processes of their own: killed ones, and a chief with its workers."""

import contextlib
import functools
import itertools
import json
import os
import socket
import subprocess
import sys
import time

import keras_tuner
import machine
import pandas as pd
import pytest
from cluster import free_ports

import gbn_train
from gbn_keras.training.errors import UsageError
from gbn_keras.training.search import search_cluster
from gbn_keras.training.strategy import WorkerLost

# The processes of `machine.py` train the same network.
pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("shallow")]

VARIABLES = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID")
TRIALS = 3
# Some of the trials diverge. All processes must have started within 15 s of the first.
FLAGS = (
    *("--mode=tune", f"--trials={TRIALS}", "--trial_updates=48"),
    *("--clipnorm=0", "--lost_after=15"),
    *("--search=batch_size:64,128", "--search=learning_rate:0.01..0.5"),
    "--search=lr_scaling:sqrt,1e30",
)


@contextlib.contextmanager
def program(*flags, log, **environment):
    """The program in a process of its own, which is gone at the end."""
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, machine.__file__, json.dumps({"runs": [flags]})],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(run_dir):
    """The trials that are finished or diverged, and when they were."""
    files = (run_dir.glob(f"trials/*/{name}.json") for name in ("result", "diverged"))
    return {file: file.stat().st_mtime_ns for file in itertools.chain(*files)}


def wait_for(condition, log):
    deadline = time.monotonic() + 240
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition(), log.read_text()


def found(run_dir):
    table = pd.read_csv(run_dir / "tune.csv").drop(columns=["wall_seconds", "run_dir"])
    return table.sort_values("trial", ignore_index=True)


@pytest.fixture(scope="module")
def alone(shallow, tmp_path_factory):
    """Searches in this process, once with each tuner; returns the directory."""

    @functools.cache
    def search(tuner):
        run_dir = tmp_path_factory.mktemp("alone") / tuner
        search_here(tuner, run_dir)
        return run_dir

    return search


def search_here(tuner, run_dir):
    """The program in this process, where TensorFlow has started already."""
    flags = (f"--tuner={tuner}", *FLAGS, f"--run_dir={run_dir}")
    assert gbn_train.main(["train.py", *flags]) == 0


# How many trials are finished when the search is killed.
@pytest.mark.parametrize(
    "tuner, kills",
    [("random", [1]), pytest.param("bayesian", [1, 3], marks=pytest.mark.slow)],
)
def test_a_search_that_is_killed_ends_as_if_it_had_not_been(
    alone, tmp_path, tuner, kills
):
    log, killed, before = tmp_path / "log", tmp_path / "killed", {}
    for number in kills:
        with program(f"--tuner={tuner}", *FLAGS, f"--run_dir={killed}", log=log):
            wait_for(lambda n=number: len(finished(killed)) >= n, log)
        before = {**finished(killed), **before}
        assert len(before) < TRIALS
    search_here(tuner, killed)
    # None was run twice.
    assert before.items() <= finished(killed).items()
    assert len(finished(killed)) == TRIALS
    pd.testing.assert_frame_equal(found(killed), found(alone(tuner)))


def test_two_workers_find_what_one_process_finds_even_if_one_is_lost(alone, tmp_path):
    shared, log = tmp_path / "shared", tmp_path / "log"
    flags = ("--tuner=random", *FLAGS, f"--run_dir={shared}")
    port = str(free_ports(1)[0])

    def member(name):
        known = dict(zip(VARIABLES, ("127.0.0.1", port, name), strict=True))
        return program(*flags, log=log, **known)

    with member("chief") as chief, member("first") as first, member("second") as second:
        # In the middle of a trial.
        wait_for(
            lambda: finished(shared) and len(list(shared.glob("trials/*"))) > 2, log
        )
        second.kill()
        assert chief.wait(timeout=240) == 0, log.read_text()
        assert first.wait(timeout=60) == 0, log.read_text()
    assert "worker second has shown no sign of life for 15 s" in log.read_text()
    assert len(finished(shared)) == TRIALS
    pd.testing.assert_frame_equal(found(shared), found(alone("random")))
    # Which is no reason to lose a worker.
    assert found(shared)["diverged_at"].notna().any()
    flagfiles = [
        (run_dir / "best.cfg").read_text().split("--mode")[1]
        for run_dir in (shared, alone("random"))
    ]
    assert flagfiles[0] == flagfiles[1]


@pytest.fixture
def member_of(monkeypatch):
    """Makes this process one of a search's."""

    def member(name):
        values = ("127.0.0.1", str(free_ports(1)[0]), name)
        for variable, value in zip(VARIABLES, values, strict=True):
            monkeypatch.setenv(variable, value)
        return f"{values[0]}:{values[1]}"

    return member


def test_a_worker_without_a_chief_ends(member_of, tmp_path):
    address = member_of("one")
    assert search_cluster.role() == "worker"
    with pytest.raises(WorkerLost) as error:
        search_cluster.work(lambda: time.sleep(60), tmp_path, lost_after=1)
    assert f"the chief has not answered at {address} for 1 s" in str(error.value)


def test_a_worker_whose_chief_is_gone_ends(member_of, tmp_path):
    address = member_of("one")
    chief = socket.create_server(("127.0.0.1", int(address.split(":")[1])))

    def search():
        chief.close()
        time.sleep(60)

    with pytest.raises(WorkerLost, match=f"chief .* at {address} for 1 s"):
        search_cluster.work(search, tmp_path, lost_after=1)


def test_a_chief_without_workers_ends(member_of, tmp_path):
    member_of("chief")
    assert search_cluster.role() == "chief"
    with pytest.raises(WorkerLost, match="the search has had no worker for"):
        search_cluster.serve(lambda: time.sleep(60), oracle(tmp_path), tmp_path, 1)


def test_a_port_in_use_is_told(member_of, tmp_path):
    address = member_of("chief")
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))):
        with pytest.raises(UsageError, match=f"cannot listen at {address}"):
            search_cluster.serve(lambda: None, oracle(tmp_path), tmp_path, 1)


@pytest.mark.parametrize("missing", VARIABLES)
def test_a_variable_that_is_missing_is_told(member_of, monkeypatch, missing):
    member_of("one")
    monkeypatch.delenv(missing)
    with pytest.raises(UsageError, match=f"{missing}=[, ]"):
        search_cluster.role()


def test_without_the_variables_a_process_searches_alone():
    assert search_cluster.role() == "alone"


def oracle(folder, trials=2):
    hyperparameters = keras_tuner.HyperParameters()
    hyperparameters.Float("learning_rate", 0, 1)
    random_search = keras_tuner.oracles.RandomSearchOracle
    made = search_cluster.that_keeps_workers(random_search)(
        objective=keras_tuner.Objective("val_accuracy", "max"),
        max_trials=trials,
        hyperparameters=hyperparameters,
        max_retries_per_trial=100,
        seed=1,
    )
    made.verbose = 0
    # As every tuner does it.
    made._set_project_dir(folder, "chief")
    return made


def end(made, trial):
    made.update_trial(trial.trial_id, {"val_accuracy": 0.5})
    trial.status = "COMPLETED"
    made.end_trial(trial)


def test_the_trial_of_a_lost_worker_goes_to_another_one(tmp_path, capsys):
    made = oracle(tmp_path)
    workers = search_cluster.Workers(made, tmp_path, lost_after=0.3)
    lost, other = made.create_trial("lost"), made.create_trial("other")
    assert not workers.look()
    deadline = time.monotonic() + 10
    while "lost" in made.tuner_ids and time.monotonic() < deadline:
        (tmp_path / "other").write_text(str(time.monotonic()))
        assert not workers.look()
        time.sleep(0.05)
    assert made.tuner_ids == {"other"}
    assert "worker lost has shown no sign of life for 0.3 s; another worker gets" in (
        capsys.readouterr().out
    )
    end(made, other)
    again = made.create_trial("other")
    assert again.trial_id == lost.trial_id
    assert again.hyperparameters.values == lost.hyperparameters.values
    end(made, again)
    assert not workers.look()
    assert made.create_trial("other").status == "STOPPED"
    assert workers.look()


def test_a_worker_waits_for_a_trial_that_may_come_back(tmp_path):
    made = oracle(tmp_path, trials=2)
    workers = search_cluster.Workers(made, tmp_path, lost_after=60)
    one, other = made.create_trial("one"), made.create_trial("other")
    end(made, other)
    assert made.create_trial("other").status == "IDLE"
    assert not workers.look()
    end(made, one)
    assert made.create_trial("other").status == "STOPPED"
    assert made.create_trial("one").status == "STOPPED"
    assert workers.look()


def test_a_search_whose_last_worker_is_lost_ends(tmp_path):
    made = oracle(tmp_path)
    workers = search_cluster.Workers(made, tmp_path, lost_after=0.3)
    made.create_trial("lost")
    with pytest.raises(WorkerLost, match="Run the same commands again"):
        for _ in range(100):
            assert not workers.look()
            time.sleep(0.05)

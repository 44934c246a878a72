"""The program computes on replicas and machines what one device computes."""

import json
import pathlib
import signal
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from cluster import run_workers, workers
from trainings import SHORT, weights

import gbn_train as program
from gbn_keras.training import evaluation, trainer
from gbn_keras.training import strategy as strategies
from gbn_keras.training.errors import UsageError

PROGRAM = pathlib.Path(program.__file__).with_name("train.py")


def test_one_device_is_the_default(make_settings):
    strategy = strategies.strategy_of(make_settings())
    assert strategy is tf.distribute.get_strategy()
    assert strategies.is_chief(strategy)
    assert strategies.chief_says(strategy, True) and not strategies.chief_says(
        strategy, False
    )


def test_the_processor_is_divided_into_replicas(make_settings):
    flags = ("--strategy=mirrored", "--replicas=2")
    strategy = strategies.strategy_of(make_settings(*flags))
    assert strategy.num_replicas_in_sync == 2
    assert strategies.strategy_of(make_settings(*flags)) is strategy
    assert strategies.chief_says(strategy, True) and not strategies.chief_says(
        strategy, False
    )
    # The tests' own process has four devices.
    with pytest.raises(UsageError, match="--replicas: got 5.*Start a new process"):
        strategies.strategy_of(make_settings("--strategy=mirrored", "--replicas=5"))
    with pytest.raises(UsageError, match="--replicas: got 0"):
        strategies.strategy_of(make_settings("--strategy=mirrored"))


@pytest.mark.cluster
@pytest.mark.parametrize("ghost", ["32", pytest.param("0", marks=pytest.mark.slow)])
def test_a_run_on_replicas_is_that_of_one_device(make_settings, tmp_path, ghost):
    flags = (*SHORT, f"--virtual_batch_size={ghost}")
    one = trainer.train(make_settings(*flags), verbose=0)
    flags = (*flags, "--strategy=mirrored", "--replicas=2")
    many = make_settings(*flags, f"--run_dir={tmp_path / 'many'}")
    two = trainer.train(many, verbose=0)
    assert two["accuracy"] == one["accuracy"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["updates"] == one["updates"] and two["hardware"]["replicas"] == 2
    for a, b in zip(weights(tmp_path / "run"), weights(tmp_path / "many"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # Evaluated on replicas, the model of one device gives its figures.
    flags = ("--strategy=mirrored", "--replicas=4")
    scores = evaluation.evaluate(make_settings(*flags))
    assert scores["accuracy"] == pytest.approx(one["accuracy"])
    assert scores["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_plain_batch_normalization_on_replicas_cannot_be_compiled(make_settings):
    flags = ("--virtual_batch_size=0", "--strategy=mirrored", "--replicas=2")
    with pytest.raises(UsageError, match="--jit: got on"):
        trainer.train(make_settings(*SHORT, *flags, "--jit=on"), verbose=0)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
         "IndexError"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "is ps"),
    ],
)  # fmt: skip
def test_a_wrong_tf_config_is_told(make_settings, monkeypatch, text, problem):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=f"(?s)TF_CONFIG: got .*{problem}"):
        strategies.strategy_of(make_settings("--strategy=multi_worker"))


def test_slurm_tells_the_machines(monkeypatch):
    for name, value in {
        "PROCID": "2",
        "STEP_NUM_TASKS": "3",
        "STEP_NODELIST": "node[1-2]",
        "STEP_TASKS_PER_NODE": "2,1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = strategies._cluster_config("auto", 700)
    assert config == {
        "cluster": {"worker": ["node1:700", "node1:701", "node2:700"]},
        "task": {"type": "worker", "index": 2},
    }


def test_kubernetes_tells_the_machines(monkeypatch):
    """With the part of its client that is used; the client is not installed here."""

    def pod(name, address):
        metadata = types.SimpleNamespace(name=name)
        status = types.SimpleNamespace(phase="Running", host_ip=address)
        return types.SimpleNamespace(metadata=metadata, status=status)

    class CoreV1Api:
        def list_pod_for_all_namespaces(self, label_selector):
            assert label_selector == "job-name=tensorflow"
            items = [
                pod("tensorflow-1-x", "10.0.0.7"),
                pod("tensorflow-0-y", "10.0.0.9"),
            ]
            return types.SimpleNamespace(items=items)

    client = types.ModuleType("kubernetes.client")
    client.CoreV1Api = CoreV1Api
    config = types.ModuleType("kubernetes.config")
    config.load_incluster_config = lambda: None
    kubernetes = types.ModuleType("kubernetes")
    kubernetes.client, kubernetes.config = client, config
    for name, module in (("", kubernetes), (".client", client), (".config", config)):
        monkeypatch.setitem(sys.modules, f"kubernetes{name}", module)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("NODE_IP", "10.0.0.7")
    found = strategies._cluster_config("auto", 8888)
    assert found == {
        "cluster": {"worker": ["10.0.0.9:8888", "10.0.0.7:8888"]},
        "task": {"type": "worker", "index": 1},
    }


@pytest.mark.cluster
def test_the_program_on_two_machines(make_settings, tmp_path):
    one = trainer.train(make_settings(*SHORT), verbose=0)
    run_dir = tmp_path / "two"
    flags = ("--strategy=multi_worker", f"--run_dir={run_dir}", *SHORT)
    first, second = run_workers(2, PROGRAM, *flags)
    assert "2 replicas x 1 micro-batch of 128" in first
    assert "validation accuracy" in first and "validation accuracy" not in second
    result = json.loads((run_dir / "result.json").read_text())
    assert result["accuracy"] == one["accuracy"]
    for a, b in zip(weights(tmp_path / "run"), weights(run_dir), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # Finished before, as the first machine knows; then evaluated on both.
    first, second = run_workers(2, PROGRAM, *flags)
    assert "already finished" in first and "already finished" not in second
    first, _ = run_workers(2, PROGRAM, *flags, "--mode=evaluate")
    assert f"validation accuracy {100 * one['accuracy']:.2f} %" in first


@pytest.mark.cluster
def test_when_a_machine_is_lost_the_others_stop_and_all_go_on_when_restarted(tmp_path):
    flags = ("--strategy=multi_worker", "--batch_size=512", "--epochs=8")
    flags = (*flags, "--weight_distance", "--checkpoint_every=4")
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    run_workers(2, PROGRAM, *flags, f"--run_dir={undisturbed}")
    ends = ((0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGTERM))
    for (ended, number), lines in zip(ends, (10, 40, 70), strict=True):
        with workers(2, PROGRAM, *flags, f"--run_dir={run}") as started:
            _wait_for(run / "metrics.csv", lines)
            started[ended].send_signal(number)
            output, _ = started[1 - ended].communicate(timeout=30)
            assert started[1 - ended].returncode == 75
            told, _ = started[ended].communicate(timeout=30)
            assert ("is saved" in told) is (number == signal.SIGTERM)
        last_line = output.splitlines()[-1]
        assert last_line.startswith("stopped: another machine of the cluster was lost")
        assert "same command" in last_line
        assert "Traceback" not in output
    first, second = run_workers(2, PROGRAM, *flags, f"--run_dir={run}")
    assert "resumed after update" in first and "resumed" not in second
    # Bit for bit.
    for a, b in zip(weights(undisturbed), weights(run), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("metrics.csv", "weight_distance.csv"):
        assert (undisturbed / name).read_text() == (run / name).read_text()


def _wait_for(file, lines):
    for _ in range(600):
        if file.exists() and len(file.read_text().splitlines()) >= lines:
            return
        time.sleep(0.2)
    raise TimeoutError(f"{file} has not got {lines} lines in two minutes")

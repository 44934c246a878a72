"""The program computes on replicas and machines what one device computes."""

import functools
import json
import signal
import sys
import types

import machine
import numpy as np
import pytest
import sameness
import tensorflow as tf
from cluster import run_workers, workers
from conftest import settings_of
from trainings import SHORT, weights

from gbn_keras.training import strategy as strategies
from gbn_keras.training import trainer
from gbn_keras.training.cluster.cluster_config import cluster_config
from gbn_keras.training.errors import UsageError
from gbn_keras.training.trained import evaluation

# The machines of `machine.py` train the same network.
pytestmark = pytest.mark.usefixtures("shallow")


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
    # The tests' own process has eight devices.
    with pytest.raises(UsageError, match="--replicas: got 9.*Start a new process"):
        strategies.strategy_of(make_settings("--strategy=mirrored", "--replicas=9"))
    with pytest.raises(UsageError, match="--replicas: got 0"):
        strategies.strategy_of(make_settings("--strategy=mirrored"))


@pytest.fixture(scope="module")
def one_device(shallow, tmp_path_factory):
    """Trains on one device, once for each size of ghosts: the folder, the result."""

    @functools.cache
    def train(ghost="32"):
        folder = tmp_path_factory.mktemp("one_device") / "run"
        flags = (f"--virtual_batch_size={ghost}", f"--run_dir={folder}")
        return folder, trainer.train(settings_of(*SHORT, *flags), verbose=0)

    return train


@pytest.mark.cluster
@pytest.mark.parametrize("ghost", ["32", pytest.param("0", marks=pytest.mark.slow)])
def test_a_run_on_replicas_is_that_of_one_device(
    make_settings, one_device, tmp_path, ghost
):
    whole, one = one_device(ghost)
    flags = (*SHORT, f"--virtual_batch_size={ghost}")
    two = trainer.train(
        make_settings(*flags, "--strategy=mirrored", "--replicas=2"), verbose=0
    )
    assert two["accuracy"] == one["accuracy"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert two["updates"] == one["updates"] and two["hardware"]["replicas"] == 2
    for a, b in zip(weights(whole), weights(tmp_path / "run"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # Evaluated on replicas, the model of one device gives its figures.
    flags = ("--strategy=mirrored", "--replicas=4", f"--run_dir={whole}")
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
    config = cluster_config("auto", 700)
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
    found = cluster_config("auto", 8888)
    assert found == {
        "cluster": {"worker": ["10.0.0.9:8888", "10.0.0.7:8888"]},
        "task": {"type": "worker", "index": 1},
    }


ON_TWO_MACHINES = (
    *SHORT,
    *("--strategy=multi_worker", "--weight_distance", "--checkpoint_every=4"),
)

# Which machine gets which signal in which update of its process, and the last update
# that is saved then. The first machine saves every fourth update, and at SIGTERM.
LOSSES = ((1, signal.SIGKILL, 6, 4), (0, signal.SIGTERM, 3, 7))
MORE_LOSSES = ((0, signal.SIGKILL, 6, 4), (1, signal.SIGTERM, 5, 8))

# Network, ghosts, and micro-batches of each machine: whole ghosts; a ghost on both
# machines, beside whole ones; and as the whole batch.
OTHERS = (("convolutional", sameness.GHOST, 2), ("f1", 100, 1))
MORE_OTHERS = (
    ("f1", sameness.GHOST, 2),
    ("f1", 512, 1),
    ("convolutional", 48, 1),
)


@pytest.fixture(
    scope="module",
    params=[
        (LOSSES, OTHERS),
        pytest.param((MORE_LOSSES, MORE_OTHERS), marks=pytest.mark.slow),
    ],
    ids=["1 KILL, 0 TERM", "0 KILL, 1 TERM"],
)
def two_machines(request, tmp_path_factory):
    """Runs of the program on two machines, as few processes as it can be done with.

    After the losses, it runs to the end. Then it trains undisturbed, and once more, and
    evaluates. At last, the processes train what `sameness.py` trains.

    Returns:
        The losses, for each of them the exit codes and outputs, the outputs of the
        machines after the losses, the trainings of `sameness.py`, and the folder of
        `lost`, of `undisturbed` and of the results of those trainings.
    """
    folder = tmp_path_factory.mktemp("two_machines")
    losses, others = request.param
    lost, undisturbed = (
        (*ON_TWO_MACHINES, f"--run_dir={folder / name}")
        for name in ("lost", "undisturbed")
    )
    ended = []
    for *loss, _ in losses:
        told = json.dumps({"runs": [lost], "loss": loss})
        with workers(2, machine.__file__, told) as started:
            outputs = [worker.communicate(timeout=300)[0] for worker in started]
            ended.append(([worker.returncode for worker in started], outputs))
    runs = [lost, undisturbed, undisturbed, (*undisturbed, "--mode=evaluate")]
    told = json.dumps({"runs": runs, "others": [others, str(folder)]})
    outputs = run_workers(2, machine.__file__, told)
    return losses, ended, outputs, others, folder


@pytest.mark.cluster
def test_the_program_on_two_machines(two_machines, one_device):
    _, _, (first, second), _, folder = two_machines
    run_dir = folder / "undisturbed"
    whole, one = one_device()
    assert "2 replicas x 1 micro-batch of 128" in first
    assert "validation accuracy" in first and "validation accuracy" not in second
    result = json.loads((run_dir / "result.json").read_text())
    assert result["accuracy"] == one["accuracy"]
    for a, b in zip(weights(whole), weights(run_dir), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # Finished before, as the first machine knows; then evaluated on both.
    assert f"already finished: {run_dir}" in first and "already" not in second
    # TensorFlow may say something behind it, about a machine that has ended.
    evaluated = f"validation accuracy {100 * one['accuracy']:.2f} %"
    assert evaluated in first.splitlines()


@pytest.mark.cluster
def test_when_a_machine_is_lost_the_others_stop_and_all_go_on_when_restarted(
    two_machines,
):
    losses, ended, (first, second), _, folder = two_machines
    saved = None
    for (lost, number, _, then_saved), (codes, outputs) in zip(
        losses, ended, strict=True
    ):
        assert codes[lost] == (-number if number == signal.SIGKILL else 75), outputs
        assert codes[1 - lost] == 75, outputs
        # Only the first machine saves.
        is_saved = f"update {then_saved} is saved" in outputs[lost]
        assert is_saved is (number == signal.SIGTERM and lost == 0)
        last_line = outputs[1 - lost].splitlines()[-1]
        assert last_line.startswith("stopped: another machine of the cluster was lost")
        assert "same command" in last_line
        assert "Traceback" not in outputs[1 - lost]
        if saved:
            assert f"resumed after update {saved} of 12" in outputs[0]
        saved = then_saved
    assert f"resumed after update {saved} of 12" in first and "resumed" not in second
    # Bit for bit.
    lost, undisturbed = folder / "lost", folder / "undisturbed"
    for a, b in zip(weights(undisturbed), weights(lost), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("metrics.csv", "weight_distance.csv"):
        assert (undisturbed / name).read_text() == (lost / name).read_text()


@pytest.mark.cluster
def test_large_batch_model_gives_on_two_machines_what_one_device_gives(two_machines):
    *_, others, folder = two_machines
    for number, (network, ghost, _) in enumerate(others):
        with np.load(folder / f"{number}.npz") as file:
            arrays = [file[key] for key in file.files]
        expected = sameness.trained(network, "float32", wrapped=False, ghost=ghost)
        assert sameness.distance(arrays, expected) < sameness.TOLERANCE["float32"]

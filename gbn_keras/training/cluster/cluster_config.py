"""`cluster_config()`: from TF_CONFIG, or else from SLURM or Kubernetes."""

import json
import os
import socket

import tensorflow as tf

from gbn_keras.training.errors import UsageError, first_line


def cluster_config(cluster: str | None, port: int) -> dict:
    """The machines' addresses and this machine's task, in the form of TF_CONFIG.

    Args:
        cluster: The scheduler to ask: `slurm`, `kubernetes`, `auto` for the one that
            started this process, or `None` for none. TF_CONFIG comes first.
        port: The port of each machine.

    Raises:
        UsageError: If TF_CONFIG is damaged, or nobody knows the machines.
    """
    if "TF_CONFIG" in os.environ:
        return _from_tf_config(os.environ["TF_CONFIG"])
    if cluster == "auto":
        found = (name for name, sign in _SIGNS.items() if sign in os.environ)
        cluster = next(found, None)
    if cluster is None:
        raise UsageError(
            "--strategy: got multi_worker, wanted TF_CONFIG in the environment, or a "
            f"process that SLURM or Kubernetes started. {_REMEDY}"
        )
    try:
        resolve = _from_slurm if cluster == "slurm" else _from_kubernetes
        addresses, index = resolve(port)
    # The resolvers and their clients raise errors of any type.
    except Exception as error:
        raise UsageError(
            f"--cluster: got {cluster}, wanted one that lists the machines "
            f"({type(error).__name__}: {first_line(error)}). {_REMEDY}"
        ) from error
    return {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": index},
    }


# The environment variable by which each scheduler is recognized.
_SIGNS = {"slurm": "SLURM_PROCID", "kubernetes": "KUBERNETES_SERVICE_HOST"}

_REMEDY = (
    'Set TF_CONFIG={"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}, "task": '
    '{"type": "worker", "index": 0}} on the first machine, and index 1 on the second.'
)


def _from_tf_config(text):
    try:
        config = json.loads(text)
        task = config["task"]
        config["cluster"][task["type"]][int(task["index"])]
        if task["type"] in ("chief", "worker"):
            return config
        problem = f"the task's type is {task['type']}, not chief or worker"
    except (ValueError, TypeError, LookupError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise UsageError(f"TF_CONFIG: got {text!r} ({problem}). {_REMEDY}")


def _from_slurm(port):
    has_gpus = bool(tf.config.list_physical_devices("GPU"))
    # Unless it is given these numbers, the resolver asks nvidia-smi for the number of
    # GPUs, and fails if there are none.
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    without = {"gpus_per_node": tasks, "gpus_per_task": 1, "auto_set_gpu": False}
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=port, **({} if has_gpus else without)
    )
    addresses = resolver.cluster_spec().job_tasks("worker")
    return addresses, resolver.get_task_info()[1]


def _from_kubernetes(port):
    """The pods of the job `tensorflow`, which use the network of their nodes."""
    from kubernetes import client, config

    config.load_incluster_config()
    resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
        tf_server_port=port, override_client=client.CoreV1Api()
    )
    addresses = resolver.cluster_spec().job_tasks("worker")
    here = os.environ.get("NODE_IP") or socket.gethostbyname(socket.gethostname())
    return addresses, addresses.index(f"{here}:{port}")

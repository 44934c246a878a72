"""A cluster of workers on this machine, which communicate over 127.0.0.1."""

import contextlib
import json
import os
import socket
import subprocess
import sys


@contextlib.contextmanager
def workers(number, script, *arguments):
    """Starts a script as `number` workers; at the end, all are killed."""
    ports = free_ports(number)
    started = []
    try:
        for index in range(number):
            config = {
                "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
                "task": {"type": "worker", "index": index},
            }
            started.append(
                subprocess.Popen(
                    [sys.executable, str(script), *arguments],
                    env={**os.environ, "TF_CONFIG": json.dumps(config)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


def run_workers(number, script, *arguments):
    """Runs a script as `number` workers, which must succeed; returns their outputs."""
    with workers(number, script, *arguments) as started:
        outputs = [worker.communicate(timeout=300)[0] for worker in started]
        for worker, output in zip(started, outputs, strict=True):
            assert worker.returncode == 0, output[-3000:]
    return outputs


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports

"""The non-public names of TensorFlow that gbn-keras uses, and what each is for.

A new version of TensorFlow may drop any of them. `tests/test_internals.py` shows which.
"""

from collections.abc import Callable

from tensorflow.python.client import device_lib
from tensorflow.python.eager import record
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util


def is_compiled_by_xla() -> bool:
    """Whether XLA compiles the function that is being traced, or one that calls it."""
    graph = ops.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def record_gradient(name: str, outputs: list, inputs: list, gradient: Callable) -> None:
    """Tells the active gradient tapes how to differentiate a computation.

    Args:
        name: Name for messages.
        outputs: Tensors that were computed.
        inputs: Tensors that the outputs were computed from.
        gradient: Function from the gradients by the outputs to those by the inputs.
    """
    record.record_operation(name, outputs, inputs, gradient)


def accelerators_memory() -> list[int]:
    """Bytes of memory of each GPU and TPU that this process may use."""
    devices = device_lib.list_local_devices()
    return [d.memory_limit for d in devices if d.device_type in ("GPU", "TPU")]

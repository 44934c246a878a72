"""Estimates how much memory an update needs, before the update is made."""

import math
import os
import pathlib

import keras
import tensorflow as tf

from gbn_keras._keras_internals import compile_loss_of
from gbn_keras._tensorflow_internals import accelerators_memory
from gbn_keras.large_batch.ghost_sizes import smallest_micro_batch
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.large_batch.replica_step import ReplicaStep
from gbn_keras.large_batch.squares import bytes_of_squares

# Operations whose output uses the memory of their input.
_ALIASES = {"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient"}

# Files in which Linux gives the memory limit of a container.
_CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def half_of_the_device(replicas: int) -> float:
    """Half the bytes of memory that a replica has.

    Logical CPU devices split the memory of their machine, or of its container.
    """
    if limits := accelerators_memory():
        return min(limits) / 2
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in map(pathlib.Path, _CONTAINER_LIMITS):
        if file.exists() and (limit := file.read_text().strip()).isdigit():
            total = min(total, int(limit))
    here = min(replicas, len(tf.config.list_logical_devices("CPU")))
    return total / here / 2


def largest_micro_batch(model: LargeBatchModel, share: int, budget: float) -> int:
    """The largest micro-batch whose update fits into `budget` bytes, by `peak_bytes`.

    This is the whole share if that fits. Otherwise it is the largest number of ghosts
    that fits and divides the share's ghosts evenly, or one ghost if nothing fits.
    """
    ghost = smallest_micro_batch(model)
    ghosts = max(1, share // ghost)
    if _at_most(model, share) <= budget or peak_bytes(model, share) <= budget:
        return ghost * ghosts
    # Memory is about linear: a fixed part, and a part for each example.
    small, large = peak_bytes(model, ghost), peak_bytes(model, 2 * ghost)
    most = 1 + max(0.0, budget - small) / max(1.0, large - small)
    return ghost * max(n for n in range(1, ghosts + 1) if n <= most and not ghosts % n)


def _at_most(model, examples):
    """An upper bound of an update's bytes, without a trace, which takes seconds.

    It is based on twice the outputs of all layers in float32. `peak_bytes` is below
    once.
    """
    network = model.model
    if not isinstance(network, keras.Model) or not hasattr(network, "operations"):
        return math.inf
    outputs = sum(
        math.prod(output.shape[1:])
        for operation in network.operations
        for output in tf.nest.flatten(operation.output)
    )
    variables = network.variables + model.optimizer.variables
    values = 2 * examples * outputs + 3 * sum(math.prod(v.shape) for v in variables)
    return 4 * values + bytes_of_squares(model)


def peak_bytes(model: LargeBatchModel, examples: int) -> int:
    """The estimated peak memory of an update with `examples` at once.

    It traces the forward and backward pass without computing them. It assumes that
    operations run in traced order. Each operation allocates its outputs, and memory
    that no later operation needs is freed. The peak is the most memory in use at once,
    including variables and gradients. It leaves out the workspaces of operations (such
    as convolutions) and the memory that the allocator keeps. That is why the default
    budget is half the memory.
    """
    inputs = tf.TensorSpec((examples, *model.model.input_shape[1:]))
    labels = tf.TensorSpec((examples,), tf.int32)
    losses = compile_loss_of(model)
    if not losses.built:
        losses.build(keras.KerasTensor((examples,), "int32"), model.model.output)
    step = ReplicaStep(model, training=True, micro_batch_size=examples)

    @tf.function(autograph=False)
    def update(images, labels):
        scale = tf.constant(1.0)
        return step.through_model((images, labels), step.values(), 0, scale)

    graph = update.get_concrete_function(inputs, labels).graph
    variables = model.variables + model.optimizer.variables
    # The graph is of a single micro-batch, which needs no squares.
    known = bytes_of_squares(model) + sum(math.prod(v.shape) * 4 for v in variables)
    return _most_alive(graph) + known


def _most_alive(graph):
    """The most bytes in use at once, if operations run in traced order."""
    operations = graph.get_operations()
    memory_of, last_use = {}, {}
    for place, operation in enumerate(operations):
        for tensor in operation.inputs:
            last_use[memory_of[tensor.ref()]] = place
        for tensor in operation.outputs:
            is_alias = operation.type in _ALIASES
            owner = operation.inputs[0] if is_alias else tensor
            memory_of[tensor.ref()] = memory_of.get(owner.ref(), tensor.ref())
    for tensor in graph.outputs:
        last_use[memory_of[tensor.ref()]] = len(operations)
    alive = most = 0
    for place, operation in enumerate(operations):
        made = {memory_of[t.ref()] for t in operation.outputs if t.dtype.size}
        made = {ref for ref in made if ref.deref().op is operation}
        alive += sum(map(_bytes, made))
        most = max(most, alive)
        used = {memory_of[t.ref()] for t in operation.inputs} | made
        alive -= sum(_bytes(ref) for ref in used if last_use.get(ref, -1) <= place)
    return most


def _bytes(reference):
    tensor = reference.deref()
    if tensor.dtype in (tf.resource, tf.variant) or not tensor.shape.is_fully_defined():
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size

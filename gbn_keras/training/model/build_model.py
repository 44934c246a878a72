"""`build_model`: the plan's network, compiled, with micro-batches that fit."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from gbn_keras._keras_internals import build_by_trace, layers_of
from gbn_keras.large_batch.backends import tensorflow_memory as memory
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.networks import find_network
from gbn_keras.training.data.labelled_images import LabelledImages
from gbn_keras.training.errors import UsageError, first_line
from gbn_keras.training.model.network import loss_and_metrics, make_network
from gbn_keras.training.model.optimizer import make_optimizer
from gbn_keras.training.plan import Plan

# A process compiles for some seconds. F1 on MNIST saves them in some hundred updates.
_FEWEST_UPDATES_FOR_XLA = 1000


def build_model(plan: Plan, data: LabelledImages) -> LargeBatchModel:
    """The plan's network, compiled for training.

    Call it in the scope of the strategy. The model's `micro_batch_size` is the plan's,
    or a smaller one that fits into memory.
    """
    model = untraced_model(plan, data)
    with _dtype_policy(plan.settings.precision):
        size = _fitting_micro_batch(model, plan)
        if size < plan.micro_batch_size:
            optimizer, measures = model.optimizer, plan.settings.noise_scale
            model = LargeBatchModel(model.model, size, measures)
            compile_model(model, plan, optimizer)
        # This also creates the metrics' variables, which a resumed training restores.
        image, label = np.zeros((1, *data.image_shape), "float32"), np.zeros(1, "int32")
        build_by_trace(model, (image, label))
    return model


def untraced_model(plan: Plan, data: LabelledImages) -> LargeBatchModel:
    """As `build_model`, but with the plan's micro-batch, and without metrics."""
    with _dtype_policy(plan.settings.precision):
        network = make_network(plan, data.image_shape, data.classes)
        measures = plan.settings.noise_scale
        model = LargeBatchModel(network, plan.micro_batch_size, measures)
        compile_model(model, plan)
    return model


def check_image_shape(model: str, data: LabelledImages) -> None:
    """Raises a `UsageError` if a network cannot take images of this shape."""
    build, _ = find_network(model)
    try:
        build(data.image_shape, data.classes, None)
    except ValueError as error:
        raise UsageError(
            f"--model: got {model}, wanted a network that takes the images of "
            f"{data.name} ({first_line(error)}) Choose another one."
        ) from error


def compile_model(model: keras.Model, plan: Plan, optimizer=None) -> None:
    """Compiles a model with the plan's values; makes an optimizer if none is given."""
    model.compile(
        optimizer=optimizer or make_optimizer(plan),
        **loss_and_metrics(),
        jit_compile=_use_xla(model, plan),
    )
    # Otherwise the first update would create the variables, and so be traced twice.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _fitting_micro_batch(model, plan):
    """The plan's micro-batch, or a smaller one that fits if the user set none."""
    settings = plan.settings
    at_once = plan.replicas_communicate or not settings.virtual_batch_size
    if settings.micro_batch_size or at_once:
        return plan.micro_batch_size
    budget = settings.memory_budget * 2**30 or memory.half_of_the_device(plan.replicas)
    return memory.largest_micro_batch(model, plan.share, budget)


def _use_xla(model, plan):
    """Whether to compile with XLA; where it is faster, unless the user says.

    On a CPU, that is without convolutions, which are slow there, and if there are
    enough updates to pay for the compilation: see `benchmarks/xla_speed.py`.
    """
    if plan.settings.jit != "auto":
        return plan.settings.jit == "on"
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        # Replicas cannot communicate inside a compiled function.
        return not plan.replicas_communicate
    has_convolutions = any(isinstance(x, keras.layers.Conv2D) for x in layers_of(model))
    is_simple = plan.replicas == 1 and not has_convolutions
    return is_simple and is_long_enough_for_xla(plan)


def is_long_enough_for_xla(plan: Plan) -> bool:
    """Whether a training can save the time that XLA takes to compile."""
    return plan.updates >= _FEWEST_UPDATES_FOR_XLA


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

"""`build_model`: the plan's network, compiled, in micro-batches that fit."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from gbn_keras._keras_internals import build_by_trace
from gbn_keras.ghost_batch_normalization import GhostBatchNormalization
from gbn_keras.large_batch import memory
from gbn_keras.large_batch.large_batch_model import LargeBatchModel
from gbn_keras.networks import find_network
from gbn_keras.optimizers.l2_sgd import L2SGD
from gbn_keras.training.data.datasets import ImageData
from gbn_keras.training.errors import UsageError, first_line
from gbn_keras.training.plan import Plan

# The published networks' (PyTorch's defaults). Keras's momentum of 0.99 would leave the
# running statistics of a large batch, which has few updates, near their start.
_NORMALIZATION = {"momentum": 0.9, "epsilon": 1e-5}


def build_model(plan: Plan, data: ImageData) -> LargeBatchModel:
    """The plan's network, compiled for training.

    Call it in the scope of the strategy. The model's `micro_batch_size` is the plan's,
    or a smaller one that fits into memory.
    """
    with _dtype_policy(plan.settings.precision):
        network = _network(plan, data)
        measures = plan.settings.noise_scale
        model = LargeBatchModel(network, plan.micro_batch_size, measures)
        compile_model(model, plan)
        size = _fitting_micro_batch(model, plan)
        if size < plan.micro_batch_size:
            optimizer, model = model.optimizer, LargeBatchModel(network, size, measures)
            compile_model(model, plan, optimizer)
        # The metrics' variables, too: a training that goes on gives them values.
        image, label = np.zeros((1, *data.image_shape), "float32"), np.zeros(1, "int32")
        build_by_trace(model, (image, label))
    return model


def check_image_shape(model: str, data: ImageData) -> None:
    """A UsageError if a network cannot take the images, which are too small, say."""
    build, _ = find_network(model)
    try:
        build(data.image_shape, data.classes, None)
    except ValueError as error:
        raise UsageError(
            f"--model: {model} cannot take the images of {data.name} "
            f"({first_line(error)}) Choose another network."
        ) from error


def _network(plan, data):
    settings = plan.settings
    if settings.virtual_batch_size:
        normalization = functools.partial(
            GhostBatchNormalization, settings.virtual_batch_size, **_NORMALIZATION
        )
    else:
        # The same statistics for any number of replicas.
        synchronized = plan.replicas > 1
        normalization = functools.partial(
            keras.layers.BatchNormalization, synchronized=synchronized, **_NORMALIZATION
        )
    build, _ = find_network(settings.model)
    return build(data.image_shape, data.classes, normalization)


def compile_model(model: keras.Model, plan: Plan, optimizer=None) -> None:
    """Compiles a model as the plan says, by default with an optimizer of its own."""
    model.compile(
        optimizer=optimizer
        or L2SGD(
            plan.learning_rate,
            l2=plan.l2,
            l2_kernels_only=plan.settings.l2_kernels_only,
            momentum=plan.regime.momentum,
            global_clipnorm=plan.settings.clipnorm or None,
        ),
        **loss_and_metrics(),
        jit_compile=_use_xla(plan),
    )
    # Unbuilt, it would create its variables in the first update, which would then be
    # traced a second time.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def loss_and_metrics() -> dict:
    """Arguments of `compile`: the mean loss and the accuracy over the examples.

    A weight of 0 says that an example only fills up a validation batch. The others
    scale the loss: in training they are the gradient's noise.
    """
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "weighted_metrics": [AccuracyOfExamples(name="accuracy")],
    }


@keras.saving.register_keras_serializable("gbn_keras")
class AccuracyOfExamples(keras.metrics.SparseCategoricalAccuracy):
    """Accuracy over the examples whose weight is not 0, each counting alike."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts a batch."""
        if sample_weight is not None:
            sample_weight = ops.cast(ops.not_equal(sample_weight, 0), self.dtype)
        return super().update_state(y_true, y_pred, sample_weight)


def _fitting_micro_batch(model, plan):
    """The plan's micro-batch, or where the choice is left to us one that fits."""
    settings = plan.settings
    if settings.micro_batch_size or not settings.virtual_batch_size:
        return plan.micro_batch_size
    budget = settings.memory_budget * 2**30 or memory.half_of_the_device(plan.replicas)
    return memory.largest_micro_batch(model, plan.share, budget)


def _use_xla(plan):
    """Whether to compile with XLA, whose convolutions are slow on CPU."""
    jit = plan.settings.jit
    # Replicas cannot talk to each other in the middle of a compiled function.
    talk = plan.replicas > 1 and not plan.settings.virtual_batch_size
    accelerators = tf.config.list_logical_devices("GPU") + (
        tf.config.list_logical_devices("TPU")
    )
    return {"on": True, "off": False, "auto": bool(accelerators) and not talk}[jit]


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

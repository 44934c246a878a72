"""The non-public names of Keras that gbn-keras uses, and what each is for.

A new version of Keras may drop any of them. `tests/test_internals.py` shows which.
"""

import keras
from keras.src.backend import get_keras_mask
from keras.src.models.functional import Functional

# Modules in which Keras stores a layer's weights under the name of its class.
WRITES_WEIGHTS = ("keras.src.saving.saving_lib", "keras.src.saving.file_editor")

# Modules in which Keras prints the name of a layer's class. The layer is their local
# variable `layer`.
SHOWS_LAYERS = ("keras.src.utils.summary_utils", "keras.src.utils.model_visualization")


def layers_of(model: keras.Model) -> list:
    """All layers of a model at any depth, including itself, each once.

    `model.layers` has the first level only.
    """
    return list(model._flatten_layers())


def held_by(layer: keras.layers.Layer) -> list:
    """The layers that a layer holds itself, as `layers_of` without what these hold."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def calls_of(model: keras.layers.Layer) -> list[tuple[object, list]] | None:
    """What a functional or Sequential model calls, and what gets each call's output.

    Getters are layers, or `None` for the model's own output. The answer is `None` for
    other models, whose `call` may do anything.
    """
    if type(model).call is keras.Sequential.call:
        followers = (*model.layers[1:], None)
        return [(layer, [x]) for layer, x in zip(model.layers, followers, strict=True)]
    if type(model).call is not Functional.call:
        return None
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    getters: dict = {id(output): [] for node in nodes for output in node.outputs}
    for node in nodes:
        for tensor in node.input_tensors:
            getters[id(tensor)].append(node.operation)
    for tensor in model.outputs:
        getters[id(tensor)].append(None)
    return [
        (node.operation, [x for output in node.outputs for x in getters[id(output)]])
        for node in nodes
    ]


def compile_loss_of(model: keras.Model):
    """What a compiled model calls for the loss of all outputs; `None` without losses.

    `model.loss` is what the user passed, in any form that Keras takes.
    """
    return model._compile_loss


def compile_metrics_of(model: keras.Model):
    """What a compiled model calls for its metrics; `None` without any."""
    return model._compile_metrics


def loss_tracker_of(model: keras.Model) -> keras.metrics.Metric:
    """The mean that a model logs as `loss`."""
    return model._loss_tracker


def metrics_that_layers_track(model: keras.Model) -> list:
    """Metrics that a model or its layers hold as attributes, except compiled ones."""
    return model._metrics


def number_of_compiled_metrics(model: keras.Model) -> int:
    """How many metrics at the start of `model.metrics` come from `compile`."""
    return len(model._get_own_metrics())


def losses_of_outputs(compile_loss) -> list:
    """The losses in the order of the outputs, as named tuples with a field `loss`."""
    return compile_loss._flat_losses


def replace_losses_of_outputs(compile_loss, losses: list) -> None:
    """Makes `compile_loss` call other losses, in the form of `losses_of_outputs`."""
    compile_loss._flat_losses = losses


def build_by_trace(model: keras.Model, data_batch) -> None:
    """Builds model, losses, metrics and optimizer for such a batch, without computing.

    Keras does this in `fit`. A training that resumes needs the variables earlier.
    """
    model._symbolic_build(data_batch=data_batch)


def mask_of(tensor):
    """The mask that a layer gave its output, or `None`; JAX keeps it elsewhere."""
    return get_keras_mask(tensor)


def learning_rate_of(optimizer: keras.optimizers.Optimizer):
    """The schedule that an optimizer was given, or else its rate's variable.

    `optimizer.learning_rate` is the current value of the schedule.
    """
    return optimizer._learning_rate


def skip_reduction(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps an optimizer from summing gradients over the replicas."""
    optimizer._all_reduce_sum_gradients = list


def adam_moments_of(optimizer: keras.optimizers.Adam, variable) -> tuple:
    """Adam's variables for a model's variable: `(first, second, largest second)`.

    The last one is `None` without `amsgrad`.
    """
    place = optimizer._get_variable_index(variable)
    largest = optimizer._velocity_hats[place] if optimizer.amsgrad else None
    return optimizer._momentums[place], optimizer._velocities[place], largest


def variables_to_train(optimizer: keras.optimizers.Optimizer) -> list:
    """The variables that a built optimizer updates; none before it is built."""
    return optimizer._trainable_variables


class OwnClipping:
    """A mixin for optimizers that clip gradients in their own way.

    They define `clipped(gradients, clip)`, where `clip` is Keras's own function.
    """

    def _clip_gradients(self, gradients):
        return self.clipped(gradients, super()._clip_gradients)


def replace_build(layer: keras.layers.Layer, build) -> None:
    """Replaces the function that builds a layer.

    Keras gives every layer its own `build`, which wraps that of its class.
    """
    wrapper = layer.build
    for cell in wrapper.__closure__:
        if cell.cell_contents is wrapper.__wrapped__:
            cell.cell_contents = build
    wrapper.__wrapped__ = build


def take_configuration(layer: keras.layers.Layer, of: keras.layers.Layer) -> None:
    """Makes a layer tell the arguments of another one as its own.

    Keras notes them for classes that do not define `get_config`.
    """
    layer._auto_config = of._auto_config


def start_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Makes the `fit` that just began start at an epoch; `None`: as its caller said."""
    model._initial_epoch = epoch

"""What gbn-keras uses of Keras that has no public name, each with what it is for.

A new version of Keras may drop any of these; `tests/test_internals.py` says which.
"""

import keras

# Where Keras files a layer's weights under the name of its class.
WRITES_WEIGHTS = ("keras.src.saving.saving_lib", "keras.src.saving.file_editor")

# Where it shows the name of a layer's class, the layer being the local `layer`.
SHOWS_LAYERS = ("keras.src.utils.summary_utils", "keras.src.utils.model_visualization")


def layers_of(model: keras.Model) -> list:
    """All layers of a model, at any depth, itself among them, each once.

    `model.layers` are those of the first level only.
    """
    return list(model._flatten_layers())


def compile_loss_of(model: keras.Model):
    """What a compiled model calls for the loss of all outputs; `None` without losses.

    `model.loss` is what the user gave, in any of Keras's forms.
    """
    return model._compile_loss


def compile_metrics_of(model: keras.Model):
    """What a compiled model calls for its metrics; `None` without any."""
    return model._compile_metrics


def loss_tracker_of(model: keras.Model) -> keras.metrics.Metric:
    """The mean that a model logs as `loss`."""
    return model._loss_tracker


def metrics_that_layers_track(model: keras.Model) -> list:
    """Metrics that a model or its layers hold as attributes, besides the compiled."""
    return model._metrics


def number_of_compiled_metrics(model: keras.Model) -> int:
    """How many of `model.metrics` come first, because `compile` made them."""
    return len(model._get_own_metrics())


def losses_of_outputs(compile_loss) -> list:
    """The losses in the order of the outputs, as named tuples with a field `loss`."""
    return compile_loss._flat_losses


def replace_losses_of_outputs(compile_loss, losses: list) -> None:
    """Lets it call others, given as `losses_of_outputs` gives them."""
    compile_loss._flat_losses = losses


def build_by_trace(model: keras.Model, data_batch) -> None:
    """Builds model, losses, metrics and optimizer for such a batch; computes nothing.

    Keras does it in `fit`. A training that goes on needs the variables before.
    """
    model._symbolic_build(data_batch=data_batch)


def skip_reduction(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps an optimizer from summing gradients over the replicas."""
    optimizer._all_reduce_sum_gradients = list


def replace_build(layer: keras.layers.Layer, build) -> None:
    """Lets a layer be built by another function.

    Keras gives every layer a `build` of its own, which wraps that of its class.
    """
    wrapper = layer.build
    for cell in wrapper.__closure__:
        if cell.cell_contents is wrapper.__wrapped__:
            cell.cell_contents = build
    wrapper.__wrapped__ = build

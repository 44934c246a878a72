"""`WrappedModel`: another model in all respects except how it is trained."""

import keras

from gbn_keras._keras_internals import (
    metrics_that_layers_track,
    number_of_compiled_metrics,
)

# Methods that `keras.Model` calls in training, and that a model may override.
_OWN_TRAINING = ("train_step", "test_step", "compute_loss", "compute_metrics")


class WrappedModel(keras.Model):
    """A model with the inputs, outputs, layers and metrics of another model.

    You can use the names of the other model's outputs and layers, and logs have the
    same names as in its own `fit`.

    Args:
        model: Any Keras model without its own training step, loss or metrics.
        **kwargs: The arguments of `keras.Model`.

    Attributes:
        model: The other model. Both have the same weights.

    Raises:
        ValueError: If the class of `model` defines how to train it.
    """

    def __init__(self, model: keras.Model, **kwargs):
        _refuse_own_training(model)
        # Keras decides by the dtype policy whether to scale losses.
        super().__init__(**{"dtype": model.dtype_policy, **kwargs})
        self.model = model
        # All variables are the other model's.
        self.built = model.built

    def call(self, inputs, training=None):
        """The outputs of the other model."""
        return self.model(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """As `keras.Model.compute_loss`, with the other model's outputs by name."""
        weights = self.weights_by_output(y_pred, sample_weight)
        return super().compute_loss(x, y, y_pred, weights, training)

    def weights_by_output(self, y_pred, sample_weight):
        """Sample weights in the structure of the outputs, which Keras expects.

        The names of a functional model's outputs match weights to outputs.
        """
        names = getattr(self, "output_names", None)
        if isinstance(sample_weight, dict) and isinstance(y_pred, list | tuple):
            if names and set(names) == set(sample_weight):
                return [sample_weight[name] for name in names]
        elif isinstance(sample_weight, list | tuple) and isinstance(y_pred, dict):
            if names and set(names) == set(y_pred) and len(names) == len(sample_weight):
                return dict(zip(names, sample_weight, strict=True))
        return sample_weight

    def predict_step(self, *state_and_data):
        """Predicts as the other model does; on JAX, its values come first."""
        return self.model.predict_step(*state_and_data)

    def export(self, filepath, *args, **kwargs):
        """Exports the other model, with its own `export`."""
        return self.model.export(filepath, *args, **kwargs)

    def get_layer(self, name=None, index=None):
        """A layer of the other model."""
        return self.model.get_layer(name, index)

    @property
    def metrics(self):
        """The metrics of `compile`, of the other model and of its layers."""
        own = super().metrics
        # Keras leaves out the other model's metrics, as for any nested model.
        inner = [
            metric
            for metric in metrics_that_layers_track(self.model)
            if metric not in own
        ]
        compiled = number_of_compiled_metrics(self)
        return [*own[:compiled], *inner, *own[compiled:]]

    @property
    def inputs(self):
        """The other model's symbolic inputs.

        Some models do not have this property and those below.
        """
        return self.model.inputs

    @property
    def outputs(self):
        """The other model's symbolic outputs."""
        return self.model.outputs

    @property
    def input_shape(self):
        """The other model's input shape, batch first."""
        return self.model.input_shape

    @property
    def output_shape(self):
        """The other model's output shape, batch first."""
        return self.model.output_shape

    @property
    def output_names(self):
        """The names of the outputs in `compile` and in logs."""
        return self.model.output_names


def _refuse_own_training(model):
    own = [
        name
        for name in _OWN_TRAINING
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if own:
        raise ValueError(
            "model must leave its training to Keras: its own loss or metric may not "
            "be a mean over examples, and its own step would not run. Received: "
            f"{type(model).__name__} with {', '.join(own)}. Pass loss and metrics to "
            "`compile`, and losses of layers to `add_loss`."
        )

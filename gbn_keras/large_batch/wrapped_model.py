"""`WrappedModel`: all of another model but the way in which it is trained."""

import keras

from gbn_keras._keras_internals import (
    metrics_that_layers_track,
    number_of_compiled_metrics,
)

# What `keras.Model` calls in training, and a model may have made its own.
_OWN_TRAINING = ("train_step", "test_step", "compute_loss", "compute_metrics")


class WrappedModel(keras.Model):
    """Has the inputs, outputs, layers and metrics of another model.

    So what is said to this one by the names of the other's outputs and layers is
    understood, and logs have the names that they have in the other's own `fit`.

    Args:
        model: Any Keras model without a training step, loss or metrics of its own.
        **kwargs: The arguments of `keras.Model`.

    Attributes:
        model: The other model, whose weights these are.

    Raises:
        ValueError: If the class of `model` says how to train it.
    """

    def __init__(self, model: keras.Model, **kwargs):
        _refuse_own_training(model)
        # Where Keras looks whether losses must be scaled.
        super().__init__(**{"dtype": model.dtype_policy, **kwargs})
        self.model = model
        # There are no variables but the model's.
        self.built = model.built

    def call(self, inputs, training=None):
        """What the model itself returns."""
        return self.model(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """As `keras.Model.compute_loss`, of the model's outputs by their names."""
        weights = self.weights_by_output(y_pred, sample_weight)
        return super().compute_loss(x, y, y_pred, weights, training)

    def weights_by_output(self, y_pred, sample_weight):
        """Sample weights in the structure of the outputs, as Keras looks for them.

        Names of a functional model's outputs tell which weights are whose.
        """
        names = getattr(self, "output_names", None)
        if isinstance(sample_weight, dict) and isinstance(y_pred, list | tuple):
            if names and set(names) == set(sample_weight):
                return [sample_weight[name] for name in names]
        elif isinstance(sample_weight, list | tuple) and isinstance(y_pred, dict):
            if names and set(names) == set(y_pred) and len(names) == len(sample_weight):
                return dict(zip(names, sample_weight, strict=True))
        return sample_weight

    def predict_step(self, data):
        """As the model itself predicts."""
        return self.model.predict_step(data)

    def export(self, filepath, *args, **kwargs):
        """Exports the model itself, as its own `export`."""
        return self.model.export(filepath, *args, **kwargs)

    def get_layer(self, name=None, index=None):
        """A layer of the model itself."""
        return self.model.get_layer(name, index)

    @property
    def metrics(self):
        """Those of `compile`, of the model itself and of its layers."""
        own = super().metrics
        # Keras leaves out what it takes for a model inside another one.
        inner = [
            metric
            for metric in metrics_that_layers_track(self.model)
            if metric not in own
        ]
        compiled = number_of_compiled_metrics(self)
        return [*own[:compiled], *inner, *own[compiled:]]

    @property
    def inputs(self):
        """The model's symbolic inputs; only some models have them, as all below."""
        return self.model.inputs

    @property
    def outputs(self):
        """The model's symbolic outputs."""
        return self.model.outputs

    @property
    def input_shape(self):
        """The model's, batch first."""
        return self.model.input_shape

    @property
    def output_shape(self):
        """The model's, batch first."""
        return self.model.output_shape

    @property
    def output_names(self):
        """The names by which `compile` and logs tell the outputs apart."""
        return self.model.output_names


def _refuse_own_training(model):
    own = [
        name
        for name in _OWN_TRAINING
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if own:
        raise ValueError(
            "model must leave its training to Keras: a loss or a metric of its own may "
            "be no mean over examples, and its own step would not be taken. Received: "
            f"{type(model).__name__} with {', '.join(own)}. Give loss and metrics to "
            "`compile`, and what layers add to the loss to `add_loss`."
        )

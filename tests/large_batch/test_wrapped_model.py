"""A wrapped model is called, compiled, exported and saved like the model itself."""

import functools
import types

import keras
import numpy as np
import pytest
from backend import IS_JAX, tensorflow_only

from gbn_keras import LargeBatchModel

RNG = np.random.default_rng(0)
# Two batches of two micro-batches.
EXAMPLES, BATCH, MICRO_BATCH = 64, 32, 16
X = RNG.normal(size=(EXAMPLES, 3)).astype("float32")
A, B = RNG.normal(size=(2, EXAMPLES, 1)).astype("float32")
V, W = RNG.random((2, EXAMPLES)).astype("float32")


class Subclassed(keras.Model):
    """Two outputs without names, and a metric of its own."""

    def __init__(self):
        super().__init__()
        self.dense = [keras.layers.Dense(1), keras.layers.Dense(1)]
        self.size = keras.metrics.Mean(name="size")

    def call(self, inputs):
        """Two outputs."""
        self.size.update_state(keras.ops.abs(inputs))
        return [dense(inputs) for dense in self.dense]


def model_of(kind):
    if kind == "subclassed":
        return Subclassed()
    inputs = keras.Input((3,), name="inputs")
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in "ab"}
    return keras.Model(inputs, outputs if kind == "dict" else [*outputs.values()])


def history_of(kind, is_wrapped, targets, weights=None, **how):
    keras.utils.set_random_seed(0)
    model = model_of(kind)
    if is_wrapped:
        model = LargeBatchModel(model, MICRO_BATCH)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True, **how)
    return model.fit(
        X,
        targets,
        sample_weight=weights,
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        validation_data=(X, targets),
    ).history


def assert_same_logs(kind, targets, **how):
    expected = history_of(kind, False, targets, **how)
    logs = history_of(kind, True, targets, **how)
    assert list(logs) == list(expected)
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5)


WAYS = [
    {"loss": {"a": "mse", "b": "mae"}},
    {"loss": {"a": "mse", "b": None}},
    {"loss": ["mse", "mse"], "loss_weights": [0.3, 2.0]},
    {"loss": "mse", "metrics": {"a": ["mae"], "b": "mse"}},
    {
        "loss": {"a": "mse", "b": "mae"},
        "loss_weights": {"a": 0.3, "b": 2.0},
        "weighted_metrics": [["mae"], ["mae"]],
    },
]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    "kind, how",
    [
        pytest.param(kind, how, marks=[pytest.mark.slow] * ((row + column) % 2))
        for row, kind in enumerate(("dict", "list"))
        for column, how in enumerate(WAYS)
    ],
    ids=str,
)
def test_logs_are_the_models_own_key_by_key(kind, how):
    targets = {"a": A, "b": B} if kind == "dict" else [A, B]
    assert_same_logs(kind, targets, **how)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_model_of_any_structure_has_its_own_logs():
    if not IS_JAX:  # Keras has no such metrics there.
        assert_same_logs("subclassed", [A, B], loss=["mse", "mae"])
    assert_same_logs("dict", {"a": A, "b": B}, loss={"a": "mse"})


@functools.cache
def weighted_history_of(kind, is_wrapped, is_dict):
    """With targets and weights by name, or in the order of the outputs."""
    by_name = {"a": A, "b": B}, {"a": V, "b": W}
    targets, weights = by_name if is_dict else ([A, B], [V, W])
    how = {"loss": ["mse", "mae"], "weighted_metrics": [["mae"], ["mae"]]}
    return history_of(kind, is_wrapped, targets, weights, **how)


@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("is_dict", [True, False])
def test_each_output_has_its_own_weights(kind, is_dict):
    """Also where Keras finds them only in the structure of the outputs."""
    expected = weighted_history_of(kind, False, kind == "dict")
    logs = weighted_history_of(kind, True, is_dict)
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5)


def test_losses_of_outputs_count_every_example_once():
    """Of 100 in batches of 64, only the last 16 have an error, of 1."""
    model = LargeBatchModel(model_of("dict"), 16)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    model.compile(keras.optimizers.SGD(0.0), {"a": "mse", "b": "mse"})
    targets = np.repeat([0.0, 1.0], [84, 16])[:, None]
    scores = model.evaluate(
        np.ones((100, 3)),
        {"a": targets, "b": 2 * targets},
        batch_size=64,
        verbose=0,
        return_dict=True,
    )
    expected = {"a_loss": 0.16, "b_loss": 0.64, "loss": 0.8}
    assert scores == pytest.approx(expected, rel=1e-6)


def test_callbacks_find_an_outputs_loss():
    model = LargeBatchModel(model_of("list"), MICRO_BATCH)
    losses = {"a": "mse", "b": "mse"}
    model.compile(keras.optimizers.SGD(0.0), losses, run_eagerly=True)
    stop = keras.callbacks.EarlyStopping("val_a_loss", mode="min", patience=1)
    history = model.fit(
        X, [A, B], epochs=9, verbose=0, validation_data=(X, [A, B]), callbacks=[stop]
    )
    assert len(history.epoch) == 2


def test_the_interface_is_the_models():
    inner = model_of("dict")
    model = LargeBatchModel(inner, 16)
    assert model.output_names == ["a", "b"]
    assert model.inputs == inner.inputs and model.outputs == inner.outputs
    assert model.input_shape == (None, 3)
    assert model.output_shape == inner.output_shape
    assert model.get_layer("a") is inner.get_layer("a")
    assert not hasattr(LargeBatchModel(Subclassed(), 16), "output_names")


@tensorflow_only
@pytest.mark.parametrize("kind", ["list", "subclassed"])
def test_it_is_exported_as_the_model_itself(kind, tmp_path):
    inner = model_of(kind)
    inner(X)
    LargeBatchModel(inner, 16).export(tmp_path / "exported", verbose=False)
    exported = keras.layers.TFSMLayer(tmp_path / "exported", call_endpoint="serve")
    for one, other in zip(exported(X), inner(X), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_it_is_saved_and_goes_on_as_it_was(kind, tmp_path):
    targets = {"a": A, "b": B} if kind == "dict" else [A, B]

    def update(model):
        return model.train_on_batch(X, targets, return_dict=True)

    model = LargeBatchModel(model_of(kind), 16)
    model.compile("adam", {"a": "mse", "b": "mae"}, run_eagerly=True)
    update(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert update(loaded) == update(model)


@tensorflow_only
def test_predictions_are_made_as_the_model_makes_them():
    class Doubling(Subclassed):
        """Predicts in its own way."""

        def predict_step(self, data):
            """Twice the outputs."""
            return [2 * output for output in super().predict_step(data)]

    inner = Doubling()
    predictions = LargeBatchModel(inner, 16).predict(X, verbose=0)
    expected = 2 * keras.ops.convert_to_numpy(inner(X)[0])
    np.testing.assert_allclose(predictions[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["train_step", "test_step", "compute_loss", "compute_metrics"]
)
def test_a_model_that_trains_its_own_way_is_refused_by_name(name):
    def fill(namespace):
        namespace[name] = lambda self, *args, **kwargs: None

    own = types.new_class("Own", (Subclassed,), {}, fill)
    with pytest.raises(ValueError, match=f"Received: Own with {name}"):
        LargeBatchModel(own(), 16)

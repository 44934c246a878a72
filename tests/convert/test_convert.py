"""Conversion to ghosts and back changes nothing that a model predicts."""

import os
import subprocess
import sys
import venv
import zipfile

import keras
import numpy as np
import pytest
from backend import IS_TENSORFLOW, tensorflow_only
from convertible import (
    compiled,
    leave_kernels_to_slow_tests,
    of_class,
    predict,
)
from keras import layers

from gbn_keras import GhostBatchNormalization, RegimeAdaptation
from gbn_keras.convert import to_batch_norm, to_ghost_batch_norm

if IS_TENSORFLOW:
    import tensorflow as tf

BatchNormalization = layers.BatchNormalization
IMAGES = np.random.default_rng(0).normal(3, 2, (32, 6, 6, 3)).astype("float32")
LABELS = np.arange(32) % 10


@keras.saving.register_keras_serializable("test_convert")
class Subclassed(keras.Model):
    """Makes its own layers, in a list, a dictionary and a wrapper."""

    def __init__(self, normalization=BatchNormalization, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Conv2D(4, 3), normalization(name="in_list")]
        self.more = {"a": normalization(name="in_dict"), "b": [layers.ReLU()]}
        self.wrapped = layers.TimeDistributed(normalization(name="in_wrapper"))
        self.head = layers.Dense(10)

    def call(self, inputs, training=None):
        """Logits."""
        x = self.blocks[1](self.blocks[0](inputs), training=training)
        x = self.more["b"][0](self.more["a"](x, training=training))
        x = self.wrapped(x, training=training)
        return self.head(keras.ops.mean(x, axis=(1, 2)))

    def get_config(self):
        """The layers' class is not in it."""
        return {"name": self.name}


def sequential(normalization=BatchNormalization, **kwargs):
    """Has no graph until it is built; a nested model has."""
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), normalization(momentum=0.5), layers.ReLU()]
    )
    parts = [layers.Conv2D(4, 3, padding="same"), normalization(), inner]
    return keras.Sequential([*parts, layers.Flatten(), layers.Dense(10)], **kwargs)


def functional(normalization=BatchNormalization, **kwargs):
    """A shared layer, a frozen one and nested models."""
    inputs = keras.Input((6, 6, 3))
    shared = normalization(axis=-1, name="shared")
    frozen = normalization(scale=False, name="frozen", trainable=False)
    both = [shared(layers.Conv2D(4, 3, padding="same")(inputs)) for _ in range(2)]
    hidden = sequential(normalization, name="nested")(frozen(layers.Add()(both)))
    return keras.Model(inputs, hidden, **kwargs)


nothing_to_compile = pytest.fixture(autouse=True)(leave_kernels_to_slow_tests)
MODELS = {functional: 4, sequential: 2, Subclassed: 3}


def built(make_model, normalization=BatchNormalization):
    """A model with weights at random, running statistics too."""
    model = make_model(normalization)
    model(IMAGES)
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.2, 1, w.shape) for w in model.get_weights()])
    return model


def fit(model, epochs=2):
    model.fit(IMAGES, LABELS, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
    return model


def assert_same_weights(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        arrays = map(keras.ops.convert_to_numpy, (a, b))
        np.testing.assert_allclose(*arrays, rtol=1e-5, atol=1e-6, equal_nan=False)


def kept(model):
    """What a conversion keeps of each layer."""
    return [
        (x.name, x.trainable, x.dtype_policy.name, [id(v) for v in x.variables])
        for x in model._flatten_layers()
    ]


@pytest.mark.parametrize("make_model", MODELS)
def test_a_model_converted_and_back_predicts_bit_for_bit_what_it_did(make_model):
    """Invariant 4."""
    model = compiled(built(make_model))
    before, expected = kept(model), predict(model, IMAGES)
    assert to_ghost_batch_norm(model, 8) == MODELS[make_model]
    ghosts = of_class(model, GhostBatchNormalization)
    assert [x.virtual_batch_size for x in ghosts] == [8] * MODELS[make_model]
    assert not of_class(model, BatchNormalization)
    np.testing.assert_array_equal(predict(model, IMAGES), expected)
    assert kept(model) == before
    assert to_batch_norm(model) == MODELS[make_model]
    assert len(of_class(model, BatchNormalization)) == MODELS[make_model]
    assert not of_class(model, GhostBatchNormalization)
    np.testing.assert_array_equal(predict(model, IMAGES), expected)
    assert kept(model) == before


def state_of(model):
    """Copies, as JAX reuses the memory of its own."""
    variables = (*model.variables, *model.optimizer.variables)
    return [np.array(variable.numpy()) for variable in variables]


def set_state(model, state):
    variables = (*model.variables, *model.optimizer.variables)
    for variable, value in zip(variables, state, strict=True):
        variable.assign(value)


@pytest.mark.parametrize(
    "make_model", [functional, pytest.param(Subclassed, marks=pytest.mark.slow)]
)
def test_a_compiled_model_goes_on_as_one_made_with_the_other_layers(make_model):
    """Its optimizer's momentum is kept, what it traced before is not."""
    model = fit(compiled(built(make_model)))
    start = state_of(model)
    plain = state_of(fit(model))
    made = compiled(built(make_model, lambda **k: GhostBatchNormalization(8, **k)))
    made.optimizer.build(made.trainable_variables)
    set_state(made, start)
    ghosts = state_of(fit(made))

    set_state(model, start)
    for convert, expected, other in (
        (lambda: to_ghost_batch_norm(model, 8), ghosts, plain),
        (lambda: to_batch_norm(model), plain, ghosts),
    ):
        convert()
        found, tolerances = state_of(fit(model)), {"rtol": 1e-5, "atol": 1e-6}
        for result, reference in zip(found, expected, strict=True):
            np.testing.assert_allclose(result, reference, **tolerances)
        assert not np.allclose(found[0], other[0], **tolerances)
        set_state(model, start)


class AlwaysTraining(keras.Model):
    """Normalizes by the batch in evaluation and prediction too."""

    def __init__(self):
        super().__init__()
        self.normalization = BatchNormalization()

    def call(self, inputs):
        """In training mode, whatever is asked."""
        return self.normalization(inputs, training=True)


def test_evaluation_and_prediction_are_traced_anew_too():
    model = AlwaysTraining()
    model.compile(loss="mean_absolute_error", jit_compile=False)
    x = np.arange(32.0).reshape(4, 8, 1)
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    x, expected = x.reshape(32, 1), expected.reshape(32, 1)
    for convert, is_close in (
        (lambda: model, False),
        (lambda: to_ghost_batch_norm(model, 8), True),
        (lambda: to_batch_norm(model), False),
    ):
        convert()
        assert np.allclose(predict(model, x), expected, atol=1e-3) == is_close
        assert (model.evaluate(x, expected, verbose=0) < 1e-3) == is_close


@pytest.mark.parametrize("make_model", [sequential, Subclassed])
def test_a_model_may_be_built_and_compiled_after_its_conversion(make_model):
    model, made = make_model(), make_model(lambda **k: GhostBatchNormalization(8, **k))
    assert to_ghost_batch_norm(model, 8) == MODELS[make_model]
    for one in (model, made):
        compiled(one, traced=False)(IMAGES)
    made.set_weights(model.get_weights())
    assert_same_weights(fit(model), fit(made))
    # And from ghosts that were not built.
    plain = make_model(GhostBatchNormalization)
    assert to_batch_norm(plain) == MODELS[make_model]
    compiled(plain, traced=False)(IMAGES)
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(predict(plain, IMAGES), predict(model, IMAGES))


@pytest.mark.parametrize("shape", [None, (4, 3)])
def test_a_converted_layer_is_what_the_other_class_would_have_made(shape):
    arguments = {"momentum": 0.7, "epsilon": 1e-4, "center": False, "name": "one"}
    layer = BatchNormalization(**arguments)
    for convert, other in (
        (to_ghost_batch_norm, GhostBatchNormalization(**arguments)),
        (to_batch_norm, BatchNormalization(**arguments)),
    ):
        convert(layer)
        for one in (layer, other):
            if shape and not one.built:
                one.build(shape)
        assert type(layer) is type(other)
        # TensorFlow's own attributes come when it pleases.
        names = [{k for k in vars(x) if k[:6] != "_self_"} for x in (layer, other)]
        assert names[0] == names[1]
        assert layer.get_config() == other.get_config()
        assert layer._call_signature == other._call_signature
        assert layer.build.__wrapped__.__func__ is type(other).build


def test_a_layer_that_is_not_built_yet_is_built_as_one_of_its_new_class():
    layer = BatchNormalization(axis=0)
    to_ghost_batch_norm(layer)
    with pytest.raises(ValueError, match="axis must not be 0.* Received: axis=0"):
        layer.build((4, 3))
    to_batch_norm(layer)
    layer.build((4, 3))
    assert layer.built and layer.moving_mean.shape == (4,)


def test_ghosts_take_the_new_size_and_what_is_as_asked_is_left():
    model = functional(lambda **k: GhostBatchNormalization(16, **k))
    of_class(model, GhostBatchNormalization)[0].virtual_batch_size = 8
    assert to_ghost_batch_norm(model, 16) == 1
    assert to_ghost_batch_norm(model, 16) == 0
    assert to_ghost_batch_norm(model) == 4
    sizes = [x.virtual_batch_size for x in of_class(model, GhostBatchNormalization)]
    assert sizes == [128] * 4
    assert to_batch_norm(model) == 4
    assert to_batch_norm(model) == 0


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("float64", marks=tensorflow_only)]
)
def test_the_dtype_policy_is_kept(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = functional()
    finally:
        keras.config.set_dtype_policy(before)
    expected = predict(model, IMAGES)
    to_ghost_batch_norm(model, 8)
    ghosts = of_class(model, GhostBatchNormalization)
    assert {x.dtype_policy.name for x in ghosts} == {policy}
    np.testing.assert_array_equal(predict(model, IMAGES), expected)
    fit(compiled(model, traced=False), 1)
    assert np.isfinite(predict(model, IMAGES).astype("float32")).all()


@pytest.mark.parametrize("make_model", [functional, sequential])
def test_files_configurations_and_clones_have_the_layers_of_the_model(
    make_model, tmp_path
):
    model, file = compiled(built(make_model)), tmp_path / "model.keras"
    model.optimizer.build(model.trainable_variables)
    expected = predict(model, IMAGES)
    for convert, kind in (
        (lambda: to_ghost_batch_norm(model, 8), GhostBatchNormalization),
        (lambda: to_batch_norm(model), BatchNormalization),
    ):
        convert()
        model.save(file)
        loaded = keras.saving.load_model(file)
        copies = (
            loaded,
            keras.models.clone_model(model),
            model.from_config(model.get_config()),
        )
        for copy in copies:
            assert len(of_class(copy, kind)) == MODELS[make_model]
            for x in of_class(copy, GhostBatchNormalization):
                assert x.virtual_batch_size == 8
        np.testing.assert_array_equal(predict(loaded, IMAGES), expected)
        assert loaded.optimizer.momentum == 0.9


def test_a_file_of_a_model_that_makes_its_layers_itself_is_converted_after_loading(
    tmp_path,
):
    model, file = built(Subclassed), tmp_path / "model.keras"
    to_ghost_batch_norm(model, 8)
    model.save(file)
    loaded = keras.saving.load_model(file)
    np.testing.assert_array_equal(predict(loaded, IMAGES), predict(model, IMAGES))
    assert len(of_class(loaded, BatchNormalization)) == 3
    assert to_ghost_batch_norm(loaded, 8) == 3
    np.testing.assert_array_equal(predict(loaded, IMAGES), predict(model, IMAGES))


class Derived(BatchNormalization):
    """A user's own."""


class DerivedGhosts(GhostBatchNormalization):
    """A user's own."""


def test_layers_of_derived_classes_are_named_and_left():
    model = keras.Sequential([Derived(name="a"), DerivedGhosts(name="b")])
    for convert in (to_ghost_batch_norm, to_batch_norm):
        model.add(BatchNormalization() if convert is to_ghost_batch_norm else Derived())
        with pytest.warns(UserWarning, match=r"b \(DerivedGhosts\)") as warned:
            assert convert(model) == 1
        assert warned[0].filename == __file__
        named = "a (Derived)" in str(warned[0].message)
        assert named == (convert is to_ghost_batch_norm)
    assert [type(x) for x in model.layers[:2]] == [Derived, DerivedGhosts]
    assert model.layers[1].virtual_batch_size == 128


@pytest.mark.parametrize("convert", [to_ghost_batch_norm, to_batch_norm])
def test_a_model_without_batch_normalization_is_told_so(convert):
    model = keras.Sequential([layers.LayerNormalization()], name="plain_one")
    with pytest.raises(ValueError, match="Received: model='plain_one', which has none"):
        convert(model)
    with pytest.raises(ValueError, match="Received: model='no model'"):
        convert("no model")


@pytest.mark.parametrize("size", [0, -8, 2.5, None, True])
def test_a_ghost_has_at_least_one_example(size):
    with pytest.raises(ValueError, match=f"Received: virtual_batch_size={size}"):
        to_ghost_batch_norm(sequential(), size)


@pytest.mark.parametrize(
    "argument",
    [
        "renorm=True",
        pytest.param("synchronized=True", marks=tensorflow_only),
        "axis=0",
    ],
)
def test_what_ghosts_cannot_replace_is_named_and_nothing_is_changed(argument):
    name, value = argument.split("=")
    arguments = {name: {"True": True, "0": 0}[value]}
    inputs = keras.Input((3,), batch_size=4)
    hidden = BatchNormalization(name="before")(inputs)
    outputs = BatchNormalization(name="other", **arguments)(hidden)
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match=f"Received: {argument}.* in other[.]"):
        to_ghost_batch_norm(model)
    assert len(of_class(model, BatchNormalization)) == 2
    if name == "synchronized":
        model.layers[-1].synchronized = False
        assert to_ghost_batch_norm(model) == 2


@tensorflow_only
def test_a_large_batch_model_finds_the_ghosts_of_a_converted_model():
    from gbn_keras.large_batch.large_batch_model import LargeBatchModel

    whole, parts = built(sequential), built(sequential)
    for model in (whole, parts):
        to_ghost_batch_norm(model, 8)
    with pytest.raises(ValueError, match="micro_batch_size=12 with ghosts of 8"):
        LargeBatchModel(parts, micro_batch_size=12)
    fit(compiled(LargeBatchModel(parts, micro_batch_size=16)))
    assert_same_weights(parts, fit(compiled(whole)))


def python_without_the_package(folder):
    """That of a virtual environment which has all packages but this one."""
    venv.create(folder, symlinks=os.name != "nt")
    (site,) = folder.glob("lib/python*/site-packages")
    # By a file of this kind in one of them this package is installed: there, where this
    # one leads to, none counts.
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "packages.pth").write_text("\n".join(packages))
    return folder / "bin" / "python"


WITHOUT_THE_PACKAGE = """
import importlib.util, os, sys
assert importlib.util.find_spec("gbn_keras") is None
import keras, numpy as np
images = np.load("images.npy")
try:
    keras.saving.load_model("ghosts.keras")
except TypeError as error:
    assert "GhostBatchNormalization" in str(error), error
else:
    sys.exit("gbn_keras was found")
for name in ("model", "trained"):
    model = keras.saving.load_model(name + ".keras", compile=name == "model")
    model.compile(jit_compile=keras.backend.backend() == "jax")
    np.save(name + ".npy", model.predict(images, verbose=0))
if os.path.exists("exported"):
    import tensorflow as tf
    exported = tf.saved_model.load("exported")
    np.save("exported.npy", exported.serve(images))
"""


def test_a_file_of_what_was_converted_back_names_nothing_of_the_package(tmp_path):
    """`test_guides.py` loads such a file where the package cannot be imported."""
    model = built(functional)
    expected = predict(model, IMAGES)
    to_ghost_batch_norm(model, 8)
    model.save(tmp_path / "ghosts.keras")
    to_batch_norm(model)
    model.save(tmp_path / "model.keras")
    named = []
    for name in ("ghosts", "model"):
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            named.append(b"gbn_keras" in file.read("config.json"))
    assert named == [True, False]
    if IS_TENSORFLOW:
        model.export(tmp_path / "exported", verbose=False)
        exported = tf.saved_model.load(tmp_path / "exported")
        served = exported.serve(IMAGES)
        np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_what_was_converted_back_is_loaded_and_served_without_the_package(tmp_path):
    model = compiled(built(functional))
    to_ghost_batch_norm(fit(model), 8)
    fit(model).save(tmp_path / "ghosts.keras")
    expected = predict(model, IMAGES)
    to_batch_norm(model)
    model.save(tmp_path / "model.keras")
    if IS_TENSORFLOW:
        model.export(tmp_path / "exported", verbose=False)
    # A file also holds what the model was compiled with.
    rate = RegimeAdaptation(0.1, small_batch_size=8, batch_size=32)
    compiled(model, rate)
    model.save(tmp_path / "trained.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    command = [python_without_the_package(tmp_path / "venv"), "-c", WITHOUT_THE_PACKAGE]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    for name in ("model", "trained"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)
    if IS_TENSORFLOW:
        np.testing.assert_allclose(
            np.load(tmp_path / "exported.npy"), expected, rtol=1e-5, atol=1e-5
        )

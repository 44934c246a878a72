"""The logged distances are those of the weights, and fits find what was put in."""

import csv

import keras
import numpy as np
import pytest
import scipy.optimize
from backend import NAME
from keras import ops
from marks import slow

from gbn_keras.analysis.fits import fit_distance
from gbn_keras.analysis.weight_distance import WeightDistance

X = np.random.default_rng(0).normal(size=(160, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


class Recorder(keras.callbacks.Callback):
    """All weights after each update, and before the first."""

    def on_train_begin(self, logs=None):
        """Forgets."""
        self.weights = [self._now()]

    def on_train_batch_end(self, batch, logs=None):
        """Remembers."""
        self.weights.append(self._now())

    def _now(self):
        return [w.numpy() for w in self.model.trainable_variables]


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(4, activation="relu", name="first"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(2, use_bias=False, name="last"),
    ]
    inputs = outputs = keras.Input((5,))
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, 0.9), loss, **kwargs)
    return model


def variables_of(model):
    return [*model.weights, *model.optimizer.variables]


def values_of(model):
    return [np.array(ops.convert_to_numpy(v)) for v in variables_of(model)]


def set_values(model, values):
    for variable, value in zip(variables_of(model), values, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def traced():
    """A model that all tests train, so that it is traced once; and its first values."""
    model = make_model()
    model.optimizer.build(model.trainable_variables)
    return model, values_of(model)


@pytest.fixture
def model(traced):
    """The model, as if it were new."""
    set_values(*traced)
    return traced[0]


def fit(model, *callbacks, epochs=4):
    """Ten updates an epoch, each from the same batch as ever."""
    model.fit(
        *(X, Y),
        batch_size=16,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


def read(folder):
    with (folder / "weight_distance.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, "float64")


@pytest.fixture(scope="module")
def whole(traced, tmp_path_factory):
    """Of 160 updates: the head and rows of the file, and the weights after each."""
    set_values(*traced)
    folder, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    fit(traced[0], WeightDistance(folder / "new"), recorder, epochs=16)
    return *read(folder / "new"), recorder.weights


def test_the_distances_are_those_of_all_trainable_weights_and_of_each_layer(whole):
    header, rows, weights = whole
    assert header == ["updates", "total", "first", "norm", "last"]
    start = weights[0]
    for update, total, *layers in rows:
        now = weights[int(update)]
        squares = [((a - b) ** 2).sum() for a, b in zip(now, start, strict=True)]
        assert total == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
        by_layer = (sum(squares[:2]), sum(squares[2:4]), squares[4])
        np.testing.assert_allclose(layers, np.sqrt(by_layer), rtol=1e-5)
    assert total > 0.1


def test_the_updates_are_spaced_by_their_logarithm(whole):
    updates = whole[1][:, 0]
    assert updates[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]
    assert 140 < updates[-1] <= 160
    ratios = updates[20:] / updates[19:-1]
    np.testing.assert_allclose(ratios, 10 ** (1 / 20), rtol=0.04)


# PyTorch has one update per execution.
@pytest.mark.parametrize(
    "executed",
    [1] if NAME == "torch" else [3, slow(4)],
)
def test_with_several_updates_per_execution_it_knows_their_number(
    tmp_path, executed, whole
):
    # Three at a time do not fill an epoch of ten: the last time it is one.
    fit(make_model(steps_per_execution=executed), WeightDistance(tmp_path))
    rows, weights = read(tmp_path)[1], whole[2]
    start = weights[0]
    for update, total, *_ in rows:
        now = weights[int(update)]
        squares = [((a - b) ** 2).sum() for a, b in zip(now, start, strict=True)]
        assert total == pytest.approx(sum(squares) ** 0.5, rel=1e-4)
    assert rows[-1, 0] > 30


def test_a_training_that_goes_on_measures_from_the_same_start(tmp_path, whole, model):
    fit(model, WeightDistance(tmp_path), epochs=2)
    saved = values_of(model)
    fit(model, WeightDistance(tmp_path), epochs=1)  # Ten updates that are then lost.
    set_values(model, saved)
    fit(model, WeightDistance(tmp_path), epochs=2)
    header, rows = read(tmp_path)
    wanted_header, wanted, _ = whole
    assert header == wanted_header
    np.testing.assert_allclose(rows, wanted[wanted[:, 0] <= 40], rtol=1e-5)


def test_a_new_training_starts_its_files_anew(tmp_path, traced, model):
    fit(model, WeightDistance(tmp_path), epochs=2)
    set_values(*traced)
    fit(model, WeightDistance(tmp_path), epochs=1)
    assert read(tmp_path)[1][:, 0].tolist() == list(range(1, 11))


def test_a_start_that_is_missing_broken_or_foreign_is_told(tmp_path, model):
    fit(model, epochs=1)
    with pytest.raises(ValueError, match="initial_weights.npz.* 10 updates ago"):
        fit(model, WeightDistance(tmp_path))
    (tmp_path / "initial_weights.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="initial_weights.npz"):
        fit(model, WeightDistance(tmp_path))
    np.savez(tmp_path / "initial_weights.npz", **{"0": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="other shapes"):
        fit(model, WeightDistance(tmp_path))


def test_a_model_of_half_precision_is_measured_too(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    model = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "bfloat16"}
        ),
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, WeightDistance(tmp_path), epochs=1)
    fit(model, WeightDistance(tmp_path), epochs=1)
    rows = read(tmp_path)[1]
    assert rows[-1, 0] == 20
    assert (rows[:, 1] > 0).all()


UPDATES = np.unique(np.geomspace(1, 5000, 60).astype(int))


def test_the_fits_find_what_was_put_in():
    log, power = fit_distance(UPDATES, 0.3 + 1.7 * np.log(UPDATES))
    assert (log.a, log.b) == (pytest.approx(0.3), pytest.approx(1.7))
    assert log.r_squared == pytest.approx(1)
    assert power.r_squared < 0.99
    assert power.residual > 0.1 > log.residual
    log, power = fit_distance(UPDATES, 0.3 * UPDATES**0.5)
    assert (power.a, power.b) == (pytest.approx(0.3), pytest.approx(0.5))
    assert power.r_squared == pytest.approx(1)
    assert log.r_squared < 0.95


@pytest.mark.parametrize(
    "distances",
    [
        2 + np.log(UPDATES) + np.sin(UPDATES),  # No power law.
        5e3 * UPDATES**-0.7 * np.exp(np.sin(UPDATES)),  # They fall.
        np.where(UPDATES < 3, 0, UPDATES**1.5),  # The first rate was 0.
    ],
)
def test_the_power_law_is_that_of_scipys_least_squares(distances):
    _, power = fit_distance(UPDATES, distances)
    found, _ = scipy.optimize.curve_fit(
        lambda t, a, b: a * t**b, UPDATES, distances, p0=(1.01 * power.a, power.b)
    )
    assert (power.a, power.b) == (
        pytest.approx(found[0], rel=1e-4),
        pytest.approx(found[1], rel=1e-4),
    )


def test_residual_and_share_of_variance_are_those_of_the_distances():
    distances = 2 + np.log(UPDATES) + np.sin(UPDATES)
    for fit in fit_distance(UPDATES, distances):
        difference = distances - fit(UPDATES)
        assert fit.residual == pytest.approx((difference**2).mean() ** 0.5)
        expected = 1 - difference.var() / distances.var()
        assert fit.r_squared == pytest.approx(expected, abs=1e-3)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=r"updates=\[1.0, 2.0\]"):
        fit_distance([1, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"updates=\[0.0, 1.0, 2.0\]"):
        fit_distance([0, 1, 2], [0.1, 0.2, 0.3])

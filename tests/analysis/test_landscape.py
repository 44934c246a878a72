"""The landscape finds a known alpha, and changes nothing of the model."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from marks import slow

from gbn_keras import GhostBatchNormalization
from gbn_keras.analysis.landscape import fit_alpha, loss_deviation
from gbn_keras.analysis.random_walk import sample_potentials

DISTANCES = np.geomspace(0.1, 10, 7)
CLASS_LOSS = functools.partial(
    keras.losses.sparse_categorical_crossentropy, from_logits=True
)


def model_of_weights(weights):
    """Its output is its weights, so that a loss can be any function of them."""
    inputs = keras.Input((1,))
    # In two variables, whose distances from the start only count together.
    parts = np.split(np.array([weights], "float32"), [1], axis=1)
    layers = [keras.layers.Dense(part.size, use_bias=False) for part in parts]
    outputs = keras.layers.Concatenate()([layer(inputs) for layer in layers])
    model = keras.Model(inputs, outputs)
    model.set_weights(parts)
    return model


def deviation_of(loss, weights, **kwargs):
    """`loss_deviation` of a loss that is a function of the weights, `(1, weights)`."""
    one = np.ones((1, 1), "float32")
    model = model_of_weights(weights)
    kwargs = {"distances": DISTANCES, "directions": 20, "seed": 1, **kwargs}
    return loss_deviation(model, lambda y, w: loss(w), one, one, **kwargs)


@pytest.fixture(scope="module")
def digits():
    random = np.random.default_rng(0)
    images = random.standard_normal((64, 8, 8, 1)).astype("float32")
    return images, random.integers(0, 10, 64)


def network(dropout=0.0):
    """A small network with ghosts of 16, and maybe dropout."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(12, use_bias=False),
        GhostBatchNormalization(16),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
    if dropout:
        layers.insert(1, keras.layers.Dropout(dropout, seed=1))
    return keras.Sequential(layers)


def test_a_linear_losss_alpha_is_2():
    slope = np.arange(1.0, 7.0, dtype="float32")
    factors = ops.convert_to_tensor(slope)
    distances = DISTANCES[::3]
    result = deviation_of(
        lambda w: ops.sum(w * factors), np.zeros(6), distances=distances, directions=150
    )
    fit = result.fit()
    assert fit.alpha == pytest.approx(2, abs=1e-4)
    assert fit.error < 1e-4
    assert fit.r_squared == pytest.approx(1)
    # Of uniform directions the slope's part is |slope| / sqrt(6), on average none.
    part = np.linalg.norm(slope) / 6**0.5
    np.testing.assert_allclose(result.root_mean_square, part * distances, rtol=0.1)


@pytest.mark.parametrize("centred", [True, False])
def test_a_quadratic_losss_alpha_at_its_minimum_is_4(centred):
    start = np.array([3.0, 4.0, 12.0], "float32")
    curvature, minimum = map(ops.convert_to_tensor, (np.float32([1, 2, 8]), start))
    result = deviation_of(lambda w: ops.sum(curvature * (w - minimum) ** 2), start)
    assert result.fit(centred=centred).alpha == pytest.approx(4, abs=1e-3)
    assert result.loss == 0
    assert result.weights_norm == pytest.approx(13)


def test_directions_are_uniform_on_the_unit_sphere():
    # The loss tells the first coordinate of a point at distance 1.
    result = deviation_of(
        lambda w: w[:, 0], np.zeros(3), distances=[1.0], directions=400
    )
    first = result.differences[:, 0]
    # In three dimensions each coordinate of the sphere is uniform from -1 to 1.
    found = np.quantile(first, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(found, [-0.8, -0.4, 0, 0.4, 0.8], atol=0.08)


def test_points_lie_at_the_distance_in_the_space_of_all_weights_together():
    result = deviation_of(lambda w: ops.sum(w**2), np.zeros(7))
    wanted = np.broadcast_to(DISTANCES**2, result.differences.shape)
    np.testing.assert_allclose(result.differences, wanted, rtol=1e-5)
    np.testing.assert_allclose(result.mean, DISTANCES**2, rtol=1e-5)
    np.testing.assert_allclose(result.root_mean_square, DISTANCES**2, rtol=1e-5)
    # What all directions share is no deviation.
    assert (result.deviation < 1e-5 * DISTANCES**2).all()


def test_a_random_loss_of_known_roughness_has_its_alpha():
    # Waves of frequencies from a Cauchy law in all directions make a field with
    # E (L(v) - L(w))^2 = 2 - 2 exp(-|v - w|): alpha is 1 where that is small.
    random = np.random.default_rng(5)
    waves, weights = 4000, 8
    frequencies = random.standard_normal((weights, waves))
    frequencies /= np.abs(random.standard_normal(waves))
    phases = random.uniform(0, 2 * np.pi, waves)
    frequencies, phases = (
        ops.convert_to_tensor(array, "float32") for array in (frequencies, phases)
    )

    def field(w):
        return (2 / waves) ** 0.5 * ops.sum(ops.cos(w @ frequencies + phases))

    distances = np.geomspace(0.01, 0.3, 5)
    # From several points: around a single one the field is as its value there has it.
    starts = 100 * random.standard_normal((4, weights))
    differences = np.concatenate(
        [
            deviation_of(field, start, distances=distances).differences
            for start in starts
        ]
    )
    assert fit_alpha(distances, differences).alpha == pytest.approx(1, abs=0.12)
    found = np.sqrt(np.mean(differences**2, axis=0))
    np.testing.assert_allclose(found, np.sqrt(2 - 2 * np.exp(-distances)), rtol=0.25)


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.6])
def test_alpha_of_random_potentials_is_recovered_within_its_error(alpha):
    distances = np.array([1, 2, 4, 8, 16, 32, 64])
    errors, reported = [], []
    for seed in range(20):
        potentials = sample_potentials(alpha, 64, 100, seed=seed)
        fit = fit_alpha(distances, potentials[:, 64 + distances], resamples=100)
        errors.append(fit.alpha - alpha)
        reported.append(fit.error)
        assert fit.r_squared > 0.9
    assert abs(np.mean(errors)) < 3 * np.mean(reported) / 20**0.5
    assert np.std(errors) == pytest.approx(np.mean(reported), rel=0.5)


def test_the_deviation_is_by_default_around_the_mean():
    random = np.random.default_rng(0)
    noise = random.standard_normal((200, 1)) * DISTANCES
    drifting = noise + 5 * DISTANCES**2
    assert fit_alpha(DISTANCES, drifting).alpha == pytest.approx(2)
    assert fit_alpha(DISTANCES, drifting, centred=False).alpha > 3.5


def test_a_fit_may_take_a_range_of_the_distances():
    result = deviation_of(lambda w: w[:, 0] + 0.1 * w[:, 0] ** 3, np.zeros(2))
    assert result.fit(largest=0.5).alpha == pytest.approx(2, abs=0.05)
    assert result.fit(smallest=4.0).alpha > 4
    assert 2.1 < result.fit().alpha < 4


@pytest.mark.parametrize("dropout", [slow(0.0), 0.5])
def test_nothing_of_the_model_changes(digits, dropout):
    model = network(dropout)
    model.compile("sgd", "mse", metrics=["accuracy"])
    before = [np.array(v) for v in model.variables]

    def drawn():
        return ops.convert_to_numpy(keras.random.randint((3,), 0, 100, seed=1))

    state = drawn()
    loss_deviation(model, CLASS_LOSS, *digits, [0.5, 5.0], directions=2)
    assert len(before) == len(model.variables)
    # Running statistics and seed generators are among them.
    assert len(before) > len(model.trainable_variables) + (dropout > 0)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    np.testing.assert_array_equal(drawn(), state)


def test_the_loss_is_that_of_training_mode(digits):
    images, labels = digits
    model = network()
    result = loss_deviation(model, CLASS_LOSS, images, labels, [1.0], directions=2)

    def loss(training):
        outputs = model(images, training=training)
        return float(ops.convert_to_numpy(ops.mean(CLASS_LOSS(labels, outputs))))

    inference, training = loss(False), loss(True)
    assert result.loss == pytest.approx(training, rel=1e-6)
    assert abs(training - inference) > 0.05


def test_all_points_see_the_same_dropout_masks(digits):
    model = network(dropout=0.5)
    result = loss_deviation(model, CLASS_LOSS, *digits, [1e-3], directions=5)
    # Other masks would change the loss by some hundredths.
    assert (np.abs(result.differences) < 1e-3).all()
    assert result.deviation > 0


def test_batches_count_by_their_examples(digits):
    images, labels = digits
    model = network()

    def of(x, y):
        return loss_deviation(model, CLASS_LOSS, x, y, [0.5, 5.0], directions=3)

    # These are whole ghosts, so one batch of all is the same.
    parts = of([images[:48], images[48:]], [labels[:48], labels[48:]])
    together = of(images, labels)
    np.testing.assert_allclose(parts.differences, together.differences, atol=1e-5)
    assert parts.loss == pytest.approx(together.loss, rel=1e-6)


def test_a_loss_that_is_a_mean_is_as_good_as_one_for_each_example(digits):
    mean_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = network()
    found = [
        loss_deviation(model, loss, *digits, [1.0], directions=2).differences
        for loss in (CLASS_LOSS, mean_loss)
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_directions_follow_the_seed():
    def differences(seed):
        few = {"distances": [1.0, 2.0], "directions": 3, "seed": seed}
        return deviation_of(lambda w: w[:, 0], np.zeros(3), **few).differences

    np.testing.assert_array_equal(differences(1), differences(1))
    assert (differences(1) != differences(2)).all()


def test_the_loss_is_traced_once(digits):
    traced = []

    def loss(y, outputs):
        traced.append(1)
        return CLASS_LOSS(y, outputs)

    loss_deviation(network(), loss, *digits, [0.5, 1.0, 5.0], directions=4)
    # PyTorch traces nothing: it runs the loss at each of the points.
    assert len(traced) == (13 if keras.backend.backend() == "torch" else 1)


@pytest.mark.parametrize("distances", [[1.0, 0.0], [-1.0], [float("nan")], 2.0])
def test_distances_that_are_none_are_refused(distances):
    with pytest.raises(ValueError, match=f"distances=.*{np.ravel(distances)[-1]}"):
        deviation_of(lambda w: w, np.zeros(2), distances=distances)


def test_a_single_direction_is_refused():
    with pytest.raises(ValueError, match="directions=1"):
        deviation_of(lambda w: w, np.zeros(2), directions=1)


@pytest.mark.parametrize("y", [np.zeros((1, 1)), [], [np.zeros((1, 1))] * 3])
def test_batches_without_their_targets_are_refused(y):
    model = model_of_weights(np.zeros(2))
    with pytest.raises(ValueError, match="2 batches of x"):
        loss_deviation(model, lambda y, w: w, [np.ones((1, 1))] * 2, y, [1.0])


@pytest.mark.parametrize("shape", [(9, 3), (10, 4), (10,)])
def test_differences_that_cannot_be_fitted_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \({shape[0]},"):
        fit_alpha([1.0, 2.0, 3.0], np.ones(shape))


def test_a_fit_of_one_distance_is_refused():
    with pytest.raises(ValueError, match=r"distances=\[2.0, 2.0\]"):
        fit_alpha([2.0, 2.0], np.random.default_rng(0).standard_normal((20, 2)))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_differences_without_a_deviation_are_refused(value):
    differences = np.random.default_rng(0).standard_normal((20, 2))
    differences[:, 1] = value
    with pytest.raises(ValueError, match=f"deviations .*{value}"):
        fit_alpha([1.0, 2.0], differences)

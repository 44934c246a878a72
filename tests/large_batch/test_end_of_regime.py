"""A user's own model ends by itself when the small batch's updates are done."""

import keras
import numpy as np
import pytest
from small_models import digits, sequential

from gbn_keras import L2SGD, EndOfRegime, LargeBatchModel, RegimeAdaptation
from gbn_keras._keras_internals import learning_rate_of
from gbn_keras.analysis.noise_scale import updates_needed

BATCH, SMALL = 256, 32
SMALL_BATCH_UPDATES = 60


def compiled(micro_batch_size=128, stretch="auto", lr_scaling="sqrt", model=None):
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([29], [0.03, 0.003])
    rate = RegimeAdaptation(rates, SMALL, BATCH, lr_scaling, stretch)
    l2 = RegimeAdaptation(rates, SMALL, BATCH, "none", stretch)
    if model is None:
        keras.utils.set_random_seed(1)
        model = sequential()
    model = LargeBatchModel(model, micro_batch_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(L2SGD(rate, l2=l2, momentum=0.9), loss)
    return model


class Record(keras.callbacks.Callback):
    """What each update was worth, and with which rates it was made."""

    def __init__(self):
        super().__init__()
        self.gains, self.done, self.rates = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.gains.append(logs["gain"])
        self.done.append(logs["small_batch_updates"])
        self.rates.append(
            (float(optimizer.learning_rate), float(optimizer.l2(optimizer.iterations)))
        )


def fit(model, *callbacks, epochs=40, end=SMALL_BATCH_UPDATES):
    record = Record()
    x, y = digits(4 * BATCH)
    # Keras's shuffling would depend on the processes' random state.
    callbacks = [EndOfRegime(end), record, *callbacks]
    model.fit(x, y, BATCH, epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return record


@pytest.fixture(scope="module")
def finished():
    model = compiled()
    return model, fit(model)


def test_it_ends_with_the_update_that_completes_the_small_batchs(finished):
    _, record = finished
    assert record.done[-2] < SMALL_BATCH_UPDATES <= record.done[-1]
    np.testing.assert_allclose(record.done, np.cumsum(record.gains), rtol=1e-6)
    gains = np.array(record.gains)
    assert (gains >= 1).all() and (gains <= BATCH / SMALL).all()
    # Neither of the ends: something was measured.
    assert 1.5 < gains.mean() < 0.9 * BATCH / SMALL


def test_rate_and_l2_change_where_the_small_batchs_do(finished):
    _, record = finished
    before = np.concatenate([[0], record.done[:-1]]) < 30
    scale = (BATCH / SMALL) ** 0.5
    expected = [
        (scale * rate, rate) for rate in np.where(before, np.float32(0.03), 0.003)
    ]
    np.testing.assert_allclose(record.rates, expected, rtol=1e-5)
    assert 0 < sum(before) < len(before)


def test_it_is_saved_and_goes_on_as_if_it_had_not_been(finished, tmp_path):
    model, record = finished
    part = compiled()
    fit(part, epochs=2)
    part.save(tmp_path / "part.keras")
    loaded = keras.models.load_model(tmp_path / "part.keras")
    rest = fit(loaded)
    assert rest.done == record.done[8:]
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_schedule_of_a_finished_training_starts_anew(finished):
    model, _ = finished
    schedule = learning_rate_of(model.optimizer)
    again = LargeBatchModel(sequential(), 128)
    again.compile(keras.optimizers.SGD(schedule), "mse")
    assert float(again.regime_progress.done) == 0
    # To compile a model in the middle of its training changes nothing.
    again.optimizer.iterations.assign(3)
    again.regime_progress.advance(np.float32(5))
    again.compile(again.optimizer, "mse")
    assert float(again.regime_progress.done) == 5


def test_a_fixed_stretch_logs_no_gain_and_needs_no_moments():
    model = compiled(stretch=2)
    assert model.regime_progress is None and model.gradient_moments is None
    with pytest.raises(ValueError, match="Received: a model that does not measure it"):
        fit(model)


def test_batches_of_one_micro_batch_are_refused():
    with pytest.raises(ValueError, match="Lower micro_batch_size=256"):
        fit(compiled(micro_batch_size=256))


def test_a_file_without_the_regime_is_refused(tmp_path):
    compiled(stretch=1).save_weights(tmp_path / "one.weights.h5")
    with pytest.raises(ValueError, match="0 values of a regime, wanted 4"):
        compiled().load_weights(tmp_path / "one.weights.h5")


def test_the_updates_that_a_training_needed():
    # Reached at update 4, between 3 (sum 9) and 5 (sum 15).
    assert updates_needed([1, 3, 5], [3, 9, 15], 12) == 4
    # Not reached: 6 are missing after update 4, at the 3 each of updates 3 and 4.
    assert updates_needed([1, 2, 4], [1, 2, 8], 14) == 6

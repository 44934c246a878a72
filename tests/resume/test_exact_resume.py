"""Any `fit` with `ExactResume` goes on bit for bit after a kill, or is refused."""

import errno
import os
import pathlib
import signal

import keras
import numpy as np
import pytest
from backend import IS_TENSORFLOW, NAME, tensorflow_only
from kills import AskToStop, Killed
from resumed import (
    BATCH,
    EPOCHS,
    UPDATES,
    WIDTH,
    X,
    Y,
    arrays,
    assert_same,
    build,
    train,
)

from gbn_keras import ExactResume
from gbn_keras.resume import checkpoint_file

if NAME == "torch":
    import torch


def train_whole(folder, **options):
    keras.utils.set_random_seed(7)
    return train(folder, **options)


def train_in_pieces(folder, updates, make=build, **options):
    """Trains in processes that are killed in such an update."""
    keras.utils.set_random_seed(7)
    for _ in range((UPDATES - 1) // updates):
        with pytest.raises(Killed):
            train(folder, model=make(), kill_in=updates, **options)
        # The next process starts with other random numbers.
    return train(folder, model=make(), **options)


def names(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nobody disturbed, and what it ends with."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_whole(folder)


def test_a_training_killed_after_every_update_goes_on_bit_for_bit(tmp_path):
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv", append=True)
    class_weight = {number: 0.5 + number for number in range(WIDTH)}
    options = {"validation_data": (X, Y), "class_weight": class_weight}
    one = train_whole(tmp_path / "one", **options)
    other = train_in_pieces(tmp_path / "other", 1, more=[log], **options)
    assert_same(one, other)
    assert list(other[1][1]) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + EPOCHS


def schedule():
    return build(rate=keras.optimizers.schedules.CosineDecay(0.1, 2 * UPDATES))


def scaled():
    """With a loss scale, which grows after three updates.

    In a graph, several updates at once where the backend can.
    """
    more = {} if NAME == "torch" else {"steps_per_execution": 2}
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    model = build(run_eagerly=False, **more)
    keras.config.set_dtype_policy(with_policy)
    model.optimizer.dynamic_growth_steps = 3
    return model


@pytest.mark.parametrize("make", [schedule, scaled])
def test_every_kind_of_update_goes_on_bit_for_bit(tmp_path, make):
    keras.utils.set_random_seed(7)
    one = train(tmp_path / "one", model=make(), every=2)
    assert_same(one, train_in_pieces(tmp_path / "other", 4, make, every=2))


class Reordered(keras.utils.PyDataset):
    """Shuffles its examples after each epoch, by a generator of its own."""

    def __init__(self, workers=1):
        super().__init__(workers=workers, max_queue_size=2)
        self._generator, self._order = np.random.RandomState(5), np.arange(len(X))

    def __len__(self):
        return UPDATES // EPOCHS

    def __getitem__(self, index):
        rows = self._order[index * BATCH :][:BATCH]
        return X[rows], Y[rows], np.linspace(0.5, 1, len(rows))

    def on_epoch_end(self):
        self._generator.shuffle(self._order)


def dataset(resume):
    return resume.batches(Reordered(workers=3), seed=3)


def function(resume):
    """Batches by their number, endless."""

    def batches(first):
        while True:
            rows = np.random.RandomState(first).randint(0, len(X), BATCH)
            yield X[rows], Y[rows]
            first += 1

    return resume.batches(batches, steps_per_epoch=3)


@pytest.mark.parametrize("data", [dataset, function])
def test_every_kind_of_data_goes_on_at_its_place(tmp_path, data):
    one = train_whole(tmp_path / "one", data=data)
    assert_same(one, train_in_pieces(tmp_path / "other", 2, data=data))


@tensorflow_only
def test_a_tf_data_pipeline_goes_on_at_its_place(tmp_path):
    import tensorflow as tf

    def pipeline(first):
        examples = tf.data.Dataset.from_tensor_slices((X, Y)).repeat()
        return examples.batch(BATCH).skip(first)

    def data(resume):
        return resume.batches(pipeline, steps_per_epoch=3)

    one = train_whole(tmp_path / "one", data=data)
    assert_same(one, train_in_pieces(tmp_path / "other", 2, data=data))


def large_batch_model():
    from gbn_keras import LargeBatchModel

    model = LargeBatchModel(build(), 4, noise_scale=True)
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    # JAX, which compiles each operation, takes longer than for the whole update.
    eagerly = keras.backend.backend() != "jax"
    model.compile("sgd", loss, run_eagerly=eagerly)
    return model


def test_a_large_batch_model_goes_on_bit_for_bit(tmp_path):
    keras.utils.set_random_seed(7)
    one = train(tmp_path / "one", model=large_batch_model())
    assert_same(one, train_in_pieces(tmp_path / "other", 2, large_batch_model))


@tensorflow_only
def test_replicas_are_refused(tmp_path):
    import tensorflow as tf

    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = build()
    with pytest.raises(ValueError, match="without tf.distribute. Received: OneDevice"):
        train(tmp_path, model=model)


def test_a_finished_training_gives_its_result_and_can_go_on(tmp_path, whole):
    assert_same(train(whole[0]), whole[1])
    longer = train_whole(tmp_path / "longer", epochs=EPOCHS + 1)
    train_whole(tmp_path / "short")
    assert_same(train(tmp_path / "short", epochs=EPOCHS + 1), longer)


class StopAt(keras.callbacks.Callback):
    """Stops after the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 0


def test_the_end_by_a_callback_is_kept(tmp_path):
    one = train_whole(tmp_path, more=[StopAt()], every=100)
    assert one[1][0] == [0]
    assert_same(train(tmp_path, more=[StopAt()]), one)


def test_the_newest_checkpoints_are_kept(whole):
    assert names(whole[0]) == [f"update_{n:010d}.checkpoint" for n in (5, 6)]


def test_without_every_the_ends_of_epochs_are_saved(tmp_path):
    train(tmp_path, every=None)
    assert names(tmp_path) == [f"update_{n:010d}.checkpoint" for n in (3, 6)]


def test_of_a_damaged_checkpoint_the_one_before_is_used(tmp_path, capsys, whole):
    keras.utils.set_random_seed(7)
    with pytest.raises(Killed):
        train(tmp_path, kill_in=5)
    before, newest = sorted(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    assert_same(train(tmp_path), whole[1])
    output = capsys.readouterr()
    assert output.err == f"warning: {newest} is not used: its checksum is wrong\n"
    assert output.out == "resumed after update 4\n"
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
        train(tmp_path)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    tmp_path, monkeypatch, whole
):
    write = pathlib.Path.write_bytes

    def until_full(path, content):
        if "0000000003" in path.name:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    keras.utils.set_random_seed(7)
    with monkeypatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(pathlib.Path, "write_bytes", until_full)
        train(tmp_path)
    assert "No space left on device: " in str(error.value)
    assert "update_0000000003.checkpoint" in str(error.value)
    assert names(tmp_path) == [f"update_{n:010d}.checkpoint" for n in (1, 2)]
    assert_same(train(tmp_path), whole[1])


# In an epoch, and in the last update of one.
@pytest.mark.parametrize("updates", [2, 3])
def test_sigterm_saves_and_stops(tmp_path, capsys, whole, updates):
    before = signal.getsignal(signal.SIGTERM)
    keras.utils.set_random_seed(7)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, more=[AskToStop(signal.SIGTERM, updates)], every=100)
    assert stop.value.code == 75
    assert f"received SIGTERM; update {updates} is saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(train(tmp_path, every=100), whole[1])


OTHERS = {
    "examples: 23 there, 22 here": {
        "data": lambda resume: resume.batches(X[1:], Y[1:], batch_size=BATCH, seed=3)
    },
    "batch_size: 8 there, 9 here": {
        "data": lambda resume: resume.batches(X, Y, batch_size=9, seed=3)
    },
    "seed: 3 there, 4 here": {
        "data": lambda resume: resume.batches(X, Y, batch_size=BATCH, seed=4)
    },
    "source: arrays there, PyDataset here": {"data": dataset},
    "learning_rate: 0.0[0-9]* there, 0.5 here": {"model": lambda: build(rate=0.5)},
    r"model: sequential/dense/kernel \[6, 6\] .* there, .* \[6, 7\] .* here": {
        "model": lambda: build(width=7)
    },
}


@pytest.mark.parametrize("difference", OTHERS)
def test_another_training_is_refused_in_one_line(whole, difference):
    other = dict(OTHERS[difference])
    if "model" in other:
        other["model"] = other["model"]()
    with pytest.raises(ValueError, match=difference) as error:
        train(whole[0], **other)
    assert "\n" not in str(error.value)
    assert "update_0000000006.checkpoint is of another training" in str(error.value)


if NAME == "torch":  # It has a generator for each GPU.

    def test_another_number_of_gpus_is_refused_in_one_line(tmp_path, monkeypatch):
        train(tmp_path)
        states = [torch.get_rng_state()] * 9
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
        with pytest.raises(ValueError, match="gpus: .* there, 9 here") as error:
            train(tmp_path)
        assert "\n" not in str(error.value)


def test_another_file_is_not_used(tmp_path, capsys):
    raw = checkpoint_file.encode({}, {"updates": 1})
    (tmp_path / "update_0000000001.checkpoint").write_bytes(raw)
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
        train(tmp_path)
    assert "it belongs to another run or update" in capsys.readouterr().err


def test_data_from_elsewhere_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train on the data of `ExactResume.batches`"):
        train(tmp_path, data=lambda resume: X, y=Y, batch_size=BATCH)
    with pytest.raises(ValueError, match=r"epochs of 2 batches, not 3"):
        train(tmp_path, steps_per_epoch=2)

    def only_made(resume):
        arrays(resume)
        return X

    with pytest.raises(ValueError, match="Received: other data"):
        train(tmp_path, data=only_made, y=Y, batch_size=BATCH)


@pytest.mark.skipif(IS_TENSORFLOW, reason="TensorFlow has one thread for callbacks")
def test_callbacks_in_other_threads_are_refused(tmp_path):
    """Keras calls a callback that is not in a list beside the next update."""
    resume = ExactResume(tmp_path)
    with pytest.raises(ValueError, match="callbacks must be a list"):
        build().fit(arrays(resume), verbose=0, callbacks=resume)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"keep": 1}, "keep must be an integer of at least 2"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, error):
    with pytest.raises(ValueError, match=error):
        ExactResume(tmp_path, **arguments)

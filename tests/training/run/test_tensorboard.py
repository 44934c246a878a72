"""TensorBoard shows every figure of a run once per update, even after a kill."""

import contextlib
import errno
import os
import resource
import time

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import settings_of
from kills import Killed
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import (
    EventMultiplexer,
)
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from trainings import curves

from gbn_keras.training import trainer
from gbn_keras.training.errors import UsageError
from gbn_keras.training.model.build_model import build_model
from gbn_keras.training.planner import Planner
from gbn_keras.training.run import events, tensorboard
from gbn_keras.training.run.waiting import WaitingForData

SHORT = ("--batch_size=256", "--stretch=1", "--epochs=3")
ALWAYS = {
    *("loss", "accuracy", "learning_rate", "gradient_norm"),
    *("updates_per_second", "images_per_second", "waiting_for_data"),
}


pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A run with everything on: its directory, its result."""
    folder = tmp_path_factory.mktemp("tensorboard")
    flags = ("--weight_distance", "--noise_scale", "--micro_batch_size=64")
    flags = (*SHORT, *flags, "--profile=8-9", f"--run_dir={folder}")
    return folder, trainer.train(settings_of(*flags), digits, verbose=0)


def as_tensorboard(folder):
    """What TensorBoard's own backend gives out of all runs in a folder."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def test_training_has_every_tag_by_update(run):
    folder, result = run
    train = curves(folder / "tensorboard" / "train")
    assert set(train) == ALWAYS | {"weight_distance", "noise_scale"}
    for tag in ALWAYS:
        assert list(train[tag]) == list(range(1, result["updates"] + 1)), tag


def test_the_values_are_those_of_the_runs_tables(run):
    folder, result = run
    train = curves(folder / "tensorboard" / "train")
    validation = curves(folder / "tensorboard" / "validation")
    assert set(validation) == {"loss", "accuracy"}
    metrics = pd.read_csv(folder / "metrics.csv").set_index("updates")
    for tag in ("loss", "accuracy"):
        assert validation[tag] == pytest.approx(metrics[f"val_{tag}"].to_dict())
        assert validation[tag][18] == pytest.approx(result[tag])
    for tag in ("loss", "accuracy", "learning_rate"):
        ends = {updates: train[tag][updates] for updates in metrics.index}
        assert ends == pytest.approx(metrics[tag].to_dict())
    distance = pd.read_csv(folder / "weight_distance.csv").set_index("updates")["total"]
    assert train["weight_distance"] == pytest.approx(distance.to_dict())
    noise = pd.read_csv(folder / "noise_scale.csv").set_index("updates")["noise_scale"]
    assert train["noise_scale"] == pytest.approx(noise.to_dict())


def test_rates_and_shares_are_such(run):
    train = curves(run[0] / "tensorboard" / "train")
    for updates, rate in train["updates_per_second"].items():
        assert rate > 0
        images = train["images_per_second"][updates]
        assert images == pytest.approx(256 * rate, rel=1e-5)
        assert 0 <= train["waiting_for_data"][updates] <= 1


def test_tensorboard_finds_the_runs_and_their_scalars(run):
    scalars = as_tensorboard(run[0]).list_scalars(
        context.RequestContext(), experiment_id="", plugin_name="scalars"
    )
    assert set(scalars) == {"tensorboard/train", "tensorboard/validation"}
    assert ALWAYS < set(scalars["tensorboard/train"])
    assert scalars["tensorboard/train"]["loss"].max_step == 18


def test_the_profile_is_there(run):
    (trace,) = (run[0] / "tensorboard").rglob("*.xplane.pb")
    assert trace.relative_to(run[0] / "tensorboard").parts[:3] == (
        *("train", "plugins", "profile"),
    )
    assert trace.stat().st_size > 10_000


class Kill(keras.callbacks.Callback):
    """Keeps all variables after one update, and is killed after a later one."""

    def __init__(self, log, keep, kill):
        super().__init__()
        self.log, self.keep, self.kill = log, keep, kill
        self.kept = None

    def on_epoch_end(self, epoch, logs=None):
        """Keeps."""
        if self.model.optimizer.iterations == self.keep:
            self.log.flush()
            self.kept = values(self.model)

    def on_train_batch_end(self, batch, logs=None):
        """Is killed."""
        if self.model.optimizer.iterations == self.kill:
            raise Killed


def variables(model):
    """The weights and the optimizer's."""
    return [*model.variables, *model.optimizer.variables]


def values(model):
    return [variable.numpy() for variable in variables(model)]


class Trained:
    """A model that is traced once and trained several times, as `SHORT` says."""

    def __init__(self, digits, run_dir):
        self._digits, self._run_dir = digits, run_dir
        plan = self.plan()
        keras.utils.set_random_seed(1)
        self._model = build_model(plan, digits)
        self._first = values(self._model)
        self._model.make_train_function()
        self._train_function = self._model.train_function

    def plan(self, *flags):
        settings = settings_of(*SHORT, f"--run_dir={self._run_dir}", *flags)
        return Planner(self._digits.examples).plan(settings)

    def fit(self, callbacks, start=0, start_values=None, epochs=3):
        """The training, or the rest of it; its last values, and Keras's history."""
        for variable, value in zip(
            variables(self._model), start_values or self._first, strict=True
        ):
            variable.assign(value)
        # A training that was killed leaves the one that measures the waiting.
        self._model.train_function = self._train_function
        history = self._model.fit(
            self._digits.training_batches(256, seed=1, start_update=start),
            epochs=epochs,
            initial_epoch=start // 6,
            steps_per_epoch=6,
            validation_data=self._digits.validation_batches(),
            validation_steps=self._digits.validation_steps(1),
            shuffle=False,
            callbacks=callbacks,
            verbose=0,
        )
        return values(self._model), history.history


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    return Trained(digits, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def watched(trained, tmp_path_factory):
    """The training with a log and a profile: the log's folder, the last values."""
    folder = tmp_path_factory.mktemp("watched") / "tensorboard"
    log = tensorboard.TensorBoardLog(folder, trained.plan("--profile=2-3"))
    return folder, trained.fit([log])[0]


def test_looking_on_changes_nothing(watched, trained):
    for one, other in zip(watched[1], trained.fit([])[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_hparams_compares_runs(run, trained, tmp_path):
    """In TensorBoard's own table of runs below a common folder."""
    (tmp_path / "first").symlink_to(run[0])
    other = trained.plan("--learning_rate=0.01")
    log = tensorboard.TensorBoardLog(tmp_path / "second", other)
    (other_accuracy,) = trained.fit([log], epochs=1)[1]["val_accuracy"]
    provider = as_tensorboard(tmp_path)
    request_context = context.RequestContext()
    plugin = backend_context.Context(TBContext(data_provider=provider))
    metadata = plugin.hparams_metadata(request_context, "")
    experiment = plugin.experiment_from_metadata(
        request_context, "", True, metadata, []
    )
    assert {info.name for info in experiment.hparam_infos} >= {
        *("batch_size", "virtual_batch_size", "small_batch_size", "learning_rate"),
        *("lr_scaling", "stretch", "gradient_noise", "l2", "epochs", "seed"),
        *("model", "dataset", "precision"),
    }
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
        include_metrics=True,
    )
    groups = (
        list_session_groups.Handler(request_context, plugin, "", request)
        .run()
        .session_groups
    )
    rows = {
        group.hparams["learning_rate"].number_value: {
            value.name.tag: value for value in group.metric_values
        }
        for group in groups
    }
    for rate, accuracy, updates in (
        (0.03, run[1]["accuracy"], 18),
        (0.01, other_accuracy, 6),
    ):
        last = rows[rate]["accuracy"]
        assert last.name.group == "validation"
        assert last.value == pytest.approx(accuracy)
        assert last.training_step == updates


def test_an_interrupted_epoch_has_its_last_point_too(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_POINTS", 1)
    settings = settings_of(*SHORT, "--checkpoint_every=2", f"--run_dir={tmp_path}")
    with pytest.raises(Killed):
        trainer.train(settings, digits, (Kill(None, keep=0, kill=9),), verbose=0)
    trainer.train(settings, digits, verbose=0)
    # The epoch from update 7 to 12 was resumed after update 8.
    assert list(curves(tmp_path / "tensorboard" / "train")["loss"]) == [6, 12, 18]


def test_a_killed_training_goes_on_with_every_point_once(watched, trained, tmp_path):
    plan = trained.plan()
    log = tensorboard.TensorBoardLog(tmp_path / "killed", plan)
    kill = Kill(log, keep=6, kill=15)
    with pytest.raises(Killed):
        trained.fit([log, kill])
    log.close()
    for run, last in (("train", 15), ("validation", 12)):
        points = curves(tmp_path / "killed" / run)["loss"]
        assert max(points) == last
        (file,) = (tmp_path / "killed" / run).glob("events*")
        with file.open("ab") as tail:
            tail.write(b"\x17\x00\x00")  # Of a record that was never whole.
    log = tensorboard.TensorBoardLog(tmp_path / "killed", plan)
    trained.fit([log], start=6, start_values=kill.kept)

    for run in ("train", "validation"):
        whole, resumed = curves(watched[0] / run), curves(tmp_path / "killed" / run)
        for tag in set(whole) | {"loss"}:
            assert list(resumed[tag]) == list(whole[tag])
            if "per_second" not in tag and tag != "waiting_for_data":
                assert resumed[tag] == whole[tag]
    by_tensorboard = as_tensorboard(tmp_path).read_scalars(
        context.RequestContext(),
        experiment_id="",
        plugin_name="scalars",
        downsample=1000,
        run_tag_filter=RunTagFilter(runs=["killed/train"], tags=["loss"]),
    )
    points = by_tensorboard["killed/train"]["loss"]
    assert [point.step for point in points] == list(range(1, 19))
    (session,) = (
        value
        for event in events.read_events(tmp_path / "killed")
        for value in event.summary.value
        if value.tag == "_hparams_/session_start_info"
    )
    assert session.metadata.plugin_data.plugin_name == "hparams"


def test_events_are_cut_at_an_update(tmp_path):
    for run in ("train", "validation"):
        log = events.EventLog(tmp_path / run, updates=0)
        for updates in (1, 2, 5, 8):
            log.scalars(updates, {"loss": 1 / updates, "accuracy": updates / 8})
        log.close()
    (file,) = (tmp_path / "train").glob("events*")
    file.with_name(file.name + ".part").write_bytes(b"of a cut that was killed")
    events.cut_events(tmp_path, 5)
    for run in ("train", "validation"):
        assert curves(tmp_path / run) == {
            "loss": pytest.approx({1: 1, 2: 1 / 2, 5: 1 / 5}),
            "accuracy": {1: 1 / 8, 2: 2 / 8, 5: 5 / 8},
        }
    assert list((tmp_path / "train").iterdir()) == [file]
    before = file.read_bytes()
    events.cut_events(tmp_path, 5)
    assert file.read_bytes() == before
    events.cut_events(tmp_path / "nothing", 5)


@contextlib.contextmanager
def largest_file(size):
    """No file may become larger: for a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_point_is_that_of_tensorflows_own_writer(tmp_path):
    log = events.EventLog(tmp_path / "ours", 0)
    log.scalars(3, {"loss": np.float64(0.1)})
    log.close()
    with tf.summary.create_file_writer(str(tmp_path / "theirs")).as_default():
        tf.summary.scalar("loss", 0.1, step=3)
        tf.summary.flush()

    def points(folder):
        return [
            (event.step, point.tag, value.dtype, value.shape, value)
            for event in events.read_events(folder)
            for point in event.summary.value
            for value in [tf.make_ndarray(point.tensor)]
        ]

    assert points(tmp_path / "ours") == points(tmp_path / "theirs")


def test_a_file_that_cannot_be_written_is_an_error_with_its_name(tmp_path):
    log = events.EventLog(tmp_path, updates=0)
    (file,) = tmp_path.iterdir()
    with pytest.raises(OSError) as error, largest_file(1000):
        for updates in range(1, 1000):
            log.scalars(updates, {"loss": 1.0})
        log.flush()
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(file))
    assert error.value.strerror == os.strerror(errno.EFBIG)
    with contextlib.suppress(OSError):
        log.close()


def test_a_cut_that_cannot_be_written_leaves_the_file(tmp_path):
    log = events.EventLog(tmp_path, updates=0)
    for updates in range(1, 1000):
        log.scalars(updates, {"loss": 1.0})
    log.close()
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with pytest.raises(OSError) as error, largest_file(1000):
        events.cut_events(tmp_path, 900)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(file))
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


def test_what_is_flushed_is_in_the_file(tmp_path):
    log = events.EventLog(tmp_path, updates=0)
    log.scalars(1, {"loss": 2.0})
    log.flush()
    assert curves(tmp_path) == {"loss": {1: 2.0}}
    log.close()


@pytest.mark.parametrize("cut", [1, 5, 13, 40])
def test_of_a_torn_record_nothing_is_left(cut, tmp_path):
    log = events.EventLog(tmp_path, updates=0)
    for updates in (1, 2):
        log.scalars(updates, {"loss": 1.0})
    log.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    events.cut_events(tmp_path, 2)
    assert curves(tmp_path) == {"loss": {1: 1.0}}
    # Whole: TensorFlow reads on behind it.
    assert len(list(tf.data.TFRecordDataset(str(file)))) == 3


@pytest.mark.cluster
def test_two_replicas_log_what_one_does(run, make_settings, digits, tmp_path):
    flags = (*SHORT, "--strategy=mirrored", "--replicas=2", "--profile=1-2")
    flags = (*flags, "--weight_distance", "--noise_scale")
    trainer.train(make_settings(*flags), digits, verbose=0)
    one = curves(run[0] / "tensorboard" / "train")
    two = curves(tmp_path / "run" / "tensorboard" / "train")
    for tag in ("loss", "accuracy", "learning_rate", "gradient_norm"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-3)


def test_an_update_that_float16_could_not_make_has_no_point(
    make_settings, digits, tmp_path
):
    flags = (*SHORT, "--precision=mixed_float16")
    plan = Planner(digits.examples).plan(make_settings(*flags))
    keras.utils.set_random_seed(1)
    model = build_model(plan, digits)
    model.optimizer.dynamic_scale.assign(2.0**26)
    log = tensorboard.TensorBoardLog(tmp_path, plan)
    batches = digits.training_batches(256, seed=1)
    model.fit(
        batches, epochs=2, steps_per_epoch=6, shuffle=False, callbacks=[log],
        verbose=0,
    )  # fmt: skip
    made = int(model.optimizer.iterations)
    assert 0 < made < 12  # Some overflowed.
    for tag, points in curves(tmp_path / "train").items():
        assert list(points) == list(range(1, made + 1)), tag


def test_waiting_is_the_time_until_the_batch_is_there():
    def batches():
        for _ in range(4):
            time.sleep(0.02)
            yield np.ones((8, 3), "float32"), np.ones((8, 1), "float32")

    class Log(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            waiting.start(self.model)

        def on_train_end(self, logs=None):
            waiting.stop(self.model)

    waiting = WaitingForData()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    spec = (tf.TensorSpec([8, 3]), tf.TensorSpec([8, 1]))
    data = tf.data.Dataset.from_generator(batches, output_signature=spec)
    model.make_train_function()
    function = model.train_function
    model.fit(data.repeat(), steps_per_epoch=4, callbacks=[Log()], verbose=0)
    # Part of it passes while the batch before is trained on.
    assert waiting.seconds >= 0.02
    assert int(model.optimizer.iterations) == 4
    assert model.train_function is function


@pytest.mark.parametrize("text", ["5", "0-3", "7-5", "5-19", "-5", "1-2-3", "a-b", ""])
def test_a_profile_of_other_updates_is_refused(make_settings, text):
    with pytest.raises(UsageError, match=f"--profile: got '{text}', .* from 1 to 18"):
        Planner(1536).plan(make_settings(*SHORT, f"--profile={text}"))

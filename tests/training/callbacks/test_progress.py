"""You see how far a training is: a bar on a terminal, elsewhere one line for each."""

import dataclasses
import functools
import io
import re
import sys
import types

import pytest
from conftest import settings_of
from run_directories import write_training

from gbn_keras.training import study, trainer
from gbn_keras.training.callbacks import progress
from gbn_keras.training.planner import Planner

SWEEP = ("--mode=sweep", "--batch_sizes=512,768", "--small_batch_size=256")


pytestmark = pytest.mark.usefixtures("shallow")


class Terminal(io.StringIO):
    """Keeps what is shown on it."""

    def isatty(self):
        return True


def test_where_the_output_is_no_terminal_each_training_ends_in_one_line(
    make_settings, monkeypatch, capsys
):
    def train(settings, *args, **kwargs):
        if settings.batch_size == 768:  # It takes no time.
            return write_training(settings, 0.5, examples=1536)
        return trainer.train(settings, *args, **kwargs)

    monkeypatch.setattr(study, "train", train)
    study.run_study(make_settings(*SWEEP, "--epochs=1", "--max_updates=2"))
    told = capsys.readouterr().out
    assert not set("\r\b\x1b━") & set(told)
    line = r"{}, seed 1: validation accuracy [0-9.]+ %, 2 updates, [0-9.]+ s"
    assert re.search(line.format("batch 512") + r"; about \d+ s left\n", told), told
    assert re.search(line.format("batch 768") + "\n", told), told


def test_on_a_terminal_a_bar_ends_with_the_last_update(make_settings, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    flags = ("--mode=sweep", "--batch_sizes=256", "--epochs=2", "--max_updates=5")
    study.run_study(make_settings(*flags))
    told = sys.stdout.getvalue()
    last = told.rpartition("\r")[2].splitlines()
    assert re.match("\x1b.1m5/5\x1b.*━.*loss: .* - val_accuracy: ", last[0]), last
    assert last[1].startswith("batch 256, seed 1: validation accuracy ")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def bar_on_a_terminal(monkeypatch, make=progress.RunProgress):
    """A bar over 10 epochs of 4 updates, on a terminal, and its clock."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    clock = Clock(monkeypatch)
    shown = make()
    optimizer = types.SimpleNamespace(iterations=types.SimpleNamespace(numpy=lambda: 0))
    done = types.SimpleNamespace(done=0.0)
    shown.set_model(types.SimpleNamespace(optimizer=optimizer, regime_progress=done))
    shown.set_params({"epochs": 10, "steps": 4})
    shown.on_train_begin()
    return shown, clock


def epoch(shown, clock, number, first_update, evaluation):
    for batch in range(4):
        clock.now += first_update if batch == 0 else 1
        shown.on_train_batch_end(batch, {"loss": 0.5})
    shown.on_test_begin()
    clock.now += evaluation
    shown.on_test_end()
    shown.on_epoch_end(number, {"loss": 0.5, "val_accuracy": 0.9})


def test_the_estimate_leaves_out_what_is_traced(monkeypatch):
    shown, clock = bar_on_a_terminal(monkeypatch)
    epoch(shown, clock, 0, first_update=100, evaluation=50)
    # 36 updates of a second. Of the first epoch's 154 seconds they would be 23 minutes.
    assert "4/40" in sys.stdout.getvalue()
    assert "36 s left" in sys.stdout.getvalue().rpartition("\r")[2]
    epoch(shown, clock, 1, first_update=1, evaluation=7)
    # 7 updates and an evaluation of 7 seconds: two seconds an update.
    assert shown.seconds_per_update == 2
    assert "64 s left" in sys.stdout.getvalue().rpartition("\r")[2]


def test_a_training_that_ends_in_its_middle_leaves_a_whole_line(monkeypatch):
    shown, clock = bar_on_a_terminal(monkeypatch)
    epoch(shown, clock, 0, first_update=100, evaluation=50)
    shown.close()
    shown.close()
    assert sys.stdout.getvalue().endswith("\x1b[K\n")
    assert sys.stdout.getvalue().count("\n") == 1


def test_a_training_that_finds_its_length_counts_the_small_batchs_updates(monkeypatch):
    plan = Planner(1536).plan(settings_of("--batch_size=512", "--stretch=auto"))
    make = functools.partial(progress.RunProgress.of, plan)
    shown, clock = bar_on_a_terminal(monkeypatch, make)
    for batch in range(3):
        clock.now += 100 if batch == 0 else 1
        logs = {"loss": 0.5, "small_batch_updates": 8.0 * (batch + 1)}
        shown.on_train_batch_end(batch, logs)
    # Three updates took two seconds but the first; 264 of 288 are left, 8 in each.
    told = sys.stdout.getvalue().rpartition("\r")[2]
    assert "24/288" in told
    assert "33 s left" in told


def test_what_is_left_of_such_trainings_goes_by_what_the_last_one_found():
    pace = progress.Pace()
    settings = settings_of("--batch_size=512", "--stretch=auto")
    plan = Planner(1536).plan(settings)
    pace.add(plan, 40, 6.0, 0.1)
    assert pace.left([plan]) == "; about 6 s left"


def plan_of(batch_size, updates):
    settings = settings_of(f"--batch_size={batch_size}", f"--max_updates={updates}")
    return Planner(1536).plan(dataclasses.replace(settings, model="f1_digits"))


def test_what_is_left_goes_by_the_updates_of_trainings_with_the_same_batch():
    pace = progress.Pace()
    assert pace.left([plan_of(512, 100)]) == ""
    # 2 seconds beside, and 0.1 an update.
    pace.add(plan_of(512, 100), 100, 12.0, 0.1)
    assert pace.left([plan_of(512, 200)]) == "; about 22 s left"
    # Of half the batch an update takes half.
    assert pace.left([plan_of(256, 200), plan_of(512, 50)]) == "; about 19 s left"
    pace.add(plan_of(256, 100), 100, 32.0, 0.3)
    assert pace.left([plan_of(256, 200)]) == "; about 62 s left"
    assert pace.left([]) == ""


def test_without_the_time_of_an_update_it_is_part_of_the_whole():
    pace = progress.Pace()
    pace.add(plan_of(512, 1), 1, 3.0, None)
    assert pace.left([plan_of(512, 2)]) == "; about 6 s left"


@pytest.mark.parametrize(
    "seconds, words", [(4.4, "4 s"), (89, "89 s"), (144, "2 min"), (9000, "2.5 h")]
)
def test_a_duration_is_told_in_its_own_unit(seconds, words):
    assert progress.in_words(seconds) == words

"""`Rates` gives the schedule's rates, in blocks or one by one."""

import pytest
from conftest import settings_of

from gbn_keras.training.planner import Planner
from gbn_keras.training.run import rates


def plan_of(*flags):
    flags = ("--dataset=digits", "--run_dir=unused", "--batch_size=384", *flags)
    return Planner(1536).plan(settings_of(*flags))


@pytest.mark.parametrize(
    "flags", [(), ("--stretch=5", "--warmup_updates=7"), ("--lr_scaling=none",)]
)
def test_they_are_the_schedules(flags, monkeypatch):
    monkeypatch.setattr(rates, "_BLOCK", 10)
    plan = plan_of(*flags)
    found = rates.Rates(plan)
    # Before the first update, in order, over an end of a block, and back.
    for update in (-1, 0, 1, 5, 9, 10, 11, 40, 41, 12, 0):
        assert found(update) == float(plan.learning_rate(update))


def test_with_auto_they_are_those_of_the_last_update():
    plan = plan_of("--stretch=auto", "--micro_batch_size=32", "--lr_scaling=gain")
    progress = plan.learning_rate.progress
    progress.build()
    found = rates.Rates(plan)
    for update, gain in enumerate((2.0, 11.0, 5.5)):
        progress.advance(gain)
        assert found(update) == pytest.approx(0.03 * gain)

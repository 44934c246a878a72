"""The rates of a `VariableRate` are those of the plan that it follows."""

import pytest
from conftest import settings_of

from gbn_keras.training.model.variable_rate import VariableRate
from gbn_keras.training.planner import Planner

FLAGS = ("--dataset=digits", "--batch_size=768", "--run_dir=unused")


def plan_of(*flags):
    return Planner(1536).plan(settings_of(*FLAGS, *flags))


def rates(schedule, plan):
    return [float(schedule(update)) for update in range(plan.updates)]


def test_the_rates_are_those_of_each_plan_that_it_follows():
    first, *others = [
        plan_of("--epochs=2", *flags)
        for flags in (
            ("--stretch=1", "--lr_scaling=none"),
            ("--stretch=1",),
            ("--stretch=8", "--lr_scaling=0.3"),
            ("--stretch=1", "--lr_scaling=linear"),
        )
    ]
    rate = VariableRate(first)
    for plan in (first, *others):
        rate.follow(plan)
        assert rates(rate, plan) == rates(plan.learning_rate, plan)
        assert len(set(rates(rate, plan))) > 1


@pytest.mark.parametrize(
    "flags",
    [
        ("--stretch=auto", "--micro_batch_size=32"),
        ("--stretch=1", "--warmup_updates=1"),
        ("--stretch=7",),
        ("--stretch=1", "--noise_scale", "--micro_batch_size=32"),
        ("--stretch=1", "--model=alexnet"),
    ],
)
def test_it_does_not_fit_what_its_two_numbers_do_not_tell(flags):
    assert VariableRate.fits(plan_of("--stretch=1"))
    assert not VariableRate.fits(plan_of(*flags))

"""The program's Adam follows the plan. `run/test_checkpoint.py` resumes one."""

import keras
import numpy as np
import pytest
from conftest import settings_of

from gbn_keras import BatchSizeInvariantAdam
from gbn_keras.training.errors import UsageError
from gbn_keras.training.model.optimizer import make_optimizer
from gbn_keras.training.planner import Planner
from gbn_keras.training.run.run_directory import digest, refuse_other_flags
from gbn_keras.training.study import prepare_study


def plan_of(*flags):
    return Planner(1536).plan(settings_of("--run_dir=run", *flags))


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], "learning rate 0.001; adam with betas 0.9, 0.999"),
        (
            ["--batch_size=768"],
            "learning rate 0.001 x sqrt(24) = 0.0049; adam with betas 0.9, 0.999",
        ),
        (
            ["--batch_size=256", "--stretch=1"],
            "learning rate 0.001 x sqrt(8) = 0.00283; adam with betas 0.2, 0.992",
        ),
        (
            ["--batch_size=256", "--stretch=4", "--learning_rate=0.01"],
            "learning rate 0.01 x sqrt(8) = 0.0283; adam with betas 0.8, 0.998",
        ),
        (
            ["--batch_size=768", "--stretch=1", "--lr_scaling=none"],
            "learning rate 0.001; adam with betas 0.9, 0.999",
        ),
        (
            ["--batch_size=256", "--stretch=1", "--optimizer=adamw"],
            "learning rate 0.001 x sqrt(8) = 0.00283; adamw with betas 0.2, 0.992, "
            "weight decay 0.0113",
        ),
        (
            [
                *("--batch_size=256", "--stretch=1", "--lr_scaling=linear"),
                *("--second_moment=small_batch", "--optimizer=adamw"),
                *("--weight_decay=0.1", "--gradient_noise=3"),
            ],
            "learning rate 0.001 x 8 = 0.008; adamw with betas 0.430467, 0.992028, "
            "weight decay 0.1, second moment of batches of 32; gradient noise of "
            "variance 3",
        ),
        (
            ["--batch_size=256", "--stretch=auto"],
            "learning rate 0.001 x sqrt(8) = 0.00283; adam with betas 0.9, 0.999 "
            "(not scaled)",
        ),
    ],
)
def test_the_plan_says_what_adam_is_made_with(flags, expected):
    plan = plan_of("--optimizer=adam", *flags)
    assert expected in plan.describe().splitlines()
    # And the flagfile of the run gives the same plan.
    again = plan_of(*plan.settings.flagfile().splitlines())
    assert (again.settings, again.adam) == (plan.settings, plan.adam)
    assert plan.settings.l2 == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--optimizer=adam", "--l2=1e-4"], "--l2: got 0.0001, wanted 0 with --optim"),
        (
            ["--second_moment=small_batch"],
            "--second_moment: got small_batch, wanted ba",
        ),
        (["--weight_decay=0.1"], "--weight_decay: got 0.1, wanted none with --optimi"),
        (
            ["--optimizer=adam", "--weight_decay=0"],
            "--weight_decay: got 0, wanted none with --optimizer=adam",
        ),
        (["--optimizer=adamw", "--weight_decay=-1"], "--weight_decay must be a finite"),
        (
            ["--optimizer=adam", "--batch_size=768", "--stretch=1"],
            "--optimizer: got adam, wanted sgd where an update does the work of 24 of",
        ),
        (
            ["--optimizer=adam", "--batch_size=320", "--stretch=1"],
            "--optimizer: got adam, wanted sgd where an update does the work of 10 of",
        ),
        (
            [
                *("--optimizer=adam", "--batch_size=256", "--virtual_batch_size=0"),
                "--second_moment=small_batch",
            ],
            "--second_moment: got small_batch, wanted batch, because plain batch",
        ),
        (
            [
                *("--optimizer=adam", "--batch_size=256", "--micro_batch_size=256"),
                "--second_moment=small_batch",
            ],
            "--micro_batch_size: got 256, wanted at most 128 with --second_moment=smal",
        ),
        (
            ["--optimizer=adam", "--batch_size=16", "--second_moment=small_batch"],
            "--second_moment: got small_batch, wanted batch, because 16 examples",
        ),
    ],
)
def test_what_cannot_be_is_refused(flags, message):
    with pytest.raises(UsageError) as error:
        plan_of(*flags)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_optimizer_has_all_that_is_planned():
    flags = ("--optimizer=adamw", "--batch_size=256", "--stretch=2", "--clipnorm=3")
    optimizer = make_optimizer(plan_of(*flags))
    assert type(optimizer) is keras.optimizers.AdamW
    assert optimizer.epsilon == pytest.approx(1e-7 / np.sqrt(8))
    assert optimizer.weight_decay == pytest.approx(0.004 * 4 / np.sqrt(8))
    assert optimizer.global_clipnorm == 3
    invariant = make_optimizer(plan_of(*flags, "--second_moment=small_batch"))
    assert type(invariant) is BatchSizeInvariantAdam
    assert invariant.small_batch_size == 32 and invariant.epsilon == 1e-7
    plain = make_optimizer(plan_of("--optimizer=adam"))
    differs = {"name": "", "learning_rate": 0, "global_clipnorm": None}
    expected = keras.optimizers.Adam().get_config()
    assert plain.get_config() | differs == expected | differs


def test_a_run_from_before_the_flags_is_the_same_run(tmp_path):
    settings = settings_of(f"--run_dir={tmp_path}", "--optimizer=sgd")
    assert digest(settings) == digest(settings_of())
    assert "optimizer" not in settings.flagfile()
    (tmp_path / "flags.cfg").write_text(settings.flagfile())
    refuse_other_flags(tmp_path, settings)
    with pytest.raises(UsageError, match="--optimizer=adam here"):
        refuse_other_flags(tmp_path, settings_of("--optimizer=adam"))


def test_a_study_compares_five_arms():
    flags = ("--mode=study", "--batch_size=256", "--second_moment=small_batch")
    settings = settings_of(*flags, "--optimizer=adam")
    _, plans = prepare_study(settings, Planner(1536))
    found = {
        arm: (plan.adam.betas[0], plan.adam.small_batch_size)
        for arm, plan in plans.items()
    }
    assert found == {
        "SB": (0.9, None),
        "LB": (0.9, None),
        "+LR": (0.2, None),
        "+GBN": (pytest.approx(0.9**8), 32),
        "+RA": (0.9, 32),
    }
    settings = settings_of("--mode=study", "--batch_size=768", "--optimizer=adam")
    with pytest.raises(UsageError, match=r"work of 24 .* This is the arm \+LR\."):
        prepare_study(settings, Planner(1536))

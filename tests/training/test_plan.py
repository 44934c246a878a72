"""The plan says what follows from the settings, and refuses those without a sense."""

import pytest

from gbn_keras import REGIMES
from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner

MNIST = ("--dataset=mnist", "--download")  # Allowed, so that no folder is looked for.


def test_the_design_documents_example(make_settings):
    plan = Planner(60_000).plan(
        make_settings(*MNIST, "--batch_size=4096", "--epochs=10")
    )
    assert plan.describe().splitlines() == [
        "batch 4096 = 32 ghosts of 128",
        "learning rate 0.1 x sqrt(32) = 0.566",
        "320 epochs = 4,480 updates (small batch: 10 epochs = 4,680 updates)",
    ]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ((), "batch 128 = 1 ghost of 128"),
        (("--virtual_batch_size=0",), "batch 128, plain batch normalization"),
        (("--batch_size=1000",), "batch 1000 = 6 ghosts of 128 and one of 232"),
        (("--batch_size=64",), "batch 64 = 1 ghost of 64"),
        (("--batch_size=512", "--lr_scaling=none"), "learning rate 0.1"),
        (
            ("--batch_size=512", "--lr_scaling=linear", "--warmup_updates=1500"),
            "learning rate 0.1 x 4 = 0.4, reached after 1,500 updates",
        ),
        (
            ("--batch_size=512", "--lr_scaling=none", "--gradient_noise=full"),
            "learning rate 0.1; gradient noise of variance 3",
        ),
        (
            ("--batch_size=64", "--gradient_noise=full"),
            "learning rate 0.1 x sqrt(0.5) = 0.0707",
        ),
        (("--batch_size=512", "--lr_scaling=1.5"), "learning rate 0.1 x 1.5 = 0.15"),
        (
            ("--batch_size=512", "--stretch=1", "--learning_rate=0.2"),
            "learning rate 0.2 x sqrt(4) = 0.4",
        ),
        (
            ("--batch_size=512", "--stretch=2.5", "--max_updates=70"),
            "125 epochs = 14,625 updates (small batch: 50 epochs = 23,400 updates), "
            "stopped after 70",
        ),
    ],
)
def test_the_plan_says_what_it_derived(make_settings, flags, expected):
    plan = Planner(60_000).plan(make_settings(*MNIST, *flags))
    assert expected in plan.describe().splitlines()


@pytest.mark.parametrize(
    "flags, replicas, expected",
    [
        (("--micro_batch_size=512",), 1, "; 1 replica x 8 micro-batches of 512"),
        ((), 4, "; 4 replicas x 1 micro-batch of 1024"),
        (("--micro_batch_size=256",), 4, "; 4 replicas x 4 micro-batches of 256"),
        (("--micro_batch_size=9999",), 1, ""),
        (
            ("--micro_batch_size=768",),
            1,
            "; 1 replica x 4 micro-batches of 768 and one of 1024",
        ),
    ],
)
def test_the_plan_says_who_takes_what(make_settings, flags, replicas, expected):
    settings = make_settings(*MNIST, "--batch_size=4096", *flags)
    first_line = Planner(60_000, replicas).plan(settings).describe().splitlines()[0]
    assert first_line == f"batch 4096 = 32 ghosts of 128{expected}"


@pytest.mark.parametrize(
    "flags, replicas, expected",
    [
        ((), 64, "batch 4096 = 32 ghosts of 128 on 64 replicas, two a ghost"),
        ((), 1024, "batch 4096 = 32 ghosts of 128 on 1024 replicas, 32 a ghost"),
        (
            ("--virtual_batch_size=100",),
            8,
            "batch 4096 = 39 ghosts of 100 and one of 196 on 8 replicas, 512 examples "
            "each, which cuts ghosts",
        ),
        # One micro-batch takes what remains of a share.
        (
            ("--micro_batch_size=128", "--virtual_batch_size=256"),
            32,
            "batch 4096 = 16 ghosts of 256 on 32 replicas, two a ghost",
        ),
    ],
)
def test_the_plan_says_how_replicas_cut_ghosts(
    make_settings, flags, replicas, expected
):
    settings = make_settings(*MNIST, "--batch_size=4096", *flags)
    plan = Planner(60_000, replicas).plan(settings)
    assert plan.describe().splitlines()[0] == expected
    assert plan.micro_batch_size == plan.share


@pytest.mark.parametrize(
    "flags, replicas, message",
    [
        (
            ("--batch_size=1000",),
            3,
            "--batch_size: batch 1000 on 3 replicas must be a multiple of 3 to split "
            "evenly into shares. Choose 999 or 1002",
        ),
        (
            ("--batch_size=4096", "--micro_batch_size=32"),
            64,
            "--micro_batch_size: got 32, wanted 64 or 0, because 64 replicas of 64 "
            "examples cut ghosts of 128. A ghost can be cut by replicas, not by",
        ),
        (
            ("--batch_size=4096", "--jit=on"),
            64,
            "--jit: got on, wanted auto or off, because ghosts of 128 that are cut by "
            "64 replicas cannot be compiled",
        ),
        (
            ("--batch_size=4096", "--stretch=auto"),
            64,
            "--stretch: got auto, wanted full or a number, because 64 replicas of 64 "
            "examples cut ghosts of 128",
        ),
        (
            ("--batch_size=4096", "--noise_scale"),
            64,
            "--noise_scale: got True, wanted False, because 64 replicas of 64",
        ),
        (
            ("--batch_size=300", "--strategy=tpu", "--virtual_batch_size=64"),
            3,
            "--virtual_batch_size: got 64, wanted a multiple or a divisor of the 100 "
            "examples of a replica with --strategy=tpu",
        ),
        (
            ("--batch_size=1000", "--virtual_batch_size=0"),
            3,
            "--batch_size: batch 1000 on 3 replicas must be a multiple of 3 to split "
            "evenly into shares. Choose 999 or 1002",
        ),
        (
            ("--batch_size=512", "--virtual_batch_size=0", "--micro_batch_size=128"),
            2,
            "--micro_batch_size: got 128, wanted 0 with --virtual_batch_size=0",
        ),
        (
            ("--batch_size=512", "--micro_batch_size=200"),
            1,
            "--micro_batch_size: got 200, wanted a multiple of the ghost size, 128",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(make_settings, flags, replicas, message):
    with pytest.raises(UsageError) as error:
        Planner(60_000, replicas).plan(make_settings(*MNIST, *flags))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_flagfile_has_nothing_left_to_derive(make_settings):
    settings = Planner(1536).plan(make_settings("--batch_size=512")).settings
    assert settings.stretch == 16
    assert settings.model == "f1_digits"
    assert settings.virtual_batch_size == settings.small_batch_size == 32
    unset = [line for line in settings.flagfile().splitlines() if "None" in line]
    assert not unset
    # A plan made of it is the same plan.
    again = make_settings(*settings.flagfile().splitlines())
    assert Planner(1536).plan(again).settings == settings


def test_other_epochs_and_rates_keep_the_regimes_shape(make_settings):
    settings = make_settings(*MNIST, "--epochs=10", "--learning_rate=0.5")
    plan = Planner(60_000).plan(settings)
    rates = [float(plan.learning_rate(468 * epoch)) for epoch in (0, 2, 4, 6)]
    assert rates == pytest.approx([0.5, 0.05, 0.005, 0.0005])


@pytest.mark.parametrize(
    "flags, epochs",
    [
        (("--batch_size=128",), [1, 2, 3, 4, 5, 6]),
        (("--batch_size=256",), [1, 2, 4, 6, 8, 10, 12]),
        (("--batch_size=256", "--eval_every=5"), [1, 5, 10, 12]),
    ],
)
def test_evaluation_comes_once_a_small_batch_epoch_and_at_the_end(
    make_settings, flags, epochs
):
    plan = Planner(60_000).plan(make_settings(*MNIST, "--epochs=6", *flags))
    assert plan.evaluation_epochs == epochs


@pytest.mark.parametrize(
    "flags, names, received",
    [
        (("--batch_size=60001",), "batch_size", "60001"),
        (("--batch_size=0",), "batch_size", "0"),
        (("--small_batch_size=0",), "small_batch_size", "0"),
        (("--small_batch_size=70000", "--batch_size=512"), "small_batch_size", "70000"),
        (("--batch_size=512", "--virtual_batch_size=513"), "virtual_batch_size", "513"),
        (("--virtual_batch_size=-1",), "virtual_batch_size", "-1"),
        (("--model=resnet9000",), "model", "'resnet9000'"),
        (("--lr_scaling=cubic",), "lr_scaling", "'cubic'"),
        (("--lr_scaling=-1",), "lr_scaling", "-1"),
        (("--batch_size=512", "--stretch=0.5"), "stretch", "0.5"),
        (("--batch_size=512", "--stretch=half"), "stretch", "'half'"),
        (("--warmup_updates=-1",), "warmup_updates", "-1"),
        (("--epochs=0",), "epochs", "0"),
        (("--learning_rate=0",), "learning_rate", "0"),
        (("--learning_rate=nan",), "learning_rate", "nan"),
        (("--clipnorm=-2",), "clipnorm", "-2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make_settings, flags, names, received):
    with pytest.raises(UsageError) as error:
        Planner(60_000).plan(make_settings(*MNIST, *flags))
    message = str(error.value)
    assert message.startswith(f"--{names}")
    assert received in message
    assert "\n" not in message


def test_a_data_set_without_a_network_of_its_own_wants_one_named(make_settings):
    settings = make_settings("--dataset=svhn_cropped", "--download")
    with pytest.raises(UsageError, match="--model: got none, .* svhn_cropped has no"):
        Planner(60_000).plan(settings)


@pytest.mark.parametrize(
    "flags, updates",
    [
        # F1's rate falls after 10 of 50 epochs, of 468 small batches each.
        (("--batch_size=128",), 4680),
        (("--batch_size=4096",), 4680),
        (("--batch_size=4096", "--stretch=1"), 147),
        (("--batch_size=1024", "--stretch=2", "--epochs=25"), 585),
        (("--batch_size=4096", "--max_updates=100"), 100),
        # ResNet-44's falls after 81 of 200.
        (("--batch_size=128", "--model=resnet20"), 81 * 468),
    ],
)
def test_the_high_rate_phase_ends_where_the_rate_falls(make_settings, flags, updates):
    plan = Planner(60_000).plan(make_settings(*MNIST, *flags))
    assert plan.high_rate_updates == updates
    rates = [float(plan.learning_rate(u)) for u in (0, updates - 1, updates)]
    assert rates[0] == rates[1]
    assert (rates[2] < rates[1]) == (updates != 100)


def test_networks_of_other_sizes_have_the_regime_of_their_relative(make_settings):
    for name, relative in (("resnet20", "resnet44"), ("wresnet10_2", "wresnet16_4")):
        plan = Planner(60_000).plan(make_settings(*MNIST, f"--model={name}"))
        assert plan.regime == REGIMES[relative]

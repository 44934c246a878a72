"""`Planner`: derives the values that the settings leave open, for each training."""

import contextlib
import dataclasses
import math
import re

from gbn_keras.arguments import integer, positive_number
from gbn_keras.networks import find_network
from gbn_keras.regime import REGIMES, Regime
from gbn_keras.regime_adaptation import RegimeAdaptation
from gbn_keras.training.errors import UsageError
from gbn_keras.training.machine import check_machine, planned_micro_batch
from gbn_keras.training.model.optimizer import (
    ADAM_RATE,
    check_optimizer,
    planned_adam,
    resolved_weight_decay,
)
from gbn_keras.training.plan import Plan
from gbn_keras.training.run.run_directory import with_run_dir
from gbn_keras.training.settings import ResolvedSettings, Settings

# The network for each data set if --model is not set.
_DEFAULT_MODEL = {
    "digits": "f1_digits",
    "mnist": "f1",
    "fashion_mnist": "f1",
    "cifar10": "resnet44",
    "cifar100": "wresnet16_4",
    "imagenet2012": "resnet50",
}

# A limit, because a plan lists the epochs after which to evaluate.
_MOST_EPOCHS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Planner:
    """Plans trainings that use the same examples and the same devices.

    Args:
        examples: Number of training examples.
        replicas: Number of replicas that share each batch.
        data: The chosen examples and features, in words; empty if there was no choice.
    """

    examples: int
    replicas: int = 1
    data: str = ""

    @classmethod
    def of(cls, data, strategy) -> "Planner":
        """The planner for a loaded data set and a `tf.distribute` strategy."""
        return cls(data.examples, strategy.num_replicas_in_sync, data.choice)

    def plan(self, settings: Settings) -> Plan:
        """The whole plan of one training, including its run directory.

        Raises:
            UsageError: If the settings contradict each other, the data or the devices.
        """
        with _names_of_flags():
            return _make_plan(settings, self)

    def regime(self, settings: Settings) -> Regime:
        """The small batch's regime: the network's, with the settings' changes.

        Raises:
            UsageError: If the settings name no network, or an impossible regime.
        """
        with _names_of_flags():
            return _regime(settings)


@contextlib.contextmanager
def _names_of_flags():
    """Turns the library's errors into the program's."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        # The library's arguments have the names of the flags.
        raise UsageError(f"--{error}") from error


def _make_plan(settings, planner):
    examples, replicas = planner.examples, planner.replicas
    regime = _regime(settings)
    batch = settings.batch_size
    batch = (
        regime.small_batch_size if batch is None else integer("batch_size", batch, 1)
    )
    for name, size in (
        ("batch_size", batch),
        ("small_batch_size", regime.small_batch_size),
    ):
        if size > examples:
            raise UsageError(
                f"--{name}: got {size}, wanted at most the {examples:,} training "
                f"examples of {settings.dataset}. Choose a smaller batch."
            )
    ratio = batch / regime.small_batch_size
    stretch = ratio if settings.stretch == "full" else _number(settings.stretch)
    if isinstance(stretch, str) and stretch != "auto":
        raise UsageError(
            f"--stretch: got {stretch!r}, wanted full (here {ratio:g}), auto, or a "
            f"number of at least {min(1, ratio):g}."
        )
    adaptation = {
        "small_batch_size": regime.small_batch_size,
        "batch_size": batch,
        "stretch": stretch,
    }
    learning_rate = RegimeAdaptation(
        regime.learning_rate_schedule(examples),
        lr_scaling=_number(settings.lr_scaling),
        warmup_updates=settings.warmup_updates,
        **adaptation,
    )
    l2 = regime.l2_schedule(examples)
    if not isinstance(l2, float):
        l2 = RegimeAdaptation(l2, lr_scaling="none", **adaptation)
    settings = dataclasses.replace(
        settings,
        model=model_name(settings),
        batch_size=batch,
        small_batch_size=regime.small_batch_size,
        virtual_batch_size=_virtual_batch_size(settings, regime, batch),
        lr_scaling=learning_rate.lr_scaling,
        stretch=stretch,
        gradient_noise=_gradient_noise(settings, ratio),
        epochs=regime.epochs,
        learning_rate=regime.learning_rate[0][1],
        l2=regime.l2[0][1],
        weight_decay=resolved_weight_decay(settings),
        clipnorm=regime.clipnorm,
        eval_every=settings.eval_every or _eval_every(stretch, ratio),
    )
    check_machine(settings, replicas)
    plan = Plan(
        settings=ResolvedSettings(**vars(with_run_dir(settings))),
        regime=regime,
        examples=examples,
        learning_rate=learning_rate,
        l2=l2,
        replicas=replicas,
        adam=planned_adam(settings, regime, learning_rate),
        micro_batch_size=planned_micro_batch(settings, replicas),
        data=planner.data,
    )
    if plan.epochs > _MOST_EPOCHS:
        raise UsageError(
            f"--epochs: got {regime.epochs}, which is {plan.epochs:,} after stretching "
            f"by {plan.stretch:g}, wanted at most {_MOST_EPOCHS:,}. Lower it or "
            "--stretch."
        )
    return dataclasses.replace(plan, profile=_profile(settings.profile, plan.updates))


def model_name(settings: Settings) -> str:
    """The name of the network: the settings', or else the data set's usual one.

    Raises:
        UsageError: If there is no network of that name.
    """
    model = settings.model or _DEFAULT_MODEL.get(settings.dataset)
    if model is None:
        raise UsageError(
            f"--model: got none, wanted a network, because {settings.dataset} has no "
            "usual one. Name one; --help lists them."
        )
    try:
        find_network(model)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    return model


def _regime(settings):
    check_optimizer(settings)
    regime = REGIMES[find_network(model_name(settings))[1]]
    l2 = settings.l2
    if settings.optimizer != "sgd":
        regime, l2 = regime.with_learning_rate(ADAM_RATE), 0
    if settings.small_batch_size is not None:
        size = integer("small_batch_size", settings.small_batch_size, 1)
        regime = dataclasses.replace(regime, small_batch_size=size)
    if settings.epochs is not None:
        regime = regime.with_epochs(settings.epochs)
    if settings.learning_rate is not None:
        regime = regime.with_learning_rate(settings.learning_rate)
    if l2 is not None:
        regime = regime.with_l2(l2)
    if settings.clipnorm is not None:
        if settings.clipnorm != 0:
            positive_number("clipnorm", settings.clipnorm)
        regime = dataclasses.replace(regime, clipnorm=settings.clipnorm)
    return regime


def _eval_every(stretch, ratio):
    """The epochs between evaluations, if they are not set.

    Once for each epoch of the small batch's regime, so that all arms of a study are
    evaluated equally often. With `auto`, the stretch may turn out to be anything from 1
    to `ratio`; this is the middle.
    """
    return max(1, round(math.sqrt(ratio) if stretch == "auto" else stretch))


def _gradient_noise(settings, ratio):
    """The variance of the examples' weights."""
    noise = _number(settings.gradient_noise)
    noise = {"none": 0.0, "full": max(0.0, ratio - 1)}.get(noise, noise)
    if isinstance(noise, str) or noise < 0:
        raise UsageError(
            f"--gradient_noise: got {settings.gradient_noise!r}, wanted none, full "
            f"(here {max(0.0, ratio - 1):g}) or a variance of at least 0."
        )
    if noise and settings.stretch == "auto":
        raise UsageError(
            f"--gradient_noise: got {settings.gradient_noise}, wanted none with "
            "--stretch=auto, which measures the noise of the data alone. Leave one out."
        )
    return positive_number("gradient_noise", noise) if noise else noise


def _virtual_batch_size(settings, regime, batch):
    size = settings.virtual_batch_size
    if size is None:
        return min(regime.small_batch_size, batch)
    if integer("virtual_batch_size", size, 0) > batch:
        raise UsageError(
            f"--virtual_batch_size: got {size}, wanted at most the batch size, {batch}"
            ", or 0 for plain batch normalization. Lower it, or raise --batch_size."
        )
    return size


def _profile(text, updates):
    """The updates to profile as a range; refuses updates that will not be made."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last <= updates:
        raise UsageError(
            f"--profile: got {text!r}, wanted FIRST-LAST, with updates from 1 to "
            f"{updates:,}, for example 1-{min(10, updates)}."
        )
    return range(first, last + 1)


def _number(value):
    """The finite number that a flag's text stands for, or else the text."""
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value

"""The optimizer of a training: what its flags mean, and how it is made."""

import math
from fractions import Fraction

import keras

from gbn_keras.arguments import positive_number
from gbn_keras.optimizers import L2SGD, BatchSizeInvariantAdam
from gbn_keras.optimizers.scale_adam import decayed_betas, scaled_betas
from gbn_keras.regime import Regime
from gbn_keras.regime_adaptation import RegimeAdaptation
from gbn_keras.training.errors import UsageError
from gbn_keras.training.plan import AdamSettings, Plan
from gbn_keras.training.settings import Settings

# Keras's own defaults.
ADAM_RATE = 0.001
_BETAS, _EPSILON, _WEIGHT_DECAY = (0.9, 0.999), 1e-7, 0.004


def check_optimizer(settings: Settings) -> None:
    """Raises a `UsageError` for flags that another optimizer has."""
    optimizer = settings.optimizer
    if optimizer != "sgd" and settings.l2:
        raise UsageError(
            f"--l2: got {settings.l2:g}, wanted 0 with --optimizer={optimizer}, which "
            "would divide the penalty's gradient as the loss's. Use --optimizer=adamw "
            "with --weight_decay."
        )
    if optimizer == "sgd" and settings.second_moment != "batch":
        raise UsageError(
            f"--second_moment: got {settings.second_moment}, wanted batch with "
            "--optimizer=sgd, which has none. Leave it out, or use adam or adamw."
        )
    if settings.weight_decay is None:
        return
    if optimizer != "adamw":
        raise UsageError(
            f"--weight_decay: got {settings.weight_decay:g}, wanted none with "
            f"--optimizer={optimizer}. Leave it out, or use adamw."
        )
    if settings.weight_decay != 0:
        positive_number("weight_decay", settings.weight_decay)


def resolved_weight_decay(settings: Settings) -> float | None:
    """The decay at the small batch; `None` if the optimizer is not AdamW."""
    if settings.optimizer != "adamw":
        return None
    return _WEIGHT_DECAY if settings.weight_decay is None else settings.weight_decay


def planned_adam(
    settings: Settings, regime: Regime, rate: RegimeAdaptation
) -> AdamSettings | None:
    """Adam's settings for resolved settings; `None` for SGD.

    An update does the work of `k = M / stretch` updates of the small batch. So the
    moments forget as much as in `k` of these, and the decay is that of `k`. Without a
    scaled rate, Adam stays as Keras has it.

    Raises:
        UsageError: If the betas cannot be scaled.
    """
    if settings.optimizer == "sgd":
        return None
    is_invariant = settings.second_moment == "small_batch"
    small = regime.small_batch_size if is_invariant else None
    decay, epsilon = settings.weight_decay, _EPSILON
    ratio = Fraction(settings.batch_size, regime.small_batch_size)
    if is_invariant and ratio < 1:
        raise UsageError(
            "--second_moment: got small_batch, wanted batch, because "
            f"{settings.batch_size} examples tell nothing about batches of {small}. "
            "Raise --batch_size, or leave it out."
        )
    if rate.scale == 1:
        return AdamSettings(_BETAS, epsilon, decay, small)
    if not is_invariant:
        epsilon /= math.sqrt(ratio)
    if rate.is_auto:
        return AdamSettings(_BETAS, epsilon, decay, small, is_open=True)
    work = (ratio / Fraction(settings.stretch)).limit_denominator(10**9)
    try:
        betas = (decayed_betas if is_invariant else scaled_betas)(_BETAS, work)
    except ValueError as error:
        raise UsageError(
            f"--optimizer: got {settings.optimizer}, wanted sgd where an update does "
            f"the work of {float(work):g} of the small batch's (M / stretch), because "
            f"(1 - beta_1) x {float(work):g} with beta_1={_BETAS[0]} is not below 1. "
            "Take a smaller --batch_size, a longer --stretch, "
            "--second_moment=small_batch or --lr_scaling=none."
        ) from error
    if decay is not None:
        decay *= float(work) / rate.scale
    return AdamSettings(betas, epsilon, decay, small)


def make_optimizer(plan: Plan) -> keras.optimizers.Optimizer:
    """The plan's optimizer."""
    rate, adam = plan.learning_rate, plan.adam
    clipnorm = plan.settings.clipnorm or None
    if adam is None:
        return L2SGD(
            rate,
            l2=plan.l2,
            l2_kernels_only=plan.settings.l2_kernels_only,
            momentum=plan.regime.momentum,
            global_clipnorm=clipnorm,
        )
    arguments = {
        "beta_1": adam.betas[0],
        "beta_2": adam.betas[1],
        "epsilon": adam.epsilon,
        "global_clipnorm": clipnorm,
    }
    if adam.weight_decay is not None:
        arguments["weight_decay"] = adam.weight_decay
    if adam.small_batch_size:
        return BatchSizeInvariantAdam(rate, adam.small_batch_size, **arguments)
    if adam.weight_decay is not None:
        return keras.optimizers.AdamW(rate, **arguments)
    return keras.optimizers.Adam(rate, **arguments)

"""`scale_adam`: Adam's settings for another batch size."""

import math
import numbers
from fractions import Fraction

import keras
from keras.optimizers.schedules import LearningRateSchedule

from gbn_keras._keras_internals import learning_rate_of
from gbn_keras.arguments import positive_number
from gbn_keras.optimizers.batch_size_invariant_adam import BatchSizeInvariantAdam
from gbn_keras.regime_adaptation import RegimeAdaptation, lr_scale


def scale_adam(
    optimizer: keras.optimizers.Adam, batch_ratio: float
) -> keras.optimizers.Adam:
    """Adam for another batch size, with the same training per sample.

    With `k = batch_ratio`, one update then does the work of `k` updates of the batch
    size that the optimizer was tuned for. So you train as many epochs as before:

    | setting | Adam, AdamW | `BatchSizeInvariantAdam` |
    |---|---|---|
    | rate | `rate * sqrt(k)` | `rate * k` |
    | `beta_1`, `beta_2` | `1 - k * (1 - beta)` | `beta ** k` |
    | `epsilon` | `epsilon / sqrt(k)` | as it was |
    | `weight_decay` | `weight_decay * sqrt(k)` | as it was |
    | `ema_momentum` | `ema_momentum ** k` | `ema_momentum ** k` |
    | `ema_overwrite_frequency` | divided by `k` | divided by `k` |

    The first column is the square-root rule, which holds if the gradient's noise is
    much larger than the gradient. In the second one, the second moment does not depend
    on the batch, so it needs no such condition. Keras multiplies `weight_decay` by the
    rate: both columns keep the decay per sample.

    The rate may be a number or a schedule. A schedule that counts updates of the old
    batch size becomes a `RegimeAdaptation` with `stretch=1`. A `RegimeAdaptation` stays
    as it is, because it scales the rate already. Clipping stays as it is, too.

    Example:
    ```python
    adam = scale_adam(keras.optimizers.Adam(0.001), batch_ratio=256 / 64)
    ```

    Args:
        optimizer: Adam, AdamW or another subclass, tuned for a batch size. It stays as
            it is. Call `exclude_from_weight_decay` on the result: an optimizer's
            configuration does not have it.
        batch_ratio: `k`, the new batch size divided by the old one. It may be below 1.

    Returns:
        A new optimizer of the same class, without state.

    Raises:
        ValueError: If the optimizer is not Adam; if its rate is a function; if the
            ratio is not a positive number; or if `k * (1 - beta)` is 1 or more for one
            of the betas, so that the moment would forget everything at each update.

    Reference:
        Malladi, Lyu, Panigrahi, Arora, "On the SDEs and Scaling Rules for Adaptive
        Gradient Algorithms", the square root scaling rule for Adam, arXiv 2205.10287.
        Wang, Aitchison, "Batch size invariant Adam", arXiv 2402.18824.
        Busbridge et al., "How to Scale Your EMA", the EMA scaling rule,
        arXiv 2307.13813. Wang, Aitchison, "How to set AdamW's weight decay as you
        scale model and dataset size", arXiv 2405.13698: decay per epoch.
    """
    if not isinstance(optimizer, keras.optimizers.Adam):
        raise ValueError(
            "optimizer must be Adam, AdamW or a subclass of them. Received: "
            f"{type(optimizer).__name__}. For SGD, adapt the rate with "
            "RegimeAdaptation; of a LossScaleOptimizer, scale the inner_optimizer."
        )
    ratio = Fraction(positive_number("batch_ratio", batch_ratio))
    ratio = ratio.limit_denominator(10_000)
    positive_number("batch_ratio", float(ratio))
    rate = learning_rate_of(optimizer)
    if callable(rate) and not isinstance(rate, LearningRateSchedule):
        raise ValueError(
            "learning_rate must be a number or a LearningRateSchedule. Received: "
            f"{rate!r}. Make a schedule of the function."
        )
    config = optimizer.get_config()
    betas = config["beta_1"], config["beta_2"]
    if isinstance(optimizer, BatchSizeInvariantAdam):
        lr_scaling, root = "linear", 1.0
        betas = decayed_betas(betas, ratio)
    else:
        lr_scaling, root = "sqrt", math.sqrt(ratio)
        betas = scaled_betas(betas, ratio)
    # A RegimeAdaptation is in the configuration as it is.
    if isinstance(rate, LearningRateSchedule):
        if not isinstance(rate, RegimeAdaptation):
            config["learning_rate"] = RegimeAdaptation(
                rate,
                small_batch_size=ratio.denominator,
                batch_size=ratio.numerator,
                lr_scaling=lr_scaling,
                stretch=1,
            )
    else:
        config["learning_rate"] *= lr_scale(lr_scaling, ratio)
    config["beta_1"], config["beta_2"] = betas
    config["epsilon"] /= root
    if config["weight_decay"]:
        config["weight_decay"] *= root
    if config["use_ema"]:
        config["ema_momentum"] **= float(ratio)
        if config["ema_overwrite_frequency"]:
            frequency = round(config["ema_overwrite_frequency"] / ratio)
            config["ema_overwrite_frequency"] = max(1, frequency)
    return type(optimizer).from_config(config)


def scaled_betas(
    betas: tuple[float, float], batch_ratio: float | Fraction
) -> tuple[float, float]:
    """`1 - k * (1 - beta)` for both betas of Adam, with `k = batch_ratio`.

    Raises:
        ValueError: If `k` is above 1, and one of them would be 0 or less.
    """
    ratio = Fraction(batch_ratio)
    for name, beta in _named(betas).items():
        if ratio > 1 and (1 - _fraction(beta)) * ratio >= 1:
            most = float(1 / (1 - _fraction(beta)))
            raise ValueError(
                f"batch_ratio must be below {most:g} with {name}={beta:g}, so that "
                f"batch_ratio x (1 - {name}) is below 1. Received: batch_ratio="
                f"{float(ratio):g}. Raise {name} at the small batch, take a smaller "
                "batch, train longer with RegimeAdaptation, or use "
                "BatchSizeInvariantAdam."
            )
    first, second = (float(1 - ratio * (1 - _fraction(beta))) for beta in betas)
    return first, second


def decayed_betas(
    betas: tuple[float, float], batch_ratio: float | Fraction
) -> tuple[float, float]:
    """`beta ** k` for both betas of Adam, with `k = batch_ratio`.

    This is what `k` updates leave of a moment. `scaled_betas` is close to it if `beta`
    is close to 1.
    """
    first, second = (beta ** float(batch_ratio) for beta in _named(betas).values())
    return first, second


def _named(betas):
    """The betas by name; refuses what is no number, as tensors and functions."""
    named = dict(zip(("beta_1", "beta_2"), betas, strict=True))
    for name, beta in named.items():
        if not isinstance(beta, numbers.Real) or not 0 <= beta < 1:
            raise ValueError(
                f"{name} must be a number from 0 to below 1. Received: {name}={beta!r}."
            )
    return named


def _fraction(beta):
    """The fraction that the user meant: 0.9 is 9/10, not 8106479329266893/2**53."""
    return Fraction(repr(float(beta)))

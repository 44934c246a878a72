"""`RegimeAdaptation`: the schedule of a small batch, adapted to a large one."""

import math
from fractions import Fraction

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from gbn_keras.arguments import integer, positive_number
from gbn_keras.regime_progress import RegimeProgress


@keras.saving.register_keras_serializable(package="gbn_keras")
class RegimeAdaptation(LearningRateSchedule):
    """The learning-rate schedule of a small batch, adapted to another batch size.

    With `M = batch_size / small_batch_size`, the rate of an update (counted from 0) is

    `lr(update) = scale * schedule(update * M / stretch)`

    where `scale` is `sqrt(M)`, `M`, 1 or your own number. The covariance of an update
    is about `lr^2 / batch_size`, so `sqrt(M)` keeps it as it was at the small batch.
    `stretch` says how many times more epochs you train than at the small batch: `M`
    keeps the number of updates (the paper's regime adaptation), 1 keeps the number of
    epochs, and other values train shorter or longer.

    With `stretch="auto"`, the training finds out itself how far an update takes it
    through the small batch's schedule (AdaScale SGD): by its gain, the number of the
    small batch's updates that it is worth, from 1 to `M` (see `regime_progress.gain`).

    `lr(update) = scale * schedule(gains of the updates before, added up)`

    `LargeBatchModel` measures the gain, and `EndOfRegime` ends the training when the
    small batch's updates are done. Then `scale` may also be the gain itself.

    During warm-up, the scale grows linearly from 1 to its value, update by update, as
    in Goyal et al. (section 2.2). A scale of 1 needs no warm-up.

    Example:
    ```python
    schedule = RegimeAdaptation(
        keras.optimizers.schedules.PiecewiseConstantDecay([30_000], [0.1, 0.01]),
        small_batch_size=128,
        batch_size=4096,
    )
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=5.0)
    ```

    Args:
        schedule: Learning rate of the small batch: a number, or any
            `keras.optimizers.schedules.LearningRateSchedule` that counts small-batch
            updates.
        small_batch_size: Batch size that `schedule` was tuned for.
        batch_size: Number of examples per update, over all devices.
        lr_scaling: `"sqrt"`, `"linear"`, `"none"`, or the factor itself; `"gain"` with
            `stretch="auto"`.
        stretch: `"auto"`, or a number from 1 on (from `M` on if `M` is below 1), up to
            a rounding error. `None` means `M`.
        warmup_updates: Number of updates until the scale reaches its value.

    Attributes:
        progress: The `RegimeProgress`, which `LargeBatchModel` advances.
        small_updates_per_update: `M / stretch`, a `Fraction`; `None` with `"auto"`.

    Raises:
        ValueError: If an argument is not as described above; with `stretch="auto"`,
            when it is called, if no `LargeBatchModel` was compiled with it.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", sections 4 and 5,
        arXiv 1705.08741. Goyal et al., "Accurate, Large Minibatch SGD", section 2.2,
        arXiv 1706.02677. Johnson, Agrawal, Gu, Guestrin, "AdaScale SGD", algorithm 1,
        arXiv 2007.05105.
    """

    def __init__(
        self,
        schedule: float | LearningRateSchedule,
        small_batch_size: int,
        batch_size: int,
        lr_scaling: str | float = "sqrt",
        stretch: float | str | None = None,
        warmup_updates: int = 0,
    ):
        super().__init__()
        if not isinstance(schedule, LearningRateSchedule):
            schedule = positive_number(
                "schedule", schedule, wanted="a LearningRateSchedule or a finite number"
            )
        self.schedule = schedule
        self.small_batch_size = integer("small_batch_size", small_batch_size, 1)
        self.batch_size = integer("batch_size", batch_size, 1)
        self.progress = RegimeProgress(self.batch_size, self.small_batch_size)
        batch_ratio = Fraction(self.batch_size, self.small_batch_size)
        self.is_auto = stretch == "auto"
        # With `gain`, it is another one at each update.
        self.scale = None
        if not (self.is_auto and lr_scaling == "gain"):
            self.scale = lr_scale(lr_scaling, batch_ratio)
        self.small_updates_per_update = None
        if not self.is_auto:
            self.small_updates_per_update = _small_updates_per_update(
                batch_ratio, stretch
            )
            stretch = None if stretch is None else float(stretch)
        self.stretch = stretch
        self.lr_scaling = lr_scaling if isinstance(lr_scaling, str) else self.scale
        self.warmup_updates = integer("warmup_updates", warmup_updates, 0)

    def __call__(self, step):
        """The rate of update number `step`, a scalar integer counted from 0.

        With `stretch="auto"`, it is the rate of the update that is being made, or else
        was made last.
        """
        if self.is_auto and not self.progress.built:
            raise ValueError(
                "stretch='auto' needs a model that measures its gain. Received: a "
                "schedule that no LargeBatchModel was compiled with. Compile one with "
                "the optimizer, or give a number."
            )
        if isinstance(self.schedule, LearningRateSchedule):
            rate = self.schedule(self._small_batch_position(step))
        else:
            rate = ops.convert_to_tensor(self.schedule, dtype="float32")
        return rate * ops.cast(self._scale_at(step), rate.dtype)

    def get_config(self):
        """The constructor's arguments."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "small_batch_size": self.small_batch_size,
            "batch_size": self.batch_size,
            "lr_scaling": self.lr_scaling,
            "stretch": self.stretch,
            "warmup_updates": self.warmup_updates,
        }

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": schedule})

    def _small_batch_position(self, step):
        """`step * M / stretch`, exact wherever the result is a whole number.

        Rounding in float32 would move a rate boundary by an update. So the whole
        multiples of the denominator are multiplied as integers. Only the small rest is
        multiplied as floating point.
        """
        if self.is_auto:
            return self.progress.position
        step = ops.convert_to_tensor(step)
        ratio = self.small_updates_per_update
        if ratio.denominator == 1:
            return step * ratio.numerator
        whole = step // ratio.denominator * ratio.numerator
        rest = ops.cast(step % ratio.denominator, "float32") * ratio.numerator
        return ops.cast(whole, "float32") + rest / ratio.denominator

    def _scale_at(self, step):
        scale = self.progress.gain if self.scale is None else self.scale
        if self.warmup_updates == 0:
            return scale
        progress = ops.cast(step, "float32") / self.warmup_updates
        return 1.0 + (scale - 1.0) * ops.minimum(progress, 1.0)


def lr_scale(lr_scaling: str | float, batch_ratio: float | Fraction) -> float:
    """The factor by which a scaling rule multiplies the rate of the small batch.

    Args:
        lr_scaling: `"none"`, `"sqrt"`, `"linear"`, or the factor itself.
        batch_ratio: `M`, the batch size divided by the small batch size.

    Raises:
        ValueError: If `lr_scaling` is none of these.
    """
    rules = {
        "none": 1.0,
        "sqrt": math.sqrt(batch_ratio),
        "linear": float(batch_ratio),
    }
    if isinstance(lr_scaling, str) and lr_scaling in rules:
        return rules[lr_scaling]
    if lr_scaling == "gain":
        raise ValueError(
            "lr_scaling: got gain, wanted it with stretch='auto' only, because nothing "
            f"else measures the gain. Choose one of {', '.join(rules)}, or a number."
        )
    return positive_number(
        "lr_scaling", lr_scaling, wanted=f"one of {', '.join(rules)} or a finite number"
    )


def _small_updates_per_update(batch_ratio, stretch):
    """`M / stretch`, as the fraction that the user meant."""
    if stretch is None:
        return Fraction(1)
    wanted = "auto or a finite number"
    number = positive_number("stretch", stretch, wanted=wanted)
    most = max(Fraction(1), batch_ratio)
    meant = _as_meant(batch_ratio / Fraction(number))
    # Compared as meant, so that a rounding error below the least does not count.
    if meant > _as_meant(most):
        least = float(batch_ratio / most)
        raise ValueError(
            f"stretch must be at least {least:g}: 1 keeps the number of epochs, "
            "batch_size / small_batch_size keeps the number of updates. Received: "
            f"stretch={stretch!r}."
        )
    return meant


def _as_meant(ratio):
    """0.1 means 1/10 to a user, not 3602879701896397/2**55."""
    return ratio.limit_denominator(10_000)

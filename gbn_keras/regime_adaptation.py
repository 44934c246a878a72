"""`Regime`, a recipe tuned for a small batch, and `RegimeAdaptation` to a large one."""

import dataclasses
import math
from fractions import Fraction

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule, PiecewiseConstantDecay

from gbn_keras.arguments import integer, positive_number


@keras.saving.register_keras_serializable(package="gbn_keras")
class RegimeAdaptation(LearningRateSchedule):
    """The learning-rate schedule of a small batch, adapted to another batch size.

    With `M = batch_size / small_batch_size`, the rate of an update (counted from 0) is

    `lr(update) = scale * schedule(update * M / stretch)`

    where `scale` is `sqrt(M)`, `M`, 1 or your own number. The covariance of an update
    is about `lr^2 / batch_size`, so `sqrt(M)` keeps it as it was at the small batch.
    `stretch` says how many times more epochs you train than at the small batch: `M`
    keeps the number of updates (the paper's regime adaptation), 1 keeps the number of
    epochs, and values between trade one for the other.

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
        lr_scaling: `"sqrt"`, `"linear"`, `"none"`, or the factor itself.
        stretch: Number from 1 to `M`. `None` means `M`.
        warmup_updates: Number of updates until the scale reaches its value.

    Raises:
        ValueError: If an argument is not as described above.

    Reference:
        Hoffer, Hubara, Soudry, "Train longer, generalize better", sections 4 and 5,
        arXiv 1705.08741. Goyal et al., "Accurate, Large Minibatch SGD", section 2.2,
        arXiv 1706.02677.
    """

    def __init__(
        self,
        schedule: float | LearningRateSchedule,
        small_batch_size: int,
        batch_size: int,
        lr_scaling: str | float = "sqrt",
        stretch: float | None = None,
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
        batch_ratio = Fraction(self.batch_size, self.small_batch_size)
        self.scale = lr_scale(lr_scaling, batch_ratio)
        self._small_updates_per_update = _small_updates_per_update(batch_ratio, stretch)
        self.lr_scaling = lr_scaling if isinstance(lr_scaling, str) else self.scale
        self.stretch = None if stretch is None else float(stretch)
        self.warmup_updates = integer("warmup_updates", warmup_updates, 0)

    def __call__(self, step):
        """The rate of update number `step`, a scalar integer counted from 0."""
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
        step = ops.convert_to_tensor(step)
        ratio = self._small_updates_per_update
        if ratio.denominator == 1:
            return step * ratio.numerator
        whole = step // ratio.denominator * ratio.numerator
        rest = ops.cast(step % ratio.denominator, "float32") * ratio.numerator
        return ops.cast(whole, "float32") + rest / ratio.denominator

    def _scale_at(self, step):
        if self.warmup_updates == 0:
            return self.scale
        progress = ops.cast(step, "float32") / self.warmup_updates
        return 1.0 + (self.scale - 1.0) * ops.minimum(progress, 1.0)


@dataclasses.dataclass(frozen=True)
class Regime:
    """A training recipe, tuned for a small batch.

    Args:
        small_batch_size: Number of examples per update.
        epochs: Number of passes over the training data.
        learning_rate: Pairs `(epoch, rate)`: the rate from that epoch on. The first
            epoch is 0. An epoch may be a fraction.
        l2: Pairs `(epoch, coefficient)` of the penalty `coefficient / 2 * ||w||^2`. Its
            gradient `coefficient * w` is added to that of the loss.
        momentum: Momentum of SGD.
        clipnorm: Largest global norm of the gradient of the loss. 0 turns clipping off.
    """

    small_batch_size: int
    epochs: int
    learning_rate: tuple[tuple[float, float], ...]
    l2: tuple[tuple[float, float], ...]
    momentum: float = 0.9
    clipnorm: float = 5.0

    def with_epochs(self, epochs: int) -> "Regime":
        """The same recipe over `epochs` epochs, with boundaries in proportion."""
        factor = Fraction(integer("epochs", epochs, 1), self.epochs)

        def scaled(pairs):
            return tuple((float(epoch * factor), value) for epoch, value in pairs)

        return dataclasses.replace(
            self,
            epochs=epochs,
            learning_rate=scaled(self.learning_rate),
            l2=scaled(self.l2),
        )

    def with_learning_rate(self, learning_rate: float) -> "Regime":
        """The same recipe with another first rate; later rates scale with it."""
        learning_rate = positive_number("learning_rate", learning_rate)
        factor = learning_rate / self.learning_rate[0][1]
        rates = tuple((epoch, rate * factor) for epoch, rate in self.learning_rate)
        return dataclasses.replace(self, learning_rate=rates)

    def with_l2(self, l2: float) -> "Regime":
        """The same recipe with another first L2 coefficient; later ones scale with it.

        0 turns the penalty off.
        """
        if l2 != 0:
            l2 = positive_number("l2", l2)
        factor = l2 / self.l2[0][1]
        return dataclasses.replace(
            self, l2=tuple((epoch, value * factor) for epoch, value in self.l2)
        )

    def updates_per_epoch(self, examples: int) -> int:
        """Number of whole small batches in `examples` training examples."""
        return examples // self.small_batch_size

    def learning_rate_schedule(self, examples: int) -> float | LearningRateSchedule:
        """The rate by small-batch update, for `examples` training examples."""
        return _piecewise(self.learning_rate, self.updates_per_epoch(examples))

    def l2_schedule(self, examples: int) -> float | LearningRateSchedule:
        """The L2 coefficient by small-batch update, for `examples` examples."""
        return _piecewise(self.l2, self.updates_per_epoch(examples))


# The paper's recipes, named after the network. They come from section 6 and from the
# published training scripts.
_RESNET_44 = Regime(
    small_batch_size=128,
    epochs=200,
    learning_rate=((0, 0.1), (81, 0.01), (122, 0.001), (164, 0.0001)),
    l2=((0, 1e-4),),
)
_C1 = Regime(
    small_batch_size=128,
    epochs=200,
    learning_rate=((0, 0.001), (60, 0.01), (120, 0.001), (180, 0.0001)),
    l2=((0, 5e-4),),
    momentum=0.0,
)
REGIMES = {
    "f1": Regime(
        small_batch_size=128,
        epochs=50,
        learning_rate=((0, 0.1), (10, 0.01), (20, 0.001), (30, 0.0001)),
        l2=((0, 1e-4),),
    ),
    # Not from the paper: a demonstration on 1,536 digits of 8x8 pixels, in seconds.
    "f1_digits": Regime(
        small_batch_size=32,
        epochs=6,
        learning_rate=((0, 0.03), (3, 0.003), (4.5, 0.0003)),
        l2=((0, 5e-4),),
    ),
    "c1": _C1,
    "c3": _C1,
    "resnet44": _RESNET_44,
    # Not published: ResNet-44's regime, with the L2 that is usual for VGG.
    "vgg": dataclasses.replace(_RESNET_44, l2=((0, 5e-4),)),
    "wresnet16_4": Regime(
        small_batch_size=128,
        epochs=200,
        learning_rate=((0, 0.1), (60, 0.02), (120, 0.004), (140, 0.0001)),
        l2=((0, 1e-4),),
    ),
    # The published script lists 90 epochs, but uses only 30 of them.
    "alexnet": Regime(
        small_batch_size=256,
        epochs=30,
        learning_rate=((0, 0.01), (10, 0.005), (15, 0.001), (20, 5e-4), (25, 1e-4)),
        l2=((0, 5e-4), (15, 0.0)),
    ),
    "resnet50": Regime(
        small_batch_size=256,
        epochs=90,
        learning_rate=((0, 0.1), (30, 0.01), (60, 0.001), (90, 0.0001)),
        l2=((0, 1e-4),),
    ),
}


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
    return positive_number(
        "lr_scaling", lr_scaling, wanted=f"one of {', '.join(rules)} or a finite number"
    )


def _small_updates_per_update(batch_ratio, stretch):
    """`M / stretch`, as the fraction that the user meant."""
    if stretch is None:
        return Fraction(1)
    low, high = sorted((1.0, float(batch_ratio)))
    if not low <= positive_number("stretch", stretch) <= high:
        raise ValueError(
            f"stretch must be from {low:g} to {high:g}: 1 keeps the number of epochs, "
            "batch_size / small_batch_size keeps the number of updates. Received: "
            f"stretch={stretch!r}."
        )
    # 0.1 means 1/10 to a user, not 3602879701896397/2**55.
    return (batch_ratio / Fraction(stretch)).limit_denominator(10_000)


def _piecewise(pairs, updates_per_epoch):
    """A schedule by update from pairs by epoch. A single pair gives its value."""
    values = [value for _, value in pairs]
    if len(values) == 1:
        return values[0]
    # Keras's schedule keeps a value up to and including its boundary.
    boundaries = [round(epoch * updates_per_epoch) - 1 for epoch, _ in pairs[1:]]
    return PiecewiseConstantDecay(boundaries, values)

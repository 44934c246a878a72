"""`Regime`, a training recipe tuned for a small batch, and the paper's recipes."""

import dataclasses
from fractions import Fraction

from keras.optimizers.schedules import LearningRateSchedule, PiecewiseConstantDecay

from gbn_keras.arguments import integer, positive_number


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


def _piecewise(pairs, updates_per_epoch):
    """A schedule by update from pairs by epoch. A single pair gives its value."""
    values = [value for _, value in pairs]
    if len(values) == 1:
        return values[0]
    # Keras's schedule keeps a value up to and including its boundary.
    boundaries = [round(epoch * updates_per_epoch) - 1 for epoch, _ in pairs[1:]]
    return PiecewiseConstantDecay(boundaries, values)

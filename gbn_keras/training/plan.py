"""`Plan`: one training, with values for all that the settings leave open."""

import dataclasses
import math

from gbn_keras.regime import Regime
from gbn_keras.regime_adaptation import RegimeAdaptation
from gbn_keras.shares import replicas_communicate
from gbn_keras.training.settings import ResolvedSettings


@dataclasses.dataclass(frozen=True)
class AdamSettings:
    """What Adam is made with, besides its rate.

    Attributes:
        betas: `beta_1` and `beta_2`.
        epsilon: Its small constant.
        weight_decay: AdamW's decay, which Keras multiplies by the rate, or `None`.
        small_batch_size: The batch size whose second moment it takes; `None` for that
            of the whole batch.
        is_open: Whether the betas would have to be scaled, but nobody knows by what.
    """

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float | None
    small_batch_size: int | None
    is_open: bool = False

    def describe(self, name: str) -> str:
        """The settings as text, with the optimizer's name."""
        betas = ", ".join(f"{beta:.6g}" for beta in self.betas)
        line = f"{name} with betas {betas}" + " (not scaled)" * self.is_open
        if self.weight_decay is not None:
            line += f", weight decay {self.weight_decay:.3g}"
        if self.small_batch_size:
            line += f", second moment of batches of {self.small_batch_size}"
        return line


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training, with all values derived.

    Attributes:
        settings: The resolved settings.
        regime: The small batch's regime, with the settings' changes.
        examples: Number of training examples.
        learning_rate: The learning rate of each update.
        l2: The L2 coefficient, of each update or constant.
        replicas: Number of replicas that share the batch.
        micro_batch_size: The most examples that a replica takes at once, in whole
            ghosts: the size that was asked for, or else its share. The model takes
            fewer if the device's memory is short.
        adam: Settings of Adam; `None` for SGD.
        profile: The updates to profile, counted from 1; `None` for none.
        data: The chosen examples and features, in words; empty if there was no choice.
    """

    settings: ResolvedSettings
    regime: Regime
    examples: int
    learning_rate: RegimeAdaptation
    l2: RegimeAdaptation | float
    replicas: int
    micro_batch_size: int
    adam: AdamSettings | None = None
    profile: range | None = None
    data: str = ""

    @property
    def is_auto(self) -> bool:
        """Whether the training itself finds out how long to train."""
        return self.settings.stretch == "auto"

    @property
    def stretch(self) -> float:
        """How many times more epochs than the regime; with `auto`, the most.

        An update is worth at least one of the small batch's.
        """
        if self.is_auto:
            return max(1.0, self.batch_ratio)
        return float(self.settings.stretch)

    @property
    def batch_ratio(self) -> float:
        """`M`, the batch size divided by the small batch size."""
        return self.settings.batch_size / self.regime.small_batch_size

    @property
    def small_batch_updates(self) -> int:
        """Number of updates of the small batch's regime."""
        return self.regime.epochs * self.regime.updates_per_epoch(self.examples)

    @property
    def epochs(self) -> int:
        """Number of passes over the training data; with `auto`, the most."""
        return max(1, round(self.regime.epochs * self.stretch))

    @property
    def updates_per_epoch(self) -> int:
        """Number of whole batches in the training data."""
        return self.examples // self.settings.batch_size

    @property
    def updates(self) -> int:
        """Number of updates, at most `--max_updates`; with `auto`, the most."""
        updates = self.epochs * self.updates_per_epoch
        return min(updates, self.settings.max_updates or updates)

    @property
    def high_rate_small_batch_updates(self) -> int:
        """Number of the small batch's updates before the regime changes the rate."""
        if len(self.regime.learning_rate) == 1:
            return self.small_batch_updates
        epochs = self.regime.learning_rate[1][0]
        return round(epochs * self.regime.updates_per_epoch(self.examples))

    @property
    def high_rate_updates(self) -> int:
        """Number of updates before the regime first changes the rate, unless `auto`.

        Warm-up does not count as a change. In these updates, the paper says, the
        weights' distance from their initial values grows with the logarithm of the
        number of updates.
        """
        if len(self.regime.learning_rate) == 1:
            return self.updates
        updates = self.high_rate_small_batch_updates * self.stretch / self.batch_ratio
        return min(math.ceil(updates), self.updates)

    @property
    def share(self) -> int:
        """Number of examples of a batch that each replica takes."""
        return self.settings.batch_size // self.replicas

    @property
    def replicas_communicate(self) -> bool:
        """Whether normalization needs the other replicas, as the function says."""
        settings = self.settings
        return replicas_communicate(
            settings.batch_size, settings.virtual_batch_size, self.replicas
        )

    @property
    def evaluation_epochs(self) -> list[int]:
        """The epochs after which to evaluate, counted from 1.

        These are every `eval_every`th epoch, the last, and the first, so that the
        curves begin there.
        """
        every = self.settings.eval_every
        return sorted({1, *range(every, self.epochs, every), self.epochs})

    def describe(self, micro_batch_size: int | None = None) -> str:
        """The plan as text: a line each for data (if chosen), batch, rate and length.

        Args:
            micro_batch_size: The micro-batch that the model uses, if it is known.
        """
        lines = [f"data: {self.data}"] if self.data else []
        lines.append(self._batch_line(micro_batch_size or self.micro_batch_size))
        lines += [self._rate_line(), self._length_line()]
        return "\n".join(lines)

    def _batch_line(self, micro_batch_size):
        batch, ghost = self.settings.batch_size, self.settings.virtual_batch_size
        line = f"batch {batch}"
        if ghost:
            line += f" = {_parts(batch, ghost, 'ghost')}"
        else:
            line += ", plain batch normalization"
            line += " over all replicas" * (self.replicas > 1)
        if ghost and self.replicas_communicate:
            line += f" on {self.replicas} replicas, {self._cut_in_words()}"
        elif self.replicas > 1 or self.share >= 2 * micro_batch_size:
            line += f"; {self.replicas} replica{'s' * (self.replicas > 1)} x "
            line += _parts(self.share, micro_batch_size, "micro-batch", "es")
        return line

    def _cut_in_words(self):
        batch, ghost = self.settings.batch_size, self.settings.virtual_batch_size
        if ghost % self.share or batch % ghost:
            return f"{self.share} examples each, which cuts ghosts"
        number = ghost // self.share
        return f"{_WORDS[number] if number < len(_WORDS) else number} a ghost"

    def _rate_line(self):
        rate, scale = self.regime.learning_rate[0][1], self.learning_rate.scale
        ratio = self.batch_ratio
        line = f"learning rate {rate:g}"
        if scale is None:
            line += f" x the gain of each update, from 1 to {ratio:g}"
        elif scale != 1:
            factor = {"sqrt": f"sqrt({ratio:g})", "linear": f"{ratio:g}"}.get(
                self.settings.lr_scaling, f"{scale:g}"
            )
            line += f" x {factor} = {rate * scale:.3g}"
            if self.settings.warmup_updates:
                line += f", reached after {self.settings.warmup_updates:,} updates"
        if self.adam:
            line += f"; {self.adam.describe(self.settings.optimizer)}"
        if self.settings.gradient_noise:
            line += f"; gradient noise of variance {self.settings.gradient_noise:g}"
        return line

    def _length_line(self):
        small = self.small_batch_updates
        most = self.epochs * self.updates_per_epoch
        if self.is_auto:
            line = (
                f"until {small:,} small-batch updates ({_epochs(self.regime.epochs)}) "
                f"are done, at most {_length(self.epochs, most)}"
            )
        else:
            line = _length(self.epochs, most)
            line += f" (small batch: {_length(self.regime.epochs, small)})"
            if self.stretch > max(1, self.batch_ratio):
                line += ", more updates than the small batch's"
        if self.updates < most:
            line += f", stopped after {self.updates:,}"
        return line


# The numbers that are written as words.
_WORDS = "zero one two three four five six seven eight nine ten".split()


def _epochs(epochs):
    return f"{epochs} epoch{'s' * (epochs != 1)}"


def _length(epochs, updates):
    return f"{_epochs(epochs)} = {updates:,} update{'s' * (updates != 1)}"


def _parts(whole, size, name, plural="s"):
    """Text such as `3 ghosts of 128`, or `2 ghosts of 128 and one of 200`."""
    number = max(1, whole // size)
    last = whole - (number - 1) * size
    if last == size:
        return f"{number} {name}{plural * (number > 1)} of {size}"
    if number == 1:
        return f"1 {name} of {last}"
    return f"{number - 1} {name}{plural * (number > 2)} of {size} and one of {last}"

"""`choices_of()`: what a training would cost with each batch size and replica count."""

import dataclasses
from collections.abc import Callable, Sequence

from gbn_keras.analysis.noise_history import NoiseHistory
from gbn_keras.training.run.tables import HOURS_ON


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a training with one batch size would cost.

    Attributes:
        batch_size: Number of examples per update.
        gain: Mean number of the small batch's updates that an update does the work of.
        stretch: How many times more samples than the small batch it needs.
        updates: Number of updates.
        samples: Number of samples.
        seconds_per_update: On one replica.
        hours: Hours of the updates on each number of replicas that can share the batch.
        cost_per_hour: What an hour of a replica costs; 0 if that is not known.
    """

    batch_size: int
    gain: float
    stretch: float
    updates: int
    samples: int
    seconds_per_update: float
    hours: dict[int, float]
    cost_per_hour: float = 0.0

    @property
    def replicas(self) -> int:
        """The number of replicas that is fastest."""
        return min(self.hours, key=self.hours.__getitem__)

    def row(self, replicas: Sequence[int]) -> dict[str, float | str]:
        """The row of `plan.csv`, with columns for these numbers of replicas."""
        cells = dataclasses.asdict(self)
        hours, cost_per_hour = cells.pop("hours"), cells.pop("cost_per_hour")
        cells |= {f"{HOURS_ON}{number}": hours.get(number, "") for number in replicas}
        fastest = self.replicas
        cells |= {"replicas": fastest, "hours": hours[fastest]}
        if cost_per_hour:
            cells["cost"] = hours[fastest] * fastest * cost_per_hour
        return cells


def choices_of(
    history: NoiseHistory,
    batch_sizes: Sequence[int],
    replicas: Sequence[int],
    ghost: int,
    seconds_of_share: Callable[[int], float],
    seconds_of_all_reduce: Callable[[int], float],
    cost_per_hour: float = 0.0,
) -> list[Choice]:
    """What a training with each of the batch sizes would cost.

    Args:
        history: Gradient and noise along a training.
        batch_sizes: The batch sizes, in increasing order.
        replicas: The numbers of replicas to think of; 1 is the first.
        ghost: Number of examples per ghost. A share has at least one, and whole ones.
        seconds_of_share: Seconds of an update of so many examples on one replica.
        seconds_of_all_reduce: Seconds in which so many replicas sum their gradients.
        cost_per_hour: What an hour of a replica costs; 0 if that is not known.
    """
    choices = []
    needed = history.updates(batch_sizes)
    small_batch_samples = history.small_batch_updates * history.small_batch_size
    for size, updates in zip(batch_sizes, needed.tolist(), strict=True):
        hours = {}
        for number in replicas:
            if number == 1 or size % (number * ghost) == 0:
                seconds = seconds_of_share(size // number)
                seconds += seconds_of_all_reduce(number)
                hours[number] = updates * seconds / 3600
        choices.append(
            Choice(
                batch_size=size,
                gain=history.small_batch_updates / updates,
                stretch=updates * size / small_batch_samples,
                updates=updates,
                samples=updates * size,
                seconds_per_update=seconds_of_share(size),
                hours=hours,
                cost_per_hour=cost_per_hour,
            )
        )
    return choices


def fastest(choices: Sequence[Choice]) -> Choice:
    """The choice with the fewest hours; of equal ones, the smallest batch."""
    return min(choices, key=lambda choice: choice.hours[choice.replicas])

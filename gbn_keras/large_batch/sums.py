"""What an update carries: `Values`, `Sums` over micro-batches, `Findings`."""

import dataclasses
from typing import Any, NamedTuple


class Values(NamedTuple):
    """One list of tensors for each kind of a model's variables, or the variables."""

    weights: list
    statistics: list
    seeds: list
    metrics: list


class Sums(NamedTuple):
    """What goes from micro-batch to micro-batch.

    `gradients` are weighted sums, as `losses` are, each by its own of the `counts`: the
    outputs' losses, then those that layers add. Of the old running statistics, the new
    ones of a ghost layer hold the share `kept`. `moments` are sums over micro-batches
    of their gradients' squared norms, of 1 / their sizes, and of 1.
    """

    gradients: list
    losses: Any
    counts: Any
    statistics: list
    kept: list
    seeds: list
    metrics: list
    moments: Any


@dataclasses.dataclass
class Findings:
    """What is found out while a model is traced, and decides how sums are joined.

    Attributes:
        without_gradient: Indices of the weights that the loss does not depend on.
        moved: Indices of the running statistics that the model assigns.
        skipping: Numbers of the ghost layers whose ghosts may have no values, on one
            replica or another.
        equal_parts: The number of micro-batches, if all have as many examples; else
            `None`.
        counts_by_weight: Whether all losses are means by sample weight.
    """

    without_gradient: set = dataclasses.field(default_factory=set)
    moved: set = dataclasses.field(default_factory=set)
    skipping: set = dataclasses.field(default_factory=set)
    equal_parts: int | None = None
    counts_by_weight: bool = False


class SeveralCounts(Exception):
    """The losses of a batch are means over different things: `ReplicaStep.count`."""

"""The data of an update: `Values`, `Sums` over micro-batches, and `Findings`."""

import dataclasses
from typing import Any, NamedTuple

import keras


class Values(NamedTuple):
    """One list for each kind of a model's variables: the variables, or their values."""

    weights: list
    statistics: list
    seeds: list
    metrics: list


class Sums(NamedTuple):
    """What one micro-batch passes on to the next.

    `gradients` are weighted sums. So are `losses`, with the weights `counts`: one for
    each output's loss, then one for the losses that layers add. `kept` is the fraction
    of its old running statistics that a ghost layer's new ones still contain. `moments`
    are sums over the micro-batches: of their gradients' squared norms, of 1 / their
    sizes, and of 1. `squares` are a `Squares`, or `()` if the optimizer wants none.
    """

    gradients: list
    losses: Any
    counts: Any
    statistics: list
    kept: list
    seeds: list
    metrics: list
    moments: Any
    squares: Any


@dataclasses.dataclass
class Findings:
    """What tracing finds out about a model, to decide how sums are joined.

    Attributes:
        without_gradient: Indices of the weights that the loss does not depend on.
        moved: Indices of the running statistics that the model assigns.
        skipping: Indices of the ghost layers whose ghosts may have no values on some
            replica.
        equal_parts: Number of micro-batches if all have equally many examples, else
            `None`.
        counts_by_weight: Whether all losses are means by sample weight.
    """

    without_gradient: set = dataclasses.field(default_factory=set)
    moved: set = dataclasses.field(default_factory=set)
    skipping: set = dataclasses.field(default_factory=set)
    equal_parts: int | None = None
    counts_by_weight: bool = False


class SeveralCounts(Exception):
    """The losses are means over different things, so `ReplicaStep.count` must run."""


def precise(tensor) -> str:
    """The dtype of a sum of such tensors: float32, or float64 for float64."""
    return keras.backend.result_type(tensor.dtype, "float32")

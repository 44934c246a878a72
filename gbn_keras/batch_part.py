"""`BatchPart`: the part of an update's batch that goes through the layers now.

A large batch goes through the network in parts: each replica takes its share, and a
share may go through in micro-batches. What a layer computes must not depend on that.
Two things could depend on it: running statistics, because each part knows only its own
ghosts, and random masks, because they would repeat in every part.
"""

import threading

from gbn_keras.replicas import this_replica

_entered = threading.local()  # Each replica on a machine has its own thread.


class BatchPart:
    """One part of the batch, as a context around the model's call on it.

    The caller that splits a batch enters one `BatchPart` per part. It then joins the
    gradients of the parts, and their running statistics with `weigh_for_join`.

    Attributes:
        first_example: Place in the batch of the part's first example.
        is_share: Whether the part is all of this replica's share. Then other replicas,
            which run the same operations, may hold the rest of its ghosts.
        kept: Fraction of the old running statistics that the new ones still contain,
            for each layer that was called, by the layer's `id`.
        called_again: Names of layers that were called more than once.
    """

    def __init__(self, first_example, is_share: bool = False):
        self.first_example, self.is_share = first_example, is_share
        self.kept: dict = {}
        self.called_again: set = set()

    def __enter__(self):
        self._outer = BatchPart.current()
        _entered.part = self
        return self

    def __exit__(self, *exception):
        _entered.part = self._outer

    @staticmethod
    def current() -> "BatchPart | None":
        """The part that this thread entered last."""
        return getattr(_entered, "part", None)

    def keep(self, layer, share):
        """Records that `layer` moved its statistics and kept a fraction of the old."""
        if id(layer) in self.kept:
            self.called_again.add(layer.name)
        self.kept[id(layer)] = self.kept.get(id(layer), 1.0) * share


def first_example(examples):
    """The place in the batch of the first example of a layer's inputs.

    Args:
        examples: Number of examples in the inputs.
    """
    part = BatchPart.current()
    if part:
        return part.first_example
    replica, _ = this_replica()
    return replica * examples

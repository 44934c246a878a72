"""`BatchPart`: which part of an update's batch goes through the layers.

A large batch goes through the network in parts: each replica takes its share, and a
share may go through in micro-batches. What a layer computes must not depend on that.
Two things would: running statistics, because each part knows only its own ghosts, and
random masks, which would repeat in every part.
"""

import threading

from gbn_keras.replicas import this_replica

_entered = threading.local()  # A thread each for the replicas of one machine.


class BatchPart:
    """One part of the batch, as a context around the model's call on it.

    Whoever calls a model on a batch in parts enters one for each part, and joins what
    the parts give: gradients, and running statistics by `weigh_for_join`.

    Attributes:
        first_example: The place in the batch of the part's first example.
        kept: For each layer with running statistics that was called, by its `id`, the
            share of the old statistics that the new ones still hold.
        called_again: The names of layers that were called more than once.
    """

    def __init__(self, first_example):
        self.first_example = first_example
        self.kept, self.called_again = {}, set()

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
        """Tells that `layer` moved its statistics, keeping a share of the old."""
        if id(layer) in self.kept:
            self.called_again.add(layer.name)
        self.kept[id(layer)] = self.kept.get(id(layer), 1.0) * share


def first_example(examples):
    """The place in the batch of the first of the `examples` that a layer is given."""
    part = BatchPart.current()
    if part:
        return part.first_example
    replica, _ = this_replica()
    return replica * examples

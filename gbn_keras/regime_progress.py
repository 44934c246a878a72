"""`RegimeProgress`: how far a training has come through the small batch's regime."""

import contextlib

import keras
from keras import ops

# Weight of the old means in the new ones, in the estimates from which gains are
# computed: about the last 50 updates count.
SMOOTHING = 0.98


def gain(gradient_square, noise, batch_size: int, small_batch_size: int):
    """How many updates of the small batch one update of the batch is worth.

    With `|G|^2` of the true gradient and `tr(Sigma)` of one example's gradient, the
    mean gradient of `b` examples has the expected square `tr(Sigma) / b + |G|^2`. The
    gain is the small batch's expected square, divided by the batch's:

    `(tr(Sigma) / B_S + |G|^2) / (tr(Sigma) / B + |G|^2)`

    It lies between 1 and `M = B / B_S`. It is 1 without noise, because then both
    batches have the same gradient, and `M` if there is only noise.

    Args:
        gradient_square: `|G|^2`, more than 0, a number or a tensor.
        noise: `tr(Sigma)`, at least 0.
        batch_size: `B`, the number of examples per update.
        small_batch_size: `B_S`, that of the small batch.

    Reference:
        Johnson, Agrawal, Gu, Guestrin, "AdaScale SGD", section 3, arXiv 2007.05105.
    """
    of_small_batch = noise / small_batch_size + gradient_square
    return of_small_batch / (noise / batch_size + gradient_square)


class RegimeProgress:
    """Adds up how many updates of the small batch a training's updates are worth.

    `advance` takes an update's gain. The values are the same on all replicas.
    Variables are created by `build`, because a `tf.distribute` strategy's scope decides
    where they are.

    Args:
        batch_size: Number of examples per update.
        small_batch_size: Batch size that the regime was tuned for.
    """

    def __init__(self, batch_size: int, small_batch_size: int):
        self.batch_size, self.small_batch_size = batch_size, small_batch_size
        self._variables: list[keras.Variable] = []
        self._held: list | None = None

    def build(self, updates=0) -> None:
        """Creates the variables.

        Args:
            updates: Number of updates made so far. After the first one, existing
                variables stay, because the training goes on.
        """
        if self._variables and int(ops.convert_to_numpy(updates)):
            return
        self._variables = [
            # The sum of all gains but the last, as a whole number and the rest: a sum
            # of floats would soon lose small addends.
            keras.Variable(0, trainable=False, dtype="int", name="whole"),
            keras.Variable(0.0, trainable=False, dtype="float32", name="rest"),
            keras.Variable(0.0, trainable=False, dtype="float32", name="gain"),
        ]

    @property
    def built(self) -> bool:
        """Whether the variables exist."""
        return bool(self._variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """The state that a resumed training must restore."""
        return self._variables

    @property
    def position(self):
        """Whole small-batch updates done before the last update, an integer tensor."""
        return self._values()[0]

    @property
    def gain(self):
        """The gain of the last update, a tensor; 0 before the first update."""
        return self._values()[2]

    @property
    def done(self):
        """Small-batch updates done, a float32 tensor."""
        whole, rest, last = self._variables
        return ops.cast(whole, "float32") + (rest + last)

    def advance(self, new_gain) -> None:
        """Begins an update that has this gain, so the one before is done."""
        whole, rest, last = self._variables
        total = rest + last
        added = ops.floor(total)
        whole.assign(whole + ops.cast(added, whole.dtype))
        rest.assign(total - added)
        last.assign(new_gain)

    @contextlib.contextmanager
    def held(self):
        """A context in which the values stay as they are now.

        Keras's `stateless_apply` hides the values of all variables but the optimizer's.
        """
        self._held = [variable.value for variable in self._variables]
        try:
            yield
        finally:
            self._held = None

    def _values(self):
        return self._held or [variable.value for variable in self._variables]

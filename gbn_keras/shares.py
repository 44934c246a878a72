"""The shares of a batch: which a data set gives, and which need each other."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shares:
    """Some of the equal, contiguous shares into which replicas cut each batch.

    The default is the only share: the whole batch.

    Attributes:
        replicas: Number of shares of a batch, one for each replica.
        first: Index of the first share to give, counted from 0.
        number: Number of consecutive shares to give.
    """

    replicas: int = 1
    first: int = 0
    number: int = 1


WHOLE_BATCH = Shares()


def replicas_communicate(batch_size: int, ghost: int, replicas: int) -> bool:
    """Whether normalization needs the other replicas: no share is made of whole ghosts.

    Then an update can neither be cut into micro-batches nor be compiled as a whole.

    Args:
        batch_size: Number of examples of an update.
        ghost: Number of examples per ghost; 0 for plain batch normalization.
        replicas: Number of replicas that share the batch.
    """
    return replicas > 1 and (not ghost or batch_size // replicas % ghost != 0)

"""`Shares`: which of a batch's shares a data set is to give."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shares:
    """Some of the equal, contiguous shares into which replicas cut each batch.

    By default the only share: the whole batch.

    Attributes:
        replicas: Number of shares of a batch, one for each replica.
        first: The first of them that is meant, counted from 0.
        number: How many of them are meant, one after the other.
    """

    replicas: int = 1
    first: int = 0
    number: int = 1


WHOLE_BATCH = Shares()

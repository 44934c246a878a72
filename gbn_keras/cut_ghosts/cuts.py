"""`Cuts`: where the replicas cut the ghosts of a batch."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from gbn_keras.replicas import row_of, sum_over_replicas, this_replica


@dataclasses.dataclass(frozen=True)
class Cuts:
    """The pieces that replicas hold of the ghosts that they cut.

    A share has a piece in front if other replicas, too, hold examples of its first
    example's ghost. It has a piece at its back if that holds for its last example's
    ghost, and this is another ghost. All ghosts between the two are whole. A share
    inside a large ghost is one piece, in front.

    Each attribute is a vector with an entry per replica: a numpy array if the sizes of
    the shares are known while tracing, else a tensor.

    Attributes:
        front: Number of examples of the piece in front, 0 without one.
        back: Number of examples of the piece at the back, 0 without one.
        front_ghost: Which ghost the front belongs to. A ghost that is cut has the
            number of the replica in which it begins, which is the number of no other.
        back_ghost: The same for the piece at the back.
        ends: Whether the ghost of the piece in front ends in this share.
    """

    front: Any
    back: Any
    front_ghost: Any
    back_ghost: Any
    ends: Any

    @property
    def are_known(self) -> bool:
        """Whether all sizes are known while tracing."""
        return isinstance(self.front, np.ndarray)

    @property
    def pieces(self) -> int:
        """The most pieces that a share may have: 1 or 2."""
        return 2 if not self.are_known or self.back.any() else 1

    def sizes(self):
        """The number of examples of each piece, `(replicas, pieces)`."""
        return self._by_piece(self.front, self.back)

    def ghosts(self):
        """The number of each piece's ghost, `(replicas, pieces)`."""
        return self._by_piece(self.front_ghost, self.back_ghost)

    def _by_piece(self, *values):
        library = np if self.are_known else ops
        return library.stack(values[: self.pieces], axis=-1)


def cuts_of_share(examples, virtual_batch_size: int) -> Cuts | None:
    """Where the replicas cut ghosts; `None` if they are known not to.

    Then a layer needs no communication. If the size of the share is not known while
    tracing, the replicas tell each other theirs.

    Args:
        examples: Number of examples in this replica's share, a tensor if it is not
            known while tracing.
        virtual_batch_size: Number of examples per ghost.
    """
    _, count = this_replica()
    if count == 1 or virtual_batch_size == 1:
        return None
    if not isinstance(examples, int):
        sizes = sum_over_replicas(row_of(examples))
    elif examples % virtual_batch_size:
        sizes = np.full(count, examples)
    else:
        return None
    return cuts_between(sizes, virtual_batch_size)


def cuts_between(sizes, virtual_batch_size: int) -> Cuts:
    """Where replicas cut ghosts of `virtual_batch_size` examples.

    The ghosts lie one after the other in the whole batch. Its remainder joins its last
    ghost.

    Args:
        sizes: Number of examples of each replica's share, in replica order: a numpy
            array, or a tensor if they are not known while tracing.
        virtual_batch_size: Number of examples per ghost.
    """
    library = np if isinstance(sizes, np.ndarray) else ops
    ends = library.cumsum(sizes)
    starts, batch = ends - sizes, ends[-1]
    last_ghost = library.maximum(batch // virtual_batch_size, 1) - 1

    def ghost_of(example):
        return library.minimum(example // virtual_batch_size, last_ghost)

    def begin(ghost):
        return ghost * virtual_batch_size

    def end(ghost):
        return library.where(ghost == last_ghost, batch, begin(ghost + 1))

    def begins_in(ghost):
        earlier = library.sum(ends[None] <= begin(ghost)[:, None], axis=1)
        # A share without examples may lie behind all ghosts.
        return library.minimum(earlier, sizes.shape[0] - 1)

    first, last = ghost_of(starts), ghost_of(ends - 1)
    is_cut = (begin(first) < starts) | (end(first) > ends)
    front = library.where(is_cut, library.minimum(end(first), ends) - starts, 0)
    goes_on = (last > first) & (end(last) > ends)
    return Cuts(
        front=front,
        back=library.where(goes_on, ends - begin(last), 0),
        front_ghost=begins_in(first),
        back_ghost=begins_in(last),
        ends=(front > 0) & (end(first) <= ends),
    )

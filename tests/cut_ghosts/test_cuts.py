"""Where replicas cut ghosts, and what the pieces say of the whole."""

import numpy as np
import pytest
from keras import ops

from gbn_keras.cut_ghosts.cuts import cuts_between
from gbn_keras.cut_ghosts.pieces import combined

# Shares of 64 on 8 replicas with ghosts that fit, are larger, straddle, or are the
# whole batch; a remainder on several replicas; and shares that are empty.
SIZES = [
    *(([64] * 8, ghost) for ghost in (16, 64, 128, 512, 1000)),
    *(([64] * 8, ghost) for ghost in (48, 100, 63, 65, 300)),
    ([5] * 7, 3),
    ([5] * 7, 9),
    ([1] * 6, 4),
    ([8, 8, 3, 0, 0], 5),
    ([8, 8, 8, 0], 12),
    ([0, 0], 4),
]


def members(sizes, ghost):
    """The number of each example's ghost, of the whole batch, by share."""
    batch = sum(sizes)
    numbers = np.minimum(np.arange(batch) // ghost, max(1, batch // ghost) - 1)
    return np.split(numbers, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("sizes, ghost", SIZES)
def test_pieces_are_the_examples_of_ghosts_that_others_hold_too(sizes, ghost, known):
    vector = np.array(sizes, "int32")
    cuts = cuts_between(vector if known else ops.convert_to_tensor(vector), ghost)
    values = {
        name: ops.convert_to_numpy(getattr(cuts, name))
        for name in ("front", "back", "front_ghost", "back_ghost", "ends")
    }
    shares = members(sizes, ghost)
    owners = {}
    for replica, share in enumerate(shares):
        others = np.concatenate([s for r, s in enumerate(shares) if r != replica])
        is_cut = np.isin(share, others)
        front = is_cut & (share == share[:1])
        back = is_cut & ~front
        assert values["front"][replica] == front.sum()
        assert values["back"][replica] == back.sum()
        later = np.concatenate([*shares[replica + 1 :], []])
        ends = front.any() and not np.isin(share[0], later)
        assert values["ends"][replica] == ends
        # Pieces of one ghost have one number, which is no other ghost's.
        for place, piece in (("front", front), ("back", back)):
            if piece.any():
                owner = owners.setdefault(
                    share[piece][0], values[f"{place}_ghost"][replica]
                )
                assert owner == values[f"{place}_ghost"][replica]
                assert 0 <= owner < len(sizes)
    assert len(set(owners.values())) == len(owners)


@pytest.mark.parametrize("slack", [0.0, 1e-7])
def test_statistics_of_pieces_are_those_of_the_ghost(slack):
    """In float32, with a mean that is large beside the deviation."""
    random = np.random.default_rng(0)
    values = random.normal(100, 1, (90, 3)).astype("float32")
    pieces = [values[:1], values[1:40], values[40:40], values[40:]]
    mean = np.stack([p.mean(0) if len(p) else np.zeros(3) for p in pieces])
    squares = np.stack([len(p) * p.var(0) if len(p) else np.zeros(3) for p in pieces])
    # A ghost beside it that is not finite leaves it as it is.
    mean, squares = (
        np.concatenate([x, np.full((1, 3), np.nan)]).astype("float32")
        for x in (mean, squares)
    )
    count = np.array([[1], [39], [0], [50], [7]], "float32")
    together = np.array([[True, True, True, True, False], [False] * 5])
    found = combined(
        *map(ops.convert_to_tensor, (mean, squares, count, together)), slack
    )
    mean, variance, divisor, has_values = map(ops.convert_to_numpy, found)
    expected = np.float64(values)
    np.testing.assert_allclose(mean[0], expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance[0], expected.var(0), rtol=1e-5)
    assert divisor[0] == 90
    assert has_values.ravel().tolist() == [True, False]

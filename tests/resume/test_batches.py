"""The data of `ExactResume` are the same in every process, from any batch on."""

import itertools

import keras
import numpy as np
import pytest

from gbn_keras.resume.batches import batches_of

X = np.arange(10)


def epoch(batches, number, first=0):
    """The batches of an epoch, from one on, as one list each."""
    batches.enter(number, first)
    return [batches[0][0].tolist() for _ in range(batches.num_batches)]


def of_arrays(**options):
    return batches_of(X, X, None, **{"batch_size": 4, **options})


class Indices(keras.utils.PyDataset):
    """Batches that know their index and how many epochs have begun and ended."""

    def __init__(self, **options):
        super().__init__(**options)
        self.begun = self.ended = 0

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return (np.array([index, self.begun, self.ended]),)

    def on_epoch_begin(self):
        self.begun += 1

    def on_epoch_end(self):
        self.ended += 1


def counted(first):
    return ((np.array([number]),) for number in itertools.count(first))


MAKERS = {
    "arrays": of_arrays,
    "PyDataset": lambda: batches_of(Indices()),
    "PyDataset with workers": lambda: batches_of(Indices(workers=3, max_queue_size=2)),
    "function": lambda: batches_of(counted, steps=5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_epoch_can_be_entered_at_any_batch(make):
    batches = make()
    wholes = [epoch(batches, number) for number in range(3)]
    assert wholes[0] != wholes[1]
    for number, whole in enumerate(wholes):
        for first in range(len(whole)):
            assert epoch(make(), number, first) == whole[first:]


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    batches = of_arrays()
    orders = [epoch(batches, number) for number in range(5)]
    for order in orders:
        assert [len(rows) for rows in order] == [4, 4, 2]
        assert sorted(itertools.chain(*order)) == X.tolist()
    assert len({str(order) for order in orders}) == 5
    assert orders[0] != epoch(of_arrays(seed=1), 0)
    assert epoch(of_arrays(shuffle=False), 1) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_order_never_changes():
    """A checkpoint of today goes on with the data of today, in ten years too."""
    order = [[3, 7, 6, 4], [1, 0, 2, 8], [5, 9]]
    assert epoch(of_arrays(seed=0), 0) == order


def test_rows_stay_together_in_any_structure():
    x = {"a": X, "b": [X * 2, None]}
    batches = batches_of(x, X * 3, X * 4, batch_size=3)
    for _ in range(batches.num_batches):
        x, y, weights = batches[0]
        assert x["b"][1] is None
        np.testing.assert_array_equal(x["b"][0], 2 * x["a"])
        np.testing.assert_array_equal([y, weights], [3 * x["a"], 4 * x["a"]])


def test_a_data_set_passes_through_the_epochs_before():
    batches = batches_of(Indices(), shuffle=False)
    assert epoch(batches, 2, 5) == [[5, 3, 2], [6, 3, 2]]
    with pytest.raises(ValueError, match="cannot return to epoch 1 from 3"):
        epoch(batches, 0)


def test_too_few_batches_are_refused():
    batches = batches_of(lambda first: itertools.islice(counted(first), 2), steps=3)
    with pytest.raises(ValueError, match="epoch 1 must have 3 batches. Received: 2"):
        epoch(batches, 0)


class Processes(Indices):
    """Loads in processes."""

    def __init__(self):
        super().__init__(use_multiprocessing=True)


class Endless(Indices):
    """Has no number of batches."""

    num_batches = None


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((X, X[1:]), r"same number of examples, at least 1. Received: \[9, 10\]"),
        ((X[:0],), r"Received: \[0\]"),
        ((X, None, None, 0), "batch_size must be an integer of at least 1"),
        ((X, None, None, 2, True, -1), "seed must be an integer of at least 0"),
        ((X, None, None, 2, True, 0, 3), "is for a function"),
        ((counted,), "steps_per_epoch must be an integer"),
        ((counted, X), "y and sample_weight are for arrays"),
        ((Processes(),), "load in threads. Received: use_multiprocessing=True"),
        ((Endless(),), "Received: num_batches=None"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, error):
    with pytest.raises(ValueError, match=error) as refused:
        batches_of(*arguments)
    assert "\n" not in str(refused.value)

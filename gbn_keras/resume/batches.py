"""`EpochBatches`: data for `fit` whose order is fixed, and which start at any batch."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np

from gbn_keras.arguments import integer


class EpochBatches(keras.utils.PyDataset):
    """A `keras.utils.PyDataset` that gives the batches of each epoch in a fixed order.

    Keras asks for batches by their index, and shuffles these by default
    (`fit(shuffle=True)`). The batches come in their own order, whatever Keras asks for.

    Args:
        start: Function of `(epoch, first)` that gives the batches of an epoch, from the
            batch `first` on.
        batches_per_epoch: Number of batches in a whole epoch.
        facts: What the order depends on. A training with other facts does not go on.

    Attributes:
        batches_per_epoch: As above.
        facts: As above, with `batches_per_epoch`.
        spec: `keras.KerasTensor`s like a batch; `None` until Keras asked for one.
        given: Number of batches that Keras took since `enter`.
    """

    def __init__(
        self,
        start: Callable[[int, int], Iterator],
        batches_per_epoch: int,
        facts: dict,
    ):
        super().__init__()
        self.batches_per_epoch = batches_per_epoch
        self.facts = {**facts, "batches_per_epoch": batches_per_epoch}
        self.spec = None
        self._start = start
        # Keras looks at some batches before the training, to learn their shapes.
        self.enter(0, 0)

    def enter(self, epoch: int, first: int) -> None:
        """Makes the next batch that Keras takes the batch `first` of an epoch."""
        self._epoch, self._first = epoch, first
        self._batches: Iterator | None = None
        self.given = 0

    @property
    def num_batches(self) -> int:
        """Number of batches from where the epoch was entered to its end."""
        return self.batches_per_epoch - self._first

    def __getitem__(self, index):
        if self._batches is None:
            self._batches = self._start(self._epoch, self._first)
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                f"epoch {self._epoch + 1} must have {self.batches_per_epoch} batches. "
                f"Received: {self._first + self.given}. Give `fit` no steps_per_epoch, "
                "and `batches` a function that gives enough of them."
            )
        self.given += 1
        self.spec = self.spec or keras.tree.map_structure(_spec_of, batch)
        return batch


def batches_of(
    x, y=None, sample_weight=None, batch_size=32, shuffle=True, seed=0, steps=None
) -> EpochBatches:
    """The batches of arrays, of a `PyDataset` or of a function.

    The arguments are those of `ExactResume.batches`, which describes them.
    """
    seed = integer("seed", seed, 0) if shuffle else None
    is_function = callable(x) and not isinstance(x, keras.utils.PyDataset)
    if not is_function and steps is not None:
        raise ValueError(
            "steps_per_epoch is for a function that gives batches. Received: "
            f"steps_per_epoch={steps} with x of {type(x).__name__}. Leave it out."
        )
    if is_function or isinstance(x, keras.utils.PyDataset):
        if y is not None or sample_weight is not None:
            raise ValueError(
                "y and sample_weight are for arrays. Received: x of "
                f"{type(x).__name__}, whose batches must hold them."
            )
    if is_function:
        steps = integer("steps_per_epoch", steps, 1)
        return EpochBatches(_from_function(x, steps), steps, {"source": "function"})
    if isinstance(x, keras.utils.PyDataset):
        return _of_dataset(x, seed)
    return _of_arrays((x, y, sample_weight), batch_size, seed)


def _of_arrays(data, batch_size, seed):
    batch_size = integer("batch_size", batch_size, 1)
    data = keras.tree.map_structure(_in_numpy, data)
    arrays = [array for array in keras.tree.flatten(data) if array is not None]
    sizes = sorted({array.shape[0] if array.ndim else 0 for array in arrays})
    if len(sizes) != 1 or not sizes[0]:
        raise ValueError(
            "x, y and sample_weight must be arrays with the same number of examples, "
            f"at least 1. Received: {sizes}."
        )
    while data[-1] is None:
        data = data[:-1]

    def start(epoch, first):
        order = _order(sizes[0], seed, epoch)
        for begin in range(first * batch_size, sizes[0], batch_size):
            rows = order[begin : begin + batch_size]
            yield keras.tree.map_structure(
                lambda array, rows=rows: None if array is None else array[rows], data
            )

    facts = {
        "source": "arrays",
        "examples": sizes[0],
        "shapes": [[*array.shape[1:], str(array.dtype)] for array in arrays],
        "batch_size": batch_size,
        "seed": seed,
    }
    return EpochBatches(start, -(-sizes[0] // batch_size), facts)


def _of_dataset(dataset, seed):
    if dataset.num_batches is None:
        raise ValueError(
            "a PyDataset must have a number of batches. Received: num_batches=None. "
            "Define it, or pass a function with steps_per_epoch."
        )
    if dataset.use_multiprocessing:
        raise ValueError(
            "a PyDataset must load in threads. Received: use_multiprocessing=True. "
            "Set workers only."
        )
    number = integer("num_batches", dataset.num_batches, 1)
    began = -1  # The epoch in which the data set is.

    def start(epoch, first):
        nonlocal began
        if epoch < began:
            raise ValueError(
                f"a PyDataset cannot return to epoch {epoch + 1} from {began + 1}. "
                "Make it again, with its batches, before `fit`."
            )
        # As after all epochs before, in case the data set changes its order in them.
        while began < epoch:
            if began >= 0:
                dataset.on_epoch_end()
            dataset.on_epoch_begin()
            began += 1
        return _ahead(dataset, _order(number, seed, epoch)[first:])

    return EpochBatches(start, number, {"source": "PyDataset", "seed": seed})


def _from_function(function: Callable[[int], Iterable], steps):
    def start(epoch, first):
        batches = iter(function(epoch * steps + first))
        for batch in itertools.islice(batches, steps - first):
            yield keras.tree.map_structure(_in_numpy, batch)

    return start


def _order(number, seed, epoch):
    """The order of an epoch, which depends on the seed and the epoch only."""
    if seed is None:
        return np.arange(number)
    # numpy promises that this generator's numbers never change, unlike its newer ones'.
    return np.random.RandomState([seed, epoch]).permutation(number)


def _ahead(dataset, order):
    """The batches of a `PyDataset` in this order, loaded ahead by its workers."""
    if dataset.workers <= 1:
        yield from (dataset[int(index)] for index in order)
        return
    loading: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(dataset.workers) as workers:
        for index in order:
            loading.append(workers.submit(dataset.__getitem__, int(index)))
            if len(loading) > max(1, dataset.max_queue_size):
                yield loading.popleft().result()
        while loading:
            yield loading.popleft().result()


def _in_numpy(tensor):
    """An array of any library in numpy, in which the batches are for every backend."""
    if tensor is None or isinstance(tensor, np.ndarray):
        return tensor
    if keras.ops.is_tensor(tensor):
        return keras.ops.convert_to_numpy(tensor)
    return np.asarray(tensor)


def _spec_of(array):
    if array is None:
        return None
    return keras.KerasTensor(array.shape, keras.backend.standardize_dtype(array.dtype))

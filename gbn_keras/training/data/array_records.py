"""`ArrayRecords`: random access to the records of ArrayRecord files.

tensorflow-datasets makes a `tf.data.Dataset` of TFRecord files, but not of ArrayRecord
files, which have an index of their own.
"""

import concurrent.futures
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from gbn_keras.training.data.record_index import unusable
from gbn_keras.training.data.splits import Part
from gbn_keras.training.errors import UsageError, first_line

# Number of files that are opened at once to count their records.
_THREADS = 16


class ArrayRecords:
    """The records of a split. `RecordIndex` does the same for TFRecord files.

    Args:
        name: Name of the data set, for messages.
        parts: Parts of files that make up the split.

    Raises:
        UsageError: If the package array_record is not installed, or if a file is
            missing or truncated, or does not hold the number of records that
            tensorflow-datasets recorded.
    """

    def __init__(self, name: str, parts: Sequence[Part]):
        open_files = _data_source(name)
        counts = functools.partial(_number_of_records, name, open_files)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(counts, [part.filename for part in parts])
        for part, count in zip(parts, found, strict=True):
            if count != part.examples_in_shard:
                raise unusable(
                    name,
                    f"{part.filename} holds {count:,} records, wanted "
                    f"{part.examples_in_shard:,}",
                )
        self.files = tuple(part.filename for part in parts)
        self._ends = np.cumsum([part.take for part in parts])
        _allow_open_files(len(parts))
        self._records = open_files(parts)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def starts(self) -> np.ndarray:
        """The index of each file's first record."""
        return np.array([0, *self._ends[:-1]])

    def reader(self) -> Callable:
        """A function from a record's index to its bytes, for tf.data's `map`.

        The files have checksums, which each read verifies.
        """

        def record(index):
            try:
                return self._records[int(index)]
            except RuntimeError as error:
                # `refuse_damage` looks for these words.
                raise RuntimeError(f"ArrayRecord {index}: {error}") from error

        def read(index):
            content = tf.numpy_function(record, [index], tf.string, stateful=False)
            return tf.ensure_shape(content, [])

        return read

    def refuse_damage(self, name: str, error: tf.errors.OpError) -> None:
        """Raises a UsageError that names the file if a damaged file caused an error.

        Args:
            name: Name of the data set.
            error: Error that TensorFlow raised when it read the records.
        """
        place = re.search(r"ArrayRecord (\d+):", error.message)
        if not place or int(place[1]) >= len(self):
            return
        index = int(place[1])
        try:
            self._records[index]
        except RuntimeError as again:
            file = self.files[np.searchsorted(self._ends, index, side="right")]
            raise unusable(name, f"{file} is damaged ({first_line(again)})") from again


def _data_source(name):
    # Most data sets do not need the package, and not every system has it.
    try:
        from array_record.python import array_record_data_source
    except ImportError as error:
        raise UsageError(
            f"--dataset: got {name}, which is stored as array_record, wanted the "
            f"package array_record to read it, or tfrecord ({first_line(error)}). "
            "Run pip install array_record, or prepare the data set as tfrecord."
        ) from error
    return array_record_data_source.ArrayRecordDataSource


def _number_of_records(name, open_files, file):
    try:
        return len(open_files(file))
    except RuntimeError as error:
        raise unusable(name, f"{file} cannot be read ({first_line(error)})") from error


def _allow_open_files(number):
    """Raises the limit: all files stay open, and ImageNet exceeds the usual limit."""
    import resource  # Systems that have array_record have this module.

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + number
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

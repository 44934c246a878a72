"""`RecordIndex`: random access to the records of TFRecord files.

tensorflow-datasets reads files from the front and shuffles a buffer. A training that
can start at any update needs any record at any time. So the index goes through the
files once, from header to header, without reading the data between.
"""

import concurrent.futures
import dataclasses
import itertools
import os
import re
import struct
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from gbn_keras.training.errors import UsageError

# A record has four parts: its length (8 bytes, little-endian), the length's checksum
# (4 bytes), the data, and the data's checksum (4 bytes).
_LENGTH = struct.Struct("<Q")
_AROUND_THE_DATA = 16

# Number of files that are indexed at once. The threads mostly wait for the disk.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """The file and the first byte of every record.

    Attributes:
        files: Paths of the files.
        file: Index into `files` for each record: int32, `(records,)`.
        offset: First byte of each record in its file: int64, `(records,)`.
    """

    files: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def starts(self) -> np.ndarray:
        """The index of each file's first record."""
        return np.unique(self.file, return_index=True)[1]

    def reader(self) -> Callable:
        """A function from a record's index to its bytes, for tf.data's `map`.

        TensorFlow verifies the checksums.
        """
        files, file = tf.constant(self.files), tf.constant(self.file)
        offset = tf.constant(self.offset)

        def read(index):
            record = tf.raw_ops.TFRecordDatasetV2(
                filenames=tf.gather(files, tf.gather(file, index))[None],
                compression_type="",
                # No buffer, which would be filled with records that are not needed.
                buffer_size=tf.constant(0, tf.int64),
                byte_offsets=tf.gather(offset, index)[None],
            )
            record = tf.data.experimental.from_variant(
                record, tf.TensorSpec([], tf.string)
            )
            return record.take(1).get_single_element()

        return read

    def refuse_damage(self, name: str, error: tf.errors.OpError) -> None:
        """Raises a UsageError that names the file if a damaged file caused an error.

        It indexes the files again, and reads the records that TensorFlow's error may
        refer to.

        Args:
            name: Name of the data set.
            error: Error that TensorFlow raised when it read the records.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(_record_offsets, itertools.repeat(name), self.files))
        for number, (file, offsets) in enumerate(zip(self.files, found, strict=True)):
            if not np.isin(self.offset[self.file == number], offsets).all():
                raise unusable(name, f"{file} has changed since it was opened")
        # TensorFlow says at which byte the length or the data with the wrong checksum
        # begins, but not in which file.
        place = re.search(r"record at (\d+)", error.message)
        if not place:
            return
        read, begin = self.reader(), int(place[1]) - np.array([0, _LENGTH.size + 4])
        for index in np.flatnonzero(np.isin(self.offset, begin)):
            try:
                read(index)
            except tf.errors.OpError as again:
                raise unusable(
                    name,
                    f"{self.files[self.file[index]]} is damaged: the checksum of the "
                    f"record at byte {self.offset[index]:,} is wrong",
                ) from again


def index_records(name: str, file_instructions: Sequence) -> RecordIndex:
    """Finds the records of a split.

    Args:
        name: Name of the data set, for messages.
        file_instructions: tensorflow-datasets' description of the split: for each file
            `filename`, `examples_in_shard`, `skip` and `take` (-1: all).

    Raises:
        UsageError: If a file is missing or truncated, or does not hold the number of
            records that tensorflow-datasets recorded.
    """
    files = tuple(os.fspath(one.filename) for one in file_instructions)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_record_offsets, itertools.repeat(name), files))
    offsets = []
    for file, one, all_of_file in zip(files, file_instructions, found, strict=True):
        if len(all_of_file) != one.examples_in_shard:
            raise unusable(
                name,
                f"{file} holds {len(all_of_file):,} records, wanted "
                f"{one.examples_in_shard:,}",
            )
        stop = None if one.take < 0 else one.skip + one.take
        offsets.append(all_of_file[one.skip : stop])
    counts = [len(of_file) for of_file in offsets]
    return RecordIndex(
        files,
        np.repeat(np.arange(len(files), dtype=np.int32), counts),
        np.concatenate(offsets).astype(np.int64),
    )


def _record_offsets(name, file):
    """The first byte of each record in a file."""
    offsets, offset = [], 0
    try:
        with _open(file) as opened:
            opened.seek(0, os.SEEK_END)
            size = opened.tell()
            while offset < size:
                offsets.append(offset)
                opened.seek(offset)
                header = opened.read(_LENGTH.size)
                if len(header) < _LENGTH.size:
                    break
                offset += _LENGTH.unpack(header)[0] + _AROUND_THE_DATA
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise unusable(name, f"{file} cannot be read ({reason})") from error
    if offset != size:
        raise unusable(
            name,
            f"{file} is damaged: record {len(offsets):,} does not end at the end of "
            f"the file ({size:,} bytes)",
        )
    return offsets


def _open(file):
    # TensorFlow reads half a megabyte ahead, which pays only for remote files.
    if "://" in file:
        return tf.io.gfile.GFile(file, "rb")
    return open(file, "rb", buffering=0)


def unusable(name: str, what: str) -> UsageError:
    """The error for a data set with a file that is not as it was prepared."""
    return UsageError(
        f"--dataset: {what}. Copy the file again, or prepare {name} again."
    )

"""Where each record of a split begins: random access into TFRecord files.

tensorflow-datasets reads files from the front and mixes what is in a buffer. An order
that any update can reach needs any record at any time, so the files are walked once,
from header to header, without reading what is between.
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

# A record is its length (8 bytes, little-endian), the length's checksum (4), the data
# and the data's checksum (4).
_LENGTH = struct.Struct("<Q")
_AROUND_THE_DATA = 16

# Files walked at once. It is waiting for the disk, hardly computing.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """The file and the first byte of every record.

    Attributes:
        files: Paths.
        file: Index into `files`, by record: int32, `(records,)`.
        offset: First byte in the file, by record: int64, `(records,)`.
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

        TensorFlow verifies their checksum.
        """
        files, file = tf.constant(self.files), tf.constant(self.file)
        offset = tf.constant(self.offset)

        def read(index):
            record = tf.raw_ops.TFRecordDatasetV2(
                filenames=tf.gather(files, tf.gather(file, index))[None],
                compression_type="",
                # None: a buffer would be filled from records that nobody asked for.
                buffer_size=tf.constant(0, tf.int64),
                byte_offsets=tf.gather(offset, index)[None],
            )
            record = tf.data.experimental.from_variant(
                record, tf.TensorSpec([], tf.string)
            )
            return record.take(1).get_single_element()

        return read

    def refuse_damage(self, name: str, error: tf.errors.OpError) -> None:
        """A UsageError that names the file, if an error came from a damaged one.

        The files are walked once more; of the data only those records are read that
        may be the one which TensorFlow means.

        Args:
            name: Of the data set.
            error: What TensorFlow raised when it read.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(_record_offsets, itertools.repeat(name), self.files))
        for number, (file, offsets) in enumerate(zip(self.files, found, strict=True)):
            if not np.isin(self.offset[self.file == number], offsets).all():
                raise unusable(name, f"{file} holds other records than at first")
        # Of the checksum that is wrong, that of the length or of the data, TensorFlow
        # tells where what it belongs to begins, but not in which file.
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
    """Finds the records of a split by walking its files.

    Args:
        name: Of the data set, for messages.
        file_instructions: tensorflow-datasets' list of what belongs to the split: for
            each file `filename`, `examples_in_shard`, and `skip` and `take` (-1: all).

    Raises:
        UsageError: If a file is not there, is cut off, or holds another number of
            records than tensorflow-datasets wrote down.
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
    """First byte of each record of a file."""
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
            f"{file} is damaged: its record {len(offsets):,} does not end with the "
            f"file's {size:,} bytes",
        )
    return offsets


def _open(file):
    # TensorFlow reads ahead by half a megabyte, which only remote files are worth.
    if "://" in file:
        return tf.io.gfile.GFile(file, "rb")
    return open(file, "rb", buffering=0)


def unusable(name: str, what: str) -> UsageError:
    """The error of a data set one of whose files is not as it was prepared."""
    return UsageError(
        f"--dataset: {what}. Copy the file anew, or prepare {name} again."
    )

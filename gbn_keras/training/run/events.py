"""TensorBoard's event files: written one event a point, and cut at an update."""

import contextlib
import errno
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.compat.v1 import Event, SessionLog, Summary, SummaryMetadata

from gbn_keras.whole_file import whole_file

# How long a dashboard that is looked at may lag behind.
_FLUSH_SECONDS = 10

# By what the system says of an error, which TensorFlow repeats, its number.
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}


class EventLog:
    """Writes the events of one run, as TensorBoard calls a folder, from an update on.

    `tf.summary`'s own writer has a thread, in which an error (a full disk) is lost.

    Args:
        folder: Where the file goes. It is made.
        updates: How many updates there were before. A TensorBoard that has shown later
            ones already drops them.

    Raises:
        OSError: Here and in what follows, if the file cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, updates: int):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # As TensorFlow names them; in the order of their names they are read.
        name = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / f"events.out.tfevents.{name}"
        with _as_os_error(self._file):
            self._records = tf.io.TFRecordWriter(os.fspath(self._file))
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        start = SessionLog(status=SessionLog.START)
        self._write(updates + 1, session_log=start)

    def scalars(self, updates: int, values: dict[str, float]) -> None:
        """Writes a point after so many updates, by tag."""
        points = [_scalar(tag, value) for tag, value in values.items()]
        self._write(updates, summary=Summary(value=points))

    def summary(self, summary: bytes) -> None:
        """Writes what belongs to no update: a `Summary`, serialized.

        TensorBoard's own messages have the same content as TensorFlow's, but are not of
        the same class.
        """
        self._write(0, summary=Summary.FromString(summary))

    def flush(self) -> None:
        """Returns when all is in the file."""
        with _as_os_error(self._file):
            self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        with _as_os_error(self._file):
            self._records.close()

    def _write(self, updates, **content):
        event = Event(wall_time=time.time(), step=updates, **content)
        with _as_os_error(self._file):
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()


def read_events(folder: str | os.PathLike) -> list[Event]:
    """All whole events in a run's files, in the order in which they were written."""
    return [
        event
        for file in sorted(pathlib.Path(folder).glob("*tfevents*"))
        for event in _events(file)
    ]


def cut_events(folder: str | os.PathLike, updates: int) -> None:
    """Removes from all event files what is later than an update.

    So a training that was killed and goes on from a checkpoint has every event once.
    The record that was being written when it was killed goes too.

    Args:
        folder: Of the event files, which may lie in folders below it. It need not be.
        updates: How many updates the checkpoint has.

    Raises:
        OSError: If a file cannot be read or written.
    """
    for draft in pathlib.Path(folder).rglob("*tfevents*.part*"):
        draft.unlink()  # Left by a cut that was itself killed.
    for file in sorted(pathlib.Path(folder).rglob("*tfevents*")):
        kept = [event for event in _events(file) if event.step <= updates]
        with (
            whole_file(file) as draft,
            _as_os_error(file),
            tf.io.TFRecordWriter(os.fspath(draft)) as writer,
        ):
            for event in kept:
                writer.write(event.SerializeToString())


def _events(file):
    """The whole events of a file; what follows a record that is torn is none."""
    records = tf.data.TFRecordDataset(os.fspath(file)).as_numpy_iterator()
    with _as_os_error(file), contextlib.suppress(tf.errors.DataLossError):
        for record in records:
            yield Event.FromString(record)


def _scalar(tag, value):
    """A point, as `tf.summary.scalar` writes it."""
    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name="scalars")
        ),
        tensor=tf.make_tensor_proto(np.float32(value)),
    )


@contextlib.contextmanager
def _as_os_error(file: pathlib.Path) -> Iterator[None]:
    """Makes of TensorFlow's error the one that Python would raise: a full disk's."""
    try:
        yield
    except tf.errors.OpError as error:
        reason = error.message.rpartition("; ")[2]
        number = _NUMBERS.get(reason, errno.EIO)
        raise OSError(number, reason, os.fspath(file)) from error

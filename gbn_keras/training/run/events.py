"""TensorBoard's event files: writing one event per point, and cutting at an update."""

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

# Seconds that an open dashboard may lag behind.
_FLUSH_SECONDS = 10

# Tells TensorBoard to show a point as a curve's.
_SCALARS = SummaryMetadata(
    plugin_data=SummaryMetadata.PluginData(plugin_name="scalars")
)

# The numbers of system errors by their text, which TensorFlow's messages repeat.
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}


class EventLog:
    """Writes the events of one run (TensorBoard's name for a folder) from an update on.

    `tf.summary`'s own writer loses errors, such as a full disk, in its thread.

    Args:
        folder: Folder for the file. It is created.
        updates: Number of updates so far. If a TensorBoard has shown later ones, it
            drops them.

    Raises:
        OSError: Here and in the methods, if the file cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, updates: int):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorFlow's form of names. Files are read in the order of their names.
        name = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / f"events.out.tfevents.{name}"
        with _as_os_error(self._file):
            self._records = tf.io.TFRecordWriter(os.fspath(self._file))
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        start = SessionLog(status=SessionLog.START)
        self._write(updates + 1, session_log=start)

    def scalars(self, updates: int, values: dict[str, float]) -> None:
        """Writes a point for each tag, after this number of updates."""
        points = [_scalar(tag, value) for tag, value in values.items()]
        self._write(updates, summary=Summary(value=points))

    def summary(self, summary: bytes) -> None:
        """Writes a serialized `Summary` that belongs to no update.

        It is serialized because TensorBoard's own messages have the same content as
        TensorFlow's, but another class.
        """
        self._write(0, summary=Summary.FromString(summary))

    def flush(self) -> None:
        """Returns when all events are in the file."""
        with _as_os_error(self._file):
            self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        with _as_os_error(self._file):
            self._records.close()

    def _write(self, updates, **content):
        event = Event(wall_time=time.time(), step=updates, **content)
        with _as_os_error(self._file):
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()


def read_events(folder: str | os.PathLike) -> list[Event]:
    """All complete events in a run's files, in the order in which they were written."""
    return [
        event
        for file in sorted(pathlib.Path(folder).glob("*tfevents*"))
        for event in _events(file)
    ]


def cut_events(folder: str | os.PathLike, updates: int) -> None:
    """Removes all events after an update from all event files.

    So a training that was killed and resumes from a checkpoint has every event once. A
    record that was torn by the kill is removed too.

    Args:
        folder: Folder of the event files, which may be in subfolders. It need not
            exist.
        updates: Number of updates in the checkpoint.

    Raises:
        OSError: If a file cannot be read or written.
    """
    for draft in pathlib.Path(folder).rglob("*tfevents*.part*"):
        draft.unlink()  # An earlier cut was killed and left it.
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
    """The events of a file, up to the first torn record."""
    records = tf.data.TFRecordDataset(os.fspath(file)).as_numpy_iterator()
    with _as_os_error(file), contextlib.suppress(tf.errors.DataLossError):
        for record in records:
            yield Event.FromString(record)


def _scalar(tag, value):
    """A point in the form that `tf.summary.scalar` writes.

    Every update writes some. `tf.make_tensor_proto` would take most of their time.
    """
    point = Summary.Value(tag=tag, metadata=_SCALARS)
    point.tensor.dtype = tf.float32.as_datatype_enum
    point.tensor.tensor_shape.SetInParent()  # A scalar's shape is there, and empty.
    point.tensor.float_val.append(np.float32(value))
    return point


@contextlib.contextmanager
def _as_os_error(file: pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's errors into Python's, for example that of a full disk."""
    try:
        yield
    except tf.errors.OpError as error:
        reason = error.message.rpartition("; ")[2]
        number = _NUMBERS.get(reason, errno.EIO)
        raise OSError(number, reason, os.fspath(file)) from error

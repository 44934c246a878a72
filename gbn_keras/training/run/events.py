"""TensorBoard's event files: written one event a point, and cut at an update."""

import os
import pathlib
import socket
import time

import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import (
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from gbn_keras.whole_file import naming, whole_file

# How long a dashboard that is looked at may lag behind.
_FLUSH_SECONDS = 10


class EventLog:
    """Writes the events of one run, as TensorBoard calls a folder, from an update on.

    TensorBoard's own writer has a thread, in which an error (a full disk) is lost and
    which keeps the file open.

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
        self._records = RecordWriter(self._file.open("wb"))
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        start = SessionLog(status=SessionLog.START)
        self._write(updates + 1, session_log=start)

    def scalars(self, updates: int, values: dict[str, float]) -> None:
        """Writes a point after so many updates, by tag."""
        points = [
            point for tag, x in values.items() for point in scalar_pb(tag, x).value
        ]
        self._write(updates, summary=Summary(value=points))

    def summary(self, summary: Summary) -> None:
        """Writes what belongs to no update."""
        self._write(0, summary=summary)

    def flush(self) -> None:
        """Returns when all is in the file."""
        with naming(self._file):
            self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        with naming(self._file):
            self._records.close()

    def _write(self, updates, **content):
        event = Event(wall_time=time.time(), step=updates, **content)
        with naming(self._file):
            self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()


def read_events(folder: str | os.PathLike) -> list[Event]:
    """All whole events in a run's files, in the order in which they were written."""
    return [
        event
        for file in sorted(pathlib.Path(folder).glob("*tfevents*"))
        for event in LegacyEventFileLoader(os.fspath(file)).Load()
    ]


def cut_events(folder: str | os.PathLike, updates: int) -> None:
    """Removes from all event files what is later than an update.

    So a training that was killed and goes on from a checkpoint has every event once.
    The record that was being written when it was killed goes too.

    Args:
        folder: Of the event files, which may lie in folders below it. It need not be.
        updates: How many updates the checkpoint has.
    """
    for draft in pathlib.Path(folder).rglob("*tfevents*.part*"):
        draft.unlink()  # Left by a cut that was itself killed.
    for file in sorted(pathlib.Path(folder).rglob("*tfevents*")):
        events = LegacyEventFileLoader(os.fspath(file)).Load()
        kept = [event for event in events if event.step <= updates]
        with (
            whole_file(file) as draft,
            tf.io.TFRecordWriter(os.fspath(draft)) as writer,
        ):
            for event in kept:
                writer.write(event.SerializeToString())

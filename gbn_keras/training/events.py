"""TensorBoard's event files: written one event a point, and cut at an update."""

import os
import pathlib
import time

import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import (
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from gbn_keras.whole_file import whole_file

# How long a dashboard that is looked at may lag behind.
_FLUSH_SECONDS = 10


class EventLog:
    """Writes the events of one run, as TensorBoard calls a folder, from an update on.

    Args:
        folder: Where the file goes. It is made.
        updates: How many updates there were before. A TensorBoard that has shown later
            ones already drops them.
    """

    def __init__(self, folder: str | os.PathLike, updates: int):
        self._writer = EventFileWriter(os.fspath(folder), flush_secs=_FLUSH_SECONDS)
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
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _write(self, updates, **content):
        self._writer.add_event(Event(wall_time=time.time(), step=updates, **content))


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

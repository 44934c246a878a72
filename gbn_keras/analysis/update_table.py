"""`UpdateTable`, a CSV file by update with which a resumed training goes on."""

import csv
import os
import pathlib
from collections.abc import Sequence

from gbn_keras.whole_file import naming, whole_file


class UpdateTable:
    """A CSV file that grows while a model trains.

    Its first column is `updates`, the number of updates made. Where a training goes on
    after some updates, so does its file; rows of updates that are to be made again are
    dropped, so that none is there twice.

    Args:
        file: The CSV file. Its folder is made.
        columns: Names of the other columns.
        updates: How many updates there were before.
    """

    def __init__(self, file: str | os.PathLike, columns: list[str], updates: int = 0):
        self._file = pathlib.Path(file)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        rows = [["updates", *columns], *self._rows_until(updates)]
        with whole_file(self._file) as draft, draft.open("w", newline="") as table:
            csv.writer(table).writerows(rows)

    def append(self, updates: int, values: Sequence) -> None:
        """Adds the row of an update."""
        size = self._file.stat().st_size
        try:
            with naming(self._file), self._file.open("a", newline="") as file:
                csv.writer(file).writerow([updates, *values])
        except OSError:
            os.truncate(self._file, size)  # A full disk took a part of the row.
            raise

    def _rows_until(self, updates):
        if not updates or not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            header, *rows = csv.reader(file)
        # The last one may be cut off.
        return [r for r in rows if len(r) == len(header) and int(r[0]) <= updates]

"""`UpdateTable`, a CSV file by update that a resumed training continues."""

import csv
import os
import pathlib
from collections.abc import Sequence

from gbn_keras.whole_file import naming, whole_file


class UpdateTable:
    """A CSV file that grows while a model trains.

    Its first column, `updates`, is the number of updates made. When training resumes
    after some updates, the file continues from there. Rows of later updates are
    dropped, because training makes these updates again. So no update appears twice.

    Args:
        file: Path of the CSV file. Its folder is created.
        columns: Names of the other columns.
        updates: Number of updates made before.
    """

    def __init__(self, file: str | os.PathLike, columns: list[str], updates: int = 0):
        self._file = pathlib.Path(file)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        rows = [["updates", *columns], *self._rows_until(updates)]
        with whole_file(self._file) as draft, draft.open("w", newline="") as table:
            csv.writer(table).writerows(rows)

    def append(self, updates: int, values: Sequence) -> None:
        """Appends the row of an update."""
        size = self._file.stat().st_size
        try:
            with naming(self._file), self._file.open("a", newline="") as file:
                csv.writer(file).writerow([updates, *values])
        except OSError:
            os.truncate(self._file, size)  # A full disk may hold part of the row.
            raise

    def _rows_until(self, updates):
        if not updates or not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            header, *rows = csv.reader(file)
        # The last row may be incomplete.
        return [r for r in rows if len(r) == len(header) and int(r[0]) <= updates]

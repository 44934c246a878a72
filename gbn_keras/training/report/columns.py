"""`read_columns()`: a table of numbers, without pandas.

pandas takes half a second to import, a third of the time that a report page takes.
"""

import csv
import itertools
import pathlib

import numpy as np

Columns = dict[str, np.ndarray]


def read_columns(file: pathlib.Path) -> Columns:
    """The columns of a CSV file with a header, by name. Empty cells are NaN."""
    with file.open(newline="", encoding="utf-8") as lines:
        # The last row may be incomplete.
        columns = itertools.zip_longest(*csv.reader(lines), fillvalue="")
        return {
            name: np.array([float(cell or "nan") for cell in cells])
            for name, *cells in columns
        }


def concatenate(tables: list[Columns]) -> Columns:
    """The rows of several tables, one below the other, in the columns that all have."""
    return {
        name: np.concatenate([table[name] for table in tables])
        for name in tables[0]
        if all(name in table for table in tables)
    }


def without_gaps(table: Columns, name: str) -> Columns:
    """The rows that have a number in this column."""
    has_one = ~np.isnan(table[name])
    return {other: column[has_one] for other, column in table.items()}

"""Writes files that are complete or not there at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a draft to write, which replaces the file when it is done.

    So the file always has its complete new content or its old content, even if the
    process is killed or the machine loses power.

    Raises:
        OSError: If writing fails, for example because the disk is full. The draft is
            then removed.
    """
    # The draft has the file's extension, because some writers choose the format by it.
    draft = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with naming(path):
            yield draft
            # The content must reach the disk before the new name does.
            to_disk(draft)
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Adds the file's name to an error if Python does not, as when a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def to_disk(path: pathlib.Path) -> None:
    """Returns when everything written to a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

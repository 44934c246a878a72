"""Files that are found whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a draft to write, which becomes the file when it is done.

    So under the file's name there is all of it or what was there before, whenever the
    process is killed or the machine loses its power.

    Raises:
        OSError: If the disk is full, say; no draft is left.
    """
    # With the file's own ending, which says to some writers what to write.
    draft = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with naming(path):
            yield draft
            # The new name must not reach the disk before what it stands for.
            to_disk(draft)
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Gives an error the file's name where Python does not: a full disk's."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def to_disk(path: pathlib.Path) -> None:
    """Returns when what was written to a file, or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

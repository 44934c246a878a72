"""`whole_file`, for files that must not be found half written."""

import contextlib
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a draft to write, which becomes the file when it is done.

    So under the file's name there is all of it or what was there before.
    """
    draft = path.with_name(path.name + ".part")
    yield draft
    draft.replace(path)

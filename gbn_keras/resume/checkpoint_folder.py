"""A folder of checkpoints: whole files, the newest intact one, the last few kept."""

import pathlib
import sys
from collections.abc import Callable

from gbn_keras.resume.checkpoint_file import NotWhole
from gbn_keras.whole_file import whole_file

_DIGITS = 10  # Digits of an update in a file's name, so that names sort as numbers.


class NoneIntact(ValueError):
    """There are checkpoints, but none is intact."""


class CheckpointFolder:
    """The checkpoints of one training.

    Args:
        path: The folder. It must be there when a checkpoint is saved.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, path: pathlib.Path, keep: int):
        self.path = path
        self._keep = keep

    def save(self, updates: int, content: bytes) -> None:
        """Writes the checkpoint of an update, and deletes all but the newest ones.

        Raises:
            OSError: If it cannot be written. Then the earlier ones are still there.
        """
        with whole_file(self.file(updates)) as draft:
            draft.write_bytes(content)
        for old in self._files()[self._keep :]:
            old.unlink()

    def newest(self, read: Callable):
        """What `read` makes of the newest intact checkpoint; `None` if there never was.

        Warns of the damaged ones.

        Args:
            read: Function of a file and its bytes. It raises `NotWhole` if they are
                damaged.

        Raises:
            NoneIntact: If there are checkpoints, but none is intact.
        """
        files = self._files()
        for file in files:
            try:
                return read(file, file.read_bytes())
            except NotWhole as error:
                warn(f"{file} is not used: {error}")
        if files:
            raise NoneIntact(
                f"no checkpoint in {self.path} is intact. Restore a copy of one, or "
                "choose another folder to train from the beginning."
            )
        return None

    def file(self, updates: int) -> pathlib.Path:
        """The file of an update's checkpoint."""
        return self.path / f"update_{updates:0{_DIGITS}d}.checkpoint"

    def _files(self):
        """All checkpoints, the newest first."""
        # This does not match the drafts that a killed process left.
        pattern = f"update_{'[0-9]' * _DIGITS}.checkpoint"
        return sorted(self.path.glob(pattern), reverse=True)


def warn_of_other_versions(file: pathlib.Path, before: dict, now: dict) -> None:
    """Warns if other versions of the software wrote a checkpoint.

    Args:
        file: The checkpoint.
        before: Versions by name, there.
        now: Versions by name, here.
    """
    changed = [
        f"{name} {before.get(name)} there, {version} here"
        for name, version in now.items()
        if before.get(name) != version
    ]
    if changed:
        differences = ", ".join(changed)
        warn(f"{file} is from other versions and may round differently: {differences}")


def warn(line: str) -> None:
    """Prints a warning, in one line, at once."""
    print(f"warning: {line}", file=sys.stderr, flush=True)

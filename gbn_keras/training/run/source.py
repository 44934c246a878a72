"""The commit of the source code that runs."""

import functools
import pathlib
import subprocess

import gbn_keras
from gbn_keras.version import __version__

# What a result depends on, from the root of the repository.
_SOURCE = ("gbn_keras", "gbn_train.py", "train.py", "configs", "benchmarks")


@functools.cache
def commit() -> str:
    """The commit of the repository that this package is part of, as git names it.

    `-changed` follows if files of the source have changed since. Without such a
    repository (an installed package, or no git), it is the package with its version.
    """
    package = pathlib.Path(gbn_keras.__file__).parent
    return commit_of(package.parent) or f"gbn_keras {__version__}"


def commit_of(root: pathlib.Path) -> str | None:
    """The commit of the source in a folder; `None` if git does not track it there."""

    def git(*words):
        command = ["git", "-C", root, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True)

    try:
        # An installed package may lie inside a repository of something else.
        git("ls-files", "--error-unmatch", "gbn_keras/version.py")
        head = git("rev-parse", "HEAD").stdout.strip()
        changed = git("status", "--porcelain", "--", *_SOURCE).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-changed" if changed else head

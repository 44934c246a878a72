"""The run directory: its lock, and the files that must never be half written."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from gbn_keras.training.errors import UsageError, first_line
from gbn_keras.training.settings import FREE_TO_CHANGE, Settings
from gbn_keras.whole_file import whole_file

FLAGFILE = "flags.cfg"
PLAN = "plan.txt"
METRICS = "metrics.csv"
RESULT = "result.json"
DIVERGED = "diverged.json"
LANDSCAPE = "landscape.json"
MODEL_FILE = "model.keras"

_LOCK = "lock"
# A file of its own, because on some systems nobody can read the lock while it is held.
_HOLDER = "lock.holder"


def with_run_dir(settings: Settings) -> Settings:
    """The settings with a run directory. By default, it is named after the flags."""
    if settings.run_dir:
        return settings
    return dataclasses.replace(settings, run_dir=_default_run_dir(settings))


def _default_run_dir(settings):
    return os.path.join(
        "runs",
        f"{settings.dataset}-{settings.model}-{settings.mode}-{digest(settings)}".replace(
            "/", "-"
        ),
    )


def digest(settings: Settings) -> str:
    """A short name for the flags. The same command always gives the same name."""
    lines = "".join(sorted(_decisive(settings.flagfile())))
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


@contextlib.contextmanager
def open_run_directory(settings: Settings) -> Iterator[pathlib.Path]:
    """Creates the run directory and writes the flagfile that repeats the run.

    This is a context. While it is open, no other process can open the folder. A killed
    process does not lock others out.

    Raises:
        UsageError: If the folder cannot be written, is in use, or belongs to other
            flags. Then nothing in it has changed.
    """
    path = pathlib.Path(settings.run_dir)
    with contextlib.ExitStack() as stack:
        try:
            if (path / FLAGFILE).exists():
                refuse_other_flags(path, settings)
            _make(path)
            stack.enter_context(_locked(path))
            write_whole(path / FLAGFILE, settings.flagfile())
        except OSError as error:
            raise UsageError(
                f"--run_dir: {path} cannot be written ({error.strerror or error}). "
                "Choose a folder that you can write to."
            ) from error
        yield path


def _make(path):
    """Creates a folder. If that fails, removes the parents that it created."""
    missing = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def _locked(path):
    """Locks out other processes. The system unlocks the file when a process dies."""
    import filelock  # A report page reads run directories, and needs no lock.

    holder = path / _HOLDER
    try:
        lock = filelock.FileLock(path / _LOCK).acquire(blocking=False)
    except filelock.Timeout as error:
        raise UsageError(
            f"--run_dir: {path} is in use by {_told(holder)}. Wait for it to end, stop "
            "it, or choose another folder."
        ) from error
    with lock:
        command = " ".join(sys.argv)
        try:
            holder.write_text(
                f"process {os.getpid()} on {socket.gethostname()} ({command})\n",
                encoding="utf-8",
            )
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink()


def _told(holder):
    """What the holder of the lock says about itself, if it has done so already."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return holder.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def read_flags(path: pathlib.Path) -> dict[str, str]:
    """The flags of the run in this folder, by name, as text."""
    return dict(_flags((path / FLAGFILE).read_text(encoding="utf-8")))


def read_result(path: pathlib.Path) -> dict | None:
    """The result of a finished run; `None` if the run is not finished."""
    return _read_record(path / RESULT)


def read_outcome(path: pathlib.Path) -> dict | None:
    """How a run ended: its result, or how it diverged; `None` if it has not ended.

    The record of a diverged run has no `accuracy` and no `loss`. Instead it has
    `diverged`, the update that was not finite.
    """
    return read_result(path) or _read_record(path / DIVERGED)


def read_landscape(path: pathlib.Path) -> dict | None:
    """What `--mode=landscape` measured in this folder; `None` if it has not."""
    return _read_record(path / LANDSCAPE)


def _read_record(file):
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--run_dir: {file} is not a readable result ({first_line(error)}). Delete "
            "it to run again, or choose another folder."
        ) from error


def write_result(path: pathlib.Path, result: dict) -> None:
    """Marks the run in this folder as finished."""
    write_whole(path / RESULT, json.dumps(result, indent=2) + "\n")
    (path / DIVERGED).unlink(missing_ok=True)


def write_divergence(path: pathlib.Path, record: dict) -> None:
    """Marks the run in this folder as diverged, so that a study or search continues."""
    write_whole(path / DIVERGED, json.dumps(record, indent=2) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that it is never half written."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def refuse_other_flags(path: pathlib.Path, settings: Settings) -> None:
    """Raises a UsageError if the run in this folder computes something else."""
    try:
        before = _decisive((path / FLAGFILE).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--run_dir: {path / FLAGFILE} is not a flagfile. Choose another folder."
        ) from error
    now = _decisive(settings.flagfile())
    if before != now:
        raise UsageError(
            f"--run_dir: {path} holds a run with other flags: "
            f"{' '.join(sorted(before - now))} there, {' '.join(sorted(now - before))} "
            "here. Use the same flags, or choose another folder."
        )


def _decisive(flagfile):
    """The flags that decide what the run computes, as lines."""
    return {
        f"--{name}={value}"
        for name, value in _flags(flagfile)
        if name not in FREE_TO_CHANGE
    }


def _flags(flagfile):
    """Pairs of name and value. A name can occur several times."""
    lines = flagfile.splitlines()
    return [line.removeprefix("--").partition("=")[::2] for line in lines]

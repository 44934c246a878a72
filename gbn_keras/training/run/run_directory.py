"""The folder that a run leaves: who may use it, and its files that must be whole."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

import filelock

from gbn_keras.training.errors import UsageError, first_line
from gbn_keras.training.settings import FREE_TO_CHANGE, Settings
from gbn_keras.whole_file import whole_file

FLAGFILE = "flags.cfg"
PLAN = "plan.txt"
RESULT = "result.json"
DIVERGED = "diverged.json"
MODEL_FILE = "model.keras"

_LOCK = "lock"
# Beside the lock, whose content some systems let nobody read while it is held.
_HOLDER = "lock.holder"


def with_run_dir(settings: Settings) -> Settings:
    """The settings with a run directory, if they name none: one after the flags."""
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
    """A name of its own for each choice of flags: the same command, the same."""
    lines = "".join(sorted(_decisive(settings.flagfile())))
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


@contextlib.contextmanager
def open_run_directory(settings: Settings) -> Iterator[pathlib.Path]:
    """Makes the run directory and writes the flagfile that runs it again.

    As a context, in which no other process may open it. What a process leaves that was
    killed does not keep others out.

    Raises:
        UsageError: If the folder cannot be written, is in use, or belongs to other
            flags; then nothing in it was changed.
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
                "Choose a folder that can."
            ) from error
        yield path


def _make(path):
    """Makes a folder, or none of those above it either."""
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
    """Keeps other processes out. The system unlocks the file of a process that died."""
    holder = path / _HOLDER
    try:
        lock = filelock.FileLock(path / _LOCK).acquire(blocking=False)
    except filelock.Timeout as error:
        raise UsageError(
            f"--run_dir: {path} is in use by {_told(holder)}. Wait for it, end it, or "
            "choose another folder."
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
    """What a holder of the lock tells of itself, which it may not have done yet."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return holder.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def read_flags(path: pathlib.Path) -> dict[str, str]:
    """The flags of the run in this folder, by name, as the flagfile has them."""
    return dict(_flags((path / FLAGFILE).read_text(encoding="utf-8")))


def read_result(path: pathlib.Path) -> dict | None:
    """The result of a finished run; `None` if the run is not finished."""
    return _read_record(path / RESULT)


def read_outcome(path: pathlib.Path) -> dict | None:
    """What a run came to: its result, or how it diverged; `None` if it is not over.

    What a diverged run leaves has no `accuracy` and no `loss`, but `diverged`, the
    update that was not finite.
    """
    return read_result(path) or _read_record(path / DIVERGED)


def _read_record(file):
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--run_dir: {file} is not a result that can be read "
            f"({first_line(error)}). Delete it to run again, or choose another folder."
        ) from error


def write_result(path: pathlib.Path, result: dict) -> None:
    """Marks the run in this folder as finished."""
    write_whole(path / RESULT, json.dumps(result, indent=2) + "\n")
    (path / DIVERGED).unlink(missing_ok=True)


def write_divergence(path: pathlib.Path, record: dict) -> None:
    """Marks the run in this folder as diverged, for a study or a search to go on."""
    write_whole(path / DIVERGED, json.dumps(record, indent=2) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that under its name there is all of it or nothing."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def refuse_other_flags(path: pathlib.Path, settings: Settings) -> None:
    """A UsageError if the run in this folder computes something else."""
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
            "here. Give the same flags, or choose another folder."
        )


def _decisive(flagfile):
    """The lines that say what the run computes."""
    return {
        f"--{name}={value}"
        for name, value in _flags(flagfile)
        if name not in FREE_TO_CHANGE
    }


def _flags(flagfile):
    """Pairs of name and value: some flags may be given several times."""
    lines = flagfile.splitlines()
    return [line.removeprefix("--").partition("=")[::2] for line in lines]

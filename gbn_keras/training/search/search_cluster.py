"""Chief and workers of a search: their roles, and what happens if one is lost.

keras-tuner's chief hands out trials, and its workers run them. By itself, a worker
waits an hour for a lost chief, and the chief waits forever for a lost worker.
"""

import contextlib
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import keras_tuner

from gbn_keras.training.errors import UsageError
from gbn_keras.training.strategy import WorkerLost

_IP, _PORT = "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
_ID = "KERASTUNER_TUNER_ID"


def role() -> str:
    """`chief`, `worker` or, if keras-tuner's variables are not set, `alone`.

    Raises:
        UsageError: If only some of the variables are set, or the port is no number.
    """
    known = {name: os.environ.get(name) for name in (_IP, _PORT, _ID)}
    if not any(known.values()):
        return "alone"
    if not all(known.values()) or not known[_PORT].isdigit():
        told = ", ".join(f"{name}={value or ''}" for name, value in known.items())
        raise UsageError(
            f"--mode: got tune with {told}, wanted the chief's address, its port and "
            f"an id for each process, with {_ID}=chief for one of them. Set all three, "
            "or unset them to search in one process."
        )
    # keras-tuner's rule.
    return "chief" if "chief" in known[_ID] else "worker"


def serve(
    search: Callable[[], None],
    oracle: keras_tuner.Oracle,
    folder: pathlib.Path,
    lost_after: float,
) -> None:
    """Hands out trials to workers until the search is done.

    If a worker is lost, another one gets its trial.

    Args:
        search: Method `search` of the chief's tuner.
        oracle: Oracle of the tuner.
        folder: Folder for the workers' signs of life.
        lost_after: Seconds without a sign of life after which a worker counts as lost.

    Raises:
        UsageError: If the port is in use.
        WorkerLost: If no worker came, or none is left.
    """
    address = _address()
    try:
        socket.create_server(address).close()
    except OSError as error:
        raise UsageError(
            f"{_IP}, {_PORT}: the chief cannot listen at {address[0]}:{address[1]} "
            f"({error.strerror}). Choose a free port, the same for chief and workers."
        ) from error
    print(f"chief is waiting for workers at {address[0]}:{address[1]}", flush=True)
    _while_watched(search, Workers(oracle, folder, lost_after).look)


def work(search: Callable[[], None], folder: pathlib.Path, lost_after: float) -> None:
    """Waits for the chief, then runs its trials until it has no more.

    Args:
        search: Method `search` of the worker's tuner.
        folder: Folder for signs of life.
        lost_after: Seconds without an answer after which the chief counts as lost.

    Raises:
        WorkerLost: If the chief does not answer, or no longer.
    """
    address, last = _address(), time.monotonic()

    def answers():
        nonlocal last
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=1).close()
            last = time.monotonic()
            return True
        if time.monotonic() - last > lost_after:
            raise WorkerLost(
                f"the chief has not answered at {address[0]}:{address[1]} for "
                f"{lost_after:g} s. Run the same commands again, including the "
                "chief's. Finished trials are not repeated."
            )
        return False

    def look():
        answers()
        return False  # The search ends by itself.

    while not answers():
        time.sleep(0.5)
    with _signs_of_life(folder / os.environ[_ID], lost_after / 10):
        _while_watched(search, look)


def that_keeps_workers(oracle: type[keras_tuner.Oracle]) -> type[keras_tuner.Oracle]:
    """A class of oracle that keeps its workers until the last trial is finished.

    keras-tuner itself dismisses a worker when there is no new trial for it. But if
    another worker is lost, its trial must be run again.
    """

    class KeepsWorkers(oracle):
        @keras_tuner.synchronized
        def create_trial(self, tuner_id):
            trial = super().create_trial(tuner_id)
            if trial.status == "STOPPED" and self.ongoing_trials:
                self.tuner_ids.add(tuner_id)
                trial.status = "IDLE"
            return trial

    return KeepsWorkers


class Workers:
    """The workers of a search, from the view of its chief.

    Args:
        oracle: Oracle of the chief, of a class from `that_keeps_workers`.
        folder: Folder in which each worker touches a file with its name.
        lost_after: Seconds without a touch after which a worker counts as lost.
    """

    def __init__(
        self, oracle: keras_tuner.Oracle, folder: pathlib.Path, lost_after: float
    ):
        self._oracle, self._folder, self._lost_after = oracle, folder, lost_after
        self._signs = {}  # For each worker, its last sign of life and when it came.
        self._here, self._lost = set(), set()
        self._last_here = time.monotonic()
        self._is_ending = False

    def look(self) -> bool:
        """Gives the trials of lost workers to others; returns whether all are done.

        Raises:
            WorkerLost: If there are trials, but no worker.
        """
        for worker in set(self._oracle.tuner_ids) | set(self._oracle.ongoing_trials):
            if time.monotonic() - self._last_sign(worker) > self._lost_after:
                self._lose(worker)
        here = set(self._oracle.tuner_ids)
        # keras-tuner itself removes workers when no trial is left for them.
        self._is_ending |= bool(self._here - here - self._lost)
        self._here = here
        if here:
            self._last_here = time.monotonic()
        elif self._is_ending and all(
            trial.status == "COMPLETED" for trial in self._oracle.trials.values()
        ):
            return True
        elif self._is_ending or self._absence() > self._lost_after:
            raise WorkerLost(
                f"the search has had no worker for {self._absence():.0f} s. Run the "
                "same commands again. Finished trials are not repeated."
            )
        return False

    def _absence(self):
        return time.monotonic() - self._last_here

    def _last_sign(self, worker):
        """When it came, by this machine's clock, because other machines' may differ."""
        file = self._folder / worker
        sign = file.stat().st_mtime_ns if file.exists() else None
        if worker not in self._signs or self._signs[worker][0] != sign:
            self._signs[worker] = sign, time.monotonic()
        return self._signs[worker][1]

    def _lose(self, worker):
        self._oracle.tuner_ids.discard(worker)
        self._lost.add(worker)
        del self._signs[worker]
        trial = self._oracle.ongoing_trials.get(worker)
        line = f"worker {worker} has shown no sign of life for {self._lost_after:g} s"
        if trial is not None:
            trial.status = "INVALID"  # keras-tuner runs such a trial again.
            self._oracle.end_trial(trial)
            line += f"; another worker gets trial {int(trial.trial_id) + 1}"
        print(line, flush=True)


def _address():
    return os.environ[_IP], int(os.environ[_PORT])


def _while_watched(search, is_done):
    """Searches in a separate thread, because keras-tuner's waits cannot be stopped."""
    errors = []

    def run():
        try:
            search()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not is_done():
        thread.join(0.5)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _signs_of_life(file: pathlib.Path, interval: float) -> Iterator[None]:
    """Touches the file as long as this process lives."""
    file.parent.mkdir(parents=True, exist_ok=True)
    is_over = threading.Event()

    def touch():
        while True:
            file.touch()
            if is_over.wait(min(interval, 5)):
                break

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()

"""Chief and workers of a search: who is one, and what if another is gone.

keras-tuner's chief hands out trials, its workers run them. Left alone, a worker would
wait an hour for its chief, and the chief for ever for a worker.
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
    """`chief`, `worker` or, where keras-tuner's variables are not set, `alone`.

    Raises:
        UsageError: If only some of the variables are set, or the port is none.
    """
    known = {name: os.environ.get(name) for name in (_IP, _PORT, _ID)}
    if not any(known.values()):
        return "alone"
    if not all(known.values()) or not known[_PORT].isdigit():
        told = ", ".join(f"{name}={value or ''}" for name, value in known.items())
        raise UsageError(
            f"--mode: got tune with {told}, wanted the chief's address and port and, "
            f"for each process, an id of its own: {_ID}=chief for one of them. Unset "
            "all three to search in one process."
        )
    # As keras-tuner has it.
    return "chief" if "chief" in known[_ID] else "worker"


def serve(
    search: Callable[[], None],
    oracle: keras_tuner.Oracle,
    folder: pathlib.Path,
    lost_after: float,
) -> None:
    """Hands out trials to workers until the search is done.

    A trial of a worker that is lost goes to another one.

    Args:
        search: Of the chief's tuner.
        oracle: The tuner's.
        folder: Where the workers' signs of life are.
        lost_after: Seconds without one after which a worker counts as lost.

    Raises:
        UsageError: If the port is in use.
        WorkerLost: If no worker is left, or none came.
    """
    address = _address()
    try:
        socket.create_server(address).close()
    except OSError as error:
        raise UsageError(
            f"{_IP}, {_PORT}: the chief cannot listen at {address[0]}:{address[1]} "
            f"({error.strerror}). Choose a free port, and the same one for the workers."
        ) from error
    print(f"chief waits for workers at {address[0]}:{address[1]}", flush=True)
    _while_watched(search, Workers(oracle, folder, lost_after).look)


def work(search: Callable[[], None], folder: pathlib.Path, lost_after: float) -> None:
    """Waits for the chief, and runs the trials that it hands out until it has no more.

    Args:
        search: Of the worker's tuner.
        folder: Where to leave signs of life.
        lost_after: Seconds without an answer after which the chief counts as lost.

    Raises:
        WorkerLost: If the chief is not there, or no longer.
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
                f"no chief of the search has answered at {address[0]}:{address[1]} for "
                f"{lost_after:g} s. Run the same commands again, the chief's too: what "
                "is finished is not run again."
            )
        return False

    def look():
        answers()
        return False  # When the search is done, it ends by itself.

    while not answers():
        time.sleep(0.5)
    with _signs_of_life(folder / os.environ[_ID], lost_after / 10):
        _while_watched(search, look)


def that_keeps_workers(oracle: type[keras_tuner.Oracle]) -> type[keras_tuner.Oracle]:
    """An oracle's class with workers that stay until the last trial is finished.

    keras-tuner itself sends a worker home when there is no new trial for it. But one
    that another worker has may come back, if that worker is lost.
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
    """The workers of a search, as its chief sees them.

    Args:
        oracle: The chief's, of a class `that_keeps_workers`.
        folder: Where each worker touches a file of its name.
        lost_after: Seconds without that after which a worker counts as lost.
    """

    def __init__(
        self, oracle: keras_tuner.Oracle, folder: pathlib.Path, lost_after: float
    ):
        self._oracle, self._folder, self._lost_after = oracle, folder, lost_after
        self._signs = {}  # By worker: the last one, and when it came.
        self._here, self._lost = set(), set()
        self._last_here = time.monotonic()
        self._is_ending = False

    def look(self) -> bool:
        """Whether all is done; gives the trials of lost workers to the others.

        Raises:
            WorkerLost: If there are trials, but no worker.
        """
        for worker in set(self._oracle.tuner_ids) | set(self._oracle.ongoing_trials):
            if time.monotonic() - self._last_sign(worker) > self._lost_after:
                self._lose(worker)
        here = set(self._oracle.tuner_ids)
        # keras-tuner itself takes workers out when there is no trial left for them.
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
                f"no worker of the search is there since {self._absence():.0f} s. Run "
                "the same commands again: what is finished is not run again."
            )
        return False

    def _absence(self):
        return time.monotonic() - self._last_here

    def _last_sign(self, worker):
        """When it came, by our own clock: the other machine's may differ."""
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
        line = f"worker {worker} has given no sign of life for {self._lost_after:g} s"
        if trial is not None:
            trial.status = "INVALID"  # Which is run again.
            self._oracle.end_trial(trial)
            line += f", trial {int(trial.trial_id) + 1} goes to another one"
        print(line, flush=True)


def _address():
    return os.environ[_IP], int(os.environ[_PORT])


def _while_watched(search, is_done):
    """Searches in a thread of its own, as keras-tuner's waiting cannot be ended."""
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

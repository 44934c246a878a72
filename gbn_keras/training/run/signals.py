"""`Signals`: catches requests to stop, so that the training can finish its update."""

import signal
import threading

from gbn_keras.training.errors import Stopped


class Interrupted(Stopped):
    """The process received SIGTERM or SIGINT.

    Args:
        number: Number of the signal.
        message: Line that says so.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        if number == signal.SIGINT:
            self.exit_code = 128 + number  # The convention of shells.


class Signals:
    """Catches SIGTERM and SIGINT once, as a context.

    A second signal has its usual effect, so that you can stop a training that hangs.
    Only the main thread of a process can catch signals. In other threads, this context
    does nothing.

    Attributes:
        received: Number of the first signal; `None` until it comes.
    """

    _CAUGHT = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive) for number in self._CAUGHT
            }
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number, frame):
        self.received = number
        self.__exit__()

"""`Signals`: a request to stop that waits for the end of the update."""

import signal
import threading

from gbn_keras.training.errors import Stopped


class Interrupted(Stopped):
    """SIGTERM or SIGINT came.

    Args:
        number: Of the signal.
        message: The line that tells of it.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        if number == signal.SIGINT:
            self.exit_code = 128 + number  # As every shell has it.


class Signals:
    """Catches SIGTERM and SIGINT once, as a context.

    A second one acts as it would have without, so that a training that hangs can be
    ended. Only a process's main thread can catch them; in others nothing is changed.

    Attributes:
        received: The first one's number; `None` while there is none.
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

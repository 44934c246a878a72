"""`Signals`: catches requests to stop, so that the training can finish its update."""

import signal
import threading


class Signals:
    """Catches signals once, as a context.

    A second signal has its usual effect, so that you can stop a training that hangs.
    Only the main thread of a process can catch signals. In other threads, this context
    does nothing.

    Args:
        caught: Numbers of the signals.

    Attributes:
        received: Number of the first signal; `None` until it comes.
    """

    def __init__(self, caught: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)):
        self.received: int | None = None
        self._caught = caught
        self._before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive) for number in self._caught
            }
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number, frame):
        self.received = number
        self.__exit__()

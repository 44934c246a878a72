"""Runs the program on a small network, on one machine of a cluster, which may be lost.

`python tests/support/machine.py JSON`, with an object of these members:

- `runs`: a list of the flags of each run. All runs share this process, so TensorFlow
  starts once.
- `loss`, where a machine is lost: the machine with this index gets this signal before
  it makes this update of those that the process makes.
- `others`: trainings of `sameness.py` after the runs, and the folder of their results.
"""

import functools
import gc
import json
import os
import sys

if __name__ == "__main__":
    gc.disable()  # Until all is imported, as the program does it.

import keras  # noqa: E402
import sameness  # noqa: E402
from trainings import shallow_network  # noqa: E402

import gbn_train  # noqa: E402
from gbn_keras.training import trainer  # noqa: E402
from gbn_keras.training.settings import Settings  # noqa: E402
from gbn_keras.training.strategy import strategy_of  # noqa: E402


class SendSignal(keras.callbacks.Callback):
    """Sends a signal to this process before an update."""

    def __init__(self, number, update):
        super().__init__()
        self._number, self._left = number, update

    def on_train_batch_begin(self, batch, logs=None):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._number)


def main(runs, loss=None, others=None):
    """Returns the program's exit code."""
    if loss:
        index, number, update = loss
        if index == json.loads(os.environ["TF_CONFIG"])["task"]["index"]:
            callbacks = (SendSignal(number, update),)
            trainer.train = functools.partial(trainer.train, callbacks=callbacks)
    with shallow_network():
        code = max(gbn_train.main(["train.py", *flags]) for flags in runs)
    if others:
        flags = gbn_train.parse(["machine.py", "--strategy=multi_worker"])
        sameness.train_on_machines(strategy_of(Settings(**flags)), *others)
    return code


if __name__ == "__main__":
    gc.enable()
    sys.exit(main(**json.loads(sys.argv[1])))

"""Runs the program on one machine of a cluster, which may be lost.

`python tests/support/machine.py RUNS [INDEX SIGNAL UPDATE]`

RUNS is a JSON list of the flags of each run. All runs share this process, so TensorFlow
starts once. The machine with this INDEX gets SIGNAL before it makes an update, UPDATE
of those that the process makes.
"""

import functools
import json
import os
import sys

import keras
from trainings import shallow_network

import gbn_train
from gbn_keras.training import trainer


class SendSignal(keras.callbacks.Callback):
    """Sends a signal to this process before an update."""

    def __init__(self, number, update):
        super().__init__()
        self._number, self._left = number, update

    def on_train_batch_begin(self, batch, logs=None):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._number)


def main(runs, index=None, number=None, update=None):
    """Returns the program's exit code."""
    if index == json.loads(os.environ["TF_CONFIG"])["task"]["index"]:
        callbacks = (SendSignal(number, update),)
        trainer.train = functools.partial(trainer.train, callbacks=callbacks)
    with shallow_network():
        return max(gbn_train.main(["train.py", *flags]) for flags in runs)


if __name__ == "__main__":
    sys.exit(main(*map(json.loads, sys.argv[1:])))

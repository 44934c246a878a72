"""Runs the program for `kill_soak.py`: adds dropout to F1, and may kill itself.

    python benchmarks/killed_program.py MOMENT --name=value ...

MOMENT is empty, or says when to kill:

- `half written:3`: in the middle of writing the third checkpoint
- `not yet named:3`: before the third checkpoint gets its name
- `not yet tidied:3`: before the third deletion of an old checkpoint
"""

import os
import pathlib
import signal
import sys

import gbn_train

_METHODS = {
    "half written": "write_bytes",
    "not yet named": "replace",
    "not yet tidied": "unlink",
}
PROVOKED = tuple(_METHODS)


def main():
    """Runs the program; returns its exit code."""
    moment, *flags = sys.argv[1:]
    if moment:
        kill_at(*moment.split(":"))
    use_dropout()
    return gbn_train.main(["train.py", *flags])


def checkpoints(folder):
    """The files of whole checkpoints, the newest last."""
    return sorted(folder.glob("update_??????????.checkpoint"))


def kill_at(moment, number):
    """Kills this process at the `number`th call of a method on a checkpoint."""
    name = _METHODS[moment]
    method, calls = getattr(pathlib.Path, name), 0

    def kill_or_call(path, *arguments, **named):
        nonlocal calls
        calls += path.suffix == ".checkpoint"
        if calls == int(number):
            if moment == "half written":
                (content,) = arguments
                method(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return method(path, *arguments, **named)

    setattr(pathlib.Path, name, kill_or_call)


def use_dropout():
    """Adds dropout after every hidden layer of the digits' network."""
    import keras

    from gbn_keras.networks import names
    from gbn_keras.networks.normalized import classifier, dense

    def with_dropout(input_shape, classes, normalization):
        inputs = keras.Input(input_shape)
        x = keras.layers.Flatten()(inputs)
        for _ in range(4):
            x = keras.layers.ReLU()(dense(x, 128, normalization))
            x = keras.layers.Dropout(0.1)(x)
        return classifier(inputs, x, classes, "with_dropout")

    names.NETWORKS["f1_digits"] = with_dropout


if __name__ == "__main__":
    sys.exit(main())

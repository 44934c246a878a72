"""What makes a training the same one: its data, model and optimizer, as JSON."""

import itertools
import re
import sys

import keras
import numpy as np

from gbn_keras.resume.model_state import generators, variables_of
from gbn_keras.version import __version__

# Keras numbers the names of a process's layers, so the second model has other names.
_NUMBER = re.compile(r"_\d+(?![A-Za-z0-9])")


def identity(model: keras.Model, data: dict) -> dict:
    """All that must be the same when a training goes on, as values of JSON.

    Args:
        model: The model, compiled and built.
        data: What the order of the data depends on.
    """
    optimizer = keras.saving.serialize_keras_object(model.optimizer)
    # PyTorch's generators: the CPU's, and one of each GPU.
    gpus = list(generators())[1:]
    return {
        "backend": keras.backend.backend(),
        "data": data,
        "gpus": len(gpus) or None,
        "optimizer": {
            "class_name": optimizer["class_name"],
            **_without_names(plain(optimizer["config"])),
        },
        "variables": {
            kind: [
                f"{_NUMBER.sub('', variable.path)} {list(variable.shape)} "
                f"{keras.backend.standardize_dtype(variable.dtype)}"
                for variable in variables
            ]
            for kind, variables in variables_of(model).items()
        },
    }


def _without_names(config):
    """A configuration without its names, which Keras numbers, at any depth."""
    if not isinstance(config, dict):
        return config
    return {k: _without_names(v) for k, v in config.items() if k != "name"}


def difference(before, now, name: str = "") -> str:
    """Where two identities first differ, in words; empty if they are the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [(key, before.get(key), now.get(key)) for key in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list):
        parts = [(name, *pair) for pair in itertools.zip_longest(before, now)]
    else:
        return "" if before == now else f"{name}: {before} there, {now} here"
    found = (difference(was, value, key) for key, was, value in parts)
    return next(filter(None, found), "")


def plain(value):
    """A value as JSON has it: numbers and lists for arrays, the type of objects."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value).tolist()
    return type(value).__name__


def versions() -> dict[str, str]:
    """Versions of what computes, by name."""
    backend = keras.backend.backend()
    return {
        "gbn_keras": __version__,
        "keras": keras.__version__,
        backend: sys.modules[backend].__version__,
        "numpy": np.__version__,
    }

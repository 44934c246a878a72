"""The circumstances of a training: source, versions, machine, devices."""

import dataclasses
import os
import platform

import keras
import tensorflow as tf

from gbn_keras.training.run.processor import processor
from gbn_keras.training.run.source import commit
from gbn_keras.version import __version__


def circumstances(plan) -> dict:
    """Seed, settings, commit, versions and hardware of a training, for its record."""
    return {
        "seed": plan.settings.seed,
        "settings": dataclasses.asdict(plan.settings),
        "commit": commit(),
        "versions": versions(),
        "hardware": {**_hardware(), "replicas": plan.replicas},
    }


def versions() -> dict[str, str]:
    """The versions of the software that a result may depend on."""
    return {
        "gbn_keras": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _hardware():
    return {
        "machine": platform.machine(),
        **processor(),
        "cores": os.cpu_count(),
        "devices": [
            tf.config.experimental.get_device_details(device).get(
                "device_name", device.device_type
            )
            for device in tf.config.list_physical_devices()
        ],
    }

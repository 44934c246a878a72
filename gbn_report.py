"""Writes one HTML page about run directories: trainings, studies, sweeps, searches.

gbn-report RUN_OR_STUDY...
"""

# `import gbn_keras` imports Keras and TensorFlow, because that registers its layers.
# The page needs neither, so this file is not in that package and opens it from outside.

import importlib.util
import sys


def main(argv: list[str] | None = None) -> int:
    """Writes the page that the command line asks for; returns the exit code."""
    if "gbn_keras" not in sys.modules:
        # The package without what its `__init__` does: only a path to its modules.
        spec = importlib.util.find_spec("gbn_keras")
        assert spec is not None  # The two are installed together.
        sys.modules["gbn_keras"] = importlib.util.module_from_spec(spec)
    from gbn_keras.training.report import report

    return report.main(argv)


if __name__ == "__main__":
    sys.exit(main())

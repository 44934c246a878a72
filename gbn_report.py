"""Writes an HTML page about run directories: trainings, studies, sweeps, searches.

gbn-report RUN_OR_STUDY...
"""

# `import gbn_keras` imports Keras and TensorFlow, to register its layers. The page does
# not need them, so this file is outside the package and loads only some of its modules.

import importlib.util
import sys


def main(argv: list[str] | None = None) -> int:
    """Writes the page for the command line's run directories; returns the exit code."""
    if "gbn_keras" not in sys.modules:
        # An empty package with a path to its modules. Its `__init__` does not run.
        spec = importlib.util.find_spec("gbn_keras")
        assert spec is not None  # Both are installed together.
        sys.modules["gbn_keras"] = importlib.util.module_from_spec(spec)
    from gbn_keras.training.report import report

    return report.main(argv)


if __name__ == "__main__":
    sys.exit(main())

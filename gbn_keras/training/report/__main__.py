"""`python -m gbn_keras.training.report`."""

import sys

from gbn_keras.training.report.report import main

if __name__ == "__main__":
    sys.exit(main())

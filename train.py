"""`python train.py` in a checkout; where gbn-keras is installed, `gbn-train`."""

import sys

from gbn_train import main

if __name__ == "__main__":
    sys.exit(main())

"""Runs gbn-keras from a checkout: `python train.py`. Installed, it is `gbn-train`."""

import sys

from gbn_train import main

if __name__ == "__main__":
    sys.exit(main())

"""Data sets by name, in batches. A training can start at any update."""

"""Exact resume of any `fit`: checkpoints, and data that start at any batch."""

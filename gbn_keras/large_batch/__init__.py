"""Splits a batch into micro-batches and shares, with the same result.

`LargeBatchModel` needs TensorFlow. `GradientMoments` runs on any backend.
"""

"""The kernels that compute ghost batches."""

"""Splits a batch into micro-batches and shares, with the same result.

What backends do differently is in `backends`, everything else is in `keras.ops`.
"""

"""Marks of single cases."""

import pytest


def slow(*values):
    """A case of a test that others cover well enough by default."""
    return pytest.param(*values, marks=pytest.mark.slow)

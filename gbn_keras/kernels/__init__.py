"""How ghost batches are computed, where and how fast."""

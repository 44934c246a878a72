"""A named data set, as batches that any update can reach directly."""

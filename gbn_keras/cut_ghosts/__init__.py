"""Ghosts that replicas cut: their statistics and gradients from all their pieces."""

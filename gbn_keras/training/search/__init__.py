"""Searches for the best flags with keras-tuner."""

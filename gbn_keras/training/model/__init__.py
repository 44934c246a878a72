"""The model of a training: network and optimizer, compiled and traced."""

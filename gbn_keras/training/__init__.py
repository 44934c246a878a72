"""The parts of the program `train.py`. They need TensorFlow."""
